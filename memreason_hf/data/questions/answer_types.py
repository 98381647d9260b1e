"""
Types of answers: letters of options, True or False, yes or no, numbers and free text.

    answer_type_of({"A": "bank", "B": "mall"})  # "letters"
    canonical_answer("number", "1,200 km", {})  # "1,200 km"; a ValueError if there is no number
    same_answer("number", "1,200 km", "1200")   # True
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from memreason_hf.checks import check_choice, shortened
from memreason_hf.data.questions.numbers import is_number, number_key, read_number, same_number
from memreason_hf.data.questions.options import TRUE_FALSE, YES_NO
from memreason_hf.data.questions.text import one_line


ANSWER_TYPES = ("letters", "true_false", "yes_no", "number", "text")
# The options of a type whose options are always the same.
FIXED_OPTIONS = {"true_false": TRUE_FALSE, "yes_no": YES_NO}

_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]?")
_EDGES = ".,;:!?\"'()[]{}<>*_`\u2026\u2018\u2019\u201c\u201d\u00ab\u00bb"
_ARTICLE = re.compile(r"\b(?:a|an|the)\b(?!['\u2019-])")
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010\u2011](?=[^\W\d_])")
_ABBREVIATION = re.compile(r"(?<=\b[^\W\d_])\.(?=[^\W\d_]\b)")


def answer_type_of(options: Mapping[str, str]) -> str:
    """
    The type of the answers to a question with these options; `"number"` if there are none.

    Raises:
        ValueError: the options have other labels.
    """
    if not options:
        return "number"
    for name, fixed in FIXED_OPTIONS.items():
        if set(options) == set(fixed):
            return name
    if all(re.fullmatch("[A-Z]", label) for label in options):
        return "letters"
    raise ValueError(f"options={list(options)!r} must have the labels True and False, Yes and No, or capital letters.")


def guess_type(answer: str) -> str:
    """The type of an answer to a question without options."""
    plain = answer.strip().casefold()
    for name, fixed in FIXED_OPTIONS.items():
        if plain in map(str.casefold, fixed):
            return name
    return "number" if is_number(answer) else "text"


def not_a_number(answers: Sequence[str]) -> int | None:
    """
    The index of the first answer because of which answers that look like numbers are texts: most of them begin with
    a number, but not all of them are numbers and nothing else. None for other answers.

    Example:

        >>> not_a_number(["12", "13 apples", "14"]), not_a_number(["12", "13"]), not_a_number(["12", "Rome", "Nile"])
        (1, None, None)
    """
    num_led = sum(read_number(answer.strip()) is not None for answer in answers)
    if 2 * num_led <= len(answers):
        return None
    return next((index for index, answer in enumerate(answers) if not is_number(answer)), None)


def read_letter(answer: str) -> str | None:
    """The letter of an answer that is nothing else: `B`, `b`, `(B)`, `B.`; None otherwise."""
    match = _LETTER.fullmatch(answer.strip())
    return match[1].upper() if match else None


def canonical_answer(answer_type: str, answer: str, options: Mapping[str, str]) -> str:
    """
    An answer as the column `answer` holds it: the label of an option in its own spelling, a number as it is written,
    or a text on one line.

    Raises:
        ValueError: the answer is blank, not one of the options, or no number.
    """
    check_choice("answer_type", answer_type, ANSWER_TYPES)
    text = one_line(answer)
    if not text:
        raise ValueError("answer is blank.")
    if answer_type == "text":
        return text
    if answer_type == "number":
        if read_number(text) is None:
            raise ValueError(f"answer={shortened(text)} must be a number.")
        return text
    labels = options or FIXED_OPTIONS.get(answer_type, {})
    by_name = {label.casefold(): label for label in labels}
    letter = read_letter(text) if answer_type == "letters" else None
    label = by_name.get((letter or text.rstrip(".")).casefold())
    if label is None:
        raise ValueError(f"answer={shortened(text)} must be one of the options {', '.join(labels) or '(none)'}.")
    return label


def normalized_text(text: str) -> str:
    """
    A free text for comparison: without case, articles, repeated white space and punctuation around words. Hyphens
    between letters count as spaces, and the stops of abbreviations do not count. Signs such as `+`, `-`, `%` and `#`
    stay, because they change what is meant.

    Example:

        >>> normalized_text("The  U.S. Navy."), normalized_text("twenty-one"), normalized_text("C++")
        ('us navy', 'twenty one', 'c++')
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = (word.strip(_EDGES) for word in _HYPHEN.sub(" ", _ABBREVIATION.sub("", plain)).split())
    kept = " ".join(_ARTICLE.sub(" ", " ".join(words)).split())
    # An answer can consist of what is left out elsewhere: the letter A, a question mark.
    return kept or " ".join(plain.split())


def answer_key(answer_type: str, answer: str) -> str:
    """
    A text that equal answers share, for counting them.

    Args:
        answer_type: one of `ANSWER_TYPES`.
        answer: a label, a text that begins with a number, or a free text.

    Example:

        >>> answer_key("number", "1,200 km") == answer_key("number", "1200.0")
        True
    """
    if answer_type == "number" or (answer_type == "text" and is_number(answer)):
        number = read_number(answer.strip())
        return answer if number is None else number_key(number)
    return normalized_text(answer) if answer_type == "text" else answer


def same_answer(answer_type: str, one: str, other: str) -> bool:
    """
    Whether two answers are the same: labels letter by letter, numbers by their value, free texts after
    `normalized_text`, or by their value if both are numbers.

    Example:

        >>> same_answer("number", "3/4", "0.75"), same_answer("text", "the Nile.", "Nile")
        (True, True)
    """
    are_numbers = answer_type == "number" or (answer_type == "text" and is_number(one) and is_number(other))
    if are_numbers:
        numbers = read_number(one.strip()), read_number(other.strip())
        return None not in numbers and same_number(*numbers)
    return answer_key(answer_type, one) == answer_key(answer_type, other)
