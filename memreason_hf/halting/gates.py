"""
A learned exit gate for a frozen model: fitted to what the model does after every recurrence.

    rows = read_gate_rows(model, batches, num_recurrences=64)         # one pass at full depth
    fit = fit_gate(rows, objective="settled")
    install_gate(model, fit)                                          # no other weight changes

The gate is a linear function of the normed state, so the states of one pass are all that a fit reads. The rows should
not be those that a threshold is calibrated on afterwards.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from memreason_hf.checks import check_choice, check_int, check_number
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.evaluation.mode import MOST_RECURRENCES, evaluation_mode
from memreason_hf.models.exit_gates import (
    EXIT_PRIORS,
    add_exit_gate,
    exit_log_probs,
    exit_prior,
    expected_exit_loss,
    improvement_loss,
    settled_loss,
)


# What a gate can be fitted to; the second stage of Ouro is "improvement".
OBJECTIVES = ("settled", "improvement", "expected_loss")


@dataclass(frozen=True)
class GateRows:
    """
    What a frozen model does with labels, after each of the recurrences 1..R.

    Attributes:
        states: normed states, which the gate reads, shape (labels, R, hidden), float32.
        losses: cross-entropies in nats, shape (labels, R), float32.
        predictions: the most probable tokens, shape (labels, R).
    """

    states: torch.Tensor
    losses: torch.Tensor
    predictions: torch.Tensor

    def __len__(self) -> int:
        return len(self.losses)


@dataclass(frozen=True)
class GateFit:
    """
    A fitted gate.

    Attributes:
        weight, bias: of the linear layer, shapes (hidden,) and ().
        objective: one of `OBJECTIVES`.
        loss, first_loss: mean of the objective over the labels, of the fit and of the gate that it started from.
        mean_recurrence: the mean of the exit distribution.
        num_labels, num_recurrences: what it was fitted on.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    objective: str
    loss: float
    first_loss: float
    mean_recurrence: float
    num_labels: int
    num_recurrences: int


def read_gate_rows(
    model: torch.nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    *,
    num_recurrences: int,
    max_labels: int | None = None,
) -> GateRows:
    """
    Runs a model at full depth and keeps what a gate is fitted to, one entry for each label.

    Args:
        model: a `RecurrentDepthForCausalLM`; it is not changed.
        batches: arguments of the model with `shift_labels`; labels of -100 are left out. They are moved to its device.
        num_recurrences: R, at least 2.
        max_labels: stop after so many labels. Default: all of them.

    Raises:
        ValueError: there are no labels, logits or states are not finite, or a number is out of range.
    """
    check_int("num_recurrences", num_recurrences, least=2, most=MOST_RECURRENCES)
    if max_labels is not None:
        check_int("max_labels", max_labels, least=1)
    device, parts, count = next(model.parameters()).device, [], 0
    with evaluation_mode(model):
        for batch in batches:
            parts.append(
                _read_batch(model, {name: value.to(device) for name, value in batch.items()}, num_recurrences)
            )
            count += len(parts[-1][1])
            if max_labels is not None and count >= max_labels:
                break
    if count == 0:
        raise ValueError("The batches hold no labels, so there is nothing to fit a gate to.")
    states, losses, predictions = (torch.cat(values)[:max_labels] for values in zip(*parts))
    if not (losses.isfinite().all() and states.isfinite().all()):
        raise ValueError(
            f"States or losses are not finite within {num_recurrences} recurrences. Lower num_recurrences, check the "
            "weights, or use float32."
        )
    return GateRows(states, losses, predictions)


def _read_batch(model, batch, num_recurrences):
    labels = batch["shift_labels"]
    at = labels != IGNORED_LABEL
    losses, predictions = [], []

    def read(recurrence, rows, logits):
        losses.append(F.cross_entropy(logits.float(), labels[at], reduction="none"))
        predictions.append(logits.argmax(-1))

    states = model(
        **batch,
        num_recurrences=num_recurrences,
        halting_criterion="none",
        labelled_logits_only=True,
        use_cache=False,
        output_hidden_states=True,
        on_recurrence=read,
    ).hidden_states[-num_recurrences:]
    normed = [model.model.norm(state[at]).float() for state in states]
    return torch.stack(normed, 1).cpu(), torch.stack(losses, 1).cpu(), torch.stack(predictions, 1).cpu()


