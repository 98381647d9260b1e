"""
Question data of one's own, in one schema that is checked whole.

    dataset = load_questions("questions.jsonl", columns={"question": "query", "answer": "target"})
    dataset = load_questions("TIGER-Lab/MMLU-Pro")
    dataset["train"][0]["answer"]

A row has a `question` and an `answer`, and may have `options`, `steps`, `accepted_answers` and an `answer_type`; or it
is a conversation of one question and one reply (`messages`, or `prompt` and `completion`). data_scripts/README.md
lists the forms of each column.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict, NamedSplit
from transformers.utils import logging

from memreason_hf.checks import check_choice, check_path, check_sequence, check_type, shortened
from memreason_hf.data.questions.answer_types import ANSWER_TYPES, FIXED_OPTIONS, not_a_number, read_letter
from memreason_hf.data.questions.json_files import FILE_NAMES
from memreason_hf.data.questions.memory_reason import NAMES, REPORT_FILE, build_memory_reason, load_memory_reason
from memreason_hf.data.questions.own_files import (
    RawSplit,
    holds_study_files,
    is_question_data,
    question_files,
    read_raw,
)
from memreason_hf.data.questions.own_rows import FORMS, DraftRow, form_of, pick, read_row
from memreason_hf.data.questions.schema import FEATURES
from memreason_hf.data.saved_folders import is_saved
from memreason_hf.files import read_json
from memreason_hf.messages import first_few
from memreason_hf.steps import StepScheme


logger = logging.get_logger(__name__)

_MOST_REASONS = 30


class QuestionDataError(ValueError):
    """
    Rows of question data that cannot be used.

    Attributes:
        problems: for every bad row its file, its place as the file counts it, and what is wrong.
    """

    def __init__(self, message: str, problems: list[tuple[str, str, str]]):
        super().__init__(message)
        self.problems = problems


@dataclass
class _Drafts:
    """The rows of a part of a split as far as they are read, and what is wrong with the others."""

    split: str
    raw: RawSplit
    rows: dict[int, DraftRow] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)


def load_questions(
    source: str | Path,
    name: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    answer_type: str | None = None,
    split: str | None = None,
    revision: str | None = None,
) -> DatasetDict:
    """
    Loads question data of any source, with all columns of `FEATURES`.

    Args:
        source: a file (`.jsonl`, `.json`, `.parquet`) or its URL; a folder of such files, of `save_to_disk` or of
            `data_scripts/build_memory_reason.py`; or the name of a data set on the Hub. A file holds the split with
            which its name begins (`train`, `validation`, `test`), otherwise `train`.
        name: with the study's data sets one of `NAMES`; with a data set on the Hub its configuration.
        columns: the source's names of columns of the schema, where they differ: `{"question": "query"}`. A dot leads
            into a column of objects: `answers.text`.
        answer_type: of all answers, one of `ANSWER_TYPES`. Default: it follows from the options of a row, and without
            options from the answers of all rows: if all are yes or no, True or False, or numbers, they are of this
            type, otherwise they are texts.
        split: the only split to read.
        revision: a branch, tag or commit, for a data set on the Hub.

    Raises:
        QuestionDataError: rows cannot be used. All of them are listed, with their lines and the reasons.
        FileNotFoundError: there is no such file or folder.
        OSError: the source cannot be fetched.
        ValueError: the source is damaged or of another kind.

    Example:

    ```python
    dataset = load_questions("questions.jsonl", columns={"question": "query", "answer": "target"})
    print(dataset["train"][0]["answer_type"])
    ```
    """
    columns = _checked_columns(columns)
    if answer_type is not None:
        check_choice("answer_type", answer_type, ANSWER_TYPES)
    check_path("source", source)
    if _is_built(source) or (name in NAMES and not _is_own(source, name)):
        given = {"columns": columns or None, "answer_type": answer_type, "revision": revision}
        for argument, value in given.items():
            if value is not None:
                raise ValueError(f"{argument}={value!r} is for other data than the study's, which {source} holds.")
        dataset = load_memory_reason(source, name) if _is_built(source) else build_memory_reason(name, source).dataset
        if split is not None and split not in dataset:
            raise ValueError(f"split={split!r} is not in {source}. Its splits are {', '.join(dataset)}.")
        return dataset if split is None else DatasetDict({split: dataset[split]})
    # A recipe can name one of the study's data sets, and a flag replace its source by other data.
    config = None if name in NAMES else name
    return _assemble(source, read_raw(source, config, split=split, revision=revision), columns, answer_type)


def read_questions(
    rows: Iterable[Mapping],
    *,
    columns: Mapping[str, str] | None = None,
    answer_type: str | None = None,
    scheme: StepScheme | None = None,
) -> Dataset:
    """
    Rows that are already in memory, in the schema of `load_questions`.

    Args:
        rows: of any of the forms that `load_questions` reads, for example a `datasets.Dataset`.
        columns, answer_type: as for `load_questions`.
        scheme: how the texts of solutions mark their steps. Default: by the tokens of any scheme, or not at all.

    Raises:
        QuestionDataError: rows cannot be used. All of them are listed.

    Example:

        >>> rows = read_questions([{"question": "Is ice lighter than water?", "answer": "yes"}])
        >>> rows[0]["answer"], rows[0]["answer_type"]
        ('Yes', 'yes_no')
    """
    check_sequence("rows", rows, "a list of rows")
    if answer_type is not None:
        check_choice("answer_type", answer_type, ANSWER_TYPES)
    raw = [
        (index, row if isinstance(row, Mapping) else ValueError("must be an object."))
        for index, row in enumerate(rows)
    ]
    parts = {"train": [RawSplit("rows", "row", raw)]}
    return _assemble("rows", parts, _checked_columns(columns), answer_type, scheme)["train"]


def _assemble(source, raw, columns, answer_type, scheme=None):
    """The data set of raw rows by split, if all of them can be used."""
    drafts = [_read(part, split, columns, answer_type, scheme) for split, parts in raw.items() for part in parts]
    rows = _finish(drafts)
    _check(source, drafts)
    _warn(source, drafts, columns)
    _warn_of_units(source, drafts)
    return DatasetDict(
        {split: Dataset.from_list(part, features=FEATURES, split=NamedSplit(split)) for split, part in rows.items()}
    )


def read_columns(columns: str | Mapping[str, str] | None) -> dict[str, str]:
    """
    The argument `columns` of `load_questions`, as a flag or a recipe spells it.

    Raises:
        ValueError: the text is not `COLUMN=NAME`, separated by commas, or a column is unknown.

    Example:

        >>> read_columns("question=query,answer=answers.text")
        {'question': 'query', 'answer': 'answers.text'}
    """
    if not columns or isinstance(columns, Mapping):
        return _checked_columns(columns or None)
    pairs = [pair.partition("=") for pair in columns.split(",")]
    if not all(column.strip() and path.strip() for column, _, path in pairs):
        raise ValueError(
            f"columns={columns!r} must be COLUMN=NAME, separated by commas: question=query,answer=target."
        )
    return _checked_columns({column.strip(): path.strip() for column, _, path in pairs})


def _checked_columns(columns):
    if columns is None:
        return {}
    check_type("columns", columns, Mapping, "a mapping from columns of the schema to columns of the source")
    known = list(dict.fromkeys([*FEATURES, *(column for form in FORMS.values() for column in form)]))
    for column, path in columns.items():
        check_choice("columns", column, known)
        if not isinstance(path, str) or not all(path.split(".")):
            raise ValueError(f"columns: {column}={shortened(path)} must be the name of a column.")
    return dict(columns)


def _is_built(source):
    """Whether a folder was written by `save_memory_reason`, which checks its rows."""
    if not is_saved(source):
        return False
    try:
        return set(read_json(Path(source) / REPORT_FILE)) == {"name", "source", "splits"}
    except (OSError, ValueError, TypeError):
        return False


def _is_own(source, name):
    """Whether a source, given with one of the study's names, holds other data than what the name stands for."""
    path = Path(source)
    if path.is_file():
        return True
    if is_saved(path):
        return name in FILE_NAMES or is_question_data(path)
    return path.is_dir() and name in FILE_NAMES and not holds_study_files(path) and bool(question_files(path))


