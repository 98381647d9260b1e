"""From tokens to text that can be shown at once, and the strings that end it."""

from collections.abc import Sequence


# A character of UTF-8 has at most four bytes. Longer runs of this sign are the model's own.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
INCOMPLETE_TOKENS = 4


class TextStream:
    """
    The text of one request, as it grows.

    The tokens of a text are decoded together with the few before them, because a tokenizer may join or strip what
    stands between two tokens. All pieces together are the text of all new tokens, up to a stop string.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Special tokens are left out.
        stop_strings (`Sequence[str]`): Strings that end the text.
    """

    def __init__(self, tokenizer, stop_strings: Sequence[str] = ()):
        self.tokenizer, self.stop_strings = tokenizer, tuple(stop_strings)
        self.longest = max(map(len, self.stop_strings), default=0)
        self.tokens: list[int] = []
        self._start = 0  # the first token that is decoded again
        self._read = 0  # the first token that is not part of the text yet
        self._before = ""  # the text of the tokens between the two
        self._held = ""  # text that may be the beginning of a stop string

    def add(self, token: int, last: bool = False) -> tuple[str, bool]:
        """
        Adds a token.

        Returns the text that can be shown now, and whether a stop string has appeared. `last` says that no token
        follows, so that all text is shown.
        """
        self.tokens.append(token)
        new = self._new_text(last)
        if not self.stop_strings:
            return new, False
        known = len(self._held)
        held = self._held + new
        # Only a stop string that ends in the new text has not been looked for.
        from_ = max(known - self.longest + 1, 0)
        found = min((place for stop in self.stop_strings if (place := held.find(stop, from_)) >= 0), default=-1)
        if found >= 0:
            self._held = ""
            return held[:found], True
        keep = 0 if last else self._beginning(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def _new_text(self, last):
        text = self._decode(self.tokens[self._start :])
        waits = len(self.tokens) - self._read < INCOMPLETE_TOKENS and text.endswith(REPLACEMENT)
        if waits and not last:
            return ""
        new = text[len(self._before) :]
        before = self._decode(self.tokens[self._read :])
        # Tokens without a text, such as special ones, do not show whether a space precedes the next.
        if before:
            self._start, text = self._read, before
        self._read, self._before = len(self.tokens), text
        return new

    def _decode(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _beginning(self, text):
        """The length of the longest end of `text` that begins a stop string."""
        return max((_overlap(text, stop) for stop in self.stop_strings), default=0)


def _overlap(text, stop):
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0


__all__ = ["TextStream"]
