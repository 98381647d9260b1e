"""
What of a text must not be published: tokens and passwords, absolute paths, and names of this machine and its user.

A rule fires on what is private wherever it stands (a token of the Hub, `/home/…`), or on a value of this machine in a
place that only such a value takes (`user@host`, `"hostname": "…"`). A user called `model` or a machine called `gpt-2`
therefore does not make every text that has the word private.
"""

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import constants, get_token


TOKEN, PATH, NAME = "token", "absolute path", "user or host name"
# How a text is read. `settings`: values of JSON or YAML, where a whole value can be a path. `vocabulary`: pieces of
# words, which can look like paths. `binary`: bytes between which a text may stand.
Style = Literal["text", "settings", "vocabulary", "binary"]

_LONGEST_EXCERPT = 100
_SHORTEST_SECRET = 16
_SECRET_VARIABLE = re.compile(r".*_(TOKEN|API_KEY|SECRET|SECRET_KEY|ACCESS_KEY|PASSWORD)", re.IGNORECASE)

# Folders at the root of a file system below which users, clusters and notebooks keep their files.
_PRIVATE_ROOTS = frozenset(
    b"home Users root mnt media tmp Volumes scratch gpfs lustre nfs workspace workspaces kaggle dbfs".split()
)
_PRIVATE_BEGINNINGS = (b"/var/folders/", b"/private/var/", b"/private/tmp/", b"/export/home/", b"/content/drive/")
# The same on every machine, so they say nothing about this one.
_SYSTEM_ROOTS = frozenset(b"usr bin sbin lib lib32 lib64 libx32 etc dev proc sys boot run snap path".split())

_COMPONENT = rb"(?:[\w.@+~%=-]|[\x80-\xff])+"
_AT_PATH = rb"(?<![\w/.~%*?&#)\]}\\])"
_POSIX_PATH = re.compile(_AT_PATH + rb"/" + _COMPONENT + rb"(?:/" + _COMPONENT + rb")+/?")
# Each rule has the texts with which its pattern begins, after at most so many bytes: they are searched for first,
# because a search for a constant is many times faster than one for a pattern.
_PATH_RULES = (
    ((b"file:/", b"FILE:/"), 0, re.compile(rb"(?i)\bfile:/+(?!/)[\w.%~-]+/[^\s\"'<>]+")),
    ((b"%2Fhome%2F", b"%2FUsers%2F", b"%2Froot%2F", b"%2Fmnt%2F", b"%2Ftmp%2F"), 0, re.compile(rb"%2F[\w.%-]+")),
    (
        (b":\\", b":/"),
        1,
        re.compile(rb"(?i)(?<![a-z0-9])[a-z]:[\\/]{1,4}(?:Users|Documents and Settings)[\\/]{1,4}[^\\/\s\"'<>]+"),
    ),
    ((b"/Users/",), 2, re.compile(_AT_PATH + rb"/[a-z]/Users/[^/\s\"'<>]+")),
)
# A whole value of JSON or YAML. `/v1/models` is one, too: settings hold no routes.
_VALUE_RULES = (
    re.compile(rb"\"(/(?!/)[^\"/\n]+/[^\"\n]*)\""),
    re.compile(rb"\"([A-Za-z]:(?:\\\\|/)[^\"\n]*)\""),
    re.compile(rb"\"(\\\\[\w.-]+\\[^\"\n]+)\""),
    re.compile(rb"(?m)^[ \t]*(?:- +|[\w.-]+ *[:=] +)'?((?:/(?!/)[^/\s#']+/|[A-Za-z]:\\)[^\n#']*)'?[ \t]*$"),
)

