"""The words of a text, as ranges of its tokens."""

from collections.abc import Sequence
from unicodedata import east_asian_width


def find_words(
    text: str,
    offsets: Sequence[tuple[int, int]],
    labels: Sequence[str],
    is_apart: Sequence[bool],
    first: int = 0,
) -> list[tuple[int, str]]:
    """
    Joins the tokens of each word. A word ends at white space, which belongs to the next word, and before and after a
    character of a writing without spaces, such as Chinese; punctuation belongs to the word that it touches. A line
    break is a word.

    Args:
        text: the text.
        offsets: where each token starts and ends in the text. The bytes of one character have the same place.
        labels: what a token is called if it has no place, or consists of white space.
        is_apart: whether a token is a word by itself, as a step token is.
        first: the index of the first token, which is added to all others.

    Returns:
        The index of the first token and the text of each word, in order.

    Example:

        >>> find_words("an unable cat", [(0, 2), (2, 5), (5, 9), (9, 13)], ["an", "un", "able", "cat"], [False] * 4)
        [(0, 'an'), (1, 'unable'), (3, 'cat')]
    """
    starts = []
    begin = end = 0
    for index, (start, stop) in enumerate(offsets):
        may_join = index > 0 and not (is_apart[index] or is_apart[index - 1])
        if not may_join or not _joins(text, start, stop, begin, end):
            starts.append(index)
            begin = start
        end = max(end, stop)
    words = []
    for index, following in zip(starts, [*starts[1:], len(offsets)]):
        own = offsets[index:following]
        word = text[min(start for start, _ in own) : max(stop for _, stop in own)].strip()
        words.append((first + index, word or labels[index]))
    return words


def _joins(text, start, stop, begin, end):
    """Whether a token from `start` to `stop` belongs to the word of the tokens before, from `begin` to `end`."""
    if start < end:
        # A byte of the same character.
        return True
    if start == stop or begin == end:
        return False
    if text[begin:end].isspace():
        # A blank by itself belongs to the word that follows.
        return "\n" not in text[begin:stop]
    between = text[end - 1 : start + 1]
    return not any(character.isspace() or east_asian_width(character) in "WF" for character in between)
