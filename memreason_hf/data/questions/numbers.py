"""Numbers as answers write them: signs, currencies, thousands, decimals, fractions, exponents, and units."""

import re
from decimal import Decimal
from fractions import Fraction


# Thousands are groups of three digits, or of two with three at the end. Possessive quantifiers take all digits or
# none, because the first digits of a longer number are not the answer.
_DIGITS = r"(?:\d{1,3}+(?:,\d{2,3}+)*+(?<=,\d{3})(?!\d)|\d++)"
_NUMBER = re.compile(rf"([-+\u2212]?)[$€£]?\s*([-+\u2212]?)({_DIGITS}(?:\.\d++)?+|\.\d++)")
_EXPONENT = re.compile(r"[eE]([-+]?\d{1,3})(?!\w)")
_DENOMINATOR = re.compile(rf"\s*/\s*({_DIGITS}(?:\.\d++)?+)(?!\s*/\s*\d)")
_MIXED = re.compile(r"\s+(\d++)\s*/\s*(\d++)(?!\s*/\s*\d)")
# What follows makes it another value: a list or a decimal comma, a version, a time, a power, a date.
_CONTINUED = re.compile(r"[,.:^]\d|\s*/\s*\d")
# Of the numerator and the denominator of a fraction.
_MOST_DIGITS = 400


def read_number(text: str) -> str | None:
    """
    The number at the start of a text, whatever follows it (a unit, a full stop); None if there is none.

    A number may have a sign, a currency, thousands and an exponent, and may be a fraction (`3/4`, `1 1/2`). A decimal
    comma (`3,14`), a time, a power and a date are not read, because their first digits would be another value. A
    percentage is the number before its sign.

    Returns:
        The number without commas and currency, for `same_number`.

    Example:

        >>> read_number("$1,200.50 in all"), read_number("-3 / 4 of it"), read_number("1 1/2"), read_number("about 5")
        ('1200.50', '-3/4', '1 1/2', None)
    """
    return _read(text)[0]


def is_number(text: str) -> bool:
    """
    Whether a text is a number and nothing else, except a percent sign.

    Example:

        >>> is_number("1,200"), is_number("50%"), is_number("12 apples")
        (True, True, False)
    """
    number, end = _read(text.strip())
    return number is not None and text.strip()[end:] in ("", "%")


def same_number(one: str, other: str) -> bool:
    """
    Whether two results of `read_number` have the same value. No rounding takes place.

    Example:

        >>> same_number("0.75", "3/4"), same_number("1 1/2", "1.50"), same_number("0.33", "1/3")
        (True, True, False)
    """
    if "/" in one or "/" in other:
        return _fraction(one) == _fraction(other)
    return Decimal(one) == Decimal(other)


def number_key(number: str) -> str:
    """A text that all results of `read_number` with the same value share."""
    if "/" not in number and len(number) > _MOST_DIGITS:
        # Too long for a fraction to be written as a text; no rounding either.
        sign, digits, exponent = Decimal(number).as_tuple()
        text = "".join(map(str, digits)).lstrip("0")
        kept = text.rstrip("0")
        return f"{'-' * sign}{kept}e{exponent + len(text) - len(kept)}"
    return str(_fraction(number))


def _read(text):
    """The number at the start of a text and where it ends; None and 0 if there is none."""
    match = _NUMBER.match(text)
    if match is None:
        return None, 0
    sign = "-" if set("-\u2212") & set(match[1] + match[2]) else ""
    digits, end = match[3].replace(",", ""), match.end()
    if fraction := _DENOMINATOR.match(text, end):
        below = fraction[1].replace(",", "")
        is_readable = len(digits) <= _MOST_DIGITS and len(below) <= _MOST_DIGITS and Decimal(below) != 0
        return (f"{sign}{digits}/{below}", fraction.end()) if is_readable else (None, 0)
    if "." not in digits and (mixed := _MIXED.match(text, end)):
        is_readable = max(map(len, (digits, mixed[1], mixed[2]))) <= _MOST_DIGITS and int(mixed[2]) != 0
        return (f"{sign}{digits} {mixed[1]}/{mixed[2]}", mixed.end()) if is_readable else (None, 0)
    if exponent := _EXPONENT.match(text, end):
        digits, end = f"{digits}e{exponent[1]}", exponent.end()
    if _CONTINUED.match(text, end):
        return None, 0
    return sign + digits, end


def _fraction(number):
    sign = -1 if number.startswith("-") else 1
    whole, _, part = number.lstrip("+-").rpartition(" ")
    above, _, below = part.partition("/")
    value = Fraction(Decimal(above)) / Fraction(Decimal(below or "1"))
    return sign * (value + (int(whole) if whole else 0))
