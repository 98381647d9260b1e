"""One pass tells what the model does with every threshold."""

import numpy as np
import pytest
import torch
from small_calibrations import chain_model, chain_rows, collator

from memreason_hf.evaluation import predict_answers, sweep_depth
from memreason_hf.halting.candidates import candidate_thresholds
from memreason_hf.halting.signals import read_signals
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


DEPTH = 10


@pytest.fixture(scope="module")
def rows():
    return chain_rows(60)


def varied_threshold(signals):
    """The candidate with the most different counts, and those counts."""
    candidates = candidate_thresholds(signals.criterion, signals.values.shape[1])
    variety = [len(set(signals.counts(threshold).tolist())) for threshold in candidates]
    return candidates[int(np.argmax(variety))], max(variety)


# A coda changes what is read: one criterion on logits and one on states suffice.
@pytest.mark.parametrize(
    ("criterion", "coda"), [*((name, 0) for name in HALTING_CRITERIA), ("kl", 1), ("acceleration", 1)]
)
def test_the_model_does_what_the_pass_says(criterion, coda, rows):
    model = chain_model(num_coda_layers=coda).double()
    arguments = {"dataset": rows, "collator": collator(), "batch_size": 16}
    signals = read_signals(model, criteria=[criterion], max_recurrences=DEPTH, **arguments)[criterion]
    threshold, variety = varied_threshold(signals)
    assert variety >= 4 or (criterion == "argmax_stability" and variety >= 3)
    for least in (1, 3):
        outcome = signals.outcome(threshold, min_recurrences=least)
        depth = {HALTING_CRITERIA[criterion].threshold: threshold, "min_recurrences": least, "max_recurrences": DEPTH}
        depth |= {"halting_criterion": criterion, "halting_granularity": "sequence"}
        answers = predict_answers(model, **arguments, **depth)
        np.testing.assert_array_equal(outcome.recurrences, answers.num_recurrences)
        columns = np.array(answers.num_recurrences) - 1
        np.testing.assert_array_equal(signals.predictions[np.arange(len(rows)), columns], answers.predictions)
        full = predict_answers(model, **arguments, num_recurrences=DEPTH)
        right, wrong = (np.array(a.predictions) == a.references for a in (full, answers))
        np.testing.assert_array_equal(outcome.losses, right & ~wrong)
        disagree = signals.outcome(threshold, loss="agreement", min_recurrences=least).losses
        np.testing.assert_array_equal(disagree, np.array(full.predictions) != answers.predictions)


def test_the_comparison_sees_another_threshold(rows):
    """A control of the test above: the next candidate gives other counts."""
    arguments = {"criteria": ["kl"], "max_recurrences": DEPTH, "batch_size": 16}
    signals = read_signals(chain_model(), rows, collator(), **arguments)["kl"]
    threshold, _ = varied_threshold(signals)
    assert (signals.counts(threshold) != signals.counts(4 * threshold)).any()
    # From cautious to daring, counts never rise.
    counts = [signals.counts(value).mean() for value in candidate_thresholds("kl", DEPTH)]
    assert (np.diff(counts) <= 0).all() and counts[0] > counts[-1]


def test_a_shallower_reference_and_a_part_of_the_rows(rows):
    model, arguments = chain_model(), {"collator": collator(), "criteria": ["margin"], "batch_size": 64}
    deep = read_signals(model, rows, max_recurrences=DEPTH, **arguments)["margin"]
    shallow = read_signals(model, rows.select(range(20)), max_recurrences=4, **arguments)["margin"]
    part = deep.cut(4).take(np.arange(20))
    np.testing.assert_allclose(part.values, shallow.values, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(part.predictions, shallow.predictions)
    assert part.groups == shallow.groups == rows["hops"][:20]


def test_first_correct_is_that_of_the_sweep(rows):
    model = chain_model()
    arguments = {"criteria": ["kl"], "max_recurrences": DEPTH, "batch_size": 16}
    signals = read_signals(model, rows, collator(), **arguments)["kl"]
    sweep = sweep_depth(model, rows, collator(), max_recurrences=DEPTH, batch_size=16)
    np.testing.assert_allclose(signals.is_correct.mean(axis=0), sweep.overall_accuracy)
    assert signals.first_correct == pytest.approx(sweep.overall_first_correct)
    lasting = [
        max((t for t in range(DEPTH) if not row[t]), default=-1) + 2 for row in signals.is_correct.tolist() if row[-1]
    ]
    assert signals.lasting_correct == pytest.approx(np.mean(lasting) if lasting else np.nan, nan_ok=True)


def test_candidates_are_ordered_and_numbers_of_float32():
    for name, criterion in HALTING_CRITERIA.items():
        values = candidate_thresholds(name, 8)
        steps = np.diff(values)
        assert (steps > 0).all() if criterion.halts_below else (steps < 0).all()
        assert all(value > 0 and float(np.float32(value)) == value for value in values)


def test_nothing_is_left_behind_and_bad_input_is_refused(rows):
    before = list(HALTING_CRITERIA)
    model = chain_model(exit_gate=False)
    arguments = {"collator": collator(), "max_recurrences": 3, "batch_size": 64}
    with pytest.raises(ValueError, match="exit_gate=False"):
        read_signals(model, rows, criteria=["exit_gate"], **arguments)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(ValueError, match="are NaN after recurrence 1"):
        read_signals(model, rows, criteria=["kl"], **arguments)
    with pytest.raises(ValueError, match="halting_criterion='kll' must be one of"):
        read_signals(model, rows, criteria=["kll"], **arguments)
    assert list(HALTING_CRITERIA) == before


def test_criteria_that_share_a_pass_do_not_mix(rows):
    model, arguments = chain_model(), {"collator": collator(), "max_recurrences": DEPTH, "batch_size": 16}
    names = ["margin", "acceleration", "argmax_stability", "kl_entropy", "exit_gate", "state_difference", "kl"]
    together = read_signals(model, rows, criteria=names, **arguments)
    assert list(together) == names
    for name in names:
        alone = read_signals(model, rows, criteria=[name], **arguments)[name]
        np.testing.assert_array_equal(alone.values, together[name].values)
        np.testing.assert_array_equal(alone.predictions, together[name].predictions)
