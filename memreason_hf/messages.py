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


# Characters that are not shown, but change what others look like: embeddings, overrides and isolates of the writing
# direction, line separators, and the tag characters, which spell invisible text. Joiners and directional marks, which
# Persian, Hebrew and emoji need, are left as they are.
_HIDDEN = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, *range(0xE0000, 0xE0080)]
_PICTURES = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    **{code: f"[U+{code:04X}]" for code in _HIDDEN},
    # Half of a character cannot be written as UTF-8.
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def visible(text: str) -> str:
    """
    `text` with pictures or code points in place of characters that control how it is shown, except line breaks and
    tabs.

    Every text of a model, a file or a folder's name goes through this function before it is shown on a terminal, on
    a page or in a figure: generated text must not steer a terminal, and a page must not show other words than it
    holds. Files of data, and standard output that is not a terminal, hold the exact text.

    Example:

        >>> visible("\\x1b[2J, \\u202egnp.exe")
        '␛[2J, [U+202E]gnp.exe'
    """
    return text.translate(_PICTURES)
