"""Parts of error messages."""

import re
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError


def first_few(items: Sequence, limit: int = 5) -> str:
    """
    The first few items, and the number of the others.

    Example:

        >>> first_few(range(10), limit=3)
        '0, 1, 2 and 7 more'
    """
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit:,} more"


# Decoding gives it for the bytes of a character that is not complete.
REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
# Characters that are not shown, but change what others look like: embeddings, overrides and isolates of the writing
# direction, line separators, and the tag characters, which spell invisible text. Joiners and directional marks, which
# Persian, Hebrew and emoji need, are left as they are.
_HIDDEN = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029, *range(0xE0000, 0xE0080)]
_PICTURES = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), REPLACEMENT_CHARACTER),
    **{code: f"[U+{code:04X}]" for code in _HIDDEN},
    # Half of a character cannot be written as UTF-8.
    **dict.fromkeys(range(0xD800, 0xE000), REPLACEMENT_CHARACTER),
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


def describe_field_error(error: StrictDataclassError) -> str:
    """The message of the validation error of a config: that of the broken rule, and the field."""
    if isinstance(error, StrictDataclassFieldValidationError):
        # The cause alone does not name the field.
        (field,) = re.findall(r"field '(\w+)'", str(error))[:1]
        return f"{field}: {error.__cause__}."
    return str(error if error.__cause__ is None else error.__cause__)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its final stop; the type of an error without a message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().removesuffix(".") if lines else type(error).__name__
