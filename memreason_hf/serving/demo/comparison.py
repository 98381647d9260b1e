"""Where two answers to one prompt differ."""

from collections.abc import Sequence
from difflib import SequenceMatcher


def differing(first: Sequence[int], second: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """
    Whether each token of two answers has no counterpart in the other one.

    Args:
        first, second: the ids of the answers.

    Example:
        >>> differing([1, 2, 3], [1, 9, 3, 4])
        ([False, True, False], [False, True, False, True])
    """
    marks = [True] * len(first), [True] * len(second)
    for block in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        for side, start in zip(marks, (block.a, block.b), strict=True):
            side[start : start + block.size] = [False] * block.size
    return marks
