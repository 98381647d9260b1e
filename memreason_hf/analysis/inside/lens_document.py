"""
The numbers of a lens over positions and recurrences: as a JSON document, and as a table for the terminal.

Documents of kind `"lens"` (`lens_document`) have the schema `LensResults`.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from typing_extensions import TypedDict

from memreason_hf.analysis.inside.lens import LensReading
from memreason_hf.analysis.inside.rows import InsideData, RowGroup, shown_recurrences
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.evaluation.results import Document, Environment, ModelDescription, new_document, register_kind
from memreason_hf.messages import visible
from memreason_hf.tables import format_table


_DIGITS = 6


class LensSettings(TypedDict):
    """How the lens read."""

    num_recurrences: int
    """The last recurrence that was read."""
    top: int
    """Tokens that were kept at each place."""
    batch_size: int


class TopToken(TypedDict):
    """A token and its probability."""

    id: int
    token: str
    probability: float


class LensPosition(TypedDict):
    """One position; entry t - 1 of a list belongs to recurrence t. Means are over the rows that have a target."""

    index: int
    """From 0."""
    token: str | None
    """The token there; null where several rows were read."""
    target: str | None
    """The token that is looked for; null where several rows were read, or there is none."""
    num_targets: int
    """The rows that have a target at this position."""
    target_probability: list[float] | None
    """Mean; null without a target, as are the next three."""
    target_rank: list[float] | None
    """Mean of the rank, from 1."""
    first_share: list[float] | None
    """Share of the rows in which the target is the most probable token."""
    ever_first: float | None
    """Share of the rows in which it ever is."""
    readable_from: float | None
    """Mean first recurrence at which it is, over the rows in which it ever is; null if there are none."""
    settled_from: float | None
    """Mean recurrence from which on it is so up to the last one, over the rows in which it is at the last one."""
    entropy: list[float]
    """Mean, in nats."""
    top: list[list[TopToken]] | None
    """The most probable tokens after each recurrence; null where several rows were read."""


class LensEntity(TypedDict):
    """One entity of the chains: the start, or the one reached after some hops."""

    hop: int
    """0 for the start."""
    at_answer: list[float]
    """Share of rows in which it is the most probable token at the last position, after each recurrence."""
    readable_at: list[int | None]
    """For each position, the first recurrence at which it is the most probable token in at least half of the rows."""


class LensResults(Document):
    """What a model would say at each position after each recurrence."""

    kind: Literal["lens"]
    model: ModelDescription
    data: InsideData
    hops: int | None
    """Of chains: their number of hops."""
    settings: LensSettings
    positions: list[LensPosition]
    entities: list[LensEntity] | None
    """Of chains."""


def _check_lengths(results):
    last = results["settings"]["num_recurrences"]
    for position in results["positions"]:
        for name in ("target_probability", "target_rank", "first_share", "entropy"):
            values = position[name]
            if values is not None and len(values) != last:
                raise ValueError(
                    f"positions[{position['index']}].{name} has {len(values)} entries, but settings.num_recurrences "
                    f"is {last}."
                )


register_kind("lens", LensResults, check=_check_lengths)


def lens_document(
    reading: LensReading,
    rows: RowGroup,
    name_of: Callable[[int], str],
    *,
    model: ModelDescription,
    data: InsideData,
    batch_size: int,
    environment: Environment,
) -> dict:
    """
    A document of kind `"lens"`.

    Args:
        reading: from `lens_by_position`, over `rows`.
        name_of: the text of a token id.
        model, data, environment: what was read, and where.
        batch_size: as it was passed to `lens_by_position`.
    """
    top = reading.top_ids.shape[-1]
    return new_document(
        "lens",
        model=model,
        data=data,
        hops=rows.name if isinstance(rows.name, int) else None,
        settings={"num_recurrences": reading.num_recurrences, "top": top, "batch_size": batch_size},
        positions=[_position(reading, rows, name_of, index) for index in range(reading.targets.shape[1])],
        entities=None if rows.entities is None else _entities(reading, rows),
        environment=environment,
    )


def _position(reading, rows, name_of, index):
    alone = len(rows) == 1
    targets = reading.targets[:, index]
    has_target = targets != IGNORED_LABEL
    entry = {
        "index": index,
        "token": rows.tokens[0][index] if alone else None,
        "target": name_of(int(targets[0])) if alone and has_target[0] else None,
        "num_targets": int(has_target.sum()),
        **dict.fromkeys(("target_probability", "target_rank", "first_share", "ever_first")),
        "readable_from": _mean_recurrence(reading.readable_from[:, index]),
        "settled_from": _mean_recurrence(reading.settled_from[:, index]),
        "entropy": _means(reading.entropy[:, index]),
        "top": _top(reading, name_of, index) if alone else None,
    }
    if has_target.any():
        entry["target_probability"] = _means(reading.target_probability[has_target, index])
        entry["target_rank"] = _means(reading.target_rank[has_target, index])
        entry["first_share"] = _means(reading.is_first[has_target, index])
        entry["ever_first"] = float((reading.readable_from[has_target, index] > 0).mean())
    return entry


def _means(values):
    # Sums in float64: probabilities of float32 would add up to more than 1.
    return np.mean(values, axis=0, dtype=np.float64).round(_DIGITS).tolist()


def _mean_recurrence(recurrences):
    return float(recurrences[recurrences > 0].mean()) if (recurrences > 0).any() else None


def _top(reading, name_of, index):
    return [
        [
            {"id": int(token), "token": name_of(int(token)), "probability": round(float(probability), _DIGITS)}
            for token, probability in zip(ids, probabilities)
        ]
        for ids, probabilities in zip(reading.top_ids[0, index], reading.top_probabilities[0, index])
    ]


def _entities(reading, rows):
    shares = reading.shares_of(rows.entities.numpy())
    entries = []
    for hop, share in enumerate(shares):
        most = share >= 0.5
        first = np.where(most.any(-1), most.argmax(-1) + 1, 0)
        entries.append(
            {
                "hop": hop,
                "at_answer": share[-1].round(_DIGITS).tolist(),
                "readable_at": [int(recurrence) or None for recurrence in first],
            }
        )
    return entries


def lens_table(results: dict) -> str:
    """
    A table of a document of kind `"lens"`: for each position, when its target becomes the most probable token, and
    the share of rows in which it is after some recurrences, in percent; for one row its probability instead.
    """
    last = results["settings"]["num_recurrences"]
    shown = shown_recurrences(last)
    alone = results["data"]["num_rows"] == 1
    names = ["token", "target"] if alone else ["ever first"]
    header = ["position", *names, "readable from", "settled from", *(f"r={recurrence}" for recurrence in shown)]
    lines = []
    for position in results["positions"]:
        values = position["target_probability" if alone else "first_share"]
        line = [position["index"] + 1]
        if alone:
            line += [_shown(position["token"]), _shown(position["target"])]
        else:
            line.append("-" if position["ever_first"] is None else f"{100 * position['ever_first']:.1f}")
        for name in ("readable_from", "settled_from"):
            number = position[name]
            line.append("-" if number is None else f"{number:.0f}" if alone else f"{number:.1f}")
        percent = ["-" if values is None else f"{100 * values[recurrence - 1]:.1f}" for recurrence in shown]
        lines.append(line + percent)
    return format_table(header, lines)


def _shown(token):
    # A line break would break the table.
    return "-" if token is None else visible(token).replace("\n", "\\n").replace("\t", "\\t")


def target_values(results: dict, name: str = "target_probability") -> np.ndarray:
    """
    One number of every position after every recurrence, shape `(positions, R)`; NaN where there is no target.

    Args:
        name: `"target_probability"`, `"target_rank"` or `"first_share"`.
    """
    missing = [math.nan] * results["settings"]["num_recurrences"]
    return np.array([position[name] or missing for position in results["positions"]])
