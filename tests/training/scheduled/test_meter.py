import pytest
import torch
from small_runs import small_model

from memreason_hf.training.scheduled import meter as meter_module
from memreason_hf.training.scheduled.meter import TrainingMeter, answers_right
from memreason_hf.training.scheduled.trainer import may_leave_out_parameters


def test_answers_are_the_last_labels_of_rows():
    labels = torch.tensor([[-100, -100, 3], [-100, 1, 2], [4, -100, -100]])
    logits = torch.zeros(4, 5)
    for index, predicted in enumerate([3, 0, 2, 1]):
        logits[index, predicted] = 1.0
    assert answers_right(logits, labels).tolist() == [True, True, False]


def test_sums_are_taken_over_steps_and_ranks():
    meter = TrainingMeter(torch.device("cpu"), lambda tensor: tensor * 2)  # a second rank that saw the same
    for recurrences, right in ((3, [True, False]), (6, [True, True])):
        meter.start_step(recurrences)
        meter.add_answers(torch.tensor(right), torch.tensor([False, True]))
        meter.end_step(tokens=10)
    assert meter.gate_counts() == (2, 4)
    logs = meter.take()
    assert logs["num_recurrences"] == 4.5
    assert logs["accuracy"] == 0.75
    assert logs["tokens_per_second"] == pytest.approx(10 * logs["steps_per_second"], rel=1e-2)
    # `take` does not reset the gate.
    assert meter.gate_counts() == (2, 4)
    meter.set_gate_counts(5, 7)
    assert meter.gate_counts() == (10, 14)
    assert "accuracy" not in meter.take()


def test_rates_are_those_of_the_steps_alone(monkeypatch):
    """What happens between two steps, such as an evaluation, takes no time."""
    now = [100.0]
    monkeypatch.setattr(meter_module.time, "perf_counter", lambda: now[0])
    meter = TrainingMeter(torch.device("cpu"), lambda tensor: tensor)
    for seconds, tokens in ((0.25, 10), (0.5, 30)):
        meter.start_step()
        now[0] += seconds
        meter.end_step(tokens)
        now[0] += 1000
    assert meter.take() == {"tokens_per_second": 53.3, "steps_per_second": 2.667}
    # Nothing is counted twice.
    meter.start_step(3)
    now[0] += 2
    meter.end_step(8)
    meter.add_answers(torch.tensor([True, False, False, False]), None)
    expected = {"num_recurrences": 3.0, "accuracy": 0.25, "tokens_per_second": 4.0, "steps_per_second": 0.5}
    assert meter.take() == expected
    assert meter.gate_counts() == (0, 0)


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, False),
        ({"recurrence_min": 1}, True),
        ({"recurrence_min": None}, True),
        ({"recurrence_min": 1, "state_norm": "none"}, False),
        ({"recurrence_min": 1, "state_norm": "none", "input_injection": "concat"}, True),
        ({"recurrence_sampling": "fixed", "recurrence_min": None, "num_recurrences": 1}, True),
        ({"recurrence_sampling": "fixed", "recurrence_min": None, "num_recurrences": 4}, False),
        ({"backprop_recurrences": 2}, True),
    ],
    ids=str,
)
def test_ddp_searches_for_unused_parameters_only_where_there_may_be_some(fields, expected):
    if fields.get("recurrence_min", 2) is None and fields.get("recurrence_sampling") is None:
        fields = {**fields, "recurrence_sampling": "poisson"}
    assert may_leave_out_parameters(small_model(**fields).config) is expected
