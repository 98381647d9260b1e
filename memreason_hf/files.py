"""
Writing files and folders that appear whole or not at all.

    with whole_file("results.json", overwrite=True) as temporary:
        temporary.write_text("{}")
    with whole_folder("data/world") as staged:
        (staged / "vocab.json").write_text("[]")

Files and folders are written under a hidden temporary name in the same folder, synced to the disk, and renamed.
"""

import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath


logger = logging.getLogger(__name__)

# These names are hidden, so that neither patterns of transformers nor users mistake them for finished folders.
_STAGED, _DOOMED = ".partial", ".deleted"
# Folders that all processes of a run write together (`staging_folder`), so their names hold no process. In earlier
# releases those of pushes had such names, too.
_SHARED = re.compile(rf"\.(checkpoint-\d+|model|adapter|push-[^.]+)({re.escape(_STAGED)}|{re.escape(_DOOMED)})")
_OWNED = re.compile(rf"\..+\.(\d+)-[0-9a-f]+({re.escape(_STAGED)}|{re.escape(_DOOMED)})")
# A temporary file of `whole_file`.
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{12}(\.\w+)?")
# The suffix of a lock file (`locks`). It may list the files of a set that is being written (`file_sets`).
LOCK_SUFFIX = ".lock"


@contextmanager
def whole_file(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """
    Gives a temporary path in the folder of `path`. The file written there is renamed to `path` when the block ends
    without an error.

    The temporary path keeps the suffix of `path`, because some writers choose their format by it. Missing folders are
    created. A symbolic link is replaced, not followed. What killed processes left of the same file is removed.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false. Checked again at the end.
    """
    path = Path(path)
    check_places([path], overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_killed_files(path.parent, re.escape(path.stem), re.escape(path.suffix))
    temporary = path.with_name(f".{path.stem}.{_owner()}{path.suffix}")
    try:
        yield temporary
        allow_reading(temporary)
        sync(temporary)
        check_places([path], overwrite=overwrite)
        os.replace(temporary, path)
        with suppress(OSError):  # a folder may be writable, but not readable
            sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            # A full disk is found when a file is written, where Python does not name it.
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: object, *, overwrite: bool = True, **options) -> None:
    """
    Writes a JSON file, whole or not at all.

    Args:
        options: for `json.dumps`; the defaults are `indent=2` and `allow_nan=False`, because NaN is not JSON.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        ValueError: `content` holds NaN or infinity.
    """
    text = json.dumps(content, **{"indent": 2, "allow_nan": False, **options})
    with whole_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def parse_json(content: str | bytes) -> object:
    """
    `json.loads`, also for texts that are nested too deeply for it.

    Raises:
        ValueError: the content is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("its values are nested too deeply to be read.") from None


def read_bytes(path: str | os.PathLike) -> bytes:
    """
    The content of a regular file. To open a pipe would wait for a process that writes to it, perhaps for ever, and a
    device may never end.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a pipe, a socket or a device.
    """
    # Neither waits for a writer, nor does anything else to a regular file.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_special(path, os.fstat(handle))
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def read_text(path: str | os.PathLike, encoding: str = "utf-8", errors: str = "strict") -> str:
    """
    The text of a regular file, with its line ends as they are.

    Raises:
        OSError: as for `read_bytes`.
        UnicodeDecodeError: the file is not in this encoding.
    """
    return read_bytes(path).decode(encoding, errors)


def check_regular(folder: str | os.PathLike) -> None:
    """
    Checks that a folder holds only regular files and folders, before a library opens them.

    Raises:
        OSError: it holds a pipe, a socket or a device, perhaps through a link.
    """
    for path in Path(folder).rglob("*"):
        try:
            found = path.stat()
        except OSError:  # a link that leads nowhere
            continue
        if not stat.S_ISDIR(found.st_mode):
            _refuse_special(path, found)


def _refuse_special(path, found):
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        what = "it must be a file, but is a pipe, a socket or a device. Remove it"
        raise OSError(errno.EINVAL, what, os.fspath(path))


def read_json(path: str | os.PathLike) -> object:
    """
    Reads a JSON file; a byte order mark is skipped.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: a folder, a pipe, a socket or a device is in its place.
        ValueError: the file is not JSON, or nested too deeply to be read.
    """
    try:
        return parse_json(read_text(path, "utf-8-sig"))
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is not a JSON file (damaged or cut off?): {error}") from None


def check_places(paths: Iterable[str | os.PathLike], *, overwrite: bool) -> None:
    """
    Checks that files can be written at `paths`. Call this before computing the contents of the files.

    Raises:
        FileExistsError: one of them exists and `overwrite` is false; the message names them. What a killed process has
            written of a set of files (`file_sets`) does not count.
        OSError: a path is a folder or a device, a file is in the place of its folder, or its folder is read-only.
    """
    paths = list(dict.fromkeys(map(Path, paths)))
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder. Pass the name of a file.")
        if path.exists() and not path.is_file():
            raise OSError(f"{path} must be a file, but is a pipe, a socket or a device. Pass the name of a file.")
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        if not folder.is_dir():
            raise NotADirectoryError(f"{path} cannot be written: {folder} is a file, not a folder.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{path} cannot be written: the folder {folder} is read-only.")
    existing = [str(path) for path in paths if os.path.lexists(path) and not _is_unfinished(path)]
    if existing and not overwrite:
        verb = "exists" if len(existing) == 1 else "exist"
        raise FileExistsError(f"{', '.join(existing)} already {verb}. Choose another path or pass --overwrite.")


def _is_unfinished(path):
    """Whether a file belongs to a set that a process has begun to write, and has not finished."""
    for lock in path.parent.glob(f".*{LOCK_SUFFIX}"):
        with suppress(OSError, ValueError, TypeError, KeyError, IndexError):
            names = json.loads(read_text(lock).splitlines()[0])["files"]
            if os.path.abspath(path) in [os.path.abspath(lock.parent / name) for name in names]:
                return True
    return False


@contextmanager
def whole_folder(folder: str | os.PathLike, *, overwrite: bool = False, durable: bool = True) -> Iterator[Path]:
    """
    Gives an empty staging folder next to `folder`, which takes the place of `folder` when the block ends without an
    error. `folder` may exist if it is empty or if `overwrite` is true.

    The staging folder is named `.NAME.PID-RANDOM.partial`. If several processes or threads build the same folder at
    once, each has its own staging folder, and `folder` becomes that of one of them. Staging folders of killed
    processes are removed.

    Args:
        durable: whether the files are synced to the disk before they appear, so that they also survive a power cut.
            Folders that can be built again, and whose sizes are checked when they are read, need not wait for it.

    Raises:
        FileExistsError: `folder` is not empty and `overwrite` is false. Checked again at the end, because another
            process may have been faster.
    """
    folder = Path(folder)
    check_folder(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with held_folder(folder) as staged:
        yield staged
        check_folder(folder, overwrite=overwrite)
        _allow_reading_tree(staged)
        if durable:
            _sync_tree(staged)
        if overwrite:
            _replace_folder(staged, folder)
        else:
            _rename_folder(staged, folder)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """
    Gives an empty folder among the temporary files of the system, for this user alone, which is removed when the
    block ends. Those of killed processes with the same name are removed, too.
    """
    with held_folder(Path(tempfile.gettempdir(), name)) as staged:
        staged.chmod(0o700)
        yield staged


@contextmanager
def held_folder(folder: Path) -> Iterator[Path]:
    """
    Gives an empty folder next to `folder`, which is removed when the block ends. If this process is killed, it goes
    when the leftovers of its parent are cleared, and not before.
    """
    clear_killed_builds(folder)
    staged = folder.with_name(f".{folder.name}.{_owner()}{_STAGED}")
    staged.mkdir()
    # Held while this process lives. Processes of another container cannot see its id, but they see the lock.
    lock = os.open(staged, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield staged
    finally:
        os.close(lock)
        shutil.rmtree(staged, ignore_errors=True)


def check_folder(folder: str | os.PathLike, *, overwrite: bool) -> None:
    """
    Checks that a folder can be written at `folder`.

    Raises:
        NotADirectoryError: `folder` is a file.
        FileExistsError: `folder` is not empty and `overwrite` is false.
    """
    if os.path.islink(folder):
        raise NotADirectoryError(f"{folder} is a symbolic link, which cannot be replaced as a whole. Pass its target.")
    # A single call, because another process may replace the folder at any moment.
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise NotADirectoryError(f"{folder} is a file. Pass a folder.") from None
    if names and not overwrite:
        raise FileExistsError(f"{folder} is not empty. Choose another folder or pass --overwrite.")


def staging_folder(final: Path) -> Path:
    """The folder in which all processes of a run write the files of `final`."""
    return final.with_name(f".{final.name}{_STAGED}")


def portable_path(path: str | os.PathLike) -> str:
    """
    A path as files may hold it that leave this machine: without the folders above the one that a user works in.

    Args:
        path: a path, or a name on the Hub.

    Returns:
        A relative path and a name as they are; an absolute path relative to the current folder if it lies in it, and
        otherwise its last part.

    Example:

        >>> portable_path("runs/a"), portable_path("/somewhere/else/a"), portable_path(Path.cwd() / "runs" / "a")
        ('runs/a', 'a', 'runs/a')
    """
    path = os.fspath(path)
    # Paths of the other system come from files that were written there.
    whole = next((kind(path) for kind in (PurePosixPath, PureWindowsPath) if kind(path).is_absolute()), None)
    if whole is None:
        return path
    if Path(path).is_absolute() and Path(path) != Path.cwd() and Path(path).is_relative_to(Path.cwd()):
        return Path(path).relative_to(Path.cwd()).as_posix()
    return whole.name or "."


def final_name(folder: Path) -> str:
    """
    The name of a folder; of a staging folder, that of the folder which will hold its files.

    Example:

        >>> [final_name(Path(f"runs/{name}")) for name in ("a", ".a.17-0f3e.partial", "a/.model.partial")]
        ['a', 'a', 'a']
    """
    return final_folder(folder).name


def final_folder(folder: Path) -> Path:
    """A folder; of a staging folder, the one which will hold its files. Always absolute."""
    folder = folder.absolute()
    match = re.fullmatch(rf"\.(.+?)(\.\d+-[0-9a-f]+)?{re.escape(_STAGED)}", folder.name)
    if match is None:
        return folder
    # The others are renamed, but files staged under a name like `model` are moved into the folder around them, and
    # those of a push are links to files there.
    is_renamed = (match[2] and not match[1].startswith("push-")) or match[1].startswith("checkpoint-")
    return folder.with_name(match[1]) if is_renamed else folder.parent


def commit_folder(staged: Path, final: Path) -> None:
    """
    Syncs every file of `staged`, then renames it to `final`, replacing a folder of that name. A kill at any moment
    leaves `final` absent or whole.
    """
    _allow_reading_tree(staged)
    _sync_tree(staged)
    _replace_folder(staged, final)


def move_files(staged: Path, folder: Path, *, last: Iterable[str] = ()) -> list[str]:
    """
    Moves all files of `staged` into `folder`, each of them whole, and removes `staged`.

    Args:
        last: names of the files to move last, because `folder` counts as finished once it has them.

    Returns:
        The names of the files, relative to `folder`.
    """
    last = tuple(last)
    names = [str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()]
    names.sort(key=lambda name: (name in last, name))
    for name in names:
        allow_reading(staged / name)
        sync(staged / name)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / name, folder / name)
    shutil.rmtree(staged)
    sync(folder)
    return names


def link_files(folder: Path, target: Path, names: Iterable[str]) -> None:
    """
    Puts files of one folder into another under the same names, as hard links, or as copies across file systems.

    A link keeps its content if the other name is deleted or replaced. Files that are written in place would change.
    """
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, target / name)
        except OSError:
            shutil.copy2(folder / name, target / name)


def remove_folder(folder: Path) -> None:
    """Deletes a folder under another name, so that a kill half-way leaves no damaged folder behind."""
    _remove_as(folder, folder.with_name(f".{folder.name}.{_owner()}{_DOOMED}"))


def clear_leftovers(parent: str | os.PathLike) -> None:
    """
    Deletes all folders and files in `parent` that killed processes have not finished writing or deleting.

    Hidden folders with other names than this module gives, and what a living process builds, are kept. The caller
    holds the lock of `parent` or is alone there: the staging folders of a run name no process.
    """
    parent = Path(parent)
    if parent.is_dir():
        _clear_killed_files(parent, ".+", r"(\.\w+)?")
        for path in parent.iterdir():
            if _is_left_over(path):
                logger.info("Removing %s, left over from a process that was killed.", path)
                shutil.rmtree(path, ignore_errors=True)


def is_temporary(name: str) -> bool:
    """
    Whether this module gives such a name to a file or folder while it writes or deletes it.

    Example:

        >>> [is_temporary(name) for name in (".checkpoint-5.partial", ".a.17-0123456789ab.json", ".notes", ".git")]
        [True, True, False, False]
    """
    return any(pattern.fullmatch(name) for pattern in (_SHARED, _OWNED, _TEMPORARY))


def _is_left_over(path):
    if path.is_symlink() or not path.is_dir():
        return False
    if _SHARED.fullmatch(path.name):
        return True
    match = _OWNED.fullmatch(path.name)
    if match is None:
        return False
    # What is being deleted may be deleted twice.
    return match[2] == _DOOMED or (not _is_running(int(match[1])) and not _is_locked(path))


def clear_killed_builds(folder: Path) -> None:
    """Removes what killed builds of `folder` left next to it."""
    if not folder.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(\d+)-[0-9a-f]+({re.escape(_STAGED)}|{re.escape(_DOOMED)})")
    for path in folder.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _is_running(int(match[1])) and not _is_locked(path):
            logger.info("Removing %s, left over from a process that was killed.", path)
            shutil.rmtree(path, ignore_errors=True)


def allow_reading(path: Path) -> None:
    """
    Gives a new file the permissions that the user's umask allows. Some writers, such as safetensors, create files that
    only their owner can read.
    """
    if not path.is_symlink():
        path.chmod(0o666 & ~_umask() | stat.S_IMODE(path.stat().st_mode))


def sync(path: Path) -> None:
    """Writes the content of a file, or the names in a folder, through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder):
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _allow_reading_tree(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            allow_reading(path)


def _remove_as(folder, doomed):
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        os.rename(folder, doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def _rename_folder(staged, final):
    """Renames `staged` to `final`, which is absent or empty. Raises FileExistsError if it is not."""
    try:
        os.rename(staged, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise FileExistsError(f"{final} is not empty: another process has just written it.") from None
    sync(final.parent)


def _replace_folder(staged, final):
    doomed = final.with_name(f".{final.name}.{_owner()}{_DOOMED}")
    while True:
        _remove_as(final, doomed)
        try:
            return _rename_folder(staged, final)
        except FileExistsError:
            # Another process has renamed its own folder in between. The last one to finish replaces it.
            continue


def _clear_killed_files(folder, stem, suffix):
    """Removes temporary files of `whole_file` whose process has ended; `stem` and `suffix` are patterns."""
    pattern = re.compile(rf"\.{stem}\.(\d+)-{_host()}[0-9a-f]{{8}}{suffix}")
    with suppress(OSError):  # a folder may be writable, but not readable
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match and not _is_running(int(match[1])) and not path.is_dir():
                logger.info("Removing %s, left over from a process that was killed.", path)
                path.unlink(missing_ok=True)


def _owner():
    """A part of a name that is unique to this call: processes of two containers can have one id."""
    return f"{os.getpid()}-{_host()}{secrets.token_hex(4)}"


@functools.cache
def _host():
    """Four digits that stand for this machine or container, whose processes can be seen from here."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]


def _umask():
    # It can only be read by setting it, which other threads would notice.
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    value = os.umask(0o022)
    os.umask(value)
    return value


def _is_running(pid):
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True


def _is_locked(path):
    """Whether any process holds a lock on a folder, also one of another container; true if that is unknown."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
