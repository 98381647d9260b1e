"""
Generated text with the depth of every token: the text of each token, and a JSON document.

The depth of a token of the continuation is the number of recurrences of the position whose logits gave it, as
`generate` reports it. The depth of a token of the prompt is that of its own position. So the last token of a prompt
and the first new token have the same depth.

Documents of kind `"generation"` (`depths_document`) have the schema `GenerationResults`.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib import colormaps
from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict

from memreason_hf.evaluation.results import Document, Environment, ModelDescription, new_document, register_kind
from memreason_hf.messages import REPLACEMENT_CHARACTER


# Decoders write this for bytes that are not a character (yet).
# A character has at most four bytes, and two characters may share a token: more tokens never become a character.
_MOST_WAITING = 8
_MOST_LEGEND_DEPTHS = 16


class TokenEntry(TypedDict):
    """One token."""

    id: int
    token: str
    """As the vocabulary has it."""
    text: str
    """What the token adds to the text. Empty for tokens that begin, end or pad a text, and for all but the last token
    of a character that is spread over several."""
    num_recurrences: int


class DepthStatistics(TypedDict):
    """The recurrences of some tokens."""

    mean: float
    minimum: int
    maximum: int


class GenerationOutput(TypedDict):
    """One prompt and its continuation."""

    prompt: str
    text: str
    """The continuation: the `text` of its `tokens`, joined."""
    finish_reason: Literal["eos", "length"]
    """`eos`: the model ended the text; `length`: `max_new_tokens` did."""
    recurrences: DepthStatistics
    """Over `tokens`."""
    prompt_tokens: list[TokenEntry]
    tokens: list[TokenEntry]
    """The continuation."""


class GenerationResults(Document):
    """Generated texts with the depth of every token."""

    kind: Literal["generation"]
    model: ModelDescription
    settings: dict[str, JsonValue]
    """What decided depths and tokens, by the names of the config and of `generate`; null: the default."""
    outputs: list[GenerationOutput]
    """In the order of the prompts."""
    seconds: float
    """Wall time of generation, without loading."""


register_kind("generation", GenerationResults)


@dataclass(frozen=True)
class TokenDepth:
    """A token: its id, its name in the vocabulary, and the recurrences it took."""

    id: int
    token: str
    num_recurrences: int


@dataclass(frozen=True)
class Piece:
    """
    The smallest part of a text that can be shown: one token, or the tokens over which one character is spread.

    Attributes:
        text: the text of the tokens; empty for tokens that begin, end or pad a text.
        tokens: the tokens.
    """

    text: str
    tokens: tuple[TokenDepth, ...]

    @property
    def num_recurrences(self) -> int:
        """The recurrences of the deepest token."""
        return max(token.num_recurrences for token in self.tokens)


@dataclass(frozen=True)
class GeneratedText:
    """
    A prompt and its continuation.

    Attributes:
        prompt: the prompt.
        prompt_pieces, pieces: the prompt as the model read it, and the continuation.
        finish_reason: `"eos"` if the model ended the text, `"length"` if `max_new_tokens` did.
    """

    prompt: str
    prompt_pieces: tuple[Piece, ...]
    pieces: tuple[Piece, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        """The continuation."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def depths(self) -> list[int]:
        """The recurrences of each token of the continuation."""
        return [token.num_recurrences for piece in self.pieces for token in piece.tokens]


