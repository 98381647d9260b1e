"""
The numbers of attention over one solution: as a JSON document, and as a table for the terminal.

A document (`attention_document`) is one JSON object. Version 1:

| key | type | meaning |
|---|---|---|
| `schema_version` | int | 1 |
| `kind` | str | `"attention"` |
| `created` | str | UTC time, ISO 8601 |
| `model` | object | `name_or_path`, `model_type`, `num_parameters`, `dtype` |
| `settings` | object | `layer`, `head`, `recurrence` (null: all of them), `num_recurrences`, `marks_apart` |
| `tokens` | list | one object a token: `id`, `label`, `kind`, `span` (index into `spans`), `is_mark` |
| `spans` | list | begin, question and steps: `kind`, `number` (of a step, from 1), `text`, `start`, `end` (tokens) |
| `truncated` | bool | the text ended inside the tokens of a step, which were left out |
| `kinds`, `counts` | list | the kinds that occur, in the order of all rows and columns below, and their tokens |
| `even` | list | the shares if every token attended evenly to itself and all before it |
| `maps` | list | one object a map: `recurrence` (null outside a loop) and `shares` |
| `layers` | list | one object a layer and recurrence: `layer`, `recurrence`, and `shares` for each head |
| `environment` | object | versions of Python and libraries, and the machine |

`shares` and `even` hold rows by attending and columns by attended kind; each row sums to 1. See `kind_shares`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from memreason_hf.analysis.attention_maps import AttentionMap, TextAttention, kind_shares, uniform_attention
from memreason_hf.analysis.solution_tokens import SolutionTokens
from memreason_hf.tables import format_table


SCHEMA_VERSION = 1
_DIGITS = 6


@dataclass(frozen=True)
class MapShares:
    """
    How attention flows between kinds in several maps of one text.

    Attributes:
        kinds, counts: the kinds that occur, and the tokens of each.
        recurrences: of the maps; None for a map outside a loop.
        shares: `(maps, kinds, kinds)`, attending by attended.
        even: `(kinds, kinds)`, if every token attended evenly to itself and all before it.
    """

    kinds: tuple[str, ...]
    counts: tuple[int, ...]
    recurrences: tuple[int | None, ...]
    shares: np.ndarray
    even: np.ndarray


def map_shares(maps: Sequence[AttentionMap], kinds: Sequence[str]) -> MapShares:
    """The shares of each map, `kinds` naming what each token belongs to."""
    found = kind_shares(np.stack([entry.weights for entry in maps]), kinds)
    return MapShares(
        kinds=found.kinds,
        counts=found.counts,
        recurrences=tuple(entry.recurrence for entry in maps),
        shares=found.shares,
        even=kind_shares(uniform_attention(len(kinds)), kinds).shares,
    )


def shares_table(shares: MapShares) -> str:
    """
    The shares in percent: for every attending kind a line for each map, and one for even attention. Of many
    recurrences some are shown: powers of two and the last.
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
    model: dict,
    settings: dict,
    environment: dict,
) -> dict:
    """The document of this module's schema."""
    kinds = solution.kinds(marks_apart)
    owners = [index for index, span in enumerate(solution.spans) for _ in range(span.start, span.end)]
    tokens = zip(solution.ids, solution.labels, kinds, owners, solution.is_mark)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "attention",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "settings": {**settings, "marks_apart": marks_apart},
        "tokens": [dict(zip(("id", "label", "kind", "span", "is_mark"), token)) for token in tokens],
        "spans": [
            {name: getattr(span, name) for name in ("kind", "number", "text", "start", "end")}
            for span in solution.spans
        ],
        "truncated": solution.truncated,
        "kinds": list(shares.kinds),
        "counts": list(shares.counts),
        "even": _rounded(shares.even),
        "maps": [
            {"recurrence": recurrence, "shares": _rounded(entry)}
            for recurrence, entry in zip(shares.recurrences, shares.shares)
        ],
        "layers": [
            {
                "layer": entry.layer,
                "recurrence": entry.recurrence,
                "shares": _rounded(kind_shares(entry.by_head(), kinds).shares),
            }
            for entry in attention.layers
        ],
        "environment": environment,
    }


def _rounded(values):
    return np.round(values, _DIGITS).tolist()
