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
    refuse_existing([path], overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(paths: Iterable[str | os.PathLike], *, overwrite: bool) -> None:
    """
    Raises:
        FileExistsError: one of `paths` exists and `overwrite` is false; the message names them.
    """
    existing = [str(path) for path in paths if Path(path).exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{', '.join(existing)}: there already. Choose another place, or allow to overwrite.")
