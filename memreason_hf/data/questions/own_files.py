"""Question data of any source as raw rows: files, folders of `save_to_disk`, data sets on the Hub."""

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from fsspec.core import url_to_fs

from memreason_hf.checks import check_path, shortened
from memreason_hf.data.questions.json_files import FILE_NAMES, SPLITS
from memreason_hf.data.questions.memory_reason import NAMES
from memreason_hf.data.saved_folders import is_saved, is_saved_split
from memreason_hf.files import check_regular, parse_json, read_bytes
from memreason_hf.messages import first_few, first_line


SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
# The split that a file's name begins with. A file of another name holds `train`.
_SPLIT_NAMES = {
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    "train": "train",
    "test": "test",
}
_SPLIT = re.compile(rf"({'|'.join(_SPLIT_NAMES)})(?![a-z])", re.IGNORECASE)
_HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_URL = re.compile(r"[a-z0-9+]+://", re.IGNORECASE)


@dataclass
class RawSplit:
    """
    The rows of a split as they are in their source.

    Attributes:
        where: the file, or the data set and its split, for messages.
        unit: what a place is: `"line"` of a file from 1, `"item"` of a JSON list or `"row"` of a table from 0.
        rows: pairs of a place and a row. A row that cannot be read is the error in its place.
    """

    where: str
    unit: str
    rows: list[tuple[int, Mapping | ValueError]]


def read_raw(
    source: str | Path, name: str | None = None, *, split: str | None = None, revision: str | None = None
) -> dict[str, list[RawSplit]]:
    """
    The rows of a source, by split. A split can consist of several files.

    Args:
        source: a file, a folder of files or of `save_to_disk`, the URL of a file, or the name of a data set on the
            Hub.
        name: of the configuration, for a data set on the Hub.
        split: the only split to read.
        revision: a branch, tag or commit, for a data set on the Hub.

    Raises:
        FileNotFoundError: there is no such file or folder.
        OSError: the source cannot be fetched or is no regular file.
        ValueError: the source is damaged, of another kind, or lacks the split.
    """
    check_path("source", source)
    text, path = str(source), Path(source)
    if name is not None and (_URL.match(text) or path.exists()):
        raise ValueError(
            f"name={name!r} must be one of {', '.join(NAMES)}, or the configuration of a data set on the Hub, but "
            f"{text} is a file or folder. Leave it out for questions of your own."
        )
    if _URL.match(text):
        read = {_split_of(Path(text)): [_read_bytes(text, _fetched(text))]}
    elif path.is_dir():
        read = _read_folder(path)
    elif path.exists():
        read = {_split_of(path): [_read_bytes(str(path), read_bytes(path))]}
    elif _HUB_NAME.fullmatch(text) and path.suffix not in SUFFIXES:
        return _read_hub(text, name, split, revision)
    else:
        raise FileNotFoundError(
            f"{text}: no such file or folder, and not the name of a data set on the Hub (OWNER/NAME)."
        )
    if revision is not None:
        raise ValueError(f"revision={revision!r} is for data sets on the Hub, but {text} is none. Leave it out.")
    if split is not None and split not in read:
        raise ValueError(f"split={split!r} is not in {text}. Its splits are {', '.join(read)}.")
    return read if split is None else {split: read[split]}


def question_files(folder: Path) -> list[Path]:
    """The files of a folder that can hold question data, also those in its folder `data`. Hidden ones are left out."""
    paths = [*folder.iterdir(), *folder.glob("data/*")]
    # A writer that was killed leaves a temporary file with a hidden name.
    return sorted(path for path in paths if path.suffix in SUFFIXES and not path.name.startswith("."))


def holds_study_files(folder: Path) -> bool:
    """Whether a folder holds any of the study's JSON files."""
    names = (pattern.format(split=split) for pattern in FILE_NAMES.values() for split in SPLITS)
    return any((folder / name).is_file() for name in names)


def is_question_data(folder: Path) -> bool:
    """Whether a saved data set has the columns of annotated questions."""
    try:
        dataset = load_from_disk(str(folder))
    except Exception:  # damaged; reading it says how
        return True
    return all({"question", "steps"} <= set(part.column_names) for part in dataset.values())


def _split_of(path):
    match = _SPLIT.match(path.name)
    return _SPLIT_NAMES[match[1].lower()] if match else "train"