class PieceReader:
    """
    Turns ids into pieces, one id after another.

    The text of a token depends on the tokens before it: a token alone can decode to something else.

    Args:
        tokenizer: the tokenizer of the model.
        hidden: ids without text, which begin, end or pad a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, hidden: Collection[int] = ()):
        self.tokenizer = tokenizer
        self.hidden = frozenset(hidden)
        # The ids of the last piece, which suffice to decode the next one, and the tokens of an incomplete character.
        self._ids: list[int] = []
        self._waiting: list[TokenDepth] = []

    def add(self, token_id: int, num_recurrences: int) -> list[Piece]:
        """The pieces that are complete now; empty while a character is incomplete."""
        name = self.tokenizer.convert_ids_to_tokens(token_id)
        # A row of the embedding may have no token.
        token = TokenDepth(token_id, f"<{token_id}>" if name is None else name, num_recurrences)
        if token_id in self.hidden:
            return [*self.finish(), Piece("", (token,))]
        self._ids.append(token_id)
        self._waiting.append(token)
        text = self._decode(self._ids)
        if not text.endswith(REPLACEMENT_CHARACTER):
            return [self._hand_out(text)]
        return [] if len(self._waiting) < _MOST_WAITING else self.finish()

    def finish(self) -> list[Piece]:
        """The piece of an incomplete character, if there is one."""
        if not self._waiting:
            return []
        piece = self._hand_out(self._decode(self._ids))
        # Later bytes must not complete a piece that was returned.
        self._ids = []
        return [piece]

    def read(self, ids: Iterable[int], depths: Iterable[int]) -> tuple[Piece, ...]:
        """All pieces of a text."""
        pieces = [piece for pair in zip(ids, depths) for piece in self.add(*pair)]
        return (*pieces, *self.finish())

    def _hand_out(self, text):
        new = len(self._waiting)
        added = text[len(self._decode(self._ids[:-new])) :]
        piece = Piece(added, tuple(self._waiting))
        self._ids, self._waiting = self._ids[-new:], []
        return piece

    def _decode(self, ids):
        if not ids:
            return ""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class DepthScale:
    """
    A logarithmic scale of depths, in which 1 to 2 recurrences are as far apart as 16 to 32.

    Example:

        >>> DepthScale(1, 16).position(4)
        0.5
    """

    least: int
    most: int

    @classmethod
    def over(cls, texts: Sequence[GeneratedText], prompts: bool = True) -> "DepthScale":
        """The scale from the least to the greatest depth in the continuations, and in the prompts if `prompts`."""
        depths = [depth for text in texts for depth in text.depths]
        if prompts:
            depths += [
                token.num_recurrences for text in texts for piece in text.prompt_pieces for token in piece.tokens
            ]
        return cls(min(depths, default=1), max(depths, default=1))

    def position(self, depth: int) -> float:
        """The position of a depth, from 0 to 1; depths outside the scale are at its ends."""
        if self.least == self.most:
            return 0.5
        depth = min(max(depth, self.least), self.most)
        return math.log(depth / self.least) / math.log(self.most / self.least)

    def legend(self) -> list[int]:
        """All depths, or, if these are too many for a legend, some that are evenly spread over the scale."""
        if self.most - self.least < _MOST_LEGEND_DEPTHS:
            return list(range(self.least, self.most + 1))
        steps = _MOST_LEGEND_DEPTHS - 1
        return sorted({round(self.least * (self.most / self.least) ** (i / steps)) for i in range(steps + 1)})


def map_color(name: str, position: float) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) at a position (0 to 1) of a matplotlib colour map."""
    return tuple(round(255 * part) for part in colormaps[name](position)[:3])


def text_color(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has more contrast with the background; by WCAG 2 it is at least 4.5."""
    return (0, 0, 0) if luminance(background) > 0.179 else (255, 255, 255)


def luminance(color: tuple[int, int, int]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2)."""
    parts = [part / 255 for part in color]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def depths_document(
    texts: Sequence[GeneratedText], model: ModelDescription, settings: dict, seconds: float, environment: Environment
) -> dict:
    """
    Generated texts as a document of kind `"generation"`.

    Args:
        texts: in the order of their prompts.
        model: from `describe_model`, without `trained_hops`.
        settings: what decided depths and tokens, by the names of the config and of `generate`.
        seconds: wall time of generation.
        environment: from `describe_environment`.

    Raises:
        ValueError: an entry does not fit the schema.
    """
    return new_document(
        "generation",
        model=model,
        settings=settings,
        outputs=[_output(text) for text in texts],
        seconds=seconds,
        environment=environment,
    )


def _output(text):
    return {
        "prompt": text.prompt,
        "text": text.text,
        "finish_reason": text.finish_reason,
        "recurrences": depth_statistics([text]),
        "prompt_tokens": list(_token_entries(text.prompt_pieces)),
        "tokens": list(_token_entries(text.pieces)),
    }


def _token_entries(pieces: Iterable[Piece]) -> Iterator[dict]:
    for piece in pieces:
        for token in piece.tokens:
            text = piece.text if token is piece.tokens[-1] else ""
            yield {"id": token.id, "token": token.token, "text": text, "num_recurrences": token.num_recurrences}


def depth_statistics(texts: Sequence[GeneratedText]) -> dict:
    """`mean`, `minimum` and `maximum` of the recurrences over the tokens of all continuations."""
    depths = [depth for text in texts for depth in text.depths]
    return {"mean": sum(depths) / len(depths), "minimum": min(depths), "maximum": max(depths)}
