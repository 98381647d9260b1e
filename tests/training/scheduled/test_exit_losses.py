"""Training with an exit gate: the loss of one pass against separate passes and a loop over recurrences."""

import math

import pytest
import torch
import torch.nn.functional as F
from refusals import refused
from small_runs import small_chains, small_model, small_trainer

from memreason_hf.commands import train
from memreason_hf.training import ChainCollator
from memreason_hf.training.scheduled.exit_losses import ExitLoss
from memreason_hf.training.scheduled.trainer import may_leave_out_parameters


DEPTH = 4
FIELDS = {"exit_gate": True, "residual_dropout": 0.0, "initializer_range": 0.3}


def inputs_and_labels():
    tokenizer, train_rows, _ = small_chains()
    batch = ChainCollator(tokenizer.pad_token_id, "prefix")([train_rows[index] for index in range(0, 48, 4)])
    labels = batch.pop("shift_labels")
    return dict(batch), labels


def gated_model(**fields):
    model = small_model(**{**FIELDS, **fields}).train()
    with torch.no_grad():
        model.model.exit_gate.weight.normal_()
        model.model.exit_gate.bias.fill_(-0.5)
    return model


def by_separate_passes(model, prior, weight, num_items):
    """The expected loss and the distance: one forward pass for each depth, and products of probabilities."""
    inputs, labels = inputs_and_labels()
    at, stayed, expected, distance = labels != -100, 1.0, 0.0, 0.0
    for depth in range(1, DEPTH + 1):
        output = model(**inputs, num_recurrences=depth, output_hidden_states=True)
        losses = F.cross_entropy(output.logits[at], labels[at], reduction="none")
        state = model.model.norm(output.hidden_states[-1])[at]
        leaves = torch.sigmoid(state @ model.model.exit_gate.weight[0] + model.model.exit_gate.bias)
        q = stayed * (leaves if depth < DEPTH else 1.0)
        stayed = stayed * (1 - leaves)
        expected = expected + (q * losses).sum() / num_items
        distance = distance + (q * (q.log() - math.log(prior[depth - 1]))).sum() / num_items
    return expected, distance, expected + weight * distance


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stack", [{}, {"num_prelude_layers": 1, "num_coda_layers": 1}])
@pytest.mark.parametrize("prior", ["uniform", "geometric"])
def test_one_pass_equals_separate_passes(prior, stack):
    model = gated_model(**stack)
    shares = [1 / DEPTH] * DEPTH if prior == "uniform" else [0.7**step for step in range(DEPTH)]
    shares = [share / sum(shares) for share in shares]
    expected, distance, total = by_separate_passes(model, shares, 0.4, 37)
    inputs, labels = inputs_and_labels()
    loss = ExitLoss(labels[labels != -100], DEPTH, 37, prior=prior, stop=0.3, weight=0.4)
    arguments = {**inputs, "shift_labels": labels, "num_recurrences": DEPTH, "labelled_logits_only": True}
    output = model(**arguments, recurrence_loss=loss)
    assert loss.terms["main"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss.terms["exit_prior"].item() == pytest.approx(distance.item(), rel=1e-3)
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-4)
    found, wanted = gradients(model, output.loss), gradients(model, total)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5 * max(value.abs().max().item(), 1e-2))
    # Controls: the gate has a gradient, and the loss is neither that of the last recurrence nor the uniform mean.
    assert found["model.exit_gate.weight"].abs().max() > 1e-5
    last = model(**arguments, num_items_in_batch=37).loss
    even = model(**arguments, num_items_in_batch=37, recurrence_loss="uniform").loss
    assert all(abs(other.item() - expected.item()) > 1e-4 for other in (last, even))


