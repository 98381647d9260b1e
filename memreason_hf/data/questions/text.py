"""Text of questions and of their steps."""


def one_line(text: str) -> str:
    """
    The text on one line: without white space around it, a space in place of every line break and the white space next
    to it.

    Example:

        >>> one_line("  It is  heavy. \\n\\n  So it sinks. ")
        'It is  heavy. So it sinks.'
    """
    lines = (line.strip() for line in text.split("\n"))
    return " ".join(line for line in lines if line)


def last_visible(text: str, end: int) -> int:
    """The position of the last character of `text[:end]` that is not white space; -1 if there is none."""
    position = end - 1
    while position >= 0 and text[position].isspace():
        position -= 1
    return position


def check_characters(text: object) -> None:
    """
    Checks that a text can be stored in a data set. JSON can hold half of a character, a lone surrogate.

    Raises:
        ValueError: the text holds half of a character.
    """
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{text[:60]!r} holds {text[error.start]!r}, which is half of a character.") from None
