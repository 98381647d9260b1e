"""
Locks on folders and files that are being written, so that two processes do not write to the same place.

    with locked("runs/study", inside=True):
        ...

The lock is `flock` on a hidden file, which names its holder. The system frees it when the process ends, also after a
kill, so a lock file without a holder means nothing. It is removed by the next process that takes the lock, or by
`clear_free_lock`.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memreason_hf.files import LOCK_SUFFIX


logger = logging.getLogger(__name__)

LOCK_FILE = f".memreason{LOCK_SUFFIX}"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# The locks of this process: the thread, how often it has taken the lock, and the handle of the file.
_held: dict[str, list] = {}


class InUseError(OSError):
    """Another process or thread is writing to the same place."""


def lock_file(path: str | os.PathLike, *, inside: bool) -> Path:
    """The lock file of `path`: in the folder `path` (`inside`), or next to `path`, which need not exist."""
    path = Path(path).absolute()
    return path / LOCK_FILE if inside else path.with_name(f".{path.name}{LOCK_SUFFIX}")


@contextmanager
def locked(
    path: str | os.PathLike, *, inside: bool = False, wait: float = 0.0, files: Iterable[str | os.PathLike] = ()
) -> Iterator[list[Path]]:
    """
    Holds the lock of a folder or file while the block runs. The same thread may take it again within the block.

    Missing folders are created. They are removed at the end if they are still empty. Gives the files that the lock
    file of a killed process names as being written, and goes on naming them until others are named.

    Args:
        path: what is being written.
        inside: whether the lock file is inside `path`, a folder. Otherwise it is next to `path`, so that `path` can be
            replaced as a whole.
        files: what the lock file names as being written, until the lock is released or others are named; see
            `file_sets`.
        wait: how many seconds to wait for another process. `float("inf")` waits as long as it runs.

    Raises:
        InUseError: another process or thread holds the lock. The message names it.
    """
    file = lock_file(path, inside=inside)
    with _missing_folders(file.parent):
        key = os.path.realpath(file)
        names = [os.path.relpath(name, file.parent) for name in files]
        mine, left = _held.get(key), []
        if mine is not None and mine[0] == threading.get_ident():
            mine[1] += 1
            if names:
                _write_holder(mine[2], names)
        else:
            handle, left = _acquire(file, path, wait, names)
            _held[key] = [threading.get_ident(), 1, handle]
        try:
            yield [Path(os.path.abspath(file.parent / name)) for name in left]
        finally:
            # Absent in a process that was forked within the block.
            mine = _held.get(key)
            if mine is not None:
                mine[1] -= 1
                # The names stay until the lock is released: the command of a process that is killed before that
                # writes the files again, instead of finding them in its way.
                if not mine[1]:
                    _release(file, _held.pop(key)[2])


def clear_free_lock(path: str | os.PathLike, *, inside: bool = False) -> None:
    """
    Removes the lock file of `path` if no process or thread holds it, for a caller that has nothing to write: the file
    of a killed process would stay otherwise. A process that waits for the lock notices that its file is gone, and
    creates another.
    """
    file = lock_file(path, inside=inside)
    with suppress(OSError):
        handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(handle, file):
                os.unlink(file)
        finally:
            os.close(handle)


@contextmanager
def _missing_folders(folder):
    missing = [parent for parent in (folder, *folder.parents) if not os.path.lexists(parent)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{error.filename} is a file, not a folder. Choose another place.") from None
    try:
        yield
    finally:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()


def _acquire(file, path, wait, files):
    deadline, announced = time.monotonic() + wait, False
    while True:
        # A link in this place would let the holder's name be written into another file.
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder removes the file. A lock on a removed file excludes nobody.
            if _is_same_file(handle, file):
                left = _read_files(handle)
                _write_holder(handle, files or left)
                return handle, left
            os.close(handle)
            continue
        except OSError as error:
            holder = _read_holder(handle)
            os.close(handle)
            if error.errno in _NO_LOCKS:
                logger.warning("%s has no file locks. Do not write to %s from two processes.", file.parent, path)
                return None, []
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            raise InUseError(f"{path} is in use by {holder}. Wait until it has ended, or choose another place.")
        if not announced:
            logger.warning("%s is in use by %s. Waiting for it to end.", path, holder)
            announced = True
        time.sleep(0.05)


def _release(file, handle):
    if handle is None:
        return
    if _is_same_file(handle, file):
        with suppress(OSError):
            os.unlink(file)
    os.close(handle)


def _is_same_file(handle, file):
    try:
        found = os.lstat(file)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), found)


def _write_holder(handle, files):
    if handle is None:  # a file system without locks
        return
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    text = (json.dumps({**holder, "files": files} if files else holder) + "\n").encode()
    # A full disk must not keep anybody from taking a lock: the name is only for messages.
    with suppress(OSError):
        # In this order a kill in between leaves a readable first line.
        os.pwrite(handle, text, 0)
        os.ftruncate(handle, len(text))


def _read_holder(handle):
    try:
        holder = json.loads(os.pread(handle, 65536, 0).splitlines()[0])
        who = f"process {int(holder['pid'])} on {holder['host']!s}, since {holder['since']!s}"
        return "another thread of this process" if _is_own(holder) else who
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return "another process"


def _read_files(handle):
    """The files that a lock file names as being written."""
    try:
        names = json.loads(os.pread(handle, 65536, 0).splitlines()[0])["files"]
        return [name for name in names if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return []


def _is_own(holder):
    return holder["pid"] == os.getpid() and holder["host"] == socket.gethostname()


def _forget_locks():
    """A forked child holds no lock. Otherwise a child that outlives its killed parent would keep the lock."""
    for _, _, handle in _held.values():
        if handle is not None:
            with suppress(OSError):
                os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks)
