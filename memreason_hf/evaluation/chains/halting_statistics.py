"""How many recurrences an adaptive evaluation took, by group."""

from dataclasses import dataclass

import numpy as np

from memreason_hf.evaluation.chains.predictions import AnswerPredictions, sorted_groups


@dataclass(frozen=True)
class RecurrenceStatistics:
    """
    One group of rows: how often it was right, and the recurrences that its answers took.

    Attributes:
        count: rows.
        accuracy: share of correct rows, in 0..1.
        mean, median, minimum, maximum: of the recurrences.
        standard_deviation: of the recurrences of these very rows (divisor `count`, no estimate for a larger set).
    """

    count: int
    accuracy: float
    mean: float
    median: float
    standard_deviation: float
    minimum: int
    maximum: int


@dataclass(frozen=True)
class HaltingStatistics:
    """
    Attributes:
        overall: the statistics of all rows.
        by_group: those of each group, in natural order of the groups.
    """

    overall: RecurrenceStatistics
    by_group: dict[int | str, RecurrenceStatistics]


def halting_statistics(predictions: AnswerPredictions) -> HaltingStatistics:
    """
    Count, accuracy and the distribution of the recurrences used, over all rows and by group.

    Raises:
        ValueError: without rows, or when the columns of `predictions` differ in length.
    """
    columns = ("predictions", "references", "groups", "num_recurrences")
    lengths = {name: len(getattr(predictions, name)) for name in columns}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of the predictions differ in length: {lengths}.")
    if lengths["predictions"] == 0:
        raise ValueError("There are no predictions: statistics need at least one row.")
    correct = np.asarray(predictions.predictions) == np.asarray(predictions.references)
    recurrences = np.asarray(predictions.num_recurrences)

    groups = sorted_groups(predictions.groups)
    position = {group: index for index, group in enumerate(groups)}
    codes = np.array([position[group] for group in predictions.groups])
    return HaltingStatistics(
        overall=_statistics(correct, recurrences),
        by_group={group: _statistics(correct[codes == i], recurrences[codes == i]) for i, group in enumerate(groups)},
    )


def _statistics(correct, recurrences):
    return RecurrenceStatistics(
        count=len(correct),
        accuracy=float(correct.mean()),
        mean=float(recurrences.mean()),
        median=float(np.median(recurrences)),
        standard_deviation=float(recurrences.std()),
        minimum=int(recurrences.min()),
        maximum=int(recurrences.max()),
    )