def test_one_recurrence_leaves_the_gate_without_a_say():
    model, (inputs, labels) = gated_model(), inputs_and_labels()
    loss = ExitLoss(labels[labels != -100], 1, 10)
    arguments = {**inputs, "shift_labels": labels, "num_recurrences": 1, "labelled_logits_only": True}
    found = gradients(model, model(**arguments, recurrence_loss=loss).loss)
    assert loss.terms["exit_prior"].item() == 0 and not found["model.exit_gate.weight"].any()
    plain = model(**arguments, num_items_in_batch=10).loss
    assert loss.terms["main"].item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_trainer_trains_model_and_gate(tmp_path):
    run = {"recurrence_loss": "exit_gate", "supervision": "prefix", "max_steps": 6, "logging_steps": 1}
    trainer = small_trainer(tmp_path / "run", gated_model(), **run, exit_prior="geometric", exit_prior_weight=0.1)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    assert not trainer.args.ddp_find_unused_parameters or may_leave_out_parameters(trainer.model.config, trainer.args)
    trainer.train()
    assert all(not torch.equal(before[name], value) for name, value in trainer.model.named_parameters())
    logs = [entry for entry in trainer.state.log_history if "main_loss" in entry]
    assert len(logs) == 6 and all(entry["exit_prior_loss"] >= 0 for entry in logs)
    for entry in logs:
        total = entry["main_loss"] + 0.1 * entry["exit_prior_loss"]
        assert entry["loss"] == pytest.approx(total, abs=2e-4)
    # Micro-batches are parts of the same sums.
    parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    other = small_trainer(
        tmp_path / "parts", gated_model(), **run, exit_prior="geometric", exit_prior_weight=0.1, **parts
    )
    other.train()
    again = [entry["loss"] for entry in other.state.log_history if "main_loss" in entry]
    assert again == pytest.approx([entry["loss"] for entry in logs], rel=1e-3)


def test_what_cannot_be_trained_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="recurrence_loss='exit_gate' trains a gate, which the model does not have"):
        small_trainer(tmp_path, small_model(), recurrence_loss="exit_gate")
    separate = gated_model(recurrence_gradients="separate")
    with pytest.raises(ValueError, match="a gate learns from all recurrences"):
        small_trainer(tmp_path, separate, recurrence_loss="exit_gate")
    with pytest.raises(ValueError, match=r"first_weight=1\.0 cannot be combined with recurrence_loss='exit_gate'"):
        small_trainer(tmp_path, gated_model(), recurrence_loss="exit_gate", first_weight=1.0)
    for name, value in (("exit_prior", "even"), ("exit_prior_stop", 1.0), ("exit_prior_weight", -0.1)):
        with pytest.raises(ValueError, match=f"{name}={value!r}"):
            small_trainer(tmp_path, gated_model(), recurrence_loss="exit_gate", **{name: value})
    with pytest.raises(ValueError, match="exit_prior='uniform' has no effect without"):
        small_trainer(tmp_path, gated_model(), exit_prior="uniform")
    with pytest.raises(ValueError, match=r"exit_prior_stop=0\.5 is of the geometric prior"):
        small_trainer(tmp_path, gated_model(), recurrence_loss="exit_gate", exit_prior_stop=0.5)
    inputs, labels = inputs_and_labels()
    loss = ExitLoss(labels[labels != -100], 2, 10)
    with pytest.raises(ValueError, match="ExitLoss reads a learned gate, which this model does not have"):
        small_model().train()(**inputs, shift_labels=labels, num_recurrences=2, recurrence_loss=loss)
    with pytest.raises(ValueError, match="Pass labelled_logits_only=True"):
        gated_model()(**inputs, shift_labels=labels, num_recurrences=2, recurrence_loss=loss)
    line = ["quickstart", "--recurrence_loss", "exit_gate", "--output_dir", str(tmp_path / "run")]
    line += ["--data_path", str(tmp_path / "data"), "--num_train_chains", "4", "--num_test_chains", "2"]
    assert "exit_gate=True" in refused(capsys, train.main, line)


def test_an_idle_gate_is_searched_for():
    config = gated_model(recurrence_min=3).config
    assert may_leave_out_parameters(config) is False
