"""
Finds what must not leave in files that are about to be published: tokens, absolute paths, names of the user and the
machine, the state of a training run, pickles and credentials.

    findings = inspect_files(["runs/lora"])
    refuse_private(["runs/lora"], allow=["notes.md"])

What this package writes passes, but for what never needs to leave: `run.json`, `training_args.bin`, checkpoints, and
`local_base.json` of an adapter.
Texts are read by line, tables by row; of weights only the header is read. A pickle is refused as such: loading one
runs code, and what it holds cannot be shown.
"""

import os
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from memreason_hf.adapters.base_place import LOCAL_BASE_FILE
from memreason_hf.hub.file_texts import read_parts
from memreason_hf.hub.private_text import NAME, TOKEN, Machine, PrivateText


RUN, STATE, PICKLE, ARCHIVE, CREDENTIALS = "record of a run", "training state", "pickle", "archive", "credentials"
PLACE = "place on this machine"
# Patterns of file names, and what such a file is.
_FILE_KINDS = (
    (RUN, ("run.json",)),
    (PLACE, (LOCAL_BASE_FILE,)),
    (STATE, ("optimizer*", "*optim_states*", "scheduler.pt", "scaler.pt", "rng_state*", "*.distcp", "zero_pp_rank*")),
    (STATE, ("training_args.bin", "callbacks.json")),
    (CREDENTIALS, (".env", ".env.*", ".netrc", "_netrc", ".git-credentials", ".pypirc", "id_rsa*", "id_ed25519*")),
    (CREDENTIALS, ("*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "credentials", "kaggle.json", "stored_tokens")),
    (PICKLE, ("*.pkl", "*.pickle", "*.joblib", "*.pt", "*.pth", "*.ckpt")),
    (ARCHIVE, ("*.zip", "*.tar", "*.tgz", "*.tar.*", "*.7z", "*.rar", "*.zst", "*.lz4", "*.whl")),
)
_PRIVATE_FOLDERS = (".git", ".ssh", ".aws", ".venv")
# TensorBoard puts the name of the machine into the name of the file, and into every file.
_EVENTS = "events.out.tfevents.*"
_PICKLE_START = re.compile(rb"\x80[\x01-\x05]")
# A file with more findings than these need not be read to its end.
_MOST_FINDINGS = 100
_ADVICE = {
    RUN: "leave it out",
    PLACE: "leave it out",
    STATE: "leave it out",
    PICKLE: "save weights as safetensors, or leave it out",
    ARCHIVE: "it cannot be inspected: publish what it holds",
    CREDENTIALS: "leave it out",
    TOKEN: "remove it, and revoke it if it was ever shared",
}


@dataclass(frozen=True)
class Finding:
    """
    Something that must not leave.

    Attributes:
        path: the file relative to the folder that was given; the name of a file that was given itself.
        line: the number of the line, or of the row of a table, from 1; None where the file as a whole is meant.
        kind: `"token"`, `"absolute path"`, `"user or host name"`, `"record of a run"`, `"place on this machine"`,
            `"training state"`, `"pickle"`, `"archive"` or `"credentials"`.
        excerpt: what was found, of a token only the beginning; empty where the file as a whole is meant.
        place: what `line` counts, or where in the file it was found.
    """

    path: str
    line: int | None
    kind: str
    excerpt: str
    place: str = "line"

    def __str__(self):
        if not self.excerpt:
            return f"{self.path} ({self.kind}: {_ADVICE[self.kind]})"
        where = f"{self.place} {self.line}" if self.line is not None else self.place
        return f"{self.path}, {where} ({self.kind}: {self.excerpt})"


def inspect_files(
    paths: Iterable[str | os.PathLike],
    *,
    allow: Iterable[str] = (),
    root: str | os.PathLike | None = None,
    secrets: Iterable[str] = (),
    machine: Machine | None = None,
) -> list[Finding]:
    """
    Finds what must not leave.

    Args:
        paths: Files, and folders with all that is in them.
        allow:
            What is accepted all the same: a file by its name, its path, or a pattern of either (`"run.json"`,
            `"results/*.json"`), or one line of it (`"README.md:12"`). A token is accepted only by its line: a file
            that is accepted as a whole is still searched for tokens.
        root: The folder to which paths in findings are relative. Default: each folder among `paths`, for its files.
        secrets: Values that must not leave, such as the token in use.
        machine: Whose names and folders are looked for. Default: this machine.

    Returns:
        The findings in the order of the files, at most a hundred for each file.

    Raises:
        OSError: A file does not exist or cannot be read.

    Example:

        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "README.md").write_text("# A model\\n\\nTrained in /home/ada/runs.\\n")
        >>> print(*inspect_files([folder]))
        README.md, line 3 (absolute path: /home/ada/runs.)
        >>> inspect_files([folder], allow=["README.md:3"])
        []
    """
    finder = PrivateText(Machine.current(secrets) if machine is None else machine)
    allowed = tuple(allow)
    findings = []
    for path, name in _named_files(paths, root):
        findings += _inspect_file(path, name, finder, allowed)[:_MOST_FINDINGS]
    return findings


def refuse_private(paths: Iterable[str | os.PathLike], *, allow: Iterable[str] = (), **kwargs) -> None:
    """
    Refuses to publish files that hold what must not leave.

    Args:
        paths, allow: As for `inspect_files`.
        kwargs: Other arguments of `inspect_files`.

    Raises:
        ValueError: Something was found; in one line the first places, their number, and what to do.
        OSError: A file does not exist or cannot be read.
    """
    findings = inspect_files(paths, allow=allow, **kwargs)
    if not findings:
        return
    shown = "; ".join(map(str, findings[:5]))
    more = f"; and {len(findings) - 5:,} more" if len(findings) > 5 else ""
    example = findings[0]
    accepted = f"{example.path}:{example.line}" if example.line is not None else example.path
    raise ValueError(
        f"This must not be published: {shown}{more}. Change or leave out these files. If something is meant to be "
        f"public, accept it by its name, and a token by its line (allow, for example {accepted})."
    )


def _named_files(paths, root):
    """(path, name in findings) of all files, in order."""
    for given in map(Path, paths):
        base = Path(root) if root is not None else given if given.is_dir() else None
        if not given.is_dir():
            # Where a single file lies here is not published.
            yield given, given.name if base is None else _name(given, base)
            continue
        for folder, names, files in os.walk(given, followlinks=True):
            names.sort()
            for file in sorted(files):
                yield Path(folder, file), _name(Path(folder, file), base)


def _name(path, base):
    return path.relative_to(base).as_posix() if base is not None and path.is_relative_to(base) else str(path)


def _inspect_file(path, name, finder, allowed):
    """The findings of one file that are not accepted: what it is, what its name says, and what it holds."""
    kind = _file_kind(path, Path(name))
    findings = [Finding(name, None, kind, "")] if kind else []
    if fnmatchcase(path.name, _EVENTS):
        findings.append(Finding(name, None, NAME, path.name, "its name"))
    findings += [Finding(name, None, match.kind, match.excerpt, "its name") for match in finder.find(name.encode())]
    findings = [finding for finding in findings if not _is_allowed(finding, allowed)]
    # What is in a pickle or an archive is compressed or that of a program; what it is says enough.
    is_opaque = kind in (PICKLE, ARCHIVE) or (kind and path.suffix == ".bin")
    return findings if is_opaque else [*findings, *_inspect_text(path, name, finder, allowed)]


def _file_kind(path, name):
    if any(part in _PRIVATE_FOLDERS for part in name.parts[:-1]):
        return CREDENTIALS
    for kind, patterns in _FILE_KINDS:
        if any(fnmatchcase(path.name.lower(), pattern) for pattern in patterns):
            return kind
    return PICKLE if _is_pickle(path) else None


def _is_pickle(path):
    """Whether a file is a pickle by its content: plain, of torch, or arrays of objects."""
    with path.open("rb") as file:
        start = file.read(256)
    if _PICKLE_START.match(start):
        return True
    if start.startswith(b"\x93NUMPY"):
        return b"'|O'" in start
    if not start.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            return any(name.endswith("data.pkl") for name in names) or any(
                b"'|O'" in archive.open(name).read(256) for name in names if name.endswith(".npy")
            )
    except zipfile.BadZipFile:
        return False


def _inspect_text(path, name, finder, allowed):
    findings = {}
    for part in read_parts(path):
        for match in finder.find(part.text, part.style):
            line = None if part.line is None else part.line + match.line
            # The same thing is found twice where it stands between escapes, or in two overlapping pieces.
            key = (line, match.kind, re.sub(r"\\+", r"\\", match.excerpt))
            finding = Finding(name, line, match.kind, match.excerpt, part.place)
            # What is accepted does not count: behind it there may be a token.
            if not _is_allowed(finding, allowed):
                findings.setdefault(key, finding)
        if len(findings) >= _MOST_FINDINGS:
            break
    # A path that lies across the end of a piece is found cut off, and whole in the next piece.
    cut = {
        key
        for key in findings
        if any(other != key and other[:2] == key[:2] and other[2].startswith(key[2]) for other in findings)
    }
    whole = (finding for key, finding in findings.items() if key not in cut)
    return sorted(whole, key=lambda finding: finding.line or 0)


def _is_allowed(finding, allowed):
    for entry in allowed:
        file, separator, line = str(entry).rpartition(":")
        if separator and line.isdigit():
            if _matches(finding.path, file) and finding.line == int(line):
                return True
        elif finding.kind != TOKEN and _matches(finding.path, str(entry)):
            return True
    return False


def _matches(path, pattern):
    return any(fnmatchcase(text, pattern.removeprefix("./")) for text in (path, Path(path).name))
