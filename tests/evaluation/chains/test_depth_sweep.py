import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets

from memreason_hf.evaluation import predict_answers, sweep_depth


def test_known_answers_give_the_known_sweep(scripted_model, scripted_rows, collator):
    sweep = sweep_depth(scripted_model, scripted_rows, collator, max_recurrences=9, batch_size=4)
    assert sweep.groups == [2, 3, 5, 12]
    assert sweep.counts.tolist() == [7, 3, 5, 4]
    assert sweep.max_recurrences == 9
    recurrence = np.arange(1, 10)
    for index, hops in enumerate(sweep.groups):
        right = (hops <= recurrence) & (recurrence <= 2 * hops)
        np.testing.assert_array_equal(sweep.accuracy[index], right)
        np.testing.assert_allclose(sweep.margins[index], np.where(right, recurrence, -1))
    assert sweep.first_correct[:3].tolist() == [2, 3, 5]
    assert np.isnan(sweep.first_correct[3])
    assert sweep.ever_correct.tolist() == [1, 1, 1, 0]
    assert sweep.best_recurrence.tolist() == [2, 3, 5, 1]
    assert sweep.best_accuracy.tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(sweep.overall_accuracy[[0, 1, 2, 4, 8]], np.array([0, 7, 10, 8, 5]) / 19)
    np.testing.assert_allclose(sweep.overall_margins[0], -1)
    assert sweep.overall_first_correct == pytest.approx((7 * 2 + 3 * 3 + 5 * 5) / 15)


def test_is_one_pass(scripted_model, scripted_rows, collator):
    sweep_depth(scripted_model, scripted_rows, collator, max_recurrences=30, batch_size=100)
    assert scripted_model.batches == [(19, 13)]


def test_agrees_with_separate_runs(real_model, real_rows, collator):
    most = 9
    sweep = sweep_depth(real_model, real_rows, collator, max_recurrences=most, batch_size=16)
    assert 0 < sweep.overall_accuracy.max() < 1
    for recurrence in range(1, most + 1):
        answers = predict_answers(real_model, real_rows, collator, batch_size=5, num_recurrences=recurrence)
        hits = np.array(answers.predictions) == np.array(answers.references)
        for index, group in enumerate(sweep.groups):
            chosen = np.array(answers.groups) == group
            assert sweep.counts[index] == chosen.sum()
            assert sweep.accuracy[index, recurrence - 1] == pytest.approx(hits[chosen].mean(), abs=1e-12)


@torch.no_grad()
def test_margins_and_first_correct_agree_with_brute_force(real_model, real_rows, collator):
    most = 7
    sweep = sweep_depth(real_model, real_rows, collator, max_recurrences=most, batch_size=16)
    margins, first = {}, {}
    for row in real_rows:
        target = row["label_ids"][-1]
        row_margins = []
        for recurrence in range(1, most + 1):
            logits = real_model(torch.tensor([row["input_ids"]]), num_recurrences=recurrence).logits[0, -1].tolist()
            row_margins.append(logits[target] - max(logits[:target] + logits[target + 1 :]))
        margins.setdefault(row["hops"], []).append(row_margins)
        leading = [index + 1 for index, margin in enumerate(row_margins) if margin > 0]
        first.setdefault(row["hops"], []).append(leading[0] if leading else None)
    assert any(count is None for counts in first.values() for count in counts)
    for index, group in enumerate(sweep.groups):
        np.testing.assert_allclose(sweep.margins[index], np.mean(margins[group], axis=0), rtol=1e-4, atol=1e-5)
        reached = [count for count in first[group] if count is not None]
        assert sweep.ever_correct[index] == pytest.approx(len(reached) / len(first[group]))
        if reached:
            assert sweep.first_correct[index] == pytest.approx(np.mean(reached))


def test_a_criterion_in_the_config_does_not_shorten_the_sweep(real_model, real_rows, collator):
    expected = sweep_depth(real_model, real_rows, collator, max_recurrences=6, batch_size=16)
    real_model.config.halting_criterion = "entropy"
    try:
        sweep = sweep_depth(real_model, real_rows, collator, max_recurrences=6, batch_size=16)
    finally:
        real_model.config.halting_criterion = None
    np.testing.assert_array_equal(sweep.accuracy, expected.accuracy)


