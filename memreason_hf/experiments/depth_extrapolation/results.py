"""The schema of `extrapolation.json`, a document of kind `"depth_extrapolation"`, and how far a model gets."""

from typing import Literal

from pydantic import JsonValue
from typing_extensions import TypedDict

from memreason_hf.evaluation.results import Document, register_kind


# A hop count is reached at this accuracy: that of the study, and a stricter one.
REACHED, REACHED_WELL = 0.6, 0.95
# How many times the best recurrence overthinking is measured at, and up to which hop count.
DEEPER, OVERTHINKING_HOPS = 4, 20


class Training(TypedDict):
    """How the training went."""

    steps: int
    chains: int
    """Training chains seen, repeats included."""
    num_parameters: int
    trained_hops: int
    """The longest training chains."""


class HopCount(TypedDict):
    """The test chains of one hop count."""

    hops: int
    count: int
    best_accuracy: float
    """The highest accuracy after one common number of recurrences."""
    best_recurrence: int
    """The first such number."""
    late_accuracy: float | None
    """After four times as many recurrences; None if so many were not measured."""
    adaptive_accuracy: float
    """Where every chain halts by itself."""
    mean_recurrences: float
    """Of the halting chains."""


class DeepChains(TypedDict):
    """Chains that are much longer than those of training, each of which halts by itself."""

    hops: int
    count: int
    accuracy: float
    mean_recurrences: float


class Reach(TypedDict):
    """How far a model gets."""

    fixed: int | None
    """The deepest hop count up to which all are reached at their best fixed depth; None if the shortest is not."""
    fixed_well: int | None
    """The same at 95 %."""
    adaptive: int | None
    """The deepest hop count up to which all are reached where every chain halts by itself."""
    adaptive_well: int | None
    most_lost: float | None
    """
    The most accuracy that a hop count up to 20 loses from its best recurrence to four times as many; None if that was
    not measured for any.
    """


class ExtrapolationResults(Document):
    """One model, trained on short chains and tested on long ones."""

    kind: Literal["depth_extrapolation"]
    recipe: dict[str, dict[str, JsonValue]]
    """The sections of the training recipe, with the flags that changed them."""
    training: Training
    hop_counts: list[HopCount]
    max_recurrences: int
    """The deepest measured recurrence."""
    deep: list[DeepChains]
    reach: Reach
    seconds: float
    """Wall time of the evaluation, without what an earlier run had finished."""


def measure_reach(hop_counts: list[HopCount]) -> Reach:
    """
    How far a model gets.

    Example:

        >>> values = {"count": 10, "best_recurrence": 2, "mean_recurrences": 2.5}
        >>> hop_counts = [
        ...     {**values, "hops": hops, "best_accuracy": best, "late_accuracy": late, "adaptive_accuracy": best}
        ...     for hops, best, late in [(2, 1.0, 0.98), (3, 0.7, 0.7), (4, 0.2, 0.1), (5, 0.9, None)]
        ... ]
        >>> reach = measure_reach(hop_counts)
        >>> reach["fixed"], reach["fixed_well"], round(reach["most_lost"], 2)
        (3, 2, 0.1)
    """
    ordered = sorted(hop_counts, key=lambda entry: entry["hops"])
    lost = [
        entry["best_accuracy"] - entry["late_accuracy"]
        for entry in ordered
        if entry["hops"] <= OVERTHINKING_HOPS and entry["late_accuracy"] is not None
    ]
    return {
        "fixed": _deepest(ordered, "best_accuracy", REACHED),
        "fixed_well": _deepest(ordered, "best_accuracy", REACHED_WELL),
        "adaptive": _deepest(ordered, "adaptive_accuracy", REACHED),
        "adaptive_well": _deepest(ordered, "adaptive_accuracy", REACHED_WELL),
        "most_lost": max(lost) if lost else None,
    }


def _deepest(hop_counts, name, least):
    deepest = None
    for entry in hop_counts:
        if entry[name] < least:
            break
        deepest = entry["hops"]
    return deepest


def _check_reach(results):
    """Raises ValueError if the reach does not follow from the measured accuracies."""
    if results["reach"] != measure_reach(results["hop_counts"]):
        raise ValueError("reach does not follow from the accuracies in hop_counts.")


register_kind("depth_extrapolation", ExtrapolationResults, check=_check_reach)
