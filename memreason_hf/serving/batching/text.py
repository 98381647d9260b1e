"""From tokens to text that can be shown at once, and the strings that end it."""

from collections.abc import Sequence

from memreason_hf.messages import REPLACEMENT_CHARACTER


# A character of UTF-8 has at most four bytes. Longer runs of this sign are the model's own.
INCOMPLETE_TOKENS = 4
# Tokens that are decoded again for each new one, at the most.
MOST_DECODED = 64


class TextStream:
    """
    The text of one request, as it grows.

    The tokens of a text are decoded together with the few before them, because a tokenizer may join or strip what
    stands between two tokens. All pieces together are the text of all new tokens, up to a stop string.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Special tokens are left out. Or an object with `decode` and
            `hidden_ids`, the ids that it leaves out.
        stop_strings (`Sequence[str]`): Strings that end the text.
    """

    def __init__(self, tokenizer, stop_strings: Sequence[str] = ()):
        self.tokenizer, self.stop_strings = tokenizer, tuple(stop_strings)
        self.longest = max(map(len, self.stop_strings), default=0)
        self.tokens: list[int] = []
        self._hidden = _left_out(tokenizer)
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
        text = whole = self._decode(self.tokens[self._start :])
        end = len(self.tokens)
        if whole.endswith(REPLACEMENT_CHARACTER) and not last:
            end = self._complete()
            text = self._decode(self.tokens[self._start : end]) if end > self._read else ""
            if not text or not whole.startswith(text):
                return ""
        new = text[len(self._before) :]
        # Broken characters are decoded together: how many signs stand for them depends on where they begin.
        is_clean = new and not new.endswith(REPLACEMENT_CHARACTER) and not self._before.endswith(REPLACEMENT_CHARACTER)
        if is_clean or end - self._start > MOST_DECODED:
            self._start = self._read
        self._read = end
        self._before = self._decode(self.tokens[self._start : end])
        return new

    def _complete(self):
        """
        The number of tokens before those that may hold the bytes of a character that is not complete yet: the last
        three, not counting those that decoding leaves out, which may stand between two bytes.
        """
        end, left = len(self.tokens), INCOMPLETE_TOKENS - 1
        while left and end > self._read:
            end -= 1
            left -= self.tokens[end] not in self._hidden
        return end

    def _decode(self, tokens):
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _beginning(self, text):
        """The length of the longest end of `text` that begins a stop string."""
        return max((_overlap(text, stop) for stop in self.stop_strings), default=0)


def _left_out(tokenizer):
    """The ids that decoding leaves out."""
    if hasattr(tokenizer, "hidden_ids"):
        return tokenizer.hidden_ids
    # Also special tokens without a role of their own, such as marks of steps.
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(index for index, token in added if token.special)}


def _overlap(text, stop):
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0


__all__ = ["TextStream"]
