"""
Files of generated texts, of any origin, as rows with the same fields.

    texts = read_texts("runs/strategy_qa/test.jsonl")                       # of memreason evaluate-steps
    texts = read_texts("published.json")                                    # of the study
    texts = read_texts("mine.jsonl", {"text": "output", "reference": "gold"})
    rows = join_questions(texts, dataset["test"])                           # the answers of a data set
    rows = complete_rows(rows)                                              # types and options of the answers
"""

import dataclasses
import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet
from transformers.utils import logging

from memreason_hf.checks import shortened
from memreason_hf.data.questions.answer_types import (
    FIXED_OPTIONS,
    answer_type_of,
    canonical_answer,
    guess_type,
    not_a_number,
    read_letter,
)
from memreason_hf.data.questions.options import find_options, options_by_label
from memreason_hf.evaluation.solutions.generation_files import FIELDS, SETTINGS_SUFFIX
from memreason_hf.files import parse_json, read_bytes, read_json
from memreason_hf.steps import QUESTION_MARKER, Step, StepScheme
from memreason_hf.steps.scheme import as_step


logger = logging.get_logger(__name__)

# What a row can have, and the columns that it is read from where the user does not name one.
COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text", "generated_text"),
    "question": ("question",),
    "reference": ("reference",),
    "options": ("options",),
    "steps": (),
    "verdict": ("verdict", "result"),
    "answer_type": ("answer_type",),
    "accepted_answers": ("accepted_answers",),
}
_VERDICTS = {"correct": True, "wrong": False, "right": True, "incorrect": False, "true": True, "false": False}
_ANY_LETTER = dict.fromkeys(string.ascii_uppercase, "")
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class TextRow:
    """
    One generated text.

    Attributes:
        index: its number in the file, from 0; in a file of `memreason evaluate-steps` the index of its item.
        text: the solution, with or without the question before it.
        question: the question, if the file or a data set gives it.
        reference: the right answer; None as long as it is not known.
        options: labels to texts; empty if there are none, None as long as they are not known.
        steps: correct steps, without the answer; empty if there are none.
        verdict: whether the file says that the answer is right; None if it does not say.
        answer_type, accepted_answers: as in a data set of questions.
    """

    index: int
    text: str
    question: str | None = None
    reference: str | None = None
    options: Mapping[str, str] | None = None
    steps: tuple[Step, ...] = ()
    verdict: bool | None = None
    answer_type: str | None = None
    accepted_answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextFile:
    """
    A file of generated texts.

    Attributes:
        path: where it is.
        rows: its texts.
        scheme: the scheme in the settings next to a file of `memreason evaluate-steps`; None without one.
        is_indexed: whether `index` of a row is the index of its item in the data set.
        data_name: the name of the data set in those settings.
    """

    path: Path
    rows: list[TextRow]
    scheme: StepScheme | None = None
    is_indexed: bool = False
    data_name: str | None = None