def _read(raw, split, columns, answer_type, scheme):
    """The drafts of the rows of one file or table."""
    drafts = _Drafts(split, raw)
    for place, row in raw.rows:
        try:
            if isinstance(row, ValueError):
                raise row
            values = pick(row, columns)
            if answer_type is not None:
                values["answer_type"] = answer_type
            drafts.rows[place] = read_row(values, scheme)
        except (TypeError, ValueError) as error:
            drafts.problems[place] = str(error)
    drafts.problems.update(_other_schema(raw, columns))
    return drafts


def _other_schema(raw, columns):
    """What is wrong with the rows whose columns show that two schemas were mixed in one file."""
    known = {*FEATURES, *(column for form in FORMS.values() for column in form)}
    shapes = {}
    for place, row in raw.rows:
        if isinstance(row, Mapping):
            shapes.setdefault(frozenset(map(str, row)), []).append(place)
    if len(shapes) < 2:
        return {}
    usual = max(shapes, key=lambda shape: len(shapes[shape]))
    problems = {}
    for shape, places in shapes.items():
        mine, others = shape - usual, usual - shape
        forms = {form_of(pick_names(names, columns)) for names in (shape, usual)}
        if len(forms) > 1 or (mine and others and (mine | others) - known):
            told = (
                f"has another schema than most rows of the file: it has {_named(mine)}, and lacks {_named(others)}. "
                "Give all rows the same columns, or put them into two files."
            )
            problems.update(dict.fromkeys(places, told))
    return problems


