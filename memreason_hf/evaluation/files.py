"""Writing files that are either whole or not there."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """
    Gives a temporary name beside `path`; the file written there is renamed when the block ends without an error.

    The temporary name keeps the suffix of `path`: some writers choose their format by it. Missing folders are made.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
    """
    path = Path(path)
    check_places([path], overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_places(paths: Iterable[str | os.PathLike], *, overwrite: bool) -> None:
    """
    Whether files can be written at `paths`, asked before the work is done that they are to hold.

    Raises:
        FileExistsError: one of them exists and `overwrite` is false; the message names them.
        OSError: a folder stands there, a file stands where its folder should be, or nothing may be written there.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; give a file.")
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        if not folder.is_dir():
            raise NotADirectoryError(f"{path}: {folder} is a file and no folder. Choose another place.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{path}: nothing may be written in {folder}. Choose another place.")
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{', '.join(existing)}: there already. Choose another place, or allow to overwrite.")
