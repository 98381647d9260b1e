"""
The numbers of activation patching: as a JSON document, and as a table for the terminal.

Documents of kind `"patch"` (`patch_document`) have the schema `PatchResults`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from typing_extensions import TypedDict

from memreason_hf.analysis.inside.patching import PatchEffects
from memreason_hf.analysis.inside.rows import InsideData
from memreason_hf.evaluation.results import Document, Environment, ModelDescription, new_document, register_kind
from memreason_hf.messages import visible
from memreason_hf.tables import format_table


_DIGITS = 6
_MOST_LINES = 32


class PatchSettings(TypedDict):
    """What was patched."""

    num_recurrences: int
    """The recurrence at which the answer is read, R."""
    part: Literal["state", "input", "both"]
    """What was replaced; see `patch_effects`."""
    pairs: Literal["same_relations", "any"] | None
    """Whether the chains of a pair differ in their start only; null for two texts that were given."""
    batch_size: int
    seed: int
    """Of the choice of pairs."""


class PatchPair(TypedDict):
    """Two texts with the same number of tokens."""

    first: str
    """The text that the model ran on."""
    second: str
    """The text that patches came from."""
    first_answer: str
    """The most probable token after the first text."""
    second_answer: str
    margins: list[float]
    """Logit of the second answer minus that of the first, after the first text and after the second."""


class PatchResults(Document):
    """
    The effect of replacing what a model holds. Row t of a matrix belongs to a patch after recurrence t, 0 being before
    the first one; column p to the token with index p. Numbers are means over the pairs.
    """

    kind: Literal["patch"]
    model: ModelDescription
    data: InsideData
    hops: int | None
    """Of chains: their number of hops."""
    settings: PatchSettings
    tokens: list[list[str]] | None
    """The tokens of the first and of the second text; null where there are several pairs."""
    effect: list[list[float]]
    """0: the answer does not move; 1: the model answers as for the second text."""
    flipped: list[list[float]]
    """Share of pairs in which the most probable token is the answer to the second text."""
    whole_effect: list[float]
    """Of a patch at all positions at once."""
    whole_flipped: list[float]
    num_left_out: int
    """Rows that were not used, because the model does not answer them correctly."""
    pairs: list[PatchPair]


def _check_shapes(results):
    last = results["settings"]["num_recurrences"]
    for name in ("effect", "flipped", "whole_effect", "whole_flipped"):
        if len(results[name]) != last:
            raise ValueError(
                f"{name} has {len(results[name])} entries, but must have settings.num_recurrences={last}."
            )


register_kind("patch", PatchResults, check=_check_shapes)


def patch_document(
    found: PatchEffects,
    pairs: Sequence[dict],
    tokens: tuple[Sequence[str], Sequence[str]] | None,
    *,
    model: ModelDescription,
    data: InsideData,
    hops: int | None,
    settings: PatchSettings,
    environment: Environment,
    num_left_out: int = 0,
) -> dict:
    """
    A document of kind `"patch"`.

    Args:
        found: from `patch_effects`.
        pairs: for each pair the texts and answers of a `PatchPair`, without `margins`.
        tokens: of the two texts of a single pair.
        model, data, hops, settings, environment: what was patched, how and where.
        num_left_out: rows that were not used.
    """
    return new_document(
        "patch",
        model=model,
        data=data,
        hops=hops,
        settings=settings,
        tokens=None if tokens is None else [list(row) for row in tokens],
        effect=found.effect.mean(0).round(_DIGITS).tolist(),
        flipped=found.flipped.mean(0).round(_DIGITS).tolist(),
        whole_effect=found.whole_effect.mean(0).round(_DIGITS).tolist(),
        whole_flipped=found.whole_flipped.mean(0).round(_DIGITS).tolist(),
        num_left_out=num_left_out,
        pairs=[{**pair, "margins": margins.tolist()} for pair, margins in zip(pairs, found.margins, strict=True)],
        environment=environment,
    )


def patch_table(results: dict) -> str:
    """
    A table of a document of kind `"patch"`: for each recurrence, the position with the largest effect, the effect
    there, how often the answer flips, and the same for a patch of all positions.
    """
    effect, flipped = np.array(results["effect"]), np.array(results["flipped"])
    header = ["after recurrence", "position", "effect", "flips %", "effect of all", "flips % of all"]
    if results["tokens"] is not None:
        header.insert(2, "tokens")
    last, lines = len(effect), []
    shown = range(last)
    if last > _MOST_LINES:
        shown = sorted({0, last - 1, *np.linspace(0, last - 1, _MOST_LINES).round().astype(int).tolist()})
    for recurrence in shown:
        position = int(effect[recurrence].argmax())
        line = [recurrence, position + 1]
        if results["tokens"] is not None:
            first, second = (visible(row[position]).replace("\n", "\\n") for row in results["tokens"])
            line.append(first if first == second else f"{first} -> {second}")
        line += [f"{effect[recurrence, position]:.2f}", f"{100 * flipped[recurrence, position]:.0f}"]
        whole, whole_flipped = results["whole_effect"][recurrence], results["whole_flipped"][recurrence]
        lines.append([*line, f"{whole:.2f}", f"{100 * whole_flipped:.0f}"])
    return format_table(header, lines)
