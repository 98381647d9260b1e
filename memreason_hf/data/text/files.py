"""Local files of texts: finding them, and checking them before anything is computed."""

import codecs
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from memreason_hf.checks import check_path, check_sequence
from memreason_hf.messages import first_few


# The builder of `datasets` for each suffix.
BUILDERS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_CHUNK = 16 << 20
# Letters that are read to see how a JSON file begins.
_BEGIN = 4096


def find_files(patterns: str | Sequence[str], field: str = "data.files") -> list[Path]:
    """
    The files that paths, patterns and folders stand for, each once, sorted within each of them.

    Args:
        patterns (`str` or `Sequence[str]`): Paths; patterns with `*`, `?`, `[...]` and `**`; folders, of which all
            files with a known suffix are taken.
        field (`str`): What the messages call them.

    Raises:
        ValueError: one that matches nothing, or an unknown suffix.
    """
    files = []
    patterns = [patterns] if isinstance(patterns, str | os.PathLike) else patterns
    check_sequence(field, patterns, "paths or patterns")
    if not patterns:
        raise ValueError(f"{field}=[] must name at least one file.")
    for pattern in patterns:
        check_path(field, pattern)
        path = Path(pattern).expanduser()
        if path.is_dir():
            found = sorted(item for item in path.rglob("*") if item.is_file() and item.suffix.lower() in BUILDERS)
        elif path.is_file():
            found = [path]
        else:
            found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            kind = f"holds no {', '.join(BUILDERS)} file" if path.is_dir() else "matches no file"
            raise ValueError(
                f"{field}={str(pattern)!r} {kind}. Check the spelling; relative paths begin at {Path.cwd()}."
            )
        files += found
    files = list(dict.fromkeys(files))
    unknown = [path for path in files if path.suffix.lower() not in BUILDERS]
    if unknown:
        raise ValueError(
            f"{field}: {first_few(unknown, 3)} cannot be read: the suffix must be one of {', '.join(BUILDERS)}."
        )
    return files


def builder_of(files: Sequence[Path], field: str = "data.files") -> str:
    """
    The builder of `datasets` for files: `"text"`, `"json"` or `"parquet"`.

    Raises:
        ValueError: files of several kinds.
    """
    first = {}
    for path in files:
        first.setdefault(BUILDERS[path.suffix.lower()], path)
    if len(first) > 1:
        kinds = " and ".join(f"{kind} ({path})" for kind, path in first.items())
        raise ValueError(f"{field} holds files of several kinds, {kinds}. Use one kind in a run.")
    return next(iter(first))


def check_files(files: Sequence[Path], field: str = "data.files") -> None:
    """
    Checks that files are not empty and, unless they are parquet files, that they are UTF-8. Reads them whole.

    Raises:
        ValueError: a file that is empty, or not UTF-8. The message names the file, the byte and the line.
    """
    empty = [path for path in files if path.stat().st_size == 0]
    if empty:
        raise ValueError(
            f"{field}: {first_few(empty, 3)} {'is' if len(empty) == 1 else 'are'} empty. Leave out empty files."
        )
    for path in files:
        builder = BUILDERS[path.suffix.lower()]
        if builder != "parquet":
            _check_utf8(path, field)
        if builder == "json":
            _check_json_rows(path, field)


def _check_json_rows(path, field):
    """The first row of JSON lines, or of a JSON list, must be a mapping: Arrow ends the process where it is null."""
    with open(path, encoding="utf-8-sig") as file:
        begin = file.read(_BEGIN).lstrip()
    if begin.startswith("["):
        begin = begin[1:].lstrip()
    if not begin.startswith("{"):
        raise ValueError(
            f"{field}: {path} begins with {begin[:20]!r}, but must hold JSON lines such as "
            '{"text": "..."}, or a list of them.'
        )


def _check_utf8(path, field):
    decoder = codecs.getincrementaldecoder("utf-8")()
    begin, lines = 0, 1
    with open(path, "rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                offset = begin - pending + error.start
                lines += chunk[: max(offset - begin, 0)].count(b"\n")
                raise ValueError(
                    f"{field}: {path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset:,} "
                    f"(line {lines:,}). Convert the file, for example with iconv -f latin1 -t utf-8."
                ) from None
            if not chunk:
                return
            begin += len(chunk)
            lines += chunk.count(b"\n")
