"""
A calculator for worked sums in solutions: `12 <<3*4=12>> apples`.

    model.generate(**inputs, logits_processor=LogitsProcessorList([Calculator(tokenizer)]))
    [found.is_correct for found in find_sums(text)]

A model that was trained on texts with such annotations writes `<<3*4=`, and the calculator writes `12>>`. The form is
that of GSM8K (arXiv 2110.14168). An expression is read as arithmetic, number by number; it is never run as code.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from memreason_hf.checks import check_has, check_int, check_type


OPEN, CLOSE = "<<", ">>"
# A longer expression, deeper brackets or larger numbers are no sum of a solution.
_MOST_CHARACTERS, _MOST_BRACKETS, _MOST_BITS = 200, 20, 512
_MOST_DECIMALS = 20
# Tokens at the end of a text in which an open sum is looked for.
_TAIL = 64
# Of digits, ASCII alone.
_NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_TOKEN = re.compile(rf"\s*(?:[$€£]?({_NUMBER})|(\*\*|[-+*/()%^]))")
# The signs of multiplication, division and subtraction that texts have in place of those of keyboards.
_SIGNS = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-"})
_WHOLE = re.compile(rf"{OPEN}([^<>=\n]*)=([^<>=\n]*){CLOSE}")
_UNFINISHED = re.compile(rf"{OPEN}([^<>=\n]*)=([^<=\n]*)\Z")
_EXPRESSION = re.compile(rf"{OPEN}[^<>=\n]*\Z")
_RESULT = re.compile(r"[-.\d>]+")


def compute(expression: str) -> Fraction:
    """
    The exact value of an arithmetic expression.

    Numbers may have thousands (`1,200`), decimals, a currency sign before them or a per cent sign after them. The
    operations are `+ - * /`, `**` or `^` with a whole exponent, and brackets; the printed signs of multiplication,
    division and subtraction are read, too.

    Raises:
        ValueError: the text is no such expression, divides by zero, or is too long or too large.

    Example:

        >>> compute("(1,200 - 30) / 4")
        Fraction(585, 2)
    """
    check_type("expression", expression, str, "a text")
    if len(expression) > _MOST_CHARACTERS:
        raise ValueError(f"The expression has {len(expression)} characters, but at most {_MOST_CHARACTERS} are read.")
    return _Reader(expression).read()


def format_result(value: Fraction, decimals: int = 4) -> str:
    """
    A number in decimals without trailing zeros, rounded to `decimals` places, halves away from zero.

    Example:

        >>> format_result(Fraction(585, 2)), format_result(Fraction(-2, 3)), format_result(Fraction(12))
        ('292.5', '-0.6667', '12')
    """
    check_int("decimals", decimals, 0, _MOST_DECIMALS, "more are no result of a solution")
    scaled = abs(value) * 10**decimals
    whole = int(scaled + Fraction(1, 2))
    sign = "-" if value < 0 and whole else ""
    digits = f"{whole:0{decimals + 1}d}"
    text = f"{digits[: len(digits) - decimals]}.{digits[len(digits) - decimals :]}".rstrip("0").rstrip(".")
    return sign + text


@dataclass(frozen=True)
class WorkedSum:
    """
    A worked sum of a text.

    Attributes:
        expression, written: the texts before and after `=`.
        value: the value of the expression; None if it is not arithmetic.
        start, end: where the sum, with its brackets, starts and ends in the text.
    """

    expression: str
    written: str
    value: Fraction | None
    start: int
    end: int

    @property
    def is_correct(self) -> bool:
        """Whether the result is the value of the expression, exactly or rounded to the decimals that are written."""
        try:
            written = compute(self.written)
        except ValueError:
            return False
        if self.value is None or written == self.value:
            return self.value is not None
        decimals = len(self.written.strip().rpartition(".")[2]) if "." in self.written else 0
        # A whole number is no rounded one.
        return decimals > 0 and abs(written - self.value) * 10**decimals <= Fraction(1, 2)


def find_sums(text: str) -> list[WorkedSum]:
    """
    All worked sums of a text.

    Example:

        >>> [(found.expression, found.is_correct) for found in find_sums("<<10/3=3.33>>3.33, <<2+2=5>>5")]
        [('10/3', True), ('2+2', False)]
    """
    check_type("text", text, str, "a text")
    return [WorkedSum(match[1], match[2], _value(match[1]), *match.span()) for match in _WHOLE.finditer(text)]


class Calculator(LogitsProcessor):
    """
    Writes the results of worked sums while a model generates: after `<<3*4=` the only next tokens are those of `12>>`.

    It works with greedy search, sampling and beams, row by row, and keeps nothing between calls. An expression that
    `compute` refuses is left to the model.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of the model.
        decimals (`int`, *optional*, defaults to 4): The most decimals of a result, which is rounded to them.

    Raises:
        ValueError: the vocabulary cannot write a sum, for example because it consists of whole words.

    Example:

    ```python
    >>> from transformers import LogitsProcessorList

    >>> ids = tokenizer("It costs <<3*4=", return_tensors="pt")["input_ids"]
    >>> calculator = LogitsProcessorList([Calculator(tokenizer)])
    >>> output = model.generate(ids, max_new_tokens=4, do_sample=False, logits_processor=calculator)
    >>> tokenizer.decode(output[0], skip_special_tokens=True)
    'It costs <<3*4=12>>'
    ```
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, decimals: int = 4):
        check_has("tokenizer", tokenizer, "get_vocab", "a tokenizer")
        check_int("decimals", decimals, 0, _MOST_DECIMALS, "more are no result of a solution")
        self.tokenizer, self.decimals = tokenizer, decimals
        probe = f"{OPEN}12*3.5=-42{CLOSE}"
        if self._decode(self._encode(probe)).strip() != probe:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} writes {probe!r} as "
                f"{self._decode(self._encode(probe))!r}, so a calculator cannot continue its sums."
            )
        texts = {id_: self._decode([id_]) for id_ in tokenizer.get_vocab().values()}
        self._results = {text: id_ for id_, text in sorted(texts.items(), reverse=True) if _RESULT.fullmatch(text)}
        # A token that ends an expression and begins its result would decide the result before it is known.
        self._crossing = [id_ for id_, text in texts.items() if "=" in text and not text.endswith("=")]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """
        The scores of the next tokens, of shape `(batch, vocabulary)`: where a row is inside the result of a sum, all
        but its next token are minus infinity.
        """
        tails = [self._decode(row) for row in input_ids[:, -_TAIL:].tolist()]
        changed = None
        for row, tail in enumerate(tails):
            next_id, banned = self._next(tail), self._crossing if _EXPRESSION.search(tail) else []
            if next_id is None and not banned:
                continue
            changed = scores.clone() if changed is None else changed
            if next_id is None:
                changed[row, [id_ for id_ in banned if id_ < scores.shape[-1]]] = -torch.inf
            else:
                changed[row] = -torch.inf
                changed[row, next_id] = 0
        return scores if changed is None else changed

    def _next(self, tail) -> int | None:
        """The next token of the result that the text ends in; None if it ends in none."""
        match = _UNFINISHED.search(tail)
        value = None if match is None else _value(match[1])
        if value is None:
            return None
        result, written = format_result(value, self.decimals) + CLOSE, match[2].lstrip()
        if not result.startswith(written) or written == result:
            return None
        # The tokens as the tokenizer cuts them in a text, or else the longest one that fits.
        before = f"{match[1][-1]}="
        ids = self._encode(before + result)
        for length, id_ in enumerate(ids):
            if self._decode(ids[:length]).strip() == before + written:
                return id_
        rest = result[len(written) :]
        return next(self._results[rest[:end]] for end in range(len(rest), 0, -1) if rest[:end] in self._results)

    def _encode(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _decode(self, ids):
        # A special token between the signs of a sum is a part of it, so that it is none.
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _value(expression) -> Fraction | None:
    try:
        return compute(expression)
    except ValueError:
        return None


class _Reader:
    """Reads an expression by the usual precedence: brackets, powers, signs, products, sums."""

    def __init__(self, expression: str):
        self.expression = expression
        self.tokens, self.place, self.depth = [], 0, 0
        text, position = expression.translate(_SIGNS).rstrip(), 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(f"{text[position:].strip()[:10]!r} is no number and no operation")
            self.tokens.append(Fraction(match[1].replace(",", "")) if match[1] else match[2])
            position = match.end()

    def read(self) -> Fraction:
        if not self.tokens:
            raise self._error("it is empty")
        value = self._sum()
        if self.place < len(self.tokens):
            raise self._error(f"{self.tokens[self.place]} follows a complete expression")
        return value

    def _sum(self):
        value = self._product()
        while (sign := self._take("+", "-")) is not None:
            following = self._product()
            value = self._checked(value + following if sign == "+" else value - following)
        return value

    def _product(self):
        value = self._signed()
        while (sign := self._take("*", "/")) is not None:
            following = self._signed()
            if sign == "/" and following == 0:
                raise self._error("it divides by zero")
            value = self._checked(value * following if sign == "*" else value / following)
        return value

    def _signed(self):
        negative = False
        while (sign := self._take("+", "-")) is not None:
            negative ^= sign == "-"
        value = self._power()
        return -value if negative else value

    def _power(self):
        base = self._atom()
        if self._take("**", "^") is None:
            return base
        exponent = self._signed_exponent()
        if base == 0 and exponent < 0:
            raise self._error("it divides by zero")
        bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or bits * abs(exponent) > _MOST_BITS:
            raise self._error("the exponent must be a whole number, and the power not too large")
        return base ** int(exponent)

    def _signed_exponent(self):
        # A power is read from the right: 2**3**2 is 2**9. Each level takes a token, and brackets are counted.
        self._enter()
        value = self._signed()
        self.depth -= 1
        return value

    def _atom(self):
        if self._take("(") is not None:
            self._enter()
            value = self._sum()
            if self._take(")") is None:
                raise self._error("a bracket is not closed")
            self.depth -= 1
        elif self.place < len(self.tokens) and isinstance(self.tokens[self.place], Fraction):
            value = self._checked(self.tokens[self.place])
            self.place += 1
        else:
            found = self.tokens[self.place] if self.place < len(self.tokens) else "the end"
            raise self._error(f"a number is missing before {found}")
        while self._take("%") is not None:
            value /= 100
        return value

    def _take(self, *signs):
        """The next token if it is one of `signs`, which is then behind; or None."""
        token = self.tokens[self.place] if self.place < len(self.tokens) else None
        if token not in signs:
            return None
        self.place += 1
        return token

    def _enter(self):
        self.depth += 1
        if self.depth > _MOST_BRACKETS:
            raise self._error(f"more than {_MOST_BRACKETS} brackets or powers stand in each other")

    def _checked(self, value):
        if max(abs(value.numerator).bit_length(), value.denominator.bit_length()) > _MOST_BITS:
            raise self._error(f"a number has more than {_MOST_BITS} bits")
        return value

    def _error(self, reason):
        return ValueError(f"The expression {self.expression[:60]!r} is not arithmetic that is read here: {reason}.")
