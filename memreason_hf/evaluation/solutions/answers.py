"""
The answer rules: what a text answers, and whether that is right.

    answer = extract_answer("… The answer is: (see above) …", options={"A": "bank", "B": "mall"})
    verdict = judge_answer(text, reference="B", options={"A": "bank", "B": "mall"}, question=question)
    verdict = judge_row(text, dataset["test"][0], rule="lenient")

The published rule is narrower than that of the authors of "Disentangling Memory and Reasoning Ability in Large
Language Models" (arXiv 2411.13504), and gives the verdicts that they published. The lenient rule (`lenient_answers`)
also reads what models write that were not trained for the format.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike

from memreason_hf.checks import check_choice, check_row, check_sequence, check_type
from memreason_hf.data.questions.answer_types import (
    ANSWER_TYPES,
    FIXED_OPTIONS,
    answer_type_of,
    canonical_answer,
    same_answer,
)
from memreason_hf.data.questions.numbers import read_number
from memreason_hf.data.questions.options import options_by_label
from memreason_hf.data.questions.schema import type_of_row
from memreason_hf.evaluation.solutions.lenient_answers import find_lenient_answer, read_lenient_answer
from memreason_hf.files import read_json
from memreason_hf.messages import first_few
from memreason_hf.steps import QUESTION_MARKER
from memreason_hf.steps.marks import FAMILY_TOKEN


ANSWER_RULES = ("published", "lenient")

_MARKER = re.compile(r"\bthe answer is[^\S\n]*:", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_LETTER = re.compile(r"([A-Za-z])(?=\s*$|[.,):])")
_NEXT_LETTER = re.compile(r"[\s.,):]*(?:(?:and|or|&)\s+)?([A-Za-z])(?=\s*$|[.,):])")


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
        by_judge: whether a language model decided about a free text (`answer_judges`).
        is_undecided: whether it was asked, and gave no readable reply; the answer counts as wrong.
    """

    answer: str | None
    reference: str
    is_correct: bool
    several: bool = False
    by_judge: bool = False
    is_undecided: bool = False

    @property
    def is_valid(self) -> bool:
        return self.answer is not None

    @property
    def said_by_judge(self) -> str | None:
        """What a language model said: `"right"`, `"wrong"` or `"undecided"`; None if it was not asked."""
        if self.by_judge:
            return "right" if self.is_correct else "wrong"
        return "undecided" if self.is_undecided else None


def extract_answer(
    text: str,
    options: Mapping[str, str],
    *,
    answer_type: str | None = None,
    rule: str = "published",
    question: str | None = None,
    match_option_text: bool = False,
) -> ExtractedAnswer:
    """
    Reads the text after the last `The answer is:` (in any case), up to the end of the line or the tokens of another
    step.

    True or false, yes or no: the first word, in any case. Letters: a single letter at the start, in any case, followed
    by the end of the line or by one of `. , ) :`. Numbers: the number at the start (`read_number`). Free text: all of
    it. Anything else is not valid: a text without the marker, a sentence, a letter that is not an option.

    Args:
        text: a solution, or the question and a solution.
        options: labels to texts. The labels are `True` and `False`, `Yes` and `No`, or letters; empty for numbers and
            free text.
        answer_type: one of `ANSWER_TYPES`. Default: it follows from the options; a number without any.
        rule: `"published"`, or `"lenient"`, which also reads `(A)`, `**A**`, `\\boxed{A}`, `Answer: A`, `#### 72` and
            the like.
        question: if the text starts with it, the marker is searched for after it.
        match_option_text: also accept the text of an option for its label. This changes one published verdict. The
            lenient rule always does.

    Raises:
        ValueError: the options have other labels, or an unknown type or rule.

    Example:

        >>> extract_answer("It floats. The answer is: b) mall", {"A": "bank", "B": "mall"})
        ExtractedAnswer(value='B', text='b) mall', several=False)
        >>> extract_answer("The answer is: the mall", {"A": "bank", "B": "mall"}).value is None
        True
        >>> extract_answer("The answer is: $1,200", {}).value
        '1200'
        >>> extract_answer("So it is **(B)**.\\nAnswer: **(B)**", {"A": "bank", "B": "mall"}, rule="lenient").value
        'B'
    """
    check_type("text", text, str, "a text")
    check_type("options", options, Mapping, "a mapping from labels to texts")
    check_choice("rule", rule, ANSWER_RULES)
    chosen, options = _typed_options(answer_type, options)
    position = 0 if question is None else end_of_question(text, question) or 0
    answer = find_lenient_answer(text, position) if rule == "lenient" else _find_answer(text, position)
    if answer is None:
        return ExtractedAnswer(None)
    read = _READERS[chosen]
    lenient = rule == "lenient"
    value, several = read_lenient_answer(answer, chosen, options, read) if lenient else read(answer, options)
    if value is None and (match_option_text or lenient):
        value = _option_of_text(answer, options)
    return ExtractedAnswer(value, answer, several)


