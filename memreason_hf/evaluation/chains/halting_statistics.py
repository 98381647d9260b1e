"""The recurrences of an adaptive evaluation, by group."""

from dataclasses import dataclass

import numpy as np

from memreason_hf.checks import check_int, check_sequence, check_type
from memreason_hf.evaluation.chains.predictions import AnswerPredictions, sorted_groups


@dataclass(frozen=True)
class RecurrenceStatistics:
    """
    Accuracy and recurrences of some rows.

    Attributes:
        count: number of rows.
        accuracy: share of correct rows, in 0..1.
        mean, median, minimum, maximum: of the recurrences.
        standard_deviation: of the recurrences of these rows themselves, so the divisor is `count`.
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
    Accuracy and recurrences of an evaluation.

    Attributes:
        overall: the statistics of all rows.
        by_group: the statistics of each group, in natural order of the groups.
    """

    overall: RecurrenceStatistics
    by_group: dict[int | str, RecurrenceStatistics]


def halting_statistics(predictions: AnswerPredictions) -> HaltingStatistics:
    """
    Count, accuracy and the distribution of the recurrences, over all rows and by group.

    Raises:
        ValueError: there are no rows, or the columns of `predictions` differ in length.

    Example:

        >>> answers = AnswerPredictions([5, 6, 7], [5, 6, 9], groups=[2, 2, 12], num_recurrences=[3, 5, 8])
        >>> statistics = halting_statistics(answers)
        >>> statistics.by_group[2].mean, statistics.by_group[12].accuracy
        (4.0, 0.0)
    """
    check_type("predictions", predictions, AnswerPredictions, "an AnswerPredictions (predict_answers)")
    columns = ("predictions", "references", "groups", "num_recurrences")
    lengths = {name: len(getattr(predictions, name)) for name in columns}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The columns of the predictions differ in length: {lengths}. Pass one entry for each row.")
    if lengths["predictions"] == 0:
        raise ValueError("There are no predictions: statistics need at least one row.")
    for name in ("predictions", "references", "num_recurrences"):
        check_sequence(name, getattr(predictions, name), "a list of whole numbers")
        for value in getattr(predictions, name):
            check_int(name, value, least=1 if name == "num_recurrences" else None)
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