def _fetched(url):
    # Proxies are set in the environment.
    options = {"client_kwargs": {"trust_env": True}} if url.startswith(("http://", "https://")) else {}
    try:
        files, path = url_to_fs(url, **options)
        return files.cat_file(path)
    except Exception as error:  # each file system has its own errors; those of aiohttp are not OSErrors
        raise OSError(f"{url} cannot be fetched: {type(error).__name__} {first_line(error)}.") from error


def _read_folder(folder):
    check_regular(folder)
    if is_saved(folder) or is_saved_split(folder):
        return _read_saved(folder)
    paths = question_files(folder)
    if holds_study_files(folder):
        raise ValueError(
            f"{folder} holds the study's JSON files. With --name or --data_name, name the data set: "
            f"{', '.join(FILE_NAMES)}."
        )
    if not paths:
        raise ValueError(
            f"{folder} holds no question data: no saved data set, and no file with the suffix {', '.join(SUFFIXES)}. "
            "data_scripts/build_memory_reason.py writes such a folder."
        )
    named = [path for path in paths if _SPLIT.match(path.name)]
    if len(paths) > 1 and len(named) < len(paths):
        others = [path.name for path in paths if path not in named]
        raise ValueError(
            f"{folder} holds {len(paths)} files, and the names of {first_few(others)} do not begin with a split "
            "(train, validation, test). Rename them, or pass one file."
        )
    splits = {}
    for path in paths:
        splits.setdefault(_split_of(path), []).append(_read_bytes(str(path), read_bytes(path)))
    return splits


def _read_bytes(where, content):
    suffix = next((end for end in SUFFIXES if where.endswith(end)), None)
    if suffix is None:
        raise ValueError(f"{where} must be a file with the suffix {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        try:
            table = pyarrow.parquet.read_table(io.BytesIO(content))
            rows = table.to_pylist()
        except Exception as error:  # Arrow has errors of its own for a damaged file
            raise ValueError(f"{where} is not a parquet file (damaged or cut off?): {first_line(error)}.") from error
        return RawSplit(where, "row", list(enumerate(rows)))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not a text in UTF-8: {error}.") from None
    if suffix == ".json":
        try:
            value = parse_json(text)
        except ValueError as error:
            # Files of JSON lines are often called .json.
            if not text.lstrip().startswith("{") or "\n" not in text.strip():
                raise ValueError(f"{where} is not a JSON file (damaged or cut off?): {error}") from None
        else:
            if isinstance(value, list):
                return RawSplit(where, "item", [(index, _as_row(row)) for index, row in enumerate(value)])
            if not isinstance(value, Mapping) or "\n" in text.strip() or "question" not in value:
                raise ValueError(f"{where} must hold a list of objects, and holds {shortened(value)}.")
    lines = enumerate(text.split("\n"), start=1)
    return RawSplit(where, "line", [(number, _parsed(line)) for number, line in lines if line.strip()])


def _parsed(line):
    try:
        return _as_row(parse_json(line))
    except json.JSONDecodeError as error:
        return ValueError(f"is not JSON (cut off?): {error.msg} at column {error.colno}.")
    except ValueError as error:
        return ValueError(f"is not JSON: {error}")


def _as_row(value):
    return value if isinstance(value, Mapping) else ValueError(f"must be an object, got {shortened(value)}.")


def _read_saved(folder):
    return _tables(str(folder), partial(load_from_disk, str(folder)), ValueError, "is damaged")


def _read_hub(text, name, split, revision):
    load = partial(load_dataset, text, name, revision=revision)
    read = _tables(text, load, OSError, "is no file or folder here, and cannot be loaded from the Hub")
    if split is not None and split not in read:
        raise ValueError(f"split={split!r} is not in {text}. Its splits are {', '.join(read)}.")
    return read if split is None else {split: read[split]}


def _tables(where: str, load: Callable[[], DatasetDict | Dataset], kind: type[Exception], failure: str):
    try:
        dataset = load()
        if isinstance(dataset, Dataset):
            dataset = {str(dataset.split or "train"): dataset}
        for part in dataset.values():
            # Arrow trusts the offsets in a file: a damaged one would end the process where the rows are used.
            part.data.table.validate(full=True)
        rows = {split: part.with_format(None).to_list() for split, part in dataset.items()}
    except Exception as error:  # a damaged file shows as almost any error of Arrow, json or fsspec
        raise kind(f"{where} {failure}: {first_line(error)}.") from error
    return {split: [RawSplit(f"{where}, split {split}", "row", list(enumerate(part)))] for split, part in rows.items()}
