"""A gate that is fitted to a frozen model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_calibrations import VOCAB, chain_model, chain_rows, collator

from memreason_hf.halting.gates import OBJECTIVES, GateRows, fit_gate, install_gate, read_gate_rows
from memreason_hf.halting.signals import read_signals
from memreason_hf.models.exit_gates import exit_log_probs


DEPTH = 6


def batches(rows, size=20):
    return [dict(collator()([rows[i] for i in range(start, start + size)])) for start in range(0, len(rows), size)]


def reachable_rows(labels=200):
    """Rows in which the first entry of the state says where the answer has settled, and the others are noise."""
    settles = torch.randint(1, DEPTH + 1, (labels,))
    steps = torch.arange(1, DEPTH + 1)
    settled = steps >= settles[:, None]
    states = torch.randn(labels, DEPTH, 5)
    states[..., 0] = torch.where(settled, 1.0, -1.0) + 0.05 * torch.randn(labels, DEPTH)
    predictions = torch.where(settled, 3, steps.expand(labels, -1) + 10)
    losses = torch.where(settled, 0.1, 3.0 - 0.2 * steps)
    return settles, GateRows(states, losses, predictions)


@pytest.mark.parametrize("coda", [0, 1])
def test_rows_are_those_of_separate_passes(coda):
    model = chain_model(num_coda_layers=coda)
    data = batches(chain_rows(40))
    rows = read_gate_rows(model, data, num_recurrences=DEPTH)
    assert len(rows) == 40 and rows.states.shape == (40, DEPTH, 16)
    for depth in (1, 4, DEPTH):
        for index, batch in enumerate(data):
            some = slice(20 * index, 20 * index + 20)
            output = model(**batch, num_recurrences=depth, output_hidden_states=True, use_cache=False)
            logits, labels = output.logits[:, -1], batch["shift_labels"][:, -1]
            torch.testing.assert_close(
                rows.losses[some, depth - 1], F.cross_entropy(logits, labels, reduction="none"), rtol=1e-4, atol=1e-5
            )
            assert torch.equal(rows.predictions[some, depth - 1], logits.argmax(-1))
            state = model.model.norm(output.hidden_states[depth][:, -1])
            torch.testing.assert_close(rows.states[some, depth - 1], state, rtol=1e-4, atol=1e-5)
    assert len(read_gate_rows(model, data, num_recurrences=2, max_labels=7)) == 7


def test_the_criterion_halts_as_the_fit_says():
    model, rows = chain_model(exit_gate=False), chain_rows(60)
    read = read_gate_rows(model, batches(rows), num_recurrences=DEPTH)
    fit = fit_gate(read, objective="settled")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert install_gate(model, fit) is model
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert set(after) - set(before) == {"model.exit_gate.weight", "model.exit_gate.bias"}
    arguments = {"criteria": ["exit_gate"], "max_recurrences": DEPTH, "batch_size": 30}
    signals = read_signals(model, rows, collator(), **arguments)["exit_gate"]
    left = exit_log_probs(read.states @ fit.weight + fit.bias).exp().cumsum(-1).numpy()
    # Rows are read in order of their length there; here in their own.
    np.testing.assert_allclose(signals.values[:, :-1], left[:, :-1], atol=1e-4)
    expected = (exit_log_probs(read.states @ fit.weight + fit.bias).exp() * torch.arange(1.0, DEPTH + 1)).sum(-1)
    assert fit.mean_recurrence == pytest.approx(expected.mean().item(), rel=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_fit_finds_what_can_be_found(objective):
    settles, rows = reachable_rows()
    extra = {"prior": "geometric", "stop": 0.3, "prior_weight": 0.02} if objective == "expected_loss" else {}
    fit = fit_gate(rows, objective=objective, **extra)
    assert fit.loss < fit.first_loss
    weight = fit.weight.abs()
    assert weight[0] > 3 * weight[1:].max() and fit.weight[0] > 0
    left = exit_log_probs(rows.states @ fit.weight + fit.bias).exp().cumsum(-1)
    counts = (left >= 0.5).int().argmax(-1) + 1
    assert (counts - settles).abs().float().mean() < 1.1
    # The same again gives the same gate; with shuffled answers it finds nothing.
    again = fit_gate(rows, objective=objective, **extra)
    assert torch.equal(again.weight, fit.weight) and torch.equal(again.bias, fit.bias)
    order = torch.randperm(len(rows))
    control = fit_gate(GateRows(rows.states[order], rows.losses, rows.predictions), objective=objective, **extra)
    assert control.loss > fit.loss and control.weight[0] < 0.7 * fit.weight[0]


def test_the_gradient_of_the_fit_vanishes():
    """Independent of the search: a small step in any direction does not improve a convex objective."""
    _, rows = reachable_rows(60)
    rows = GateRows(rows.states + torch.randn_like(rows.states), rows.losses, rows.predictions)
    fit = fit_gate(rows)
    same = (rows.predictions == rows.predictions[:, -1:]).flip(-1).long().cumprod(-1).flip(-1)[:, :-1].float()

    def mean_loss(weight, bias):
        return F.binary_cross_entropy_with_logits((rows.states @ weight + bias)[:, :-1], same).item()

    assert mean_loss(fit.weight, fit.bias) == pytest.approx(fit.loss, rel=1e-5)
    for _ in range(20):
        moved = mean_loss(fit.weight + 0.1 * torch.randn(5), fit.bias + 0.1 * torch.randn(()))
        assert moved > fit.loss - 1e-4


def test_bad_input_is_refused():
    model, data = chain_model(), batches(chain_rows(20))
    with pytest.raises(ValueError, match="num_recurrences=1 must be at least 2"):
        read_gate_rows(model, data, num_recurrences=1)
    unlabelled = [{**batch, "shift_labels": torch.full_like(batch["shift_labels"], -100)} for batch in data]
    with pytest.raises(ValueError, match="The batches hold no labels"):
        read_gate_rows(model, unlabelled, num_recurrences=2)
    rows = read_gate_rows(model, data, num_recurrences=3)
    for arguments, message in (
        ({"objective": "luck"}, "objective='luck' must be one of settled"),
        ({"prior": "even"}, "exit_prior='even' must be one of"),
        ({"prior_weight": -1.0}, "exit_prior_weight=-1.0"),
        ({"max_iterations": 0}, "max_iterations=0"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_gate(rows, **arguments)
    with pytest.raises(ValueError, match="width 16, but the model's hidden_size is 32"):
        install_gate(chain_model(hidden_size=32), fit_gate(rows))
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(ValueError, match="are not finite within 3 recurrences"):
        read_gate_rows(model, data, num_recurrences=3)
    assert model.config.vocab_size == VOCAB
