"""
The schema of annotated questions: the columns of a data set, a row of it, and rows as JSON lines.

    row = question_row("Is ice lighter than water?", "True", steps=[Step("memory", "Ice floats.")])
    write_questions("questions.jsonl", [row])
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike

from datasets import DatasetDict, Features, List, Value

from memreason_hf.checks import check_row, check_sequence, check_type
from memreason_hf.data.questions.answer_types import (
    ANSWER_TYPES,
    FIXED_OPTIONS,
    answer_type_of,
    canonical_answer,
    guess_type,
)
from memreason_hf.data.questions.options import options_by_label, options_column
from memreason_hf.files import whole_file
from memreason_hf.steps import Step
from memreason_hf.steps.scheme import as_step


FEATURES = Features(
    {
        "question": Value("string"),
        "options": List({"label": Value("string"), "text": Value("string")}),
        "answer": Value("string"),
        "steps": List({"kind": Value("string"), "text": Value("string")}),
        "accepted_answers": List(Value("string")),
        "answer_type": Value("string"),
    }
)
# The columns that every saved data set has. The others are filled in.
OLDEST_COLUMNS = ("question", "options", "answer", "steps")


def question_row(
    question: str,
    answer: str,
    *,
    options: Mapping[str, str] | None = None,
    steps: Iterable[Step | Mapping] = (),
    accepted_answers: Iterable[str] = (),
    answer_type: str | None = None,
) -> dict:
    """
    A row with all columns of `FEATURES`.

    Args:
        question: as the model sees it, with its options.
        answer: the label of an option, a number, or a text.
        options: labels to texts; those of `true_false` and `yes_no` need not be given.
        steps: without the answer.
        accepted_answers: further right answers.
        answer_type: one of `ANSWER_TYPES`. Default: it follows from the options, or from the answer without any.

    Raises:
        ValueError: an answer is blank, not one of the options, or not of its type.

    Example:

        >>> row = question_row("Is ice lighter than water?", "true", options={"True": "True", "False": "False"})
        >>> row["answer"], row["answer_type"], row["steps"]
        ('True', 'true_false', [])
    """
    options = dict(options or {})
    guessed = answer_type_of(options) if options else guess_type(answer)
    chosen = guessed if answer_type is None else answer_type
    if options and chosen in ANSWER_TYPES and answer_type_of(options) != chosen:
        raise ValueError(f"answer_type={chosen!r} contradicts the options {', '.join(options)}.")
    if chosen == "letters" and not options:
        raise ValueError("answer_type='letters' needs options, but the row has none and its question lists none.")
    right = canonical_answer(chosen, answer, options)
    accepted = [canonical_answer(chosen, other, options) for other in accepted_answers]
    return {
        "question": question,
        "options": options_column(options or FIXED_OPTIONS.get(chosen, {})),
        "answer": right,
        "steps": [{"kind": step.kind, "text": step.text} for step in map(as_step, steps)],
        "accepted_answers": [other for other in dict.fromkeys(accepted) if other != right],
        "answer_type": chosen,
    }


def type_of_row(row: Mapping) -> str:
    """
    The type of a row's answer, also of a row without the column `answer_type`.

    Raises:
        ValueError: the row has neither a type nor options from which it follows.
    """
    return row.get("answer_type") or answer_type_of(options_by_label(row["options"]))


def fill_columns(dataset: DatasetDict) -> DatasetDict:
    """A data set that was saved without the newer columns, with all of them in the order of `FEATURES`."""
    filled = {}
    for split, part in dataset.items():
        missing = [name for name in FEATURES if name not in part.column_names]
        if "answer_type" in missing:
            part = part.add_column("answer_type", [type_of_row(row) for row in part], feature=FEATURES["answer_type"])
        if "accepted_answers" in missing:
            none = [[] for _ in range(len(part))]
            part = part.add_column("accepted_answers", none, feature=FEATURES["accepted_answers"])
        filled[split] = part.select_columns([*FEATURES]) if missing else part
    return DatasetDict(filled)


def question_line(row: Mapping) -> str:
    """
    A row as one line of JSON, with its newline. A file of such lines is read by `load_questions`, and can be appended
    to.

    Args:
        row: with `question` and `answer`; `options` are a mapping or the column, steps are `Step`s or mappings.

    Raises:
        ValueError, TypeError: as for `question_row`; a column is missing.

    Example:

        >>> line = question_line({"question": "6 times 7?", "answer": "42"})
        >>> json.loads(line)["answer_type"], line[-1]
        ('number', '\\n')
    """
    check_row("row", row, ("question", "answer"))
    for name in ("question", "answer"):
        check_type(f"row[{name!r}]", row[name], str, "a text")
    options = row.get("options") or {}
    whole = question_row(
        row["question"],
        row["answer"],
        options=options if isinstance(options, Mapping) else options_by_label(options),
        steps=row.get("steps") or (),
        accepted_answers=row.get("accepted_answers") or (),
        answer_type=row.get("answer_type"),
    )
    return json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n"


def write_questions(path: str | PathLike, rows: Sequence[Mapping], *, overwrite: bool = False) -> None:
    """
    Writes rows as JSON lines, the whole file or nothing.

    Args:
        path: of the file, usually with the suffix `.jsonl`.
        rows: see `question_line`.
        overwrite: whether to replace a file.

    Raises:
        FileExistsError: the file exists, and `overwrite` is false.
        ValueError, TypeError: a row is malformed; names it.
    """
    check_sequence("rows", rows, "a list of rows")
    lines = []
    for index, row in enumerate(rows):
        try:
            lines.append(question_line(row))
        except (TypeError, ValueError) as error:
            raise type(error)(f"rows[{index}]: {error}") from error
    with whole_file(path, overwrite=overwrite) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
