"""The distribution of an exit gate and its objectives, each against a loop over recurrences."""

import math

import pytest
import torch
from recurrent_models import random_ids

from memreason_hf.models.exit_gates import (
    add_exit_gate,
    exit_log_probs,
    exit_prior,
    expected_exit_loss,
    improvement_loss,
    settled_loss,
)
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


def by_hand(gate):
    """The probability of leaving after each recurrence, one after the other."""
    stayed, found = 1.0, []
    for value in gate[:-1].tolist():
        leaves = 1 / (1 + math.exp(-value))
        found.append(stayed * leaves)
        stayed *= 1 - leaves
    return [*found, stayed]


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_the_distribution_is_that_of_a_loop(depth):
    gates = 3 * torch.randn(5, depth, dtype=torch.float64)
    found = exit_log_probs(gates).exp()
    expected = torch.tensor([by_hand(gate) for gate in gates], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(5, dtype=torch.float64))
    # What the gate says at the last recurrence has no effect.
    gates[:, -1] += 5
    torch.testing.assert_close(exit_log_probs(gates).exp(), expected)


def test_the_criterion_adds_up_the_same_distribution():
    gates, criterion, memory = torch.randn(4, 6, 1), HALTING_CRITERIA["exit_gate"](0.9), {}
    left = torch.stack([criterion.measure(gates[:, step].sigmoid(), None, memory) for step in range(6)], dim=1)
    torch.testing.assert_close(left[:, :-1], exit_log_probs(gates[..., 0]).exp().cumsum(-1)[:, :-1])


def test_large_gates_keep_their_gradients():
    gates = torch.tensor([[90.0, -90.0, 90.0, 0.0], [-200.0, -200.0, -200.0, 0.0]], requires_grad=True)
    loss = expected_exit_loss(gates, torch.rand(2, 4), exit_prior("geometric", 4, 0.3), 0.1).sum()
    loss.backward()
    assert loss.isfinite() and gates.grad.isfinite().all()


@pytest.mark.parametrize(("name", "stop"), [("uniform", 0.2), ("geometric", 0.35)])
def test_the_expected_loss_is_that_of_a_loop(name, stop):
    depth, weight = 5, 0.3
    gates, losses = 2 * torch.randn(3, depth), torch.rand(3, depth)
    raw = [1.0 if name == "uniform" else (1 - stop) ** step * stop for step in range(depth)]
    prior = [value / sum(raw) for value in raw]
    torch.testing.assert_close(exit_prior(name, depth, stop).exp(), torch.tensor(prior))
    expected = [
        sum(q * (loss + weight * math.log(q / p)) for q, loss, p in zip(by_hand(gate), row.tolist(), prior))
        for gate, row in zip(gates, losses)
    ]
    found = expected_exit_loss(gates, losses, exit_prior(name, depth, stop), weight)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    if name == "uniform":
        entropy = -sum(q * math.log(q) for q in by_hand(gates[0]))
        plain = expected_exit_loss(gates, losses, exit_prior(name, depth), 0.0)[0]
        assert (found[0] - plain).item() == pytest.approx(weight * (math.log(depth) - entropy), abs=1e-5)
    # A control: the other prior gives another loss.
    other = exit_prior("geometric", depth, 0.9)
    assert not torch.allclose(found, expected_exit_loss(gates, losses, other, weight), rtol=1e-3)


def test_the_second_stage_is_that_of_a_loop():
    gates, losses = torch.randn(3, 6), torch.rand(3, 6) * 0.05
    expected = []
    for gate, row in zip(gates.double().tolist(), losses.double().tolist()):
        terms = []
        for step in range(1, 6):
            gain = max(0.0, row[step - 1] - row[step])
            stay = 1 / (1 + math.exp(-50 * (gain - 0.005)))
            leave = 1 / (1 + math.exp(-gate[step]))
            terms.append(-(stay * math.log(1 - leave) + (1 - stay) * math.log(leave)))
        expected.append(sum(terms) / 5)
    torch.testing.assert_close(improvement_loss(gates, losses), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(improvement_loss(-gates, losses), torch.tensor(expected), rtol=1e-2)


def test_a_settled_answer_stays_up_to_the_end():
    predictions = torch.tensor([[3, 3, 3, 3], [3, 1, 3, 3], [3, 3, 3, 1]])
    settled = torch.tensor([[1.0, 1, 1], [0, 0, 1], [0, 0, 0]])
    sure = torch.where(settled > 0, 20.0, -20.0)
    gates = torch.cat((sure, torch.zeros(3, 1)), -1)
    assert settled_loss(gates, predictions).max() < 1e-6
    assert settled_loss(-gates, predictions).min() > 10
    gates[1, 0] *= -1  # right by luck, wrong after the next recurrence
    assert settled_loss(gates, predictions)[1] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("even", 3), "exit_prior='even' must be one of uniform, geometric"),
        (("geometric", 3, 1.0), "exit_prior_stop=1.0 must be below 1"),
        (("geometric", 3, 0.0), "exit_prior_stop=0.0 must be above 0"),
        (("uniform", 0), "num_recurrences=0 must be at least 1"),
    ],
)
def test_priors_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        exit_prior(*arguments)


def test_a_new_gate_changes_nothing_else(tmp_path):
    config = RecurrentDepthConfig.llama_style(vocab_size=100, hidden_size=16, num_attention_heads=2)
    model = RecurrentDepthForCausalLM(config).eval()
    before, ids = {name: value.clone() for name, value in model.state_dict().items()}, random_ids(2, 5)
    logits = model(ids, num_recurrences=3).logits
    assert add_exit_gate(model) is model and not model.model.exit_gate.training
    after = model.state_dict()
    assert set(after) - set(before) == {"model.exit_gate.weight", "model.exit_gate.bias"}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(model(ids, num_recurrences=3).logits, logits)
    model.save_pretrained(tmp_path)
    again = RecurrentDepthForCausalLM.from_pretrained(tmp_path)
    depth = {"halting_criterion": "exit_gate", "max_recurrences": 6, "halting_granularity": "sequence"}
    # With probability 1/2 at each recurrence, 0.8 is reached after the third.
    assert again(ids, exit_gate_threshold=0.8, **depth).num_recurrences.tolist() == [3, 3]
    gate = model.model.exit_gate
    assert add_exit_gate(model).model.exit_gate is gate
