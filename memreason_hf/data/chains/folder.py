"""The folder of a multi-hop data set: the names in it, what it may replace, and its manifest."""

import json
from pathlib import Path

from memreason_hf.data.chains.json_files import JSON_FILES, SPLIT_FILES, VOCABULARY_FILE
from memreason_hf.data.chains.tokenizer import TOKENIZER_FILE
from memreason_hf.files import write_json
from memreason_hf.messages import first_few


ARROW_MARK = "dataset_dict.json"  # what `DatasetDict.save_to_disk` leaves beside the splits' folders
MANIFEST_FILE = "manifest.json"
DATA_SET_NAMES = (
    *JSON_FILES,
    TOKENIZER_FILE,
    "tokenizer_config.json",
    *SPLIT_FILES,
    ARROW_MARK,
    MANIFEST_FILE,
)


def check_output_folder(folder: Path, overwrite: bool) -> None:
    """
    Raises:
        NotADirectoryError: `folder` is a file.
        FileExistsError: `folder` holds a data set and `overwrite` is false, or holds anything else: a data set takes
            the place of the whole folder.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output_dir={folder} is a file. Give a folder.")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in names if name not in DATA_SET_NAMES]
    foreign += [name for name in SPLIT_FILES if name in names and not (folder / name / "state.json").is_file()]
    is_data_set = all((folder / name).is_file() for name in (SPLIT_FILES["train"], VOCABULARY_FILE))
    if names and (foreign or not is_data_set):
        raise FileExistsError(
            f"output_dir={folder} holds {first_few(foreign or names)}, which is not part of a multi-hop data set and "
            "would be deleted with it. Choose another folder."
        )
    if names and not overwrite:
        raise FileExistsError(
            f"output_dir={folder} already holds another data set. Choose another folder or pass --overwrite."
        )


def write_manifest(folder: Path, contents: dict):
    """Writes `contents` and the size in bytes of every file of the folder: what `read_manifest` checks."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    write_json(folder / MANIFEST_FILE, {**contents, "files": sizes})


def read_manifest(folder: Path, suffix: str = "") -> dict | None:
    """
    The manifest of a folder, None if it has none. Raises ValueError if it is damaged, or if a file that it lists, and
    whose name ends with `suffix`, is missing or of another size.
    """
    path = Path(folder, MANIFEST_FILE)
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        sizes = manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged. Build the data set again with overwrite.") from None
    damaged = [name for name, size in sizes if name.endswith(suffix) and not _has_size(Path(folder, name), size)]
    if damaged:
        raise ValueError(
            f"{folder}: {first_few(damaged)} is missing or not of the size that {MANIFEST_FILE} lists. Build the data "
            "set again with overwrite."
        )
    return manifest


def describe_manifest(folder: str | Path, manifest: dict) -> str:
    """One line for a terminal: where the data set is, its rows by split and its size."""
    rows = ", ".join(f"{split} {count:,}" for split, count in manifest["rows"].items())
    return f"{folder}: {rows} rows, {sum(manifest['files'].values()) / 1e6:,.1f} MB"


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
