"""
Damage to one file of a valid folder.

A file without permissions is not among the damages: root, as whom tests often run, reads it all the same.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from malformed_cases import NO_VALUE, Case


def _missing(path, rng):
    path.unlink()


def _empty(path, rng):
    path.write_bytes(b"")


def _cut(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, max(2, len(content) * 9 // 10))])


def _one_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _nonsense(path, rng):
    path.write_bytes(rng.randbytes(200))


def _null(path, rng):
    path.write_text("null")


def _list(path, rng):
    path.write_text("[1, 2, 3]")


def _number(path, rng):
    path.write_text("1" * rng.choice([5, 400, 5000]))


def _text(path, rng):
    path.write_text('"a text"')


def _nested(path, rng):
    path.write_text(rng.choice(["[", '{"a":']) * 100_000)


def _other_encoding(path, rng):
    content = path.read_bytes().decode("latin-1")
    path.write_bytes(content.encode("utf-16"))


def _loop(path, rng):
    path.unlink()
    path.symlink_to(path.name)


def _directory(path, rng):
    path.unlink()
    path.mkdir()


def _pipe(path, rng):
    """Whoever opens it to read waits for a writer."""
    path.unlink()
    os.mkfifo(path)


def _not_finite(path, rng):
    """NaN or a huge number in place of one number of a JSON file."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    places = list(_numbers(content))
    if not places:
        path.write_text(json.dumps({"value": float("nan")}))
        return
    parent, key = rng.choice(places)
    parent[key] = rng.choice([float("nan"), float("inf"), 10**400])
    path.write_text(json.dumps(content))


def _numbers(content):
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield content, key
        else:
            yield from _numbers(value)


# Damages, and whether every file must be refused after them.
DAMAGES = {
    "missing": (_missing, True),
    "empty": (_empty, True),
    "cut": (_cut, True),
    "one bit": (_one_bit, False),
    "nonsense": (_nonsense, True),
    "null": (_null, True),
    "a list": (_list, True),
    "a number": (_number, True),
    "a text": (_text, True),
    "deeply nested": (_nested, True),
    "another encoding": (_other_encoding, True),
    "a symbolic link to itself": (_loop, True),
    "a directory": (_directory, True),
    "a pipe": (_pipe, True),
    "not finite or huge": (_not_finite, False),
}


def damage_cases(
    rng: random.Random,
    entrance: str,
    folder: Path,
    files: Iterable[str],
    read: Callable[[Path], object],
    *,
    optional: Iterable[str] = (),
    unread: Iterable[str] = (),
    damages: Iterable[str] = tuple(DAMAGES),
    names: dict[str, tuple[str, ...]] | None = None,
    fault: Callable[[object], str | None] = lambda result: None,
) -> list[Case]:
    """
    A case for each file of a copy of `folder` and each damage.

    Args:
        read: called with the copy; raises what the entrance raises.
        optional: files that may be missing.
        unread: files whose damage may go unnoticed, because nothing reads them.
        names: what a message may name instead of a file.
    """
    cases = []
    for file in files:
        for damage in damages:
            change, must_be_refused = DAMAGES[damage]
            is_optional = file in unread or (damage == "missing" and file in optional)

            def run(scratch, file=file, change=change, seed=rng.getrandbits(32)):
                copy = scratch / folder.name
                if folder.is_dir():
                    shutil.copytree(folder, copy)
                    change(copy / file, random.Random(seed))
                else:
                    shutil.copy(folder, copy)
                    change(copy, random.Random(seed))
                return read(copy)

            cases.append(
                Case(
                    entrance,
                    f"{folder.name}/{file}: {damage}",
                    run,
                    names=(Path(file).name, folder.name, *(names or {}).get(file, ())),
                    value=NO_VALUE,
                    is_wrong=must_be_refused and not is_optional,
                    fault=fault,
                )
            )
    return cases
