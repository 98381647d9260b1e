"""
Whether promises are kept: a calibration is repeated on many draws of rows, and compared with the truth.

    report = repeat_calibration(signals, thresholds, promise, num_rows=2000, repetitions=200)
    report.kept, report.naive_kept                  # shares of the repetitions

The rows at hand are taken as the whole population. Each repetition draws rows from it with replacement, calibrates on
them, and looks up what the chosen threshold loses on the population, which is then no estimate but the truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memreason_hf.checks import check_int
from memreason_hf.halting.calibration import Outcome, Promise, calibrate
from memreason_hf.halting.signals import ChainSignals


# A larger number is a typing error.
MOST_REPETITIONS = 100_000


@dataclass(frozen=True)
class RepetitionReport:
    """
    How a calibration and a naive choice did in many repetitions.

    Attributes:
        repetitions: how many.
        num_rows: rows that each of them drew.
        kept, naive_kept: the shares of them in which the true loss was at most the risk. Where no threshold was safe,
            the reference depth is used, which loses nothing.
        loss, naive_loss: the mean true losses.
        largest_loss, naive_largest_loss: the largest ones.
        recurrences, naive_recurrences: the mean recurrences of the population.
        no_threshold: the share of repetitions in which no threshold was safe.
    """

    repetitions: int
    num_rows: int
    kept: float
    naive_kept: float
    loss: float
    naive_loss: float
    largest_loss: float
    naive_largest_loss: float
    recurrences: float
    naive_recurrences: float
    no_threshold: float


def repeat_calibration(
    signals: Mapping[str, ChainSignals],
    thresholds: Mapping[str, Sequence[float]],
    promise: Promise,
    *,
    num_rows: int,
    repetitions: int = 200,
    seed: int | None = None,
    loss: str = "accuracy",
    min_recurrences: int = 1,
) -> RepetitionReport:
    """
    Repeats a calibration on fresh draws of rows.

    Args:
        signals: by criterion, of the same rows.
        thresholds: by criterion, from cautious to daring.
        promise, loss, min_recurrences: as for the calibration.
        num_rows: rows of each draw.
        repetitions: how many draws.
        seed: of the draws. Default: another one each time.

    Raises:
        ValueError: too few rows for the promise, or a number below 1.
    """
    check_int("repetitions", repetitions, least=1, most=MOST_REPETITIONS, reason="each is a calibration")
    check_int("num_rows", num_rows, least=1)
    outcomes = {
        (name, threshold): signals[name].outcome(threshold, loss=loss, min_recurrences=min_recurrences)
        for name, values in thresholds.items()
        for threshold in values
    }
    population = len(next(iter(signals.values())))
    deepest = next(iter(signals.values())).values.shape[1]
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(repetitions):
        drawn = generator.integers(population, size=num_rows)

        def measure(criterion, threshold, drawn=drawn):
            outcome = outcomes[criterion, threshold]
            return Outcome(outcome.losses[drawn], outcome.recurrences[drawn])

        # The naive choice is among all candidates, also those behind the first that fails.
        calibration = calibrate(measure, thresholds, promise, num_rows=num_rows, tries_all=True)
        found.append([_truth(one, outcomes, deepest) for one in (calibration.chosen, calibration.naive)])
    (losses, naive_losses), (counts, naive_counts), (missing, _) = np.array(found).transpose(2, 1, 0)
    return RepetitionReport(
        repetitions=repetitions,
        num_rows=num_rows,
        kept=float((losses <= promise.risk).mean()),
        naive_kept=float((naive_losses <= promise.risk).mean()),
        loss=float(losses.mean()),
        naive_loss=float(naive_losses.mean()),
        largest_loss=float(losses.max()),
        naive_largest_loss=float(naive_losses.max()),
        recurrences=float(counts.mean()),
        naive_recurrences=float(naive_counts.mean()),
        no_threshold=float(missing.mean()),
    )


def _truth(candidate, outcomes, deepest):
    """(loss, recurrences, whether there is no candidate) on the population."""
    if candidate is None:
        return 0.0, float(deepest), 1.0
    outcome = outcomes[candidate.criterion, candidate.threshold]
    return outcome.losses.mean(), outcome.recurrences.mean(), 0.0


__all__ = ["MOST_REPETITIONS", "RepetitionReport", "repeat_calibration"]
