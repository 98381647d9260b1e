"""The folder of a multi-hop data set: its files, what it may replace, and its manifest."""

import json
from pathlib import Path

from memreason_hf.data.chains.json_files import JSON_FILES, SPLIT_FILES, VOCABULARY_FILE
from memreason_hf.data.chains.tokenizer import TOKENIZER_FILE
from memreason_hf.data.saved_folders import ARROW_MARK, check_replaceable, is_saved_split
from memreason_hf.files import read_json
from memreason_hf.messages import first_few


CONTENTS = "a multi-hop data set"
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
    Checks that a data set may be written to `folder`, which it replaces as a whole.

    Raises:
        NotADirectoryError: `folder` is a file.
        FileExistsError: `folder` holds anything foreign, or it holds a data set and `overwrite` is false.
    """
    check_replaceable(
        folder,
        contents=CONTENTS,
        required=(SPLIT_FILES["train"], VOCABULARY_FILE),
        is_part=lambda path: path.name in DATA_SET_NAMES and (path.name not in SPLIT_FILES or is_saved_split(path)),
        overwrite=overwrite,
    )


def write_manifest(folder: Path, contents: dict):
    """
    Writes `contents`, and the size in bytes of every file of the folder, which `read_manifest` checks. The folder is
    being staged: syncing this file to the disk would wait for all others.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    text = json.dumps({**contents, "files": sizes}, indent=2)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path, suffix: str = "") -> dict | None:
    """
    The manifest of a folder; None if it has none.

    Args:
        suffix: check only files whose names end with it.

    Raises:
        ValueError: the manifest is damaged, or a file that it lists is missing or has another size.
    """
    path = Path(folder, MANIFEST_FILE)
    if not path.is_file():
        return None
    try:
        manifest = read_json(path)
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
    """One line for a terminal: the folder, the rows by split, and the size."""
    rows = ", ".join(f"{split} {count:,}" for split, count in manifest["rows"].items())
    return f"{folder}: {rows} rows, {sum(manifest['files'].values()) / 1e6:,.1f} MB"


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
