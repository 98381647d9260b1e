"""
The numbers of attention over one solution: as a JSON document, and as a table for the terminal.

Documents of kind `"attention"` (`attention_document`) have the schema `AttentionResults`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from typing_extensions import TypedDict

from memreason_hf.analysis.attention_maps import AttentionMap, TextAttention, kind_shares, uniform_attention
from memreason_hf.analysis.solution_tokens import SolutionTokens
from memreason_hf.evaluation.results import Document, Environment, ModelDescription, new_document, register_kind
from memreason_hf.tables import format_table


_DIGITS = 6


class AttentionSettings(TypedDict):
    """What is shown; layers, heads and recurrences are counted from 1."""

    layer: int | None
    """Null: the mean over all layers (in a recurrent-depth model, over those in the loop)."""
    head: int | None
    """Null: the mean over all heads."""
    recurrence: int | None
    """Null: one map for each recurrence."""
    num_recurrences: int | None
    """Recurrences that ran; null for a model without a loop."""
    marks_apart: bool
    """Whether the tokens of the steps' marks are a kind of their own."""


class AttentionToken(TypedDict):
    """One token of the text."""

    id: int
    label: str
    """The token as it is shown by itself."""
    kind: str
    span: int
    """Index into `spans`."""
    is_mark: bool
    """Whether the token belongs to the mark of a step."""


class AttentionSpan(TypedDict):
    """Neighbouring tokens that belong together: the BOS token (`begin`), the question, or one step."""

    kind: str
    number: int | None
    """Number of the step, counted from 1; null for a span that is not a step."""
    text: str
    start: int
    """Index of the first token."""
    end: int
    """Index after the last token."""


class RecurrenceShares(TypedDict):
    """The shares of one map."""

    recurrence: int | None
    """Null for a map outside a loop."""
    shares: list[list[float]]
    """Rows by attending and columns by attended kind; each row sums to 1."""


class LayerShares(TypedDict):
    """The shares of one layer in one recurrence."""

    layer: int
    recurrence: int | None
    shares: list[list[list[float]]]
    """For each head, rows by attending and columns by attended kind; each row sums to 1."""


class AttentionResults(Document):
    """How attention flows between the steps of one solution. The formula of the shares: `kind_shares`."""

    kind: Literal["attention"]
    model: ModelDescription
    settings: AttentionSettings
    tokens: list[AttentionToken]
    spans: list[AttentionSpan]
    """All tokens, in order and without gaps."""
    truncated: bool
    """Whether the text ended inside the tokens of a step; these tokens were left out."""
    kinds: list[str]
    """The kinds that occur, in the order of all rows and columns."""
    counts: list[int]
    """Tokens of each kind."""
    even: list[list[float]]
    """The shares if every token attended evenly to itself and to all tokens before it."""
    maps: list[RecurrenceShares]
    layers: list[LayerShares]


register_kind("attention", AttentionResults)


@dataclass(frozen=True)
class MapShares:
    """
    The attention between kinds of tokens, in several maps of one text.

    Attributes:
        kinds: the kinds that occur.
        counts: the number of tokens of each kind.
        recurrences: the recurrence of each map; None for a map outside a loop.
        shares: attending by attended kind, shape `(maps, kinds, kinds)`.
        even: the shares if every token attended evenly to itself and to all tokens before it, shape `(kinds, kinds)`.
    """

    kinds: tuple[str, ...]
    counts: tuple[int, ...]
    recurrences: tuple[int | None, ...]
    shares: np.ndarray
    even: np.ndarray


def map_shares(maps: Sequence[AttentionMap], kinds: Sequence[str]) -> MapShares:
    """The shares of each map. `kinds` holds the kind of each token."""
    of_maps = kind_shares(np.stack([entry.weights for entry in maps]), kinds)
    return MapShares(
        kinds=of_maps.kinds,
        counts=of_maps.counts,
        recurrences=tuple(entry.recurrence for entry in maps),
        shares=of_maps.shares,
        even=kind_shares(uniform_attention(len(kinds)), kinds).shares,
    )


def shares_table(shares: MapShares) -> str:
    """
    The shares in percent, with a line for each attending kind and map, and one for even attention. If there are more
    than four recurrences, only the powers of two and the last one are shown.
    """
    last = len(shares.recurrences)
    looped = last > 1 or shares.recurrences[0] is not None
    shown = [i for i in range(last) if last <= 4 or i + 1 == last or (i + 1) & i == 0]
    lines = []
    for row, (kind, count) in enumerate(zip(shares.kinds, shares.counts)):
        values = [(shares.recurrences[i] if looped else "model", shares.shares[i, row]) for i in shown]
        for name, entries in [*values, ("even", shares.even[row])]:
            lines.append([kind, count, name, *(f"{100 * entry:.1f}" for entry in entries)])
    return format_table(["from", "tokens", "recurrence" if looped else "attention", *shares.kinds], lines)


def attention_document(
    solution: SolutionTokens,
    attention: TextAttention,
    shares: MapShares,
    *,
    marks_apart: bool,
    model: ModelDescription,
    settings: dict,
    environment: Environment,
) -> dict:
    """
    The numbers as a document of kind `"attention"`.

    Args:
        solution: the tokens.
        attention: of the model over these tokens.
        shares: of the maps that are shown, from `map_shares`.
        marks_apart: whether the tokens of marks are a kind of their own in `shares`.
        model: from `describe_model`, without `trained_hops`.
        settings: `layer`, `head`, `recurrence` and `num_recurrences` of `AttentionSettings`.
        environment: from `describe_environment`.

    Raises:
        ValueError: an entry does not fit the schema.
    """
    kinds = solution.kinds(marks_apart)
    owners = [index for index, span in enumerate(solution.spans) for _ in range(span.start, span.end)]
    tokens = zip(solution.ids, solution.labels, kinds, owners, solution.is_mark)
    return new_document(
        "attention",
        model=model,
        settings={**settings, "marks_apart": marks_apart},
        tokens=[dict(zip(AttentionToken.__annotations__, token)) for token in tokens],
        spans=[{name: getattr(span, name) for name in AttentionSpan.__annotations__} for span in solution.spans],
        truncated=solution.truncated,
        kinds=list(shares.kinds),
        counts=list(shares.counts),
        even=_rounded(shares.even),
        maps=[
            {"recurrence": recurrence, "shares": _rounded(entry)}
            for recurrence, entry in zip(shares.recurrences, shares.shares)
        ],
        layers=[
            {
                "layer": entry.layer,
                "recurrence": entry.recurrence,
                "shares": _rounded(kind_shares(entry.by_head(), kinds).shares),
            }
            for entry in attention.layers
        ],
        environment=environment,
    )


def _rounded(values):
    return np.round(values, _DIGITS).tolist()
