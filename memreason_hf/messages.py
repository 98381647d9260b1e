"""What error messages share."""

from collections.abc import Sequence


def first_few(items: Sequence, limit: int = 5) -> str:
    """The first few of the items, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit:,} more"
