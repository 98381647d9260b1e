"""Promises on the signals of a model, over many draws, beside thresholds without a guarantee."""

import numpy as np
import pytest
from small_calibrations import chain_model, chain_rows, collator

from memreason_hf.halting.calibration import Outcome, Promise, calibrate
from memreason_hf.halting.candidates import candidate_thresholds
from memreason_hf.halting.repetitions import repeat_calibration
from memreason_hf.halting.signals import read_signals


DEPTH = 8


@pytest.fixture(scope="module")
def signals():
    arguments = {"max_recurrences": DEPTH, "batch_size": 256}
    return read_signals(chain_model(), chain_rows(1500), collator(), criteria=["kl", "margin"], **arguments)


@pytest.fixture(scope="module")
def thresholds():
    return {name: candidate_thresholds(name, DEPTH, 60) for name in ("kl", "margin")}


def test_the_promise_is_kept_in_the_promised_share_and_by_naive_thresholds_more_seldom(signals, thresholds):
    confidence, repetitions = 0.9, 200
    # The hardest risk: just below what one of the thresholds loses in truth.
    losses = [signals["kl"].outcome(value, loss="agreement").losses.mean() for value in thresholds["kl"]]
    risk = 0.999 * min(loss for loss in losses if loss > 0.08)
    report = repeat_calibration(
        signals,
        {"kl": thresholds["kl"]},
        Promise(risk, confidence),
        num_rows=250,
        repetitions=repetitions,
        loss="agreement",
    )
    tolerance = 4 * np.sqrt(confidence * (1 - confidence) / repetitions)
    assert report.kept >= confidence - tolerance
    assert report.naive_kept < confidence - tolerance
    # Not by never halting: something is lost, and recurrences are saved.
    assert 0 < report.loss < risk and report.naive_recurrences <= report.recurrences < DEPTH


def test_the_truth_is_that_of_the_population(signals, thresholds):
    """With all rows in every draw's place, a repetition says what a calibration on the population says."""
    promise = Promise(0.1, 0.9)
    report = repeat_calibration(signals, thresholds, promise, num_rows=400, repetitions=3, seed=1, loss="agreement")
    generator, losses = np.random.default_rng(1), []
    for _ in range(3):
        drawn = generator.integers(1500, size=400)

        def measure(criterion, threshold, drawn=drawn):
            outcome = signals[criterion].take(drawn).outcome(threshold, loss="agreement")
            return Outcome(outcome.losses, outcome.recurrences)

        chosen = calibrate(measure, thresholds, promise, num_rows=400).chosen
        losses.append(signals[chosen.criterion].outcome(chosen.threshold, loss="agreement").losses.mean())
    assert report.loss == pytest.approx(np.mean(losses)) and report.largest_loss == pytest.approx(max(losses))


def test_bad_numbers(signals, thresholds):
    with pytest.raises(ValueError, match="repetitions=0 must be at least 1"):
        repeat_calibration(signals, thresholds, Promise(0.1), num_rows=100, repetitions=0)
    with pytest.raises(ValueError, match="with the 10 calibration rows"):
        repeat_calibration(signals, thresholds, Promise(0.1), num_rows=10, repetitions=2)
