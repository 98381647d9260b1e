"""Parts of error messages."""

from collections.abc import Sequence


def first_few(items: Sequence, limit: int = 5) -> str:
    """
    The first few items, and the number of the others.

    Example:

        >>> first_few(range(10), limit=3)
        '0, 1, 2 and 7 more'
    """
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit:,} more"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its final stop; the type of an error without a message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().removesuffix(".") if lines else type(error).__name__
