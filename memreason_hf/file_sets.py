"""
Files that belong together, such as results and their figures: written by one process at a time, and replaced when a
killed process has left only some of them.

    with reserved(paths, overwrite=False):
        results = ...  # hours
        with writing_together(paths, overwrite=False):
            ...
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memreason_hf.files import check_places
from memreason_hf.locks import locked


@contextmanager
def reserved(paths: Iterable[str | os.PathLike], *, overwrite: bool) -> Iterator[None]:
    """
    Holds the lock of the first of `paths` while the block computes what `writing_together` then writes to them.
    Another process that would write them is refused before it computes anything.

    Raises:
        FileExistsError: one of them exists and `overwrite` is false.
        InUseError: another process is computing or writing them.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        yield
        return
    check_places(paths, overwrite=overwrite)
    with locked(paths[0]) as unfinished:
        # Checked again: the last holder of the lock may have finished in the meantime. What a killed one has left is
        # removed, because it may be the half of a set.
        unfinished = [path for path in paths if path.absolute() in unfinished]
        check_places([path for path in paths if path not in unfinished], overwrite=overwrite)
        for path in unfinished:
            path.unlink(missing_ok=True)
        yield


@contextmanager
def writing_together(paths: Iterable[str | os.PathLike], *, overwrite: bool) -> Iterator[None]:
    """
    Holds the lock of the first of `paths` while the block writes all of them. The lock file names them and stays if
    the process is killed: `check_places` then lets the same command replace what was written. If the block fails,
    files that it has added are removed.

    Raises:
        FileExistsError: one of them exists and `overwrite` is false.
        InUseError: another process is writing them.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        yield
        return
    with reserved(paths, overwrite=overwrite), locked(paths[0], files=paths):
        try:
            yield
        except FileExistsError:
            # Written by somebody else in the meantime.
            raise
        except BaseException:
            for path in paths if not overwrite else ():
                path.unlink(missing_ok=True)
            raise
