"""
Generated text with the depth of every token: what each token adds to the text, and a JSON document of it all.

The depth of a token of the continuation is the recurrences of the position whose logits gave it; that of a token of
the prompt is the recurrences of its own position. So `generate` reports them, and so the last token of a prompt and
the first one behind it have the same depth.

Documents of kind `"generation"` (`depths_document`) have the schema `GenerationResults`.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib import colormaps
from transformers import PreTrainedTokenizerBase
from typing_extensions import TypedDict

from memreason_hf.evaluation.results import Document, Environment, ModelDescription, new_document, register_kind


# What a decoder writes for bytes that are no character (yet).
_INCOMPLETE = "\ufffd"
# A character has four bytes at most, and two may share a token: what is still none then will never be one.
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
    settings: dict[str, bool | int | float | str | dict[str, float] | None]
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
    The smallest part of a text that can be shown: one token, or those over which one character is spread.

    `text` is what they add to the text; empty for tokens that begin, end or pad one.
    """

    text: str
    tokens: tuple[TokenDepth, ...]

    @property
    def num_recurrences(self) -> int:
        """Of the deepest token."""
        return max(token.num_recurrences for token in self.tokens)


@dataclass(frozen=True)
class GeneratedText:
    """
    A prompt and what a model wrote behind it.

    Attributes:
        prompt: as it was given.
        prompt_pieces, pieces: the prompt as the model read it, and the continuation.
        finish_reason: `"eos"` or `"length"`.
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

    Blanks and characters depend on what stands before: a token alone decodes to something else than in its place.

    Args:
        tokenizer: that of the model.
        hidden: ids that are no text (those that begin, end or pad one).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, hidden: Collection[int] = ()):
        self.tokenizer = tokenizer
        self.hidden = frozenset(hidden)
        # Ids in sight: the piece before, which is enough to decode what follows, and those that wait.
        self._ids: list[int] = []
        self._waiting: list[TokenDepth] = []

    def add(self, token_id: int, num_recurrences: int) -> list[Piece]:
        """The pieces that are whole now: none while a character is incomplete."""
        name = self.tokenizer.convert_ids_to_tokens(token_id)
        # Rows of the embedding may have no token.
        token = TokenDepth(token_id, f"<{token_id}>" if name is None else name, num_recurrences)
        if token_id in self.hidden:
            return [*self.finish(), Piece("", (token,))]
        self._ids.append(token_id)
        self._waiting.append(token)
        text = self._decode(self._ids)
        if not text.endswith(_INCOMPLETE):
            return [self._hand_out(text)]
        return [] if len(self._waiting) < _MOST_WAITING else self.finish()

    def finish(self) -> list[Piece]:
        """What still waits for the rest of a character."""
        if not self._waiting:
            return []
        piece = self._hand_out(self._decode(self._ids))
        # Bytes that come later must not complete what was handed out.
        self._ids = []
        return [piece]

    def read(self, ids: Iterable[int], depths: Iterable[int]) -> tuple[Piece, ...]:
        """All pieces of these ids, the last one as if the text ended there."""
        found = [piece for pair in zip(ids, depths) for piece in self.add(*pair)]
        return (*found, *self.finish())

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
    Where a depth lies between the least and the most.

    The scale is logarithmic: from 1 to 2 recurrences is as much as from 16 to 32.
    """

    least: int
    most: int

    @classmethod
    def over(cls, texts: Sequence[GeneratedText], prompts: bool = True) -> "DepthScale":
        """The scale from the least to the most that there is in continuations and, if asked for, prompts."""
        depths = [depth for text in texts for depth in text.depths]
        if prompts:
            depths += [
                token.num_recurrences for text in texts for piece in text.prompt_pieces for token in piece.tokens
            ]
        return cls(min(depths, default=1), max(depths, default=1))

    def position(self, depth: int) -> float:
        """From 0 to 1; what lies outside is put at the ends."""
        if self.least == self.most:
            return 0.5
        depth = min(max(depth, self.least), self.most)
        return math.log(depth / self.least) / math.log(self.most / self.least)

    def legend(self) -> list[int]:
        """All depths, or as many as a legend can hold, evenly spread over the scale."""
        if self.most - self.least < _MOST_LEGEND_DEPTHS:
            return list(range(self.least, self.most + 1))
        steps = _MOST_LEGEND_DEPTHS - 1
        return sorted({round(self.least * (self.most / self.least) ** (i / steps)) for i in range(steps + 1)})


def map_color(name: str, position: float) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) at a position (0 to 1) of a colour map of matplotlib."""
    return tuple(round(255 * part) for part in colormaps[name](position)[:3])


def text_color(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever is easier to read; their contrast by WCAG 2 is at least 4.5."""
    return (0, 0, 0) if luminance(background) > 0.179 else (255, 255, 255)


def luminance(color: tuple[int, int, int]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2)."""
    parts = [part / 255 for part in color]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def visible(text: str) -> str:
    """
    `text` with control characters as their pictures, but for line ends and tabs.

    What a model writes must not steer a terminal, and a page cannot hold it.
    """
    return "".join(_picture(character) for character in text)


def _picture(character):
    code = ord(character)
    if code < 0x20 and character not in "\n\t":
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd" if 0x80 <= code < 0xA0 else character


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