_TOKEN_RULES = (
    ((b"hf_", b"api_org_"), 0, re.compile(rb"(?<![A-Za-z0-9_])(?:hf_|api_org_)[A-Za-z0-9]{30,}")),
    ((b"sk-",), 0, re.compile(rb"(?<![\w-])sk-(?=[\w-]{0,99}\d)(?:[a-z0-9]+-){0,2}[A-Za-z0-9_-]{20,}")),
    ((b"AKIA", b"ASIA"), 0, re.compile(rb"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])")),
    ((b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"), 0, re.compile(rb"(?<![A-Za-z0-9_])gh._[A-Za-z0-9]{36,}")),
    ((b"github_pat_",), 0, re.compile(rb"github_pat_\w{40,}")),
    ((b"glpat-",), 0, re.compile(rb"glpat-[\w-]{20,}")),
    ((b"xox",), 0, re.compile(rb"xox[abeoprs]-[A-Za-z0-9-]{10,}")),
    ((b"AIza",), 0, re.compile(rb"(?<![A-Za-z0-9_-])AIza[\w-]{35}(?![\w-])")),
    ((b"gsk_",), 0, re.compile(rb"(?<![A-Za-z0-9_])gsk_[A-Za-z0-9]{40,}")),
    ((b"r8_",), 0, re.compile(rb"(?<![A-Za-z0-9_])r8_[A-Za-z0-9]{37}(?![A-Za-z0-9])")),
    ((b"dckr_pat_",), 0, re.compile(rb"dckr_pat_[\w-]{20,}")),
    ((b"SG.",), 0, re.compile(rb"(?<![\w.])SG\.[\w-]{16,32}\.[\w-]{30,}")),
    ((b"AccountKey=",), 0, re.compile(rb"AccountKey=[A-Za-z0-9+/]{40,}={0,2}")),
    (
        (b"Bearer ", b"bearer "),
        0,
        re.compile(rb"(?i)\bbearer (?=[\w.~+/-]{0,99}\d)(?=[\w.~+/-]{0,99}[A-Z])[\w.~+/-]{20,}=*"),
    ),
    ((b"npm_",), 0, re.compile(rb"(?<![A-Za-z0-9_])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])")),
    ((b"pypi-AgE",), 0, re.compile(rb"pypi-AgE[\w-]{50,}")),
    ((b"-----BEGIN ",), 0, re.compile(rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")),
    ((b"eyJ",), 0, re.compile(rb"(?<![\w-])eyJ[\w-]{10,999}\.eyJ[\w-]{10,9999}\.[\w-]{10,}")),
    ((b"://",), 0, re.compile(rb"://[^\s/:@\"'<>{}$]{1,99}:[^\s/:@\"'<>{}$]{6,99}@[\w.-]+")),
)
# Keys, in lower case, whose value is a secret if it looks like one: long, without blanks, with letters and digits.
_SECRET_KEYS = tuple(
    b"api_key apikey secret secret_key passwd password access_key accesskey".split()
    + b"hub_token hf_token auth_token access_token bearer_token api_token".split()
)
_SECRET_VALUE = re.compile(
    rb"[\"']?\s{0,9}[:=]\s{0,9}[\"']?((?=[\w/+.~-]{0,99}\d)(?=[\w/+.~-]{0,99}[A-Za-z])[\w/+.~-]{16,}={0,2})(?![\w(\[.])"
)
_NAME_KEYS = tuple(b"user username user_name logname login host hostname host_name node_name USER HOSTNAME".split())
# What may stand for a character in JSON and in source code. A line break stays within its line, so that lines count.
_ESCAPES = ((b"\\n", b"  "), (b"\\r", b"  "), (b"\\t", b"  "), (b"\\/", b"/"), (b'\\"', b'"'), (b"\\\\", b"\\"))


class Match(NamedTuple):
    """What is private in a text: the line breaks before it, its kind, and what to show of it."""

    line: int
    kind: str
    excerpt: str


@dataclass(frozen=True)
class Machine:
    """
    What identifies a machine and its user.

    Attributes:
        user, host: their names, as the system gives them; empty if unknown.
        folders: the home folder and others whose paths are private as a whole.
        secrets: values that must not leave, and where each is from.
    """

    user: str = ""
    host: str = ""
    folders: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def current(cls, secrets: Iterable[str] = ()) -> "Machine":
        """
        This machine, with its user's token of the Hub and the values of environment variables such as `X_API_KEY`.

        Args:
            secrets: further values, such as a token that was passed on a command line.
        """
        values = {value: f"${name}" for name, value in os.environ.items() if _SECRET_VARIABLE.fullmatch(name)}
        values |= {value: "the token of this login" for value in (get_token(),) if value}
        values |= {value: "the token in use" for value in secrets if value}
        folders = (Path.home(), Path.cwd(), tempfile.gettempdir(), sys.prefix, constants.HF_HOME)
        try:
            user = getpass.getuser()
        except (OSError, KeyError, ImportError):  # a container may run as an id without a name
            user = ""
        # A token in use is a secret however short it is.
        kept = {value: name for value, name in values.items() if len(value) >= _SHORTEST_SECRET or name[0] != "$"}
        return cls(user, socket.gethostname(), tuple(dict.fromkeys(map(str, folders))), kept)


class PrivateText:
    """
    Finds what is private in texts.

    Args:
        machine: whose names, folders and secrets are looked for. Default: this machine.

    Example:

        >>> finder = PrivateText(Machine(user="ada", host="gpt-2"))
        >>> [(match.kind, match.excerpt) for match in finder.find(b'{"data": "/home/ada/gpt-2"}')]
        [('absolute path', '/home/ada/gpt-2')]
        >>> list(finder.find(b"gpt-2 is a model that ada likes; see https://example.org/home/gpt-2"))
        []
    """

    def __init__(self, machine: Machine | None = None):
        self.machine = Machine.current() if machine is None else machine
        self._secrets = {value.encode(): name for value, name in self.machine.secrets.items()}
        spellings = {text for path in self.machine.folders for text in (path, path.replace("\\", "/"))}
        # A folder such as `/`, `/data` or `/usr/local` says nothing about this machine.
        folders = [
            text.encode()
            for text in sorted(spellings, key=len, reverse=True)
            if len(parts := re.findall(r"[^/\\]+", text)) >= 2 and parts[0].encode() not in _SYSTEM_ROOTS
        ]
        self._folder_rules = [
            ((path,), 0, re.compile(re.escape(path) + rb"(?![\w.-])[^\s\"'<>]{0,200}")) for path in folders
        ]
        self._name_rules = _name_rules(self.machine.user, self.machine.host)

    def find(self, text: bytes, style: Style = "text") -> Iterator[Match]:
        """
        Every match in a text, in no order. Text between escapes (`"\\/home\\/ada"`) is found, too; what is found with
        and without them comes twice.
        """
        yield from self._find_lines(text, style)
        if b"\\" in text and style != "binary":
            for escape, character in _ESCAPES:
                text = text.replace(escape, character)
            yield from self._find_lines(text, style)

    def _find_lines(self, text, style):
        for start, kind, excerpt in self._find(text, style):
            yield Match(text.count(b"\n", 0, start), kind, excerpt)

    def _find(self, text, style):
        """(offset, kind, excerpt) of every match."""
        for rule in _TOKEN_RULES:
            yield from ((match.start(), TOKEN, _masked(match[0])) for match in _matches(text, rule))
        for value, name in self._secrets.items():
            yield from ((start, TOKEN, f"{_masked(value)}, {name}") for start in _places(text, value))
        for rule in self._folder_rules:
            yield from ((match.start(), PATH, _shown(match[0])) for match in _matches(text, rule))
        if style == "vocabulary":
            return
        yield from _find_paths(text, style)
        if style == "binary":
            return
        yield from _find_secret_fields(text)
        for rule, wanted in self._name_rules:
            if wanted in ("text", style):
                yield from ((match.start(), NAME, _shown(match[0])) for match in _matches(text, rule))


def _places(text, constant):
    start = text.find(constant)
    while start >= 0:
        yield start
        start = text.find(constant, start + 1)


def _matches(text, rule):
    needles, before, pattern = rule
    for needle in needles:
        for start in _places(text, needle):
            if start >= before and (match := pattern.match(text, start - before)):
                yield match


def _find_secret_fields(text):
    lower = text.lower()
    for key in _SECRET_KEYS:
        for start in _places(lower, key):
            if match := _SECRET_VALUE.match(text, start + len(key)):
                yield start, TOKEN, f"{key.decode()}: {_masked(match[1])}"


def _find_paths(text, style):
    for root, look_up in _roots():
        if look_up and style == "binary":
            continue
        for match in _matches(text, ((b"/" + root + b"/",), 0, _POSIX_PATH)):
            if not look_up or match[0].startswith(_PRIVATE_BEGINNINGS) or _exists(match[0].rstrip(b"/.")):
                yield match.start(), PATH, _shown(match[0])
    for rule in _PATH_RULES:
        yield from ((match.start(), PATH, _shown(match[0])) for match in _matches(text, rule))
    if style != "settings":
        return
    for pattern in _VALUE_RULES:
        for match in pattern.finditer(text):
            if not match[1].startswith(b"/") or match[1].split(b"/")[1] not in _SYSTEM_ROOTS:
                yield match.start(1), PATH, _shown(match[1])


@lru_cache(maxsize=1)
def _roots():
    """(name of a folder at the root, whether its paths are private only if they exist here)"""
    try:
        here = set(os.listdir(b"/"))
    except OSError:
        here = set()
    here |= {path.split(b"/")[1] for path in _PRIVATE_BEGINNINGS}
    return [
        *((name, False) for name in sorted(_PRIVATE_ROOTS)),
        *((name, True) for name in sorted(here - _PRIVATE_ROOTS - _SYSTEM_ROOTS) if not name.startswith(b".")),
    ]


@lru_cache(maxsize=10_000)
def _exists(path):
    try:
        return os.path.lexists(path)
    except ValueError:
        return False


def _name_rules(user, host):
    """(rule, style of the texts it is for) for the names of a user and a machine."""
    rules = []
    names = dict.fromkeys(name.encode() for name in (host, host.split(".")[0]) if name and name != "localhost")
    for name in names:
        end = re.escape(name) + rb"(?![\w-])"
        # As in a prompt, in a URL and in the target of a copy.
        rules.append((((b"@" + name,), 1, re.compile(rb"[\w.-]@" + end)), "text"))
        rules.append((((b"://" + name,), 0, re.compile(rb"://" + end + rb"(?=[:/])")), "text"))
        rules.append((((name,), 0, re.compile(rb"(?<![\w./@-])" + end + rb"(?=:/[\w.])")), "text"))
        if _is_distinctive(name.decode()):
            rules.append((((name,), 0, re.compile(rb"(?<![\w.-])" + end)), "text"))
    # `"user": "user"` says nothing.
    for name in dict.fromkeys([*names, *([user.encode()] if user else [])]).keys() - set(_NAME_KEYS):
        value = re.escape(name) + rb"[\"']?\s*(?:[,}\]#]|$)"
        for key in _NAME_KEYS:
            pattern = re.compile(rb"(?m)(?<![\w-])" + key + rb"[\"']?[ \t]*[:=][ \t]*[\"']?" + value)
            rules.append((((key,), 0, pattern), "settings"))
    return rules


def _is_distinctive(host):
    """Whether the name of a machine is one that no text has by chance: an address, an id, a domain."""
    patterns = (r"(?=.*\d)(?=.*[a-f])[0-9a-f]{12}", r"(DESKTOP|LAPTOP|WIN)-[A-Z0-9]{6,}", r"ip(-\d+){4}.*")
    return host.count(".") >= 2 or host.endswith(".local") or any(re.fullmatch(text, host) for text in patterns)


def _masked(token):
    """The beginning of a token, by which its owner recognises it."""
    begin = 4 if len(token) >= _SHORTEST_SECRET else 1
    return f"{token[:begin].decode(errors='replace')}… ({len(token)} characters)"


def _shown(text):
    shown = text.decode(errors="replace")
    shown = "".join(character if character.isprintable() else "�" for character in shown)
    return shown if len(shown) <= _LONGEST_EXCERPT else f"{shown[:_LONGEST_EXCERPT]}…"