def judge_answer(
    text: str,
    reference: str,
    options: Mapping[str, str],
    *,
    answer_type: str | None = None,
    accepted_answers: Iterable[str] = (),
    rule: str = "published",
    question: str | None = None,
    match_option_text: bool = False,
) -> Verdict:
    """
    Compares what a text answers with the right answers: labels as they are, numbers by their value, free texts after
    `normalized_text`. `answer_judges` asks a language model about texts in other words.

    Args:
        reference: a label, a number or a text.
        accepted_answers: further right answers.
        text, options, answer_type, rule, question, match_option_text: as for `extract_answer`.

    Raises:
        ValueError: a right answer is not an option, or not a number where it must be one.

    Example:

        >>> judge_answer("The answer is: 1,200.0", "1200", {}).is_correct
        True
        >>> judge_answer("The answer is: the Nile.", "Nile", {}, answer_type="text").is_correct
        True
    """
    check_type("text", text, str, "a text")
    check_type("options", options, Mapping, "a mapping from labels to texts")
    check_sequence("accepted_answers", accepted_answers, "a list of texts")
    chosen, options = _typed_options(answer_type, options)
    right = [reference, *accepted_answers]
    for name, expected in zip(("reference", *["accepted_answers"] * len(right)), right):
        _check_reference(name, expected, chosen, options)
    answer = extract_answer(
        text, options, answer_type=chosen, rule=rule, question=question, match_option_text=match_option_text
    )
    is_correct = answer.value is not None and any(same_answer(chosen, answer.value, other) for other in right)
    return Verdict(answer.value, reference, is_correct, answer.several)


def judge_row(text: str, row: Mapping, **kwargs) -> Verdict:
    """
    Compares what a text answers with the right answers of a row of a data set (`load_questions`).

    Args:
        text: a solution, or the question and a solution.
        row: with `answer`, `options` and, if it has them, `answer_type` and `accepted_answers`.
        kwargs: for `judge_answer`: `rule`, `question`, `match_option_text`.

    Raises:
        ValueError: as for `judge_answer`, or a column is missing.
    """
    check_row("row", row, ("answer", "options"))
    return judge_answer(
        text,
        row["answer"],
        options_by_label(row["options"]),
        answer_type=type_of_row(row),
        accepted_answers=row.get("accepted_answers") or (),
        **kwargs,
    )


def check_answers(rows: Iterable[Mapping]) -> None:
    """
    Checks that solutions of these rows can be judged, before they are generated.

    Raises:
        ValueError: the right answer of a row is none of its options, or not of its type; names the rows.
    """
    problems = []
    for index, row in enumerate(rows):
        check_row(f"rows[{index}]", row, ("answer", "options"))
        try:
            chosen, options = _typed_options(type_of_row(row), options_by_label(row["options"]))
            for expected in (row["answer"], *(row.get("accepted_answers") or ())):
                _check_reference("answer", expected, chosen, options)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            problems.append(f"rows[{index}]: {error}")
    if problems:
        raise ValueError(
            f"{len(problems):,} rows have answers that cannot be judged: {first_few(problems, 3)} Load the data with "
            "load_questions, which checks them, or set their answer_type."
        )


def _find_answer(text, position):
    """The text after the last marker, on its line and within its step; None without a marker."""
    markers = list(_MARKER.finditer(text, position))
    if not markers:
        return None
    answer = text[markers[-1].end() :].split("\n", 1)[0]
    following = FAMILY_TOKEN.search(answer)
    return (answer[: following.start()] if following else answer).strip()


def _typed_options(answer_type, options):
    """The type of the answers, and the options, which some types have by themselves."""
    if answer_type is None:
        return answer_type_of(options), options
    check_choice("answer_type", answer_type, ANSWER_TYPES)
    options = options or FIXED_OPTIONS.get(answer_type, {})
    needed = {"number": "number", "text": "number"}.get(answer_type, answer_type)
    if answer_type_of(options) != needed:
        labels = ", ".join(options) or "none"
        raise ValueError(f"answer_type={answer_type!r} does not fit the options, whose labels are {labels}.")
    return answer_type, options


def _check_reference(name, expected, answer_type, options):
    check_type(name, expected, str, "a text")
    if options and expected not in options:
        raise ValueError(f"{name}={expected!r} must be one of the options {', '.join(options)}.")
    if answer_type == "number" and read_number(expected) is None:
        raise ValueError(f"{name}={expected!r} must be a number, because there are no options.")
    canonical_answer(answer_type, expected, options)


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


def _one_word(answer, options):
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


def _number(answer, options):
    return read_number(answer), False


def _text(answer, options):
    return answer or None, False


def _option_of_text(answer, options):
    labels = [label for label, text in options.items() if _plain(text) == _plain(answer)]
    return labels[0] if len(labels) == 1 else None


def _plain(text):
    return " ".join(text.casefold().split()).rstrip(" .")


_READERS = {"true_false": _one_word, "yes_no": _one_word, "letters": _letter, "number": _number, "text": _text}
