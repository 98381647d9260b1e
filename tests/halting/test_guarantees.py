"""The statistics of a promise: exact tails, and how often promises are broken on simulated losses."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from memreason_hf.halting.calibration import Outcome, Promise, calibrate
from memreason_hf.halting.guarantees import (
    binomial_tail,
    conformal,
    fixed_sequence,
    holm,
    p_value,
    rows_needed,
    rows_needed_in_mean,
)


REPETITIONS = 2000


@pytest.mark.parametrize(("trials", "risk"), [(7, Fraction(1, 3)), (60, Fraction(1, 20)), (300, Fraction(1, 200))])
def test_the_tail_is_the_sum_of_fractions(trials, risk):
    for successes in (0, 1, 3, trials - 1, trials):
        exact = sum(comb(trials, k) * risk**k * (1 - risk) ** (trials - k) for k in range(successes + 1))
        assert binomial_tail(successes, trials, float(risk)) == pytest.approx(float(exact), rel=1e-10)
    assert binomial_tail(5_100, 1_000_000, 0.005) == pytest.approx(0.9220, abs=2e-3)


@pytest.mark.parametrize(("risk", "confidence"), [(0.005, 0.95), (0.1, 0.9), (0.5, 0.5), (0.02, 0.999)])
def test_the_rows_that_are_needed_are_the_fewest(risk, confidence):
    for comparisons in (1, 20):
        rows = rows_needed(risk, confidence, comparisons)
        assert p_value(np.zeros(rows), risk) <= (1 - confidence) / comparisons
        assert rows == 1 or p_value(np.zeros(rows - 1), risk) > (1 - confidence) / comparisons
    rows = rows_needed_in_mean(risk)
    assert conformal(np.zeros((1, rows)), risk) == 1
    assert rows == 1 or conformal(np.zeros((1, rows - 1)), risk) == 0


@pytest.mark.parametrize("kind", ["binary", "between"])
def test_p_values_are_seldom_small_where_the_risk_is_exceeded(kind):
    """At the boundary of the hypothesis P(p <= u) <= u. A control: below the boundary they are often small."""
    generator, risk, rows = np.random.default_rng(), 0.1, 150
    for mean, most in ((risk, 0.05), (risk / 4, None)):
        losses = (generator.random((REPETITIONS, rows)) < mean).astype(float)
        if kind == "between":
            # The mean stays: a share of the rows loses a half of twice as often.
            losses = (generator.random((REPETITIONS, rows)) < 2 * mean) * 0.5
        share = np.mean([p_value(row, risk) <= 0.05 for row in losses])
        if most is None:
            assert share > 0.5
        else:
            # Four standard deviations of the share.
            assert share <= most + 4 * np.sqrt(most * (1 - most) / REPETITIONS)


def test_holm_and_the_fixed_sequence_by_hand():
    assert fixed_sequence([], 0.1) == 0 and fixed_sequence([float("nan")], 0.1) == 0
    assert fixed_sequence([0.05, 0.06, 0.0], 0.05) == 1
    assert holm([0.04, 0.011, 0.03, 0.02], 0.05).tolist() == [False, True, False, False]
    assert holm([0.01, 0.013, 0.02, 0.05], 0.05).tolist() == [True, True, True, True]
    assert not holm([0.02, 0.02, 0.02], 0.05).any()


def simulated(generator, rows, num_candidates=25):
    """Rows of which candidate i loses about i / 200, those of a daring candidate among others."""
    hardness = generator.random(rows)
    rates = np.arange(num_candidates) / 200
    return (hardness < rates[:, None]).astype(float), rates


def chosen_rates(method, risk, rows=400):
    """True rates of the chosen and of the naive candidate in many repetitions; NaN where there is none."""
    generator, rates = np.random.default_rng(), []
    promise = Promise(risk, 0.9, method)
    for _ in range(400):
        losses, true = simulated(generator, rows)
        calibration = calibrate(
            lambda _, threshold, losses=losses: Outcome(losses[int(threshold)], np.full(rows, 100.0 - threshold)),
            {"kl": list(range(len(true)))},
            promise,
            num_rows=rows,
        )
        pair = (calibration.chosen, calibration.naive)
        rates.append([true[int(one.threshold)] if one else np.nan for one in pair])
    return np.array(rates)


@pytest.mark.parametrize("method", ["fixed_sequence", "holm"])
def test_promises_are_broken_as_seldom_as_promised_and_naive_ones_more_often(method):
    risk = 0.0501
    rates = chosen_rates(method, risk)
    broken, naive = np.mean(rates[:, 0] > risk), np.mean(rates[:, 1] > risk)
    tolerance = 4 * np.sqrt(0.1 * 0.9 / len(rates))
    assert broken <= 0.1 + tolerance
    # A control: thresholds that only look right on the rows break the promise far more often.
    assert naive > 0.1 + tolerance
    # And the promise is not kept by never halting.
    assert np.nanmean(rates[:, 0]) > 0.01


def test_the_conformal_promise_holds_in_the_mean():
    risk = 0.05
    rates = chosen_rates("conformal", risk)[:, 0]
    assert not np.isnan(rates).any()
    assert rates.mean() <= risk + 4 * rates.std() / np.sqrt(len(rates))
    assert rates.mean() > risk / 2
    # The method promises the mean and no more.
    assert (rates > risk).mean() > 0.1


def test_losses_that_fall_count_as_the_largest_so_far():
    losses = np.zeros((3, 100))
    losses[1, :50] = 1
    assert conformal(losses, 0.2) == 1
    assert conformal(np.zeros((3, 100)), 0.2) == 3


def test_all_groups_hold_at_once():
    rows, groups = 2000, ["a"] * 1000 + ["b"] * 1000
    hard = np.array([group == "b" for group in groups])

    def measure(_, threshold):
        # Group b loses ten times as much.
        losses = np.where(hard, np.arange(rows) % 1000 < 10 * threshold, np.arange(rows) % 1000 < threshold)
        return Outcome(losses.astype(float), np.full(rows, 50 - threshold))

    thresholds, promise = {"kl": list(range(0, 30))}, Promise(0.05)
    together = calibrate(measure, thresholds, promise, num_rows=rows)
    by_group = calibrate(measure, thresholds, promise, num_rows=rows, groups=groups)
    assert by_group.groups == ["a", "b"] and by_group.group_rows == [1000, 1000]
    alone = calibrate(
        lambda *args: Outcome(measure(*args).losses[1000:], np.ones(1000)), thresholds, promise, num_rows=1000
    )
    assert by_group.chosen.threshold < together.chosen.threshold
    assert by_group.chosen.threshold == max(one.threshold for one in alone.candidates["kl"] if one.is_safe)
    assert max(by_group.chosen.group_losses) <= 0.05
    # A control: without groups, the easy group makes up for the hard one.
    assert measure("kl", together.chosen.threshold).losses[1000:].mean() > 0.05


def test_runs_end_at_the_first_failure_unless_all_are_needed():
    tried = []

    def measure(_, threshold):
        tried.append(threshold)
        return Outcome((np.arange(500) < 10 * threshold).astype(float), np.full(500, 9.0 - threshold))

    values = list(range(9))
    for method, count in (("fixed_sequence", 3), ("conformal", 4), ("holm", 9)):
        tried.clear()
        calibration = calibrate(measure, {"kl": values}, Promise(0.05, 0.9, method), num_rows=500, tries_all=False)
        assert len(tried) == count
        everything = calibrate(measure, {"kl": values}, Promise(0.05, 0.9, method), num_rows=500)
        assert everything.chosen.threshold == calibration.chosen.threshold


def test_several_criteria_share_the_error():
    def measure(criterion, threshold):
        return Outcome(np.zeros(1000), np.full(1000, 5.0 if criterion == "kl" else 4.0))

    thresholds = {"kl": [1.0], "margin": [1.0]}
    assert calibrate(measure, thresholds, Promise(0.005), num_rows=1000).chosen.criterion == "margin"
    assert rows_needed(0.005, 0.95, 2) == 736
    with pytest.raises(ValueError, match="at least 736 are needed"):
        calibrate(measure, thresholds, Promise(0.005), num_rows=700)
    with pytest.raises(ValueError, match="method='conformal' calibrates one criterion"):
        calibrate(measure, thresholds, Promise(0.005, method="conformal"), num_rows=1000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Promise(0), "risk=0 must be above 0: a finite number of rows"),
        (lambda: Promise(1.0), "risk=1.0 must be below 1"),
        (lambda: Promise(0.1, 1), "confidence=1 must be below 1"),
        (lambda: Promise(0.1, 0.9, "bonferroni"), "method='bonferroni' must be one of fixed_sequence"),
        (lambda: p_value(np.array([0.0, 1.5]), 0.1), "losses must be in 0..1"),
        (lambda: p_value(np.array([]), 0.1), "losses has shape"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_too_few_rows_and_groups_without_rows():
    def measure(_, threshold):
        return Outcome(np.zeros(100), np.ones(100))

    def run(risk=0.05, **kwargs):
        return calibrate(measure, {"kl": [0.1, 0.2]}, Promise(risk), num_rows=100, **kwargs)

    # Both candidates take the same recurrences: the cautious one is chosen.
    assert run().chosen.threshold == 0.1
    with pytest.raises(ValueError, match="with the 100 calibration rows: at least 598 are needed"):
        run(risk=0.005)
    groups = ["a"] * 90 + ["b"] * 10
    with pytest.raises(ValueError, match="with the 10 rows of group b: at least 59 are needed"):
        run(groups=groups)
    with pytest.raises(ValueError, match="No row is of group c"):
        run(groups=groups, group_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="is not among the groups"):
        run(groups=groups, group_names=["a"])
