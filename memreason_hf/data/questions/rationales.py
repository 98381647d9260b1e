"""Questions of GSM8K and AQuA-RAT, whose steps are the lines of a rationale and have no kinds."""

import re
from collections.abc import Callable, Iterable, Mapping

from memreason_hf.data.questions.json_files import SourceItem
from memreason_hf.data.questions.text import one_line
from memreason_hf.steps import NO_KIND, Step


_CALCULATION = re.compile(r"<<[^<>]*>>")
_OPTION = re.compile(r"\s*\(?([A-E])\)\s*(.*)", re.DOTALL)
_HEADING = re.compile(r"(?:explanation|solution|sol|rationale)\s*[:.\-]*\s*", re.IGNORECASE)
# A line that only names the option: "Answer: B", "So the correct option is (C)."
_CHOICE = re.compile(
    r"(?:(?:so|hence|therefore|thus|the|correct|final|right|our|required)\W+)*"
    r"(?:(?:ans|answer|option|choice)\b\W*(?:(?:is|will be|option|choice|answer|correct)\W*)*)?[(\[]?[A-E][)\]]?\W*",
    re.IGNORECASE,
)


def gsm8k_item(row: Mapping) -> SourceItem:
    """
    A row of `openai/gsm8k`: `question`, and `answer` with one line for each step and `#### 72` at the end.

    Calculator marks (`<<48/2=24>>`) and commas in the answer are removed.

    Raises:
        ValueError: a field is missing, or the answer does not end with `####` and a number.

    Example:

        >>> gsm8k_item({"question": "6 times 7?", "answer": "It is <<6*7=42>>42.\\n#### 42"}).steps
        [Step(kind='step', text='It is 42.')]
    """
    _check(row, "question", "answer")
    rationale, separator, answer = row["answer"].rpartition("####")
    answer = answer.strip().replace(",", "").removeprefix("$")
    if not separator or not re.fullmatch(r"[-+]?\d*\.?\d+", answer):
        raise ValueError(f"answer={row['answer'][-60:]!r} must end with '####' and a number.")
    lines = [_CALCULATION.sub("", line).strip() for line in rationale.split("\n")]
    return SourceItem(one_line(row["question"]), {}, answer, [Step(NO_KIND, line) for line in lines if line])


def aqua_rat_item(row: Mapping) -> SourceItem:
    """
    A row of `deepmind/aqua_rat`: `question`, `options` (`A)21`), `rationale` and `correct`, a letter.

    Headings (`Explanation:`) and lines that only name the option do not become steps.

    Raises:
        ValueError: a field is missing, an option has no letter, or the answer is not an option.
    """
    _check(row, "question", "options", "rationale", "correct")
    matches = [_OPTION.match(option) for option in row["options"]]
    if not matches or not all(matches):
        raise ValueError(f"options={list(row['options'])!r} must all begin with a letter, as in 'A)21'.")
    options = {match[1]: one_line(match[2]) for match in matches}
    if row["correct"] not in options:
        raise ValueError(f"correct={row['correct']!r} must be one of the options {', '.join(options)}.")
    lines = [line.strip() for line in row["rationale"].split("\n")]
    if lines:
        lines[0] = _HEADING.sub("", lines[0], count=1) if _HEADING.match(lines[0]) else lines[0]
    steps = [Step(NO_KIND, line) for line in lines if line and not _CHOICE.fullmatch(line)]
    listed = " ".join(f"{label}. {text}" for label, text in options.items())
    return SourceItem(f"{one_line(row['question'])} Options: {listed}", options, row["correct"], steps)


def rationale_items(rows: Iterable[Mapping], make: Callable[[Mapping], SourceItem], where: str) -> list[SourceItem]:
    """
    The items of some rows.

    Args:
        rows: rows of a data set.
        make: makes an item of a row: `gsm8k_item` or `aqua_rat_item`.
        where: the source, for messages.

    Raises:
        ValueError: a row is malformed; names `where` and the row.
    """
    items = []
    for index, row in enumerate(rows):
        try:
            items.append(make(row))
        except ValueError as error:
            raise ValueError(f"{where}, item {index}: {error}") from None
    return items


def _check(row, *names):
    missing = [name for name in names if row.get(name) in (None, "")]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}.")
    for name in names:
        texts = row[name] if name == "options" else [row[name]]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name}={row[name]!r} must be {'a list of texts' if name == 'options' else 'a text'}.")
