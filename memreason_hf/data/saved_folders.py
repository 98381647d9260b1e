"""Folders of saved data sets: what may be replaced, and loading what `DatasetDict.save_to_disk` wrote."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from datasets import DatasetDict, load_from_disk

from memreason_hf.files import check_folder, check_regular, read_json
from memreason_hf.messages import first_few


# The file that `save_to_disk` writes next to the folders of the splits.
ARROW_MARK = "dataset_dict.json"


def is_saved(folder: str | Path) -> bool:
    """Whether `folder` holds a saved `DatasetDict`."""
    return Path(folder, ARROW_MARK).is_file()


def is_saved_split(folder: Path) -> bool:
    """Whether `folder` holds one saved split."""
    return (folder / "state.json").is_file()


def saved_splits(folder: Path) -> list[str]:
    """The names of the splits that `folder` lists; empty if it lists none or the list is damaged."""
    try:
        return list(read_json(folder / ARROW_MARK)["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def check_replaceable(
    folder: Path, *, contents: str, required: Iterable[str], is_part: Callable[[Path], bool], overwrite: bool
) -> None:
    """
    Checks that a data set may be written to `folder`, which it replaces as a whole: nothing foreign may be deleted.

    Args:
        contents: what the folder may hold, for messages: `"a multi-hop data set"`.
        required: names of the files that every such folder holds.
        is_part: whether a path inside the folder is a part of it.
        overwrite: whether a data set of this kind may be replaced.

    Raises:
        NotADirectoryError: `folder` is a file.
        FileExistsError: `folder` holds anything foreign, or it holds a data set and `overwrite` is false.
    """
    check_folder(folder, overwrite=True)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    if not paths:
        return
    foreign = [path for path in paths if not is_part(path)]
    if foreign or not all((folder / name).is_file() for name in required):
        names = first_few([path.name for path in foreign or paths])
        raise FileExistsError(
            f"{folder} holds {names}, which is not part of {contents} and would be deleted. Choose another folder."
        )
    if not overwrite:
        raise FileExistsError(f"{folder} already holds another data set. Choose another folder or pass --overwrite.")


def load_saved(
    folder: str | Path, *, contents: str, columns: Collection[str], splits: Collection[str] = ()
) -> DatasetDict:
    """
    Loads a saved data set and checks what it holds.

    Args:
        folder: where `save_to_disk` wrote it.
        contents: what the folder should hold, for messages: `"a multi-hop data set"`.
        columns: names of the columns that every split must have.
        splits: names of the splits that it must have.

    Raises:
        OSError: the folder holds a pipe, a socket or a device.
        ValueError: the data set is damaged, or lacks a split or a column.
    """
    check_regular(folder)
    try:
        dataset = load_from_disk(folder)
        for part in dataset.values():
            # Arrow trusts the offsets in a file: a damaged one would end the process where the rows are used.
            part.data.table.validate(full=True)
    except Exception as error:  # a damaged file shows as almost any error of Arrow, json or fsspec
        raise ValueError(f"{folder}: the data set is damaged ({error}). Build it again.") from error
    for split in splits:
        if split not in dataset:
            raise ValueError(f"{folder} is not {contents}: it lacks the split {split}.")
    for split, part in dataset.items():
        missing = [name for name in columns if name not in part.column_names]
        if missing:
            raise ValueError(f"{folder} is not {contents}: split {split} lacks the columns {first_few(missing)}.")
    return dataset
