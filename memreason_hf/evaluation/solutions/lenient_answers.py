r"""
The lenient answer rule: answers as models write them that were not trained for `The answer is: …`.

    find_lenient_answer("So the final answer is **(B)**.", 0)           # "**(B)**."
    read_lenient_answer("**(B)** bank", "letters", options, read_letter)  # "B"

An answer follows the last of `the answer is`, `Answer:` and `####`, or stands in the last `\boxed{…}`. It may be
wrapped in markup, parentheses or quotes.
"""

import re
from collections.abc import Callable, Mapping

from memreason_hf.data.questions.numbers import read_number
from memreason_hf.data.questions.options import TRUE_FALSE, YES_NO
from memreason_hf.steps.marks import FAMILY_TOKEN


_MARKER = re.compile(
    r"\banswer\b[*_]*(?:(?:[^\S\n]+to[^\S\n][^\n:.]{0,80}?)?[^\S\n]+(?:is|would[^\S\n]be)\b[*_]*[^\S\n]*:?|[^\S\n]*[:=])"
    r"|####",
    re.IGNORECASE,
)
_BOXED = re.compile(r"\\f?boxed\s*\{")
# Words for the other pair of labels: a model says yes where True is asked for.
_SYNONYMS = [*zip(TRUE_FALSE, YES_NO), *zip(YES_NO, TRUE_FALSE)]
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}")
_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|f?boxed|displaystyle|left|right)\b")
_SPACING = re.compile(r"\\[,;:! ]|\\[()\[\]]|~")
_MARKUP = str.maketrans("", "", '*`{}\\"\u201c\u201d\u00ab\u00bb')
_PAIRS = {"**": "**", "__": "__", "*": "*", "_": "_", "`": "`", '"': '"', "'": "'", "$": "$", "(": ")", "[": "]"}
_PAIRS |= {"\u201c": "\u201d", "\u2018": "\u2019", "\\(": "\\)", "\\[": "\\]"}
_LEAD = re.compile(r"\W*(?:(?:option|choice|letter|answer)\b\W*)?", re.IGNORECASE)
_IN_PARENTHESES = re.compile(r"\(([A-Z])\)")
_NUMBER_START = re.compile(r"(?<![\w.,/])[-+\u2212]?[$€£]?[-+\u2212]?\.?\d")
_NOT = re.compile(r"\bnot\b|n't\b", re.IGNORECASE)


def find_lenient_answer(text: str, position: int = 0) -> str | None:
    """
    The text of the answer: what follows the last marker on its line, or on the next line that is not blank, or what is
    in the last box. None if there is neither.

    Args:
        text: a solution, or the question and a solution.
        position: where to start.

    Example:

        >>> find_lenient_answer("The answer is\\n\\n**B**"), find_lenient_answer("$\\\\boxed{\\\\frac{3}{4}}$")
        ('**B**', '\\\\frac{3}{4}')
    """
    last = max(_MARKER.finditer(text, position), key=re.Match.start, default=None)
    box = max(_BOXED.finditer(text, position), key=re.Match.start, default=None)
    if box is not None and (last is None or box.start() > last.start()):
        return _until_brace(text, box.end()).strip()
    if last is None:
        return None
    rest = text[last.end() :]
    following = FAMILY_TOKEN.search(rest)
    rest = rest[: following.start()] if following else rest
    lines = (line.strip() for line in rest.split("\n"))
    return next((line for line in lines if line.strip("*_ ")), "")


def _until_brace(text, start):
    """The text up to the brace that closes one before `start`; all of it if none does."""
    depth = 1
    for match in re.compile(r"[{}\n]").finditer(text, start):
        if match[0] == "\n":
            return text[start : match.start()]
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[start : match.start()]
    return text[start:]


def read_lenient_answer(
    answer: str,
    answer_type: str,
    options: Mapping[str, str],
    read: Callable[[str, Mapping[str, str]], tuple[str | None, bool]],
) -> tuple[str | None, bool]:
    """
    Reads an answer that may be wrapped in markup, parentheses, quotes or a few words.

    Args:
        answer: from `find_lenient_answer`.
        answer_type: one of `ANSWER_TYPES`.
        options: labels to texts.
        read: the published rule for letters, which is tried before and after the wrapping is removed.

    Returns:
        The answer, None if there is none, and whether several options are named.
    """
    if answer_type == "text":
        return unwrapped(answer) or None, False
    plain = _COMMAND.sub("", _SPACING.sub("", _FRACTION.sub(r"\1/\2", answer))).translate(_MARKUP).strip()
    if answer_type == "letters":
        return _letter(answer, plain, options, read)
    return (_number(plain), False) if answer_type == "number" else (_label(plain, options), False)


def unwrapped(text: str) -> str:
    """
    A text without the markup, the quotes or the parentheses around it, and without a full stop at its end.

    Example:

        >>> unwrapped("**\\"the Nile\\"**."), unwrapped("\\\\text{Nile}")
        ('the Nile', 'Nile')
    """
    while True:
        short = text.strip().removesuffix(".").strip()
        command = re.fullmatch(r"\\(?:text|textbf|mathrm|f?boxed)\s*\{([^{}]*)\}", short)
        if command:
            short = command[1]
        for start, end in _PAIRS.items():
            if short.startswith(start) and short.endswith(end) and len(short) > len(start) + len(end):
                short = short[len(start) : -len(end)]
                break
        if short == text:
            return text
        text = short


def _letter(answer, plain, options, read):
    value, several = read(answer, options)
    if value is not None:
        return value, several
    # The parenthesis that closes stays: the published rule reads a letter before it.
    closed = re.sub(r"[(\[]", "", plain).replace("]", ")")
    closed = closed[_LEAD.match(closed).end() :]
    value, several = read(closed, options)
    if value is not None:
        return value, several
    label, _, rest = closed.partition(" ")
    text = options.get(label.upper())
    if text and " ".join(rest.casefold().split()).startswith(" ".join(text.casefold().split()).rstrip(".")):
        return label.upper(), False
    named = {letter for letter in _IN_PARENTHESES.findall(plain) if letter in options}
    return (named.pop(), False) if len(named) == 1 else (None, False)


def _label(plain, options):
    """The label that a text names: its first word, or the only one of its words that is one."""
    names = {label.lower(): label for label in options}
    names |= {said.lower(): label for label, said in _SYNONYMS if label in options}
    words = re.findall(r"\w+", plain.lower())
    if words and words[0] in names:
        return names[words[0]]
    named = {names[word] for word in words if word in names and word != "no"}
    return named.pop() if len(named) == 1 and not _NOT.search(plain) else None


def _number(plain):
    plain = plain.replace("$", "")
    value = read_number(plain.rpartition("=")[2].strip())
    if value is not None:
        return value
    found = [read_number(plain[match.start() :].lstrip()) for match in _NUMBER_START.finditer(plain)]
    return found[0] if len(found) == 1 else None
