"""
The answer rule: what a text answers, and whether that is right.

    answer = extract_answer("… The answer is: (see above) …", options={"A": "bank", "B": "mall"})
    verdict = judge_answer(text, reference="B", options={"A": "bank", "B": "mall"}, question=question)
    items = match_items(texts, dataset["test"]["question"])

The rule is narrower than that of the authors of "Disentangling Memory and Reasoning Ability in Large Language Models",
and gives their published verdicts.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from os import PathLike
from pathlib import Path

from memreason_hf.data.questions.options import TRUE_FALSE
from memreason_hf.steps import QUESTION_MARKER
from memreason_hf.steps.marks import FAMILY_TOKEN


_MARKER = re.compile(r"\bthe answer is[^\S\n]*:", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_LETTER = re.compile(r"([A-Za-z])(?=\s*$|[.,):])")
_NEXT_LETTER = re.compile(r"[\s.,):]*(?:(?:and|or|&)\s+)?([A-Za-z])(?=\s*$|[.,):])")
# All digits or none: the first ones of a fraction are no number.
_NUMBER = re.compile(r"([-+]?)[$€£]?\s*([-+]?)(\d[\d,]*+(?:\.\d++)?+|\.\d++)(?!\s*/\s*\d)")


@dataclass(frozen=True)
class ExtractedAnswer:
    """
    What a text answers.

    Attributes:
        value: the label of an option, or a number without commas; None if the text gives no valid answer.
        said: what stands after the last marker; None without one.
        several: more than one option was named; the first counts.
    """

    value: str | None
    said: str | None = None
    several: bool = False


@dataclass(frozen=True)
class Verdict:
    """
    Whether a text answers rightly.

    Attributes:
        answer: what the text answers; None if it gives no valid answer, which is wrong.
        reference: the right answer.
        is_correct: the two are the same.
        several: more than one option was named; the first counted.
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
    What follows the last `The answer is:` (in any case), up to the end of the line or the tokens of another step.

    True or false: the first word, in any case. Letters: one that stands alone at the start, in any case, at the end of
    the line or before one of `. , ) :`. Numbers, where there are no options: the one at the start. Anything else is
    not valid: no marker, a sentence, a letter that is no option.

    Args:
        text: a solution, or the question and a solution.
        options: labels to texts: `True` and `False`, or letters; empty if the answer is a number.
        question: where the text begins with it, the marker is looked for after it.
        match_option_text: also take the text of an option for its label. It changes a published verdict.

    Raises:
        ValueError: other labels.
    """
    position = 0 if question is None else end_of_question(text, question) or 0
    markers = list(_MARKER.finditer(text, position))
    if not markers:
        return ExtractedAnswer(None)
    said = text[markers[-1].end() :].split("\n", 1)[0]
    following = FAMILY_TOKEN.search(said)
    said = (said[: following.start()] if following else said).strip()
    value, several = _READERS[answer_type(options)](said, options)
    if value is None and match_option_text:
        value = _option_of_text(said, options)
    return ExtractedAnswer(value, said, several)


def answer_type(options: Mapping[str, str]) -> str:
    """`"true_false"`, `"letters"` or `"number"` (no options). Raises ValueError for other labels."""
    if not options:
        return "number"
    if set(options) == set(TRUE_FALSE):
        return "true_false"
    if all(re.fullmatch("[A-Z]", label) for label in options):
        return "letters"
    raise ValueError(f"options={list(options)!r} are labelled neither True and False nor by capital letters.")


def judge_answer(
    text: str,
    reference: str,
    options: Mapping[str, str],
    *,
    question: str | None = None,
    match_option_text: bool = False,
) -> Verdict:
    """
    Compares what a text answers with the right answer; numbers by their value.

    Args:
        reference: a label, or a number.
        text, options, question, match_option_text: as for `extract_answer`.

    Raises:
        ValueError: the reference is no option, or no number where there are no options.
    """
    if options and reference not in options:
        raise ValueError(f"reference={reference!r} is none of the options {', '.join(options)}.")
    expected = _number(reference)[0] if not options else reference
    if expected is None:
        raise ValueError(f"reference={reference!r} must be a number, because there are no options.")
    found = extract_answer(text, options, question=question, match_option_text=match_option_text)
    same = found.value == expected
    if not options and found.value is not None:
        same = Decimal(found.value) == Decimal(expected)
    return Verdict(found.value, reference, same, found.several)


def end_of_question(text: str, question: str) -> int | None:
    """
    Where in the text the question ends that it begins with, white space and a `Question: ` in front of either aside;
    None if it does not begin with it.
    """
    letters = _without_white_space(question.strip().removeprefix(QUESTION_MARKER.strip()))
    position = re.compile(rf"\s*(?:{QUESTION_MARKER.strip()})?").match(text).end()
    for letter in letters:
        while position < len(text) and text[position].isspace():
            position += 1
        if position == len(text) or text[position] != letter:
            return None
        position += 1
    return position


def match_items(texts: Sequence[str], questions: Sequence[str]) -> list[int]:
    """
    The item of each text: the one whose question starts it, white space and a `Question: ` in front aside.

    Returns:
        An index into `questions` for each text.

    Raises:
        ValueError: a text that begins with the question of no item, or of two; names the text's index.
    """
    items = {}
    for item, question in enumerate(questions):
        items.setdefault(_key(question), []).append(item)
    lengths = sorted({len(key) for key in items})
    matched = []
    for index, text in enumerate(texts):
        key = _key(text)
        found = [item for length in lengths if length <= len(key) for item in items.get(key[:length], ())]
        if len(found) != 1:
            what = "no question" if not found else f"the questions of the items {', '.join(map(str, found))}"
            raise ValueError(f"Text {index}, {text[:80]!r}, begins with {what} of the {len(questions)} items.")
        matched += found
    return matched


def read_published(path: str | PathLike) -> tuple[list[str], list[bool]]:
    """
    Reads a file of the authors' generated texts: a list of objects with `generated_text` and `result`.

    Returns:
        The texts, and whether each was judged correct.

    Raises:
        ValueError: no such file; names the item.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file (damaged or cut off?): {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds a {type(rows).__name__}; it must hold a list of generated texts.")
    for index, row in enumerate(rows):
        missing = [key for key in ("generated_text", "result") if not isinstance(row, Mapping) or key not in row]
        if missing:
            raise ValueError(f"{path}, item {index}: lacks {', '.join(missing)}.")
        if row["result"] not in ("correct", "wrong"):
            raise ValueError(f"{path}, item {index}: result={row['result']!r} is neither 'correct' nor 'wrong'.")
    return [row["generated_text"] for row in rows], [row["result"] == "correct" for row in rows]


def _true_false(said, options):
    word = _WORD.search(said)
    labels = {label.lower(): label for label in options}
    return labels.get(word[0].lower()) if word else None, False


def _letter(said, options):
    match = _LETTER.match(said)
    if match is None or match[1].upper() not in options:
        return None, False
    following = _NEXT_LETTER.match(said, match.end())
    several = following is not None and following[1].upper() in set(options) - {match[1].upper()}
    return match[1].upper(), several


def _number(said, options=None):
    match = _NUMBER.match(said)
    if match is None:
        return None, False
    sign = "-" if "-" in match[1] + match[2] else ""
    return sign + match[3].replace(",", ""), False


def _option_of_text(said, options):
    labels = [label for label, text in options.items() if _plain(text) == _plain(said)]
    return labels[0] if len(labels) == 1 else None


def _plain(text):
    return " ".join(text.casefold().split()).rstrip(" .")


def _without_white_space(text):
    return "".join(text.split())


def _key(text):
    return _without_white_space(text).removeprefix(QUESTION_MARKER.strip())


_READERS = {"true_false": _true_false, "letters": _letter, "number": _number}
