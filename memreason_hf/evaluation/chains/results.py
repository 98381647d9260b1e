"""Results of evaluations and depth sweeps over chains: their schemas, and the documents made of their numbers."""

import math
from typing import Literal

from typing_extensions import TypedDict

from memreason_hf.checks import check_type
from memreason_hf.evaluation.chains.depth_sweep import DepthSweep
from memreason_hf.evaluation.chains.halting_statistics import HaltingStatistics, RecurrenceStatistics
from memreason_hf.evaluation.results import (
    DataDescription,
    Document,
    ModelDescription,
    ResultsHeader,
    expect_kind,
    new_document,
    register_kind,
    validate_results,
)


class ChainModel(ModelDescription):
    """What was evaluated, and on which chains it was trained."""

    trained_hops: int | None
    """The longest chains in training; null if unknown."""


class ChainDocument(Document):
    """The entries that results over chains share."""

    model: ChainModel
    data: DataDescription
    seconds: float


class EvaluationSettings(TypedDict):
    """What decided the depth, by the names of the config."""

    num_recurrences: int | None
    """The fixed count; null where a criterion decides."""
    halting_criterion: str | None
    halting_granularity: str
    min_recurrences: int
    max_recurrences: int
    parameters: dict[str, float]
    """Parameters of the criterion, by their names in the config."""
    batch_size: int


class Recurrences(TypedDict):
    """The recurrences that the answers of some rows took."""

    mean: float
    median: float
    standard_deviation: float
    """Of these rows themselves: the divisor is their number."""
    minimum: int
    maximum: int


class FixedDepth(TypedDict):
    """The fixed depth that a baseline sweep found best."""

    best_recurrence: int
    """The first recurrence of the highest accuracy, counted from 1."""
    best_accuracy: float


class EvaluationNumbers(TypedDict):
    """An adaptive evaluation over some rows."""

    count: int
    """Rows."""
    accuracy: float
    """Share of correct rows."""
    recurrences: Recurrences
    fixed: FixedDepth | None
    """The best fixed depth; null without a baseline."""


class EvaluationGroup(EvaluationNumbers):
    """An adaptive evaluation over the rows of one group."""

    group: int | str
    """Value of the rows in the group column."""


class EvaluationResults(ChainDocument):
    """One evaluation in which the model decides its depth, or has a fixed one."""

    kind: Literal["evaluation"]
    settings: EvaluationSettings
    overall: EvaluationNumbers
    """Over all rows."""
    groups: list[EvaluationGroup]
    """By group, in natural order."""


class SweepSettings(TypedDict):
    """Settings of a depth sweep."""

    max_recurrences: int
    """The last recurrence that was read."""
    batch_size: int


class SweepNumbers(TypedDict):
    """A depth sweep over some rows. Entry t - 1 of a list belongs to recurrence t."""

    count: int
    """Rows."""
    accuracy: list[float]
    """Share of correct rows after each recurrence."""
    margin: list[float | None]
    """Mean over rows of the logit of the correct answer minus the largest other one, after each recurrence."""
    best_recurrence: int
    """The first recurrence of the highest accuracy, counted from 1."""
    best_accuracy: float
    first_correct: float | None
    """Mean first recurrence at which the correct answer ranks first, over the rows in which it ever does."""
    ever_correct: float
    """Share of the rows in which it ever does."""


class SweepGroup(SweepNumbers):
    """A depth sweep over the rows of one group."""

    group: int | str
    """Value of the rows in the group column."""


class SweepResults(ChainDocument):
    """Accuracy after every recurrence, read in one pass."""

    kind: Literal["depth_sweep"]
    settings: SweepSettings
    overall: SweepNumbers
    """Over all rows."""
    groups: list[SweepGroup]
    """By group, in natural order."""


def _check_groups(results):
    if not results["groups"]:
        raise ValueError("groups=[] is empty: results must have at least one group.")


def _check_sweep(results):
    _check_groups(results)
    expected = results["settings"]["max_recurrences"]
    numbered = {f"groups[{index}]": group for index, group in enumerate(results["groups"])}
    for place, entry in {"overall": results["overall"], **numbered}.items():
        for name in ("accuracy", "margin"):
            if len(entry[name]) != expected:
                raise ValueError(
                    f"{place}.{name} has {len(entry[name])} entries, but settings.max_recurrences is {expected}."
                )


