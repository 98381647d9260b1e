"""Losses after several recurrences of one forward pass."""

from collections.abc import Callable, Collection
from typing import Protocol

import torch
from transformers.utils import logging


RECURRENCE_LOSSES = ("last", "uniform", "geometric")

logger = logging.get_logger(__name__)


class RecurrenceLoss(Protocol):
    """
    A loss that reads the logits after several recurrences of one forward pass; the argument `recurrence_loss` of
    [`RecurrentDepthForCausalLM`].

    The head and the coda run only after these recurrences. The terms become part of the model's `loss`, so that a
    wrapper such as DDP sees all of their graph.

    An object whose attribute `reads_gate` is true is called with a further argument `gate`: what the exit gate gives
    for the state after that recurrence, before the sigmoid, where the logits are. It needs a model with a gate.
    """

    reads_gate: bool = False

    def recurrences(self, num_recurrences: int) -> Collection[int]:
        """The recurrences that are read, counted from 1, in a call of that depth. The last one is always read."""

    def backprop_from(self, num_recurrences: int) -> Collection[int]:
        """Those from which gradients flow back, each through the `backprop_recurrences` that end there."""

    def __call__(
        self, recurrence: int, logits: torch.Tensor, loss_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor | None:
        """
        The terms at a recurrence; the loss of the call is the sum over recurrences, called in their order.

        Args:
            recurrence (`int`): Counted from 1.
            logits (`torch.Tensor`): As the model would return them if it stopped there.
            loss_of (`Callable`): The model's ordinary loss of such logits.
        """


def recurrence_loss_weights(recurrence_loss: str, num_recurrences: int, decay: float = 0.5) -> torch.Tensor | None:
    """
    The weight of the loss at every recurrence.

    Args:
        recurrence_loss (`str`):
            `"last"`, `"uniform"` (1 / R each) or `"geometric"` (proportional to `decay ** (R - t)` at recurrence t of
            R).
        num_recurrences (`int`): R.
        decay (`float`, *optional*, defaults to 0.5): Above 0. Below 1 the last recurrence has the largest weight.

    Returns:
        A float32 tensor of shape `(R,)` that sums to 1, or `None` for `"last"`, the model's ordinary loss.

    Raises:
        ValueError: another `recurrence_loss`.

    Example:

    ```python
    >>> recurrence_loss_weights("geometric", 3, decay=0.5)
    tensor([0.1429, 0.2857, 0.5714])
    ```
    """
    if recurrence_loss == "last":
        return None
    if recurrence_loss == "uniform":
        weights = torch.ones(num_recurrences, dtype=torch.float64)
    elif recurrence_loss == "geometric":
        weights = torch.tensor(decay, dtype=torch.float64) ** torch.arange(num_recurrences - 1, -1, -1)
        # A large decay to the power of a large R would overflow. Only the ratios matter.
        if decay > 1:
            weights = torch.tensor(1 / decay, dtype=torch.float64) ** torch.arange(num_recurrences)
    else:
        raise ValueError(f"recurrence_loss={recurrence_loss!r} must be one of {', '.join(RECURRENCE_LOSSES)}.")
    return (weights / weights.sum()).float()


class RecurrenceLosses:
    """
    Collects the terms of one forward pass and adds them up.

    Args:
        chosen (`str`, `torch.FloatTensor` of shape `(num_recurrences,)` or `RecurrenceLoss`):
            Which recurrences have a loss: all of them, with weights by name or given, or those of an object.
        decay (`float`): For `"geometric"`.
        num_recurrences (`int`, *optional*): The depth of the call. `None`: the model draws it.
        loss_of (`Callable`): The model's ordinary loss of logits.
        at: The index of the positions whose logits are computed.

    Raises:
        ValueError: a `RecurrenceLoss` without an int `num_recurrences`.
    """

    def __init__(self, chosen, decay, num_recurrences, loss_of, at):
        self.chosen, self.decay, self.loss_of, self.at = chosen, decay, loss_of, at
        self.terms = []
        # An object reads the final logits as those of the last recurrence, so that they are computed once.
        self.last = None
        self.gate = None
        if isinstance(chosen, str | torch.Tensor):
            return
        self.last = num_recurrences
        if not isinstance(num_recurrences, int):
            raise ValueError(f"A recurrence_loss object needs an int num_recurrences, got {num_recurrences!r}.")

    def arguments(self) -> dict:
        """The arguments of the decoder that call `add` after the recurrences that have a loss."""
        if self.last is None:
            return {"on_recurrence": self.add}
        shown = {recurrence for recurrence in self.chosen.recurrences(self.last) if recurrence < self.last}
        starts = self.chosen.backprop_from(self.last)
        arguments = {"on_recurrence": self.add, "recurrences_to_show": shown, "backprop_from": starts}
        return arguments | ({"on_gate": self.read_gate} if _reads_gate(self.chosen) else {})

    def read_gate(self, recurrence, gate):
        """Keeps what the gate gives until the logits of the recurrence are there; called by the decoder."""
        self.gate = gate[self.at]

    def add(self, recurrence, rows, logits):
        """Adds the terms at a recurrence; called by the decoder."""
        given = len(self.chosen) if isinstance(self.chosen, torch.Tensor) else None
        if given is not None and (rows is not None or recurrence > given):
            raise ValueError(_WRONG_WEIGHTS.format(given))
        if rows is not None:
            raise ValueError(
                "recurrence_loss needs the same depth for all rows, but some rows have halted. Pass an int "
                'num_recurrences, or recurrence_loss="last".'
            )
        if given is not None:
            term = self.chosen[recurrence - 1] * self.loss_of(logits)
        else:
            gate = {"gate": self.gate} if _reads_gate(self.chosen) else {}
            term = self.loss_of(logits) if self.last is None else self.chosen(recurrence, logits, self.loss_of, **gate)
        if term is not None:
            self.terms.append(term)

    def total(self, logits) -> torch.Tensor:
        """The loss of the call, given its final logits."""
        if isinstance(self.chosen, torch.Tensor) and len(self.terms) < len(self.chosen):
            raise ValueError(_WRONG_WEIGHTS.format(len(self.chosen)))
        if self.last is not None:
            self.add(self.last, None, logits)
        if not self.terms:
            raise ValueError(f"{type(self.chosen).__name__} gave no term at any recurrence, so there is no loss.")
        terms = torch.stack(self.terms)
        if isinstance(self.chosen, str):
            terms = terms * recurrence_loss_weights(self.chosen, len(terms), self.decay).to(terms.device)
        return terms.sum()


def _reads_gate(chosen):
    return getattr(chosen, "reads_gate", False) is True


_WRONG_WEIGHTS = (
    "recurrence_loss_weights holds {} weights, but needs one for each recurrence of an int num_recurrences."
)


def choose_labelled(shift_labels, logits_to_keep):
    """
    The positions with labels, as a mask, and their labels.

    Raises:
        ValueError: there are no labels, or `logits_to_keep` chooses positions, too.
    """
    if shift_labels is None:
        raise ValueError("labelled_logits_only=True needs labels or shift_labels.")
    if not isinstance(logits_to_keep, int) or logits_to_keep != 0:
        raise ValueError("labelled_logits_only=True and logits_to_keep both choose positions. Leave one out.")
    labelled = shift_labels != -100
    return labelled, shift_labels[labelled]


def open_losses(config, chosen, loss_of, at, kwargs, *, has_labels, trains):
    """
    The losses over recurrences of a call; `None` if the loss is that of the last recurrence.

    Args:
        config ([`RecurrentDepthConfig`]): Decides in training, if the call does not.
        chosen (*optional*): The argument `recurrence_loss` or `recurrence_loss_weights` of the call.
        loss_of (`Callable`): The model's ordinary loss of logits.
        at: The index of the positions whose logits are computed.
        kwargs (`dict`): The decoder's arguments, to which those are added that the losses need.
        has_labels, trains (`bool`): Whether the call has labels, and whether it is made in training.

    Raises:
        ValueError, TypeError: losses without labels, or together with `on_recurrence`; an unknown name, or weights
            that are not finite.
    """
    chosen = _checked(chosen)
    weighted = isinstance(chosen, torch.Tensor)
    if not weighted and not trains:
        return None
    losses = config.recurrence_loss if chosen is None else chosen
    if isinstance(losses, str) and losses == "last":
        return None
    if chosen is None and not has_labels:
        warn_bypassed(losses)
        return None
    if not has_labels or kwargs.get("on_recurrence") is not None:
        name = "recurrence_loss_weights" if weighted else f"recurrence_loss={losses!r}"
        raise ValueError(f"{name} needs labels and cannot be combined with on_recurrence.")
    if _reads_gate(losses) and not config.exit_gate:
        raise ValueError(
            f"recurrence_loss={type(losses).__name__} reads a learned gate, which this model does not have "
            "(exit_gate=False in its config). Add one first."
        )
    collected = RecurrenceLosses(losses, config.recurrence_loss_decay, kwargs.get("num_recurrences"), loss_of, at)
    kwargs.update(collected.arguments())
    return collected


def _checked(chosen):
    """`recurrence_loss` or `recurrence_loss_weights` of a call; a list of weights becomes a tensor."""
    if isinstance(chosen, str):
        if chosen not in RECURRENCE_LOSSES:
            raise ValueError(f"recurrence_loss={chosen!r} must be one of {', '.join(RECURRENCE_LOSSES)}.")
        return chosen
    if isinstance(chosen, list | tuple):
        chosen = torch.tensor(chosen, dtype=torch.float)
    if isinstance(chosen, torch.Tensor):
        if chosen.ndim != 1 or not chosen.is_floating_point():
            raise ValueError(
                f"recurrence_loss_weights has shape {tuple(chosen.shape)} and dtype {chosen.dtype}, but must hold one "
                "float for each recurrence."
            )
        # On a GPU the host would have to wait for their values.
        if chosen.device.type == "cpu" and not torch.compiler.is_compiling() and not chosen.isfinite().all():
            raise ValueError(f"recurrence_loss_weights={chosen.tolist()} must be finite.")
    elif chosen is not None and not callable(chosen):
        raise TypeError(
            f"recurrence_loss={chosen!r} must be one of {', '.join(RECURRENCE_LOSSES)}, or a RecurrenceLoss object. "
            "Weights must be a FloatTensor."
        )
    return chosen


def warn_bypassed(recurrence_loss: str) -> None:
    """Warns that the caller computes the loss itself, so that the config's losses over recurrences have no effect."""
    if recurrence_loss != "last" and not torch.compiler.is_compiling():
        logger.warning_once(
            f"The config says recurrence_loss={recurrence_loss!r}, but the loss of this call is computed outside "
            "RecurrentDepthForCausalLM.forward, from the output after the last recurrence alone. TRL's SFTTrainer "
            "does so, and so do label smoothing and other losses of a Trainer. Losses at every recurrence are "
            "computed where labels are passed to the model, as the plain Trainer and RecurrentTrainer do. Set "
            "recurrence_loss='last' if the last recurrence is meant."
        )


__all__ = [
    "RECURRENCE_LOSSES",
    "RecurrenceLoss",
    "choose_labelled",
    "open_losses",
    "recurrence_loss_weights",
    "warn_bypassed",
]
