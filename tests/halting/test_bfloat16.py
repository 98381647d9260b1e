"""Criteria say the same in bfloat16 as in float32, with the same weights, wherever their margin allows."""

import numpy as np
import pytest
from small_calibrations import chain_model, chain_rows, collator

from memreason_hf.halting.signals import read_signals


DEPTH = 8
# Largest errors by rounding the state and the logits, of a criterion whose values reach the second number.
CRITERIA = {"kl": 0.05, "entropy": 0.2, "confidence": 0.1, "margin": 0.5, "state_difference": 0.1, "exit_gate": 0.1}


@pytest.fixture(scope="module")
def signals():
    rows, arguments = chain_rows(200), {"max_recurrences": DEPTH, "batch_size": 100, "criteria": list(CRITERIA)}
    half = chain_model(initializer_range=0.15).bfloat16()
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
