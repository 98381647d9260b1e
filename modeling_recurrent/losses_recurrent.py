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
    """

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


class LossCollector:
    """
    Collects the terms of one forward pass and adds them up.

    Args:
        recurrence_loss (`str` or `RecurrenceLoss`): Which recurrences have a loss.
        decay (`float`): For `"geometric"`.
        num_recurrences (`int`, *optional*): The depth of the call. `None`: the model draws it.
        loss_of (`Callable`): The model's ordinary loss of logits.

    Raises:
        ValueError: a `RecurrenceLoss` without an int `num_recurrences`.
    """

    def __init__(self, recurrence_loss, decay, num_recurrences, loss_of):
        self.loss, self.decay, self.loss_of = recurrence_loss, decay, loss_of
        self.terms = []
        self.last = None
        if isinstance(recurrence_loss, str):
            return
        if not isinstance(num_recurrences, int):
            raise ValueError(f"A recurrence_loss object needs an int num_recurrences, got {num_recurrences!r}.")
        self.last = num_recurrences

    def arguments(self) -> dict:
        """The arguments of the decoder that decide after which recurrences `add` is called."""
        if self.last is None:
            return {}
        shown = {recurrence for recurrence in self.loss.recurrences(self.last) if recurrence < self.last}
        return {"recurrences_to_show": shown, "backprop_from": self.loss.backprop_from(self.last)}

    def add(self, recurrence, rows, logits):
        """Adds the terms at a recurrence; called by the decoder."""
        if rows is not None:
            raise ValueError(
                "recurrence_loss needs the same depth for all rows, but some rows have halted. Pass an int "
                'num_recurrences, or recurrence_loss="last".'
            )
        term = self.loss_of(logits) if self.last is None else self.loss(recurrence, logits, self.loss_of)
        if term is not None:
            self.terms.append(term)

    def total(self, logits) -> torch.Tensor:
        """The loss of the call, given its final logits."""
        if self.last is None:
            weights = recurrence_loss_weights(self.loss, len(self.terms), self.decay)
            return (torch.stack(self.terms) * weights.to(self.terms[0].device)).sum()
        self.add(self.last, None, logits)
        return torch.stack(self.terms).sum()


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


__all__ = ["RECURRENCE_LOSSES", "LossCollector", "RecurrenceLoss", "recurrence_loss_weights", "warn_bypassed"]
