"""
Values from files as Markdown, so that nothing in them is markup, and nothing private leaves with them.

A path on this machine says where something was, not what it is, and may name its user: only its last part is shown.
"""

import getpass
import re
import socket
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from huggingface_hub.utils import HFValidationError, validate_repo_id


LOCAL_FOLDER = "a local folder"
# Longer values are cut: a name is not a text.
_LONGEST = 200
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$<>&])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "{": "&#123;", "}": "&#125;", "|": "&#124;", "$": "&#36;"}


def plain(value: object) -> str:
    """
    A value as text in Markdown, in one line.

    Markup of Markdown, HTML, Jinja and LaTeX is shown, not obeyed; control characters and line breaks become spaces.

    Example:

        >>> plain("a|b <script> {{ 7 * 7 }}")
        'a&#124;b &lt;script&gt; &#123;&#123; 7 \\\\* 7 &#125;&#125;'
    """
    visible = "".join(
        " " if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") else char for char in str(value)
    )
    text = " ".join(visible.split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[1], f"\\{match[1]}"), text)


def code(value: object) -> str:
    """A value as a span of code, or as `plain` shows it where it holds more than a name does."""
    text = str(value)
    return f"`{text}`" if len(text) <= _LONGEST and re.fullmatch(r"[\w.,:/=+@ -]+", text, re.ASCII) else plain(text)


def number(value: float) -> str:
    """A number: whole ones with separators of thousands, others with four significant digits."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}"


def counted(count: int, noun: str) -> str:
    """
    A number of things.

    Example:

        >>> counted(1, "row"), counted(2000, "row")
        ('1 row', '2,000 rows')
    """
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"


def percent(value: float) -> str:
    """A share in 0..1 as percent."""
    return f"{value:.1%}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its entries are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(entry) for entry in line)} |" for line in lines)


def is_hub_name(name: object) -> bool:
    """Whether a value has the form `owner/name` or `name` of a repository on the Hub."""
    if not isinstance(name, str):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name not in (".", "..")


def last_part(path: object) -> str:
    """
    The last part of a path or of a name on the Hub, as Markdown, or `"a local folder"` where it may name a person or
    a machine.

    Example:

        >>> last_part("data/small_world"), last_part("/home")
        ('small\\\\_world', 'a local folder')
    """
    pure = PureWindowsPath(str(path)) if "\\" in str(path) else PurePosixPath(str(path))
    name = pure.name
    homes = ("home", "users", "root")
    at_top = pure.is_absolute() and len(pure.parts) < 3
    if name in ("", ".", "..") or at_top or name.lower() in homes or pure.parent.name.lower() in homes:
        return LOCAL_FOLDER
    words = set(re.split(r"[^0-9a-z]+", name.lower()))
    return LOCAL_FOLDER if words & _private_words() else plain(name)


def _private_words():
    """Names of this user and this machine."""
    words = {Path.home().name, socket.gethostname(), socket.gethostname().partition(".")[0]}
    with suppress(OSError, KeyError):  # a user without an entry in the password file
        words.add(getpass.getuser())
    return {word.lower() for word in words if len(word) > 2}