def test_does_not_depend_on_batches_or_order(real_model, real_rows, collator):
    one = sweep_depth(real_model, real_rows, collator, max_recurrences=5, batch_size=40)
    shuffled = concatenate_datasets([real_rows.select(range(25, 40)), real_rows.select(range(25))])
    other = sweep_depth(real_model, shuffled, collator, max_recurrences=5, batch_size=3)
    np.testing.assert_array_equal(one.accuracy, other.accuracy)
    np.testing.assert_allclose(one.margins, other.margins, rtol=1e-4, atol=1e-5)


def test_text_groups_and_bad_input(scripted_model, scripted_rows, collator):
    sweep = sweep_depth(scripted_model, scripted_rows, collator, max_recurrences=2, batch_size=9, group_column="type")
    assert sweep.groups == ["2hop_test", "3hop_test", "5hop_test", "12hop_test"]
    with pytest.raises(ValueError, match="max_recurrences=0"):
        sweep_depth(scripted_model, scripted_rows, collator, max_recurrences=0, batch_size=9)
    with pytest.raises(ValueError, match="empty"):
        sweep_depth(scripted_model, scripted_rows.select([]), collator, max_recurrences=2, batch_size=9)


class TwoRanks:
    """`torch.distributed` for two threads: rank, world size and one collective. Command tests use processes."""

    def __init__(self, monkeypatch):
        self.thread = threading.local()
        self.barrier = threading.Barrier(2, timeout=60)
        self.parts = [None, None]
        for name in ("is_initialized", "get_rank", "get_world_size", "all_gather_object"):
            monkeypatch.setattr(torch.distributed, name, getattr(self, name))

    def is_initialized(self):
        return True

    def get_rank(self):
        return self.thread.rank

    def get_world_size(self):
        return 2

    def all_gather_object(self, parts, part):
        self.parts[self.thread.rank] = part
        self.barrier.wait()
        parts[:] = self.parts
        self.barrier.wait()

    def run(self, function):
        def run_rank(rank):
            self.thread.rank = rank
            return function()

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(run_rank, range(2)))


def test_two_ranks_give_what_one_gives(real_model, real_rows, collator, monkeypatch):
    arguments = {"model": real_model, "dataset": real_rows, "collator": collator, "batch_size": 7}
    one = sweep_depth(**arguments, max_recurrences=3)
    answers = predict_answers(**arguments, num_recurrences=3)
    ranks = TwoRanks(monkeypatch)
    for sweep in ranks.run(lambda: sweep_depth(**arguments, max_recurrences=3, distributed=True)):
        assert sweep.counts.tolist() == one.counts.tolist()
        np.testing.assert_allclose(sweep.accuracy, one.accuracy)
        np.testing.assert_allclose(sweep.margins, one.margins, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(sweep.first_correct, one.first_correct)
        assert sweep.seconds > 0
    for shared in ranks.run(lambda: predict_answers(**arguments, num_recurrences=3, distributed=True)):
        assert shared == answers


def test_more_ranks_than_batches(real_model, real_rows, collator, monkeypatch):
    arguments = {"model": real_model, "dataset": real_rows, "collator": collator, "batch_size": 100}
    answers = predict_answers(**arguments, num_recurrences=2)
    both = TwoRanks(monkeypatch).run(lambda: predict_answers(**arguments, num_recurrences=2, distributed=True))
    assert both == [answers, answers]


def test_logits_that_are_no_numbers_are_no_wrong_answers(real_model, real_rows, collator):
    """The argmax of NaN is a token, so that such rows would count as wrong."""
    model = copy.deepcopy(real_model)
    token = real_rows[4]["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    arguments = {"model": model, "dataset": real_rows, "collator": collator, "batch_size": 7}
    with pytest.raises(ValueError, match=r"The logits of row \d+ are NaN after recurrence 1, so"):
        sweep_depth(**arguments, max_recurrences=3)
    with pytest.raises(ValueError, match=r"The logits of row \d+ are NaN, so its answer means nothing"):
        predict_answers(**arguments, num_recurrences=3)