def fit_gate(
    rows: GateRows,
    *,
    objective: str = "settled",
    prior: str = "uniform",
    stop: float = 0.2,
    prior_weight: float = 0.05,
    max_iterations: int = 200,
) -> GateFit:
    """
    Fits a gate by L-BFGS, from a gate that leaves everywhere with probability 1 / R. The result does not depend on
    chance.

    Args:
        rows: see `read_gate_rows`.
        objective: `"settled"`: leave where the answer stays the same up to R. `"improvement"`: stay where the last
            recurrence improved the loss (the second stage of Ouro, arXiv 2510.25741). `"expected_loss"`: the smallest
            expected loss over the exit distribution, held close to a prior.
        prior, stop: of `"expected_loss"`; see `exit_prior`.
        prior_weight: of `"expected_loss"`: the weight of the distance from the prior.
        max_iterations: of L-BFGS.

    Raises:
        ValueError: a value is out of range, or the rows hold fewer than two recurrences.
    """
    check_choice("objective", objective, OBJECTIVES)
    check_choice("exit_prior", prior, EXIT_PRIORS)
    check_number("exit_prior_weight", prior_weight, least=0)
    check_int("max_iterations", max_iterations, least=1)
    depth = rows.losses.shape[1]
    check_int("num_recurrences", depth, least=2)
    # Of one scale for each entry of the state, so that the search converges in few iterations.
    mean, scale = rows.states.mean((0, 1)), rows.states.std((0, 1)).clamp_min(1e-6)
    states = (rows.states - mean) / scale
    log_prior = exit_prior(prior, depth, stop)
    weight = torch.zeros(states.shape[-1], requires_grad=True)
    bias = torch.tensor(-float(torch.tensor(depth - 1.0).log()), requires_grad=True)

    def measure():
        gates = states @ weight + bias
        if objective == "settled":
            return settled_loss(gates, rows.predictions).mean()
        if objective == "improvement":
            return improvement_loss(gates, rows.losses).mean()
        return expected_exit_loss(gates, rows.losses, log_prior, prior_weight).mean()

    def closure():
        search.zero_grad()
        # A little decay keeps the gate finite where leaving and staying can be told apart without an error.
        loss = measure() + 1e-5 * weight.square().sum()
        loss.backward()
        return loss

    search = torch.optim.LBFGS([weight, bias], max_iter=max_iterations, line_search_fn="strong_wolfe")
    with torch.enable_grad():
        first_loss = float(measure().detach())
        search.step(closure)
    with torch.no_grad():
        probabilities = exit_log_probs(states @ weight + bias).exp()
        loss = float(measure())
        found = weight / scale
        offset = bias - (found * mean).sum()
    return GateFit(
        weight=found.detach(),
        bias=offset.detach(),
        objective=objective,
        loss=loss,
        first_loss=first_loss,
        mean_recurrence=float((probabilities @ torch.arange(1.0, depth + 1)).mean()),
        num_labels=len(rows),
        num_recurrences=depth,
    )


def install_gate(model: torch.nn.Module, fit: GateFit) -> torch.nn.Module:
    """
    Gives a model the fitted gate, in place of the one that it may have. No other weight changes.

    Raises:
        ValueError: the gate is for states of another width.

    Returns:
        The same model.
    """
    width = model.config.hidden_size
    if fit.weight.shape != (width,):
        raise ValueError(f"The gate reads states of width {len(fit.weight)}, but the model's hidden_size is {width}.")
    gate = add_exit_gate(model).model.exit_gate
    with torch.no_grad():
        gate.weight.copy_(fit.weight[None])
        gate.bias.copy_(fit.bias[None])
    return model


__all__ = ["OBJECTIVES", "GateFit", "GateRows", "fit_gate", "install_gate", "read_gate_rows"]
