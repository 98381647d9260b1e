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

from memreason_hf.files import UNFINISHED, check_places, write_json
from memreason_hf.locks import locked


@contextmanager
def writing_together(paths: Iterable[str | os.PathLike], *, overwrite: bool) -> Iterator[None]:
    """
    While the block writes `paths`, a hidden file `.NAME.unfinished` next to the first one names them. It stays if the
    process is killed, and `check_places` then lets the same command replace what was written.

    Raises:
        FileExistsError: one of them exists and `overwrite` is false.
        InUseError: another process is writing them.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        yield
        return
    with locked(paths[0]):
        check_places(paths, overwrite=overwrite)
        note = paths[0].with_name(f".{paths[0].name}{UNFINISHED}")
        write_json(note, [os.path.relpath(path, note.parent) for path in paths])
        yield
        note.unlink(missing_ok=True)
