"""Reads YAML 1.2 from a file that a user wrote, within limits on its size, depth and repetition."""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent


# A recipe holds some hundred values on two levels; these limits stop a file that expands without end.
MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
MAX_VALUES = 10_000
_MOST_LETTERS = 200


def read_yaml(path: Path) -> object:
    """
    The content of a YAML 1.2 file: `no`, `off` and `none` are text, `1e-4` is a number, a key appears only once.

    Aliases (`*name`) count as often as they are used, so a file that repeats itself exponentially is refused before
    it is expanded.

    Raises:
        ValueError: the file is not YAML in UTF-8, repeats a key, or is larger or deeper than a recipe can be. The
            message is one line with the file and, where known, the line.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES:,} bytes, the most that a recipe may have.")
    try:
        text = content.decode("utf-8")
        _check_limits(text, path)
        return _load(text, path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text in UTF-8 ({error}).") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        raise ValueError(f"{path}{line}: not valid YAML: {_one_line(error.problem or error.context)}.") from None
    except YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {_one_line(error)}.") from None


def _loader():
    # The C loader would read YAML 1.1, where `no` is false and `1e-4` text.
    return YAML(typ="safe", pure=True)


def _load(text, path):
    try:
        return _loader().load(text)
    except ValueError as error:
        # A date such as 2024-13-45, a number of more digits than Python reads, `!!int x`.
        raise ValueError(f"{path}: a value cannot be read: {_one_line(error)}.") from None


def _check_limits(text, path):
    """Adds up values and depth over the events of the parser, which expands nothing and does not recurse."""
    # For each open collection: its anchor, the values in it, and the depth of the deepest of them. The first one is
    # the document.
    collections = [[None, 0, 0]]
    anchors = {}
    for event in _loader().parse(text):
        line = event.start_mark.line + 1
        values = depth = 0
        if isinstance(event, CollectionStartEvent):
            collections.append([event.anchor, 1, 0])
            # From here on the name stands for this collection, which is not complete yet.
            anchors.pop(event.anchor, None)
        elif isinstance(event, CollectionEndEvent):
            anchor, values, depth = collections.pop()
            depth += 1
            anchors[anchor] = values, depth
        elif isinstance(event, ScalarEvent):
            values = 1
            anchors[event.anchor] = values, depth
        elif isinstance(event, AliasEvent):
            if event.anchor not in anchors:
                raise ValueError(f"{path}, line {line}: *{event.anchor} is used inside or before &{event.anchor}.")
            values, depth = anchors[event.anchor]
        parent = collections[-1]
        parent[1:] = parent[1] + values, max(parent[2], depth)
        if len(collections) - 1 + depth > MAX_DEPTH:
            raise ValueError(f"{path}, line {line}: nested more than {MAX_DEPTH} levels deep.")
        if parent[1] > MAX_VALUES:
            raise ValueError(f"{path}, line {line}: expands to more than {MAX_VALUES:,} values.")


def _one_line(problem):
    text = " ".join(str(problem).split())
    return text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "…"
