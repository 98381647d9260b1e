"""The folder of a multi-hop data set on disk: which names it has, what is refused, and how it is written whole."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .messages import first_few
from .multi_hop_json import JSON_FILES, SPLIT_FILES, VOCABULARY_FILE
from .multi_hop_tokenizer import TOKENIZER_FILE


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
# They say that the rest is whole, so they go first and come last.
_MARKS = (MANIFEST_FILE, ARROW_MARK)


def check_output_folder(folder: Path, overwrite: bool):
    """
    Raises FileExistsError if the folder holds a data set and `overwrite` is not set, or holds something that is no
    data set under a name that a data set needs; NotADirectoryError if it is a file. Other files are no hindrance.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output_dir={folder} is a file; give a folder.")
    taken = [name for name in DATA_SET_NAMES if (folder / name).exists()]
    if not taken:
        return
    if not overwrite:
        raise FileExistsError(
            f"output_dir={folder} already holds another data set ({first_few(taken)}). Choose another folder, or "
            "replace it with overwrite."
        )
    is_data_set = all((folder / name).is_file() for name in (SPLIT_FILES["train"], VOCABULARY_FILE))
    foreign = [
        name for name in SPLIT_FILES if (folder / name).exists() and not (folder / name / "state.json").exists()
    ]
    if not is_data_set or foreign:
        raise FileExistsError(
            f"output_dir={folder} holds {first_few(foreign or taken)}, but no multi-hop data set that could be "
            "overwritten. Choose another folder."
        )


@contextmanager
def new_contents(folder: Path, overwrite: bool) -> Iterator[Path]:
    """
    Gives an empty folder to write the data set into. When the block ends, its contents take their places in `folder`
    by renaming, after those they replace were set aside; after an error everything is as it was.
    """
    check_output_folder(folder, overwrite)
    is_new = not folder.exists()
    partial = folder / f".partial-{secrets.token_hex(4)}"  # inside, so that renaming never crosses file systems
    partial.mkdir(parents=True)
    try:
        new, replaced = partial / "new", partial / "replaced"
        new.mkdir()
        replaced.mkdir()
        yield new
        check_output_folder(folder, overwrite)  # another process may have been faster
        _swap(folder, new, replaced)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise
    shutil.rmtree(partial)


def write_manifest(folder: Path, contents: dict):
    """Writes `contents` and the size in bytes of every file of the folder: what `read_manifest` checks."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    text = json.dumps({**contents, "files": sizes}, indent=2)
    Path(folder, MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


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


def _swap(folder: Path, new: Path, replaced: Path):
    incoming = sorted(os.listdir(new), key=lambda name: (name in _MARKS, name))
    try:
        for name in (*_MARKS, *DATA_SET_NAMES):
            if (folder / name).exists():
                os.rename(folder / name, replaced / name)
        for name in incoming:
            os.rename(new / name, folder / name)
    except BaseException:
        for name in incoming:
            if (folder / name).exists() and not (new / name).exists():
                os.rename(folder / name, new / name)
        for name in reversed(os.listdir(replaced)):
            os.rename(replaced / name, folder / name)
        raise
