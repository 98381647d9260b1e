"""
Files that belong together, such as results and their figures: written by one process at a time, and replaced when a
killed process has left only some of them.

    with writing_together(["out/sweep.json", "out/sweep.png"], overwrite=False):
        ...
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from memreason_hf.files import check_places
from memreason_hf.locks import locked


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
    check_places(paths, overwrite=overwrite)
    with locked(paths[0], files=paths):
        try:
            yield
        except FileExistsError:
            # Written by somebody else in the meantime.
            raise
        except BaseException:
            for path in paths if not overwrite else ():
                path.unlink(missing_ok=True)
            raise
