"""
The answer rule: what a text answers, and whether that is right.

    answer = extract_answer("… The answer is: (see above) …", options={"A": "bank", "B": "mall"})
    verdict = judge_answer(text, reference="B", options={"A": "bank", "B": "mall"}, question=question)

The rule is narrower than that of the authors of "Disentangling Memory and Reasoning Ability in Large Language Models"
(arXiv 2411.13504), and gives the verdicts that they published.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from os import PathLike

from memreason_hf.checks import check_type
from memreason_hf.data.questions.options import TRUE_FALSE
from memreason_hf.files import read_json
from memreason_hf.steps import QUESTION_MARKER
from memreason_hf.steps.marks import FAMILY_TOKEN


_MARKER = re.compile(r"\bthe answer is[^\S\n]*:", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_LETTER = re.compile(r"([A-Za-z])(?=\s*$|[.,):])")
_NEXT_LETTER = re.compile(r"[\s.,):]*(?:(?:and|or|&)\s+)?([A-Za-z])(?=\s*$|[.,):])")
# Possessive quantifiers take all digits or none, because the first digits of a fraction are not the answer.
_NUMBER = re.compile(r"([-+]?)[$€£]?\s*([-+]?)(\d[\d,]*+(?:\.\d++)?+|\.\d++)(?!\s*/\s*\d)")


@dataclass(frozen=True)
class ExtractedAnswer:
    """
    What a text answers.

    Attributes:
        value: the label of an option, or a number without commas; None if the text gives no valid answer.
        text: the text after the last marker; None without a marker.
        several: whether the text names several options; the first one counts.
    """

    value: str | None
    text: str | None = None
    several: bool = False


@dataclass(frozen=True)
class Verdict:
    """
    Whether a text answers correctly.

    Attributes:
        answer: what the text answers; None if it gives no valid answer, which counts as wrong.
        reference: the right answer.
        is_correct: whether the two are the same.
        several: whether the text names several options; the first one counted.
    """

    answer: str | None
    reference: str
    is_correct: bool
    several: bool = False

    @property
    def is_valid(self) -> bool:
        return self.answer is not None


def extract_answer(
    text: str, options: Mapping[str, str], *, question: str | None = None, match_option_text: bool = False
) -> ExtractedAnswer:
    """
    Reads the text after the last `The answer is:` (in any case), up to the end of the line or the tokens of another
    step.

    True or false: the first word, in any case. Letters: a single letter at the start, in any case, followed by the end
    of the line or by one of `. , ) :`. Numbers, if there are no options: the number at the start. Anything else is not
    valid: a text without the marker, a sentence, a letter that is not an option.

    Args:
        text: a solution, or the question and a solution.
        options: labels to texts. The labels are `True` and `False`, or letters; empty if the answer is a number.
        question: if the text starts with it, the marker is searched for after it.
        match_option_text: also accept the text of an option for its label. This changes one published verdict.

    Raises:
        ValueError: the options have other labels.

    Example:

        >>> extract_answer("It floats. The answer is: b) mall", {"A": "bank", "B": "mall"})
        ExtractedAnswer(value='B', text='b) mall', several=False)
        >>> extract_answer("The answer is: the mall", {"A": "bank", "B": "mall"}).value is None
        True
        >>> extract_answer("The answer is: $1,200", {}).value
        '1200'
    """
    check_type("text", text, str, "a text")
    check_type("options", options, Mapping, "a mapping from labels to texts")
    position = 0 if question is None else end_of_question(text, question) or 0
    markers = list(_MARKER.finditer(text, position))
    if not markers:
        return ExtractedAnswer(None)
    answer = text[markers[-1].end() :].split("\n", 1)[0]
    following = FAMILY_TOKEN.search(answer)
    answer = (answer[: following.start()] if following else answer).strip()
    value, several = _READERS[answer_type(options)](answer, options)
    if value is None and match_option_text:
        value = _option_of_text(answer, options)
    return ExtractedAnswer(value, answer, several)


def answer_type(options: Mapping[str, str]) -> str:
    """
    `"true_false"`, `"letters"`, or `"number"` if there are no options.

    Raises:
        ValueError: the options have other labels.
    """
    if not options:
        return "number"
    if set(options) == set(TRUE_FALSE):
        return "true_false"
    if all(re.fullmatch("[A-Z]", label) for label in options):
        return "letters"
    raise ValueError(f"options={list(options)!r} must have the labels True and False, or capital letters.")


def judge_answer(
    text: str,
    reference: str,
    options: Mapping[str, str],
    *,
    question: str | None = None,
    match_option_text: bool = False,
) -> Verdict:
    """
    Compares what a text answers with the right answer. Numbers are compared by their value.

    Args:
        reference: a label, or a number.
        text, options, question, match_option_text: as for `extract_answer`.

    Raises:
        ValueError: the reference is not an option, or not a number where there are no options.

    Example:

        >>> judge_answer("The answer is: 1,200.0", "1200", {}).is_correct
        True
    """
    check_type("text", text, str, "a text")
    check_type("options", options, Mapping, "a mapping from labels to texts")
    if options and reference not in options:
        raise ValueError(f"reference={reference!r} must be one of the options {', '.join(options)}.")
    expected = _number(reference)[0] if not options else reference
    if expected is None:
        raise ValueError(f"reference={reference!r} must be a number, because there are no options.")
    answer = extract_answer(text, options, question=question, match_option_text=match_option_text)
    is_correct = answer.value == expected
    if not options and answer.value is not None:
        is_correct = Decimal(answer.value) == Decimal(expected)
    return Verdict(answer.value, reference, is_correct, answer.several)


def end_of_question(text: str, question: str) -> int | None:
    """
    The position in `text` after the question that it starts with; None if it does not start with the question. White
    space, and a `Question: ` before either, do not matter.

    Example:

        >>> end_of_question("Question: Is  it? It is.", "Is it?")
        17
    """
    letters = "".join(question.strip().removeprefix(QUESTION_MARKER.strip()).split())
    position = re.compile(rf"\s*(?:{QUESTION_MARKER.strip()})?").match(text).end()
    for letter in letters:
        while position < len(text) and text[position].isspace():
            position += 1
        if position == len(text) or text[position] != letter:
            return None
        position += 1
    return position


def read_published(path: str | PathLike) -> tuple[list[str], list[bool]]:
    """
    Reads a file of the authors' generated texts: a list of objects with `generated_text` and `result`.

    Returns:
        The texts, and whether each was judged correct.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has other contents; names the item.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a {type(rows).__name__}; it must hold a list of generated texts.")
    for index, row in enumerate(rows):
        missing = [key for key in ("generated_text", "result") if not isinstance(row, Mapping) or key not in row]
        if missing:
            raise ValueError(f"{path}, item {index}: lacks {', '.join(missing)}.")
        if row["result"] not in ("correct", "wrong"):
            raise ValueError(f"{path}, item {index}: result={row['result']!r} must be 'correct' or 'wrong'.")
    return [row["generated_text"] for row in rows], [row["result"] == "correct" for row in rows]


def _true_false(answer, options):
    word = _WORD.search(answer)
    labels = {label.lower(): label for label in options}
    return labels.get(word[0].lower()) if word else None, False


def _letter(answer, options):
    match = _LETTER.match(answer)
    if match is None or match[1].upper() not in options:
        return None, False
    following = _NEXT_LETTER.match(answer, match.end())
    several = following is not None and following[1].upper() in set(options) - {match[1].upper()}
    return match[1].upper(), several


def _number(answer, options=None):
    match = _NUMBER.match(answer)
    if match is None:
        return None, False
    sign = "-" if "-" in match[1] + match[2] else ""
    return sign + match[3].replace(",", ""), False


def _option_of_text(answer, options):
    labels = [label for label, text in options.items() if _plain(text) == _plain(answer)]
    return labels[0] if len(labels) == 1 else None


def _plain(text):
    return " ".join(text.casefold().split()).rstrip(" .")


_READERS = {"true_false": _true_false, "letters": _letter, "number": _number}
