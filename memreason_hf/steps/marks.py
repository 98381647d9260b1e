"""
Finds the marks of steps in a text: groups of special tokens, in the spellings of published texts.

A group consists of the prefix tokens, if there are any, and the tokens of a kind in order: `<prefix_0><prefix_1>
<memory_0><memory_1>`. Their number is not fixed, but it is the same within a text: a group that is shorter than the
longest one of its text is incomplete and marks nothing.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from memreason_hf.steps.kinds import ALIASES, KINDS, PREFIX


def token_pattern(names: Iterable[str]) -> re.Pattern:
    """A pattern of the prefix tokens and the tokens of some names. Its groups are the name and the number, if any."""
    return _token_pattern(tuple(names))


@lru_cache
def _token_pattern(names):
    longest_first = sorted({PREFIX, *names}, key=len, reverse=True)
    return re.compile(rf"<({'|'.join(map(re.escape, longest_first))})(?:_(\d+))?>")


# The tokens of the study's kinds, in all spellings of published texts.
FAMILY_TOKEN = token_pattern((*KINDS, *ALIASES))
_BLANKS = re.compile(r"[^\S\n]*")
_AT_LINE_START = re.compile(r"^[^\S\n]*", re.MULTILINE)
_AFTER_WHITE_SPACE = re.compile(r"(?:^|(?<=\s))(?=<)")
# A token that the end of the text cuts off.
_FRAGMENT = re.compile(r"<\w*\Z")


@dataclass
class _Group:
    """Consecutive tokens from `start` to `end`. `num_prefix` and `num_tokens` are None if a token has no number."""

    start: int
    end: int
    kind: str | None
    num_prefix: int | None = 0
    num_tokens: int | None = 0
    in_order: bool = True
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """
    The place of a step in its text.

    Attributes:
        kind (`str`, *optional*): The kind that the mark names. `None` without a mark.
        start, mark_end (`int`): Where the mark starts and ends. Without a mark both equal `text_start`.
        text_start, end (`int`): Where the text of the step starts and ends. One space after the mark belongs to
            neither.
    """

    kind: str | None
    start: int
    mark_end: int
    text_start: int
    end: int


def find_groups(
    text: str, num_prefix_tokens: int, num_step_tokens: int, kinds: Mapping[str, str]
) -> tuple[list[Piece], int]:
    """
    Cuts a text into steps.

    Args:
        text (`str`): A solution.
        num_prefix_tokens, num_step_tokens (`int`):
            The tokens of a group, if the text itself does not show it. Without step tokens, the prefix tokens alone
            are a complete group, of no kind.
        kinds (`Mapping[str, str]`): The kind that the tokens of a name mark, by the name.

    Returns:
        The steps, with the kind `None` where there is no complete group, and the end of the last step: before the end
        of the text if the text ends inside a group.
    """
    has_lines = "\n" in text
    groups = _candidates(text, has_lines, kinds)
    complete, truncated = _complete(groups, num_prefix_tokens, num_step_tokens)
    stop = groups[-1].start if truncated else len(text)
    pieces = []
    position = 0
    for index, group in enumerate(complete):
        pieces += _without_kind(text, position, group.start, has_lines)
        following = complete[index + 1].start if index + 1 < len(complete) else stop
        position = text.find("\n", group.end, following) if has_lines else following
        position = following if position < 0 else position
        text_start = group.end + text.startswith(" ", group.end, position)
        end = position if has_lines else max(text_start, len(text[:position].rstrip()))
        pieces.append(Piece(group.kind, group.start, group.end, text_start, end))
    pieces += _without_kind(text, position, stop, has_lines)
    return pieces, stop


def find_lines(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """The start and the end of every line of a text that is not blank."""
    end = len(text) if end is None else end
    while start < end:
        stop = text.find("\n", start, end)
        stop = end if stop < 0 else stop
        if text[start:stop].strip():
            yield start, stop
        start = stop + 1


def split_at(text: str, tokens: Sequence[str]) -> list[str]:
    """Cuts a text before and after each of the tokens. The joined pieces are the text."""
    if not tokens:
        return [text] if text else []
    return [piece for piece in re.split(f"({'|'.join(map(re.escape, tokens))})", text) if piece]


def _without_kind(text, start, end, has_lines):
    if has_lines:
        return [Piece(None, first, first, first, last) for first, last in find_lines(text, start, end)]
    last = start + len(text[start:end].rstrip())
    return [Piece(None, start, start, start, last)] if last > start else []


def _candidates(text, has_lines, kinds):
    """The groups, complete or not, at the places where a step may start."""
    groups = []
    for start in (_AT_LINE_START if has_lines else _AFTER_WHITE_SPACE).finditer(text):
        if groups and start.end() < groups[-1].end:
            continue
        group = _read_group(text, start.start(), start.end(), kinds)
        if group is not None:
            groups.append(group)
    return groups


def _read_group(text, start, position, kinds):
    tokens, prefix_numbers, kind_numbers, name = [], [], [], None
    pattern = token_pattern(kinds)
    end = position
    while token := pattern.match(text, position):
        number = None if token[2] is None else int(token[2])
        if token[1] == PREFIX and name is None and _continues(prefix_numbers, number):
            prefix_numbers.append(number)
        elif token[1] in kinds and name in (None, token[1]) and _continues(kind_numbers, number):
            name = token[1]
            kind_numbers.append(number)
        else:
            break
        tokens.append(token)
        end = token.end()
        position = _BLANKS.match(text, end).end()
    if not tokens:
        return None
    # If a token follows that cannot start a group, the tokens before it are only a part of their group.
    in_order = token is None or token[2] in (None, "0")
    return _Group(
        start=start,
        end=end,
        kind=kinds.get(name),
        num_prefix=_count(prefix_numbers),
        num_tokens=_count(kind_numbers),
        in_order=in_order,
        is_last=position == len(text) or _FRAGMENT.match(text, position) is not None,
    )


def _continues(numbers, number):
    return number == len(numbers) if number is not None else not numbers


def _count(numbers):
    return None if numbers == [None] else len(numbers)


def _complete(groups, num_prefix_tokens, num_step_tokens):
    """The groups that mark a step, and whether the end of the text cuts off the last one."""
    is_marked = [group.kind is not None or num_step_tokens == 0 for group in groups]
    whole = [group for group, marked in zip(groups, is_marked) if group.in_order and marked and not group.is_last]
    num_prefix = max((group.num_prefix or 0 for group in whole), default=num_prefix_tokens)
    num_tokens = max((group.num_tokens or 0 for group in whole), default=num_step_tokens)
    complete, truncated = [], False
    for group, marked in zip(groups, is_marked):
        if not group.in_order:
            continue
        # A token without a number is a whole group by itself.
        has_prefix = group.num_prefix in (None, 0, num_prefix)
        has_tokens = group.num_tokens in ((0,) if group.kind is None else (None, num_tokens))
        if marked and has_prefix and has_tokens:
            complete.append(group)
        elif group.is_last:
            truncated = True
    return complete, truncated