def read_texts(path: str | os.PathLike, columns: Mapping[str, str] | None = None) -> TextFile:
    """
    Reads a file of generated texts: JSON lines, a JSON list of objects, or parquet.

    Args:
        path: the file.
        columns: for each name of `COLUMNS` the column of the file. A file of `memreason evaluate-steps` and one of
            the study (`generated_text`, `result`) are read without.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, has no texts, or lacks a column; names the line or item.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{os.fspath(path)!r}: no such file. Pass a file of generated texts.")
    path = Path(path)
    columns = dict(columns or {})
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise ValueError(f"columns: {unknown[0]!r} must be one of {', '.join(COLUMNS)}.")
    content = read_bytes(path)
    where, items = _read_items(path, content)
    if not items:
        raise ValueError(f"{path} holds no texts.")
    is_ours = not columns and all(isinstance(item, Mapping) and all(name in item for name in FIELDS) for item in items)
    rows = []
    for number, item in enumerate(items):
        try:
            rows.append(_read_row(number, item, columns, is_ours))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, {where(number)}: {error}") from None
    if is_ours:
        # As in a resumed run, the last line of an item, or of a sample of it, counts.
        keys = [(item["index"], item.get("sample")) for item in items]
        rows = sorted(dict(zip(keys, rows)).values(), key=lambda row: row.index)
    settings = _saved_settings(path) if is_ours else {}
    name = settings.get("name")
    return TextFile(path, rows, _saved_scheme(settings), is_ours, name if isinstance(name, str) else None)


def join_questions(texts: TextFile, items: Sequence[Mapping]) -> list[TextRow]:
    """
    The texts with the questions, options, answers and steps of a data set.

    A text of `memreason evaluate-steps` belongs to the item of its index, any other one to the item whose question it
    has or starts with, apart from white space. Texts need not be in the order of the items, and an item may have
    several or none.

    Args:
        texts: from `read_texts`.
        items: rows with `question`, `options`, `answer` and `steps`.

    Raises:
        ValueError: a text belongs to no item, or to items that differ in more than their steps; names the text.
    """
    items = list(items)
    if texts.is_indexed:
        places = [_place_of_index(texts.path, row, items) for row in texts.rows]
    else:
        given = [row.question if row.question is not None else row.text for row in texts.rows]
        try:
            places = match_questions(given, items)
        except ValueError as error:
            raise ValueError(f"{texts.path}: {error}") from None
    joined = [_joined(row, items[place]) for row, place in zip(texts.rows, places)]
    for before, row in zip(texts.rows, joined) if texts.is_indexed else ():
        if before.reference != row.reference:
            raise ValueError(
                f"{texts.path}: the right answer of item {row.index} is {before.reference!r} in the file, but "
                f"{row.reference!r} in the data. The file holds solutions of other data."
            )
    return joined


def match_questions(texts: Sequence[str], items: Sequence[Mapping]) -> list[int]:
    """
    The item of each text: the one whose question starts it, apart from white space and a `Question: ` before it.

    Args:
        texts: questions, or questions with solutions.
        items: rows with `question`. Items with the same question, options and answer count as one, the first of them.

    Returns:
        An index into `items` for each text.

    Raises:
        ValueError: a text starts with the question of no item, or of several; names the index of the text.

    Example:

        >>> items = [{"question": "Is it?"}, {"question": "Was it?"}]
        >>> match_questions(["Question: Was  it?\\n<memory> It was."], items)
        [1]
    """
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        same = places.setdefault(_key(item["question"]), [])
        if not any(_is_same(items[other], item) for other in same):
            same.append(place)
    lengths = sorted({len(key) for key in places})
    matched = []
    for index, text in enumerate(texts):
        key = _key(text)
        # A text that is only a question has no other.
        found = places.get(key) or [
            place for length in lengths if length <= len(key) for place in places.get(key[:length], ())
        ]
        if len(found) != 1:
            what = "no question" if not found else f"the questions of the items {', '.join(map(str, found))}"
            raise ValueError(f"Text {index}, {text[:80]!r}, begins with {what} of the {len(items)} items.")
        matched += found
    return matched


def complete_rows(rows: Sequence[TextRow]) -> list[TextRow]:
    """
    Rows whose options and type of answer are known, with the right answers in the spelling of their options.

    Where neither the file nor a data set gives them, the options are those that the question lists if the right answer
    is one of them. All other right answers are taken together: if all are single letters, True or False, yes or no, or
    numbers, they are of this type, and otherwise texts.

    Raises:
        ValueError: a right answer is not known, or not one of the options; names the text.

    Example:

        >>> rows = [TextRow(0, "a", reference="12"), TextRow(1, "b", reference="3/4")]
        >>> [row.answer_type for row in complete_rows(rows)]
        ['number', 'number']
        >>> [row.answer_type for row in complete_rows([*rows, TextRow(2, "c", reference="the Nile")])]
        ['text', 'text', 'text']
    """
    typed = []
    for row in rows:
        if row.reference is None:
            raise ValueError(
                f"text {row.index}: the right answer is not known. Name its column (--columns reference=NAME), or "
                "pass the data set of the questions (--data)."
            )
        typed.append(_with_listed_options(row))
    guesses = {_guess(row.reference) for row in typed if row.answer_type is None}
    guess = next(iter(guesses)) if len(guesses) == 1 else "text"
    if guess == "text":
        _warn_of_units([row for row in typed if row.answer_type is None])
    completed = []
    for row in typed:
        chosen = guess if row.answer_type is None else row.answer_type
        try:
            options = row.options or (_ANY_LETTER if chosen == "letters" else FIXED_OPTIONS.get(chosen, {}))
            right = canonical_answer(chosen, row.reference, options)
            accepted = tuple(canonical_answer(chosen, other, options) for other in row.accepted_answers)
        except ValueError as error:
            raise ValueError(f"text {row.index}: {error}") from None
        changes = {"reference": right, "options": dict(options), "answer_type": chosen, "accepted_answers": accepted}
        completed.append(dataclasses.replace(row, **changes))
    return completed


def _warn_of_units(rows):
    """Says which right answer makes numbers texts, for example by its unit."""
    index = not_a_number([row.reference for row in rows])
    if index is not None:
        logger.warning(
            f"Most right answers begin with a number, but {shortened(rows[index].reference)} of text "
            f"{rows[index].index} is no number alone, so all are compared as texts, with their units. If they are "
            "numbers, pass --answer_type number, which leaves units off, or give the column answer_type."
        )


def _with_listed_options(row):
    """A row whose type of answer follows from its options, if it has any or its question lists some."""
    if row.answer_type is not None:
        return row
    options = row.options
    if options is None:
        listed = find_options(row.question if row.question is not None else row.text)
        options = listed if read_letter(row.reference) in listed else None
    return dataclasses.replace(row, options=options, answer_type=answer_type_of(options)) if options else row


def _guess(answer):
    return "letters" if len(answer) == 1 and answer in string.ascii_uppercase else guess_type(answer)


def _read_items(path, content):
    """How messages name an item, and the items of a file."""
    if content[:4] == _PARQUET:
        try:
            items = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read as parquet: {error}") from None
        return "row {}".format, items
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be JSON in UTF-8, or parquet ({error}).") from None
    if text.lstrip().startswith("["):
        try:
            items = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{path} is not a JSON file (damaged or cut off?): {error}") from None
        return "item {}".format, items
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    items = []
    for place, (number, line) in enumerate(lines):
        try:
            items.append(parse_json(line))
        except ValueError as error:
            # A run that was stopped leaves an unfinished last line.
            if place == len(lines) - 1 and items and not text.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error}).") from None
    return lambda index: f"line {lines[index][0]}", items


def _read_row(number, item, columns, is_ours):
    if not isinstance(item, Mapping):
        raise ValueError(f"must be an object, got {shortened(item)}.")
    values = {name: _value(name, item, columns) for name in COLUMNS}
    if values["text"] is None and columns.get("text", "text") in item:
        raise ValueError(f"{columns.get('text', 'text')}=null must be a text. Leave the row out.")
    if values["text"] is None:
        raise ValueError(
            f"lacks the column of the text. It has {', '.join(map(str, item))}. Name it: --columns text=NAME."
        )
    for name in ("text", "question", "answer_type"):
        if values[name] is not None and not isinstance(values[name], str):
            raise ValueError(f"{columns.get(name, name)}={shortened(values[name])} must be a text.")
    if is_ours and (not isinstance(item["index"], int) or item["index"] < 0):
        raise ValueError(f"index={item['index']!r} must be at least 0.")
    return TextRow(
        index=item["index"] if is_ours else number,
        text=values["text"],
        question=values["question"],
        reference=_reference(values["reference"]),
        options=_options(values["options"]),
        # The steps of our own files are those of the text.
        steps=tuple(map(as_step, values["steps"] or ())),
        verdict=_verdict(values["verdict"]),
        answer_type=values["answer_type"],
        accepted_answers=tuple(values["accepted_answers"] or ()),
    )


def _value(name, item, columns):
    if name in columns:
        if columns[name] not in item:
            raise ValueError(f"lacks the column {columns[name]!r}. It has {', '.join(map(str, item))}.")
        return item[columns[name]]
    return next((item[column] for column in COLUMNS[name] if column in item), None)


def _reference(value):
    if value is None or isinstance(value, str):
        return value if value is None else value.strip()
    if isinstance(value, bool | int | float):
        return str(value)
    raise ValueError(f"reference={shortened(value)} must be a text, a number, or true or false.")


def _options(value):
    """Options as labels to texts: of a mapping, the column of a data set, or texts in the order of their letters."""
    if value is None or isinstance(value, Mapping):
        options = value if value is None else dict(value)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if all(isinstance(entry, Mapping) and {"label", "text"} <= set(entry) for entry in value):
            options = options_by_label(value)
        else:
            options = {chr(ord("A") + index): text for index, text in enumerate(value)}
    else:
        raise ValueError(f"options={shortened(value)} must be a list of texts, or a mapping from labels to texts.")
    for label, text in (options or {}).items():
        if not isinstance(label, str) or not isinstance(text, str):
            raise ValueError(f"options={shortened(value)} must hold texts.")
    return options


def _verdict(value):
    if value is None or isinstance(value, bool):
        return value
    word = value.strip().casefold() if isinstance(value, str) else None
    if word not in _VERDICTS:
        raise ValueError(f"verdict={shortened(value)} must be true or false, or one of {', '.join(_VERDICTS)}.")
    return _VERDICTS[word]


def _saved_settings(path):
    """The settings next to a file of generated solutions; empty without readable ones."""
    try:
        settings = read_json(path.with_name(path.name + SETTINGS_SUFFIX))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _saved_scheme(settings):
    """The scheme in some settings; None without a readable one."""
    try:
        return StepScheme.from_dict(settings["scheme"])
    except (ValueError, KeyError, TypeError):
        return None


def _place_of_index(path, row, items):
    if row.index >= len(items) or _key(items[row.index]["question"]) != _key(row.question or ""):
        found = f"is {items[row.index]['question'][:60]!r}" if row.index < len(items) else "does not exist"
        raise ValueError(
            f"{path}: item {row.index} is {(row.question or '')[:60]!r} in the file, but {found} in the data. The "
            "file holds solutions of other data."
        )
    return row.index


def _joined(row, item):
    return dataclasses.replace(
        row,
        question=item["question"],
        reference=item["answer"],
        options=options_by_label(item["options"]),
        steps=tuple(map(as_step, item["steps"])),
        answer_type=item.get("answer_type"),
        accepted_answers=tuple(item.get("accepted_answers") or ()),
    )


def _is_same(item, other):
    return all(item.get(name) == other.get(name) for name in ("options", "answer", "accepted_answers"))


def _key(text):
    return "".join(text.split()).removeprefix(QUESTION_MARKER.strip())
