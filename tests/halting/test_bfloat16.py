"""Criteria say the same in bfloat16 as in float32, with the same weights, wherever their margin allows."""

import numpy as np
import pytest
from small_calibrations import chain_model, chain_rows, collator

from memreason_hf.halting.signals import read_signals


DEPTH = 8
# Near the entropies of the model, so that some are below it.
ENTROPY = 2.7
OTHERS = ("argmax_stability", "kl_entropy", "acceleration")
# Largest errors by rounding the state and the logits, of a criterion whose values reach the second number.
CRITERIA = {"kl": 0.05, "entropy": 0.2, "confidence": 0.1, "margin": 0.5, "state_difference": 0.1, "exit_gate": 0.1}


@pytest.fixture(scope="module")
def signals():
    rows, arguments = chain_rows(200), {"max_recurrences": DEPTH, "batch_size": 100, "criteria": [*CRITERIA, *OTHERS]}
    half = chain_model(initializer_range=0.15, entropy_threshold=ENTROPY).bfloat16()
    rounded = read_signals(half, rows, collator(), **arguments)
    # The same weights, which bfloat16 has rounded, in float32.
    return rounded, read_signals(half.float(), rows, collator(), **arguments)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_counts_agree_where_no_value_is_near_the_threshold(criterion, signals):
    rounded, exact = (some[criterion] for some in signals)
    assert rounded.values.dtype == np.float32
    known = ~np.isnan(exact.values)
    threshold = float(np.quantile(exact.values[known], 0.5))
    distance = np.where(known, abs(exact.values - threshold), np.inf)
    errors = np.where(known, abs(rounded.values - exact.values), 0)
    assert 0 < errors.max() < CRITERIA[criterion]
    clear = (distance > errors.max(axis=0)).all(axis=1)
    if not clear.any():
        pytest.skip("every row comes near the threshold at some recurrence")
    np.testing.assert_array_equal(rounded.counts(threshold)[clear], exact.counts(threshold)[clear])
    # A control: values that are rounded to bfloat16 would not have the resolution of float32.
    assert (rounded.values.astype(np.float32).view(np.uint32)[known] & 0xFFFF).any()


def test_the_most_probable_token_is_the_same_where_its_margin_allows(signals):
    """`argmax_stability` counts recurrences, so that it agrees exactly as long as no margin was within rounding."""
    rounded, exact = (some["argmax_stability"] for some in signals)
    margins, other = (some["margin"].values for some in reversed(signals))
    error = abs(margins - other).max()
    # The order of two logits can change only where they are closer than twice the error of one.
    clear = np.logical_and.accumulate(margins > 2 * error, axis=1)
    assert clear.any()
    np.testing.assert_array_equal(rounded.predictions[clear], exact.predictions[clear])
    np.testing.assert_array_equal(rounded.values[clear], exact.values[clear])
    for patience in (2, 3):
        counts, wanted = rounded.counts(patience), exact.counts(patience)
        known = clear[np.arange(len(wanted)), wanted - 1]
        np.testing.assert_array_equal(counts[known], wanted[known])
    # Patience and predictions are whole numbers, whatever the precision.
    assert (rounded.values == np.round(rounded.values)).all()


def test_a_rule_of_two_thresholds_and_one_of_three_states(signals):
    """`kl_entropy` and `acceleration`, whose values are infinite or missing at first."""
    for name, largest in (("kl_entropy", 0.05), ("acceleration", 0.15)):
        rounded, exact = (some[name].values for some in signals)
        entropies = [some["entropy"].values for some in signals]
        finite = np.isfinite(exact) & np.isfinite(rounded)
        assert finite.any()
        assert abs(rounded - exact)[finite].max() < largest
        # Only an entropy within rounding of its threshold decides otherwise.
        differ = np.isinf(exact) != np.isinf(rounded)
        error = abs(entropies[0] - entropies[1]).max()
        assert (abs(entropies[1] - ENTROPY)[differ] <= error).all()