def pick_names(names: Iterable[str], columns: Mapping[str, str]) -> dict[str, None]:
    """The columns of a row with these names under the names of the schema."""
    renamed = {path.partition(".")[0]: column for column, path in columns.items()}
    return {renamed.get(name, name): None for name in names}


def _named(names):
    return first_few(sorted(names)) or "nothing else"


def _finish(drafts):
    """The rows of every split. What is wrong with others is added to the drafts."""
    free = [row for part in drafts for row in part.rows.values() if row.answer_type is None]
    common = _common_type(free)
    only_letters = all(read_letter(row.answer) for row in free)
    rows = {}
    for part in drafts:
        kept = rows.setdefault(part.split, [])
        for place, draft in part.rows.items():
            if place in part.problems:
                continue
            try:
                if draft.answer_type is None and only_letters:
                    raise ValueError(
                        f"answer={shortened(draft.answer)} looks like the letter of an option, but the row has no "
                        "options and its question lists none (A. …, B. …). Add options, or answer_type='text'."
                    )
                kept.append(draft.finished(draft.answer_type or common or draft.guess()))
            except (TypeError, ValueError) as error:
                part.problems[place] = str(error)
    return rows


def _common_type(rows):
    """The type of the answers of all rows without options; None where each row's own answer says it."""
    guesses = {row.guess() for row in rows}
    if guesses <= set(FIXED_OPTIONS):
        return None
    return guesses.pop() if len(guesses) == 1 else "text"


def _check(source, drafts):
    problems = [
        (part.raw.where, f"{part.raw.unit} {place}", reason)
        for part in drafts
        for place, reason in sorted(part.problems.items())
    ]
    num_rows = sum(len(part.raw.rows) for part in drafts)
    if problems:
        raise QuestionDataError(
            f"{source}: {len(problems):,} of {num_rows:,} rows cannot be used.\n{_listing(drafts)}", problems
        )
    if not num_rows:
        raise ValueError(f"{source} holds no rows.")
    empty = [part.raw.where for part in drafts if not part.raw.rows]
    if empty:
        raise ValueError(f"{first_few(empty)} holds no rows. Leave it out.")


def _listing(drafts):
    """Every bad row with its place; rows with the same fault on one line."""
    lines = []
    for part in drafts:
        places = {}
        for place, reason in sorted(part.problems.items()):
            places.setdefault(reason, []).append(str(place))
        told = list(places.items())[: max(_MOST_REASONS - len(lines), 0)]
        rest = [place for _, group in list(places.items())[len(told) :] for place in group]
        prefix = f"  {part.raw.where}, " if len(drafts) > 1 else "  "
        for reason, group in [*told, *([("other faults", rest)] if rest else [])]:
            unit = part.raw.unit if len(group) == 1 else f"{part.raw.unit}s"
            lines.append(f"{prefix}{unit} {', '.join(group)}: {reason}")
    return "\n".join(lines)


def _warn(source, drafts, columns):
    """Says what of the source is not used, which a wrong name of a column would show as."""
    used = {*FEATURES, *(path.partition(".")[0] for path in columns.values())}
    used |= {column for form in FORMS.values() for column in form}
    unused = {str(name): None for part in drafts for _, row in part.raw.rows for name in row if str(name) not in used}
    if unused:
        logger.warning(
            f"{source}: the columns {first_few(list(unused), 10)} are not used. If one of them belongs to the schema, "
            "name it: columns question=NAME,answer=NAME,options=NAME,steps=NAME."
        )
    num_system = sum(row.system is not None for part in drafts for row in part.rows.values())
    if num_system:
        logger.warning(f"{source}: the system texts of {num_system:,} conversations are not kept.")


def _warn_of_units(source, drafts):
    """Says which answer makes numbers texts, for example by its unit."""
    free = [(part, place, row) for part in drafts for place, row in part.rows.items() if row.answer_type is None]
    if _common_type([row for *_, row in free]) != "text":
        return
    index = not_a_number([row.answer for *_, row in free])
    if index is not None:
        part, place, row = free[index]
        where = f"{part.raw.where}, {part.raw.unit} {place}"
        logger.warning(
            f"{source}: most answers begin with a number, but {shortened(row.answer)} ({where}) is no number alone, "
            "so all answers without options are compared as texts, with their units. If they are numbers, pass "
            "answer_type='number' (--answer_type number), which leaves units off, or give the column answer_type."
        )