register_kind("evaluation", EvaluationResults, check=_check_groups)
register_kind("depth_sweep", SweepResults, check=_check_sweep)


def evaluation_results(
    statistics: HaltingStatistics,
    header: ResultsHeader,
    settings: dict,
    seconds: float,
    baseline: DepthSweep | None = None,
) -> dict:
    """
    The results of an evaluation: a document of kind `"evaluation"`.

    Args:
        statistics: from `halting_statistics`.
        header: what was evaluated, and where.
        settings: see `EvaluationSettings`.
        seconds: wall time of the pass.
        baseline: a sweep over the same rows, to compare with the best fixed depth of each group.

    Raises:
        ValueError: the baseline has other groups or counts, or an entry does not fit the schema.
    """
    check_type("statistics", statistics, HaltingStatistics, "a HaltingStatistics (halting_statistics)")
    fixed = dict.fromkeys(statistics.by_group)
    overall_fixed = None
    if baseline is not None:
        counts = {group: entry.count for group, entry in statistics.by_group.items()}
        if counts != dict(zip(baseline.groups, baseline.counts.tolist())):
            raise ValueError("The baseline sweep has other rows than the evaluation: sweep the same data.")
        for group, best, accuracy in zip(baseline.groups, baseline.best_recurrence, baseline.best_accuracy):
            fixed[group] = {"best_recurrence": int(best), "best_accuracy": float(accuracy)}
        best = int(baseline.overall_accuracy.argmax())
        overall_fixed = {"best_recurrence": best + 1, "best_accuracy": float(baseline.overall_accuracy[best])}
    groups = [
        {"group": group, **_evaluation_group(entry, fixed[group])} for group, entry in statistics.by_group.items()
    ]
    overall = _evaluation_group(statistics.overall, overall_fixed)
    return _document("evaluation", header, settings, overall, groups, seconds)


def _evaluation_group(entry, fixed):
    recurrences = {name: getattr(entry, name) for name in Recurrences.__annotations__}
    return {"count": entry.count, "accuracy": entry.accuracy, "recurrences": recurrences, "fixed": fixed}


def depth_sweep_results(sweep: DepthSweep, header: ResultsHeader, batch_size: int) -> dict:
    """The results of a depth sweep: a document of kind `"depth_sweep"`."""
    overall = _sweep_numbers(
        sweep.counts.sum(),
        sweep.overall_accuracy,
        sweep.overall_margins,
        sweep.overall_first_correct,
        sweep.counts @ sweep.ever_correct / sweep.counts.sum(),
    )
    columns = zip(sweep.groups, sweep.counts, sweep.accuracy, sweep.margins, sweep.first_correct, sweep.ever_correct)
    groups = [{"group": group, **_sweep_numbers(*numbers)} for group, *numbers in columns]
    settings = {"max_recurrences": sweep.max_recurrences, "batch_size": batch_size}
    return _document("depth_sweep", header, settings, overall, groups, sweep.seconds)


def _sweep_numbers(count, accuracy, margins, first_correct, ever_correct):
    return {
        "count": int(count),
        "accuracy": accuracy.tolist(),
        "margin": [_without_nan(margin) for margin in margins],
        "best_recurrence": int(accuracy.argmax()) + 1,
        "best_accuracy": float(accuracy.max()),
        "first_correct": _without_nan(first_correct),
        "ever_correct": float(ever_correct),
    }


def _without_nan(value):
    return float(value) if math.isfinite(value) else None


def _document(kind, header, settings, overall, groups, seconds):
    return new_document(
        kind,
        model=header.model,
        data=header.data,
        settings=settings,
        overall=overall,
        groups=groups,
        seconds=seconds,
        environment=header.environment,
    )


def statistics_from_results(results: dict) -> HaltingStatistics:
    """The `HaltingStatistics` of a document of kind `"evaluation"`."""
    validate_results(results)
    expect_kind(results, "evaluation")
    expect_kind(results, "evaluation")

    def statistics(entry):
        return RecurrenceStatistics(count=entry["count"], accuracy=entry["accuracy"], **entry["recurrences"])

    by_group = {group["group"]: statistics(group) for group in results["groups"]}
    return HaltingStatistics(statistics(results["overall"]), by_group)
