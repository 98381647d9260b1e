"""What a training step of a recurrent-depth model minimises: the losses of several recurrences of one forward pass."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from modeling_recurrent.losses_recurrent import RECURRENCE_LOSSES, recurrence_loss_weights


__all__ = ["RECURRENCE_LOSSES", "LossWeights", "StepLoss", "recurrence_loss_weights", "relative_entropy"]

# The float32 logits that `relative_entropy` holds at once. With a vocabulary of 32,000 these are 2,048 positions.
_AT_ONCE = 2**26


@dataclass(frozen=True)
class LossWeights:
    """
    The weights of the terms of a training step, for a depth R that was drawn.

    All terms are sums over labels divided by the labels of the whole training step, as the ordinary loss.

    Attributes:
        main (`str`), decay (`float`): The ordinary loss: after recurrence R, or after all of 1..R; see
            `recurrence_loss_weights`.
        first (`float`): Weight of the ordinary loss after recurrence 1, in addition.
        keep (`float`): Weight of KL(source || model after recurrence 1). The source does not change in the run, so
            that this term holds the model at one recurrence where it was.
        consistency (`float`): Weight of KL(model after R, detached || model after R + k).
        consistency_recurrences (`int`): k.
    """

    main: str = "last"
    decay: float = 0.5
    first: float = 0.0
    keep: float = 0.0
    consistency: float = 0.0
    consistency_recurrences: int = 1

    @property
    def has_extra_terms(self) -> bool:
        """Whether there is any term in addition to the ordinary loss."""
        return bool(self.first or self.keep or self.consistency)

    def depth(self, num_recurrences: int) -> int:
        """The recurrences that run in a training step whose drawn depth is `num_recurrences`."""
        return num_recurrences + (self.consistency_recurrences if self.consistency else 0)


class StepLoss:
    """
    The loss of a micro-batch, computed from the logits after several recurrences of one forward pass: the argument
    `recurrence_loss` of [`RecurrentDepthForCausalLM`].

    **Consistency.** A fixed point is a state that another recurrence does not change. Pulling the output after R + k
    recurrences to the one after R, which is not pulled in turn, asks for that where it matters, in the predictions,
    and at the depths that were drawn: an objective at the terminal fixed point, as in arXiv 2608.18222. The norm
    before the head makes the state itself free to grow. STARS (arXiv 2605.26733) penalises the spectral radius of the
    recurrence instead, which costs products with its Jacobian.

    **Cost.** One forward and backward of depth R + k in place of R; coda and head run once more for each further
    recurrence that has a term; the source runs once, at one recurrence, without gradients.

    Args:
        weights ([`LossWeights`]): The weights.
        num_recurrences (`int`): R, the depth that was drawn.
        num_items (`torch.Tensor` or `int`): The labels of the whole training step.
        source_logits (`torch.Tensor` of shape `(labels, vocabulary)`, *optional*):
            The source's logits where there are labels, if `weights.keep` is not 0.

    Attributes:
        terms (`dict[str, torch.Tensor]`): After the forward pass: each term without its weight, detached.
    """

    def __init__(
        self,
        weights: LossWeights,
        num_recurrences: int,
        num_items: torch.Tensor | int,
        source_logits: torch.Tensor | None = None,
    ):
        self.weights, self.drawn, self.num_items = weights, num_recurrences, num_items
        self.source_logits = source_logits
        main = recurrence_loss_weights(weights.main, num_recurrences, weights.decay)
        self.main = [0.0] * (num_recurrences - 1) + [1.0] if main is None else main.tolist()
        self.terms: dict[str, torch.Tensor] = {}
        self._target: torch.Tensor | None = None

    def recurrences(self, num_recurrences: int) -> Collection[int]:
        """The recurrences that have a term."""
        chosen = {index + 1 for index, weight in enumerate(self.main) if weight}
        if self.weights.first or self.weights.keep:
            chosen.add(1)
        if self.weights.consistency:
            chosen.add(self.drawn)
        return chosen

    def backprop_from(self, num_recurrences: int) -> Collection[int]:
        """Gradients also flow from recurrence 1, if it has a term of its own, and from R."""
        return {self.drawn} | ({1} if self.weights.first or self.weights.keep else set())

    def __call__(
        self, recurrence: int, logits: torch.Tensor, loss_of: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor | None:
        """The weighted terms at a recurrence."""
        total, weights = [], self.weights
        is_first = recurrence == 1
        main = self.main[recurrence - 1] if recurrence <= self.drawn else 0.0
        if main or (is_first and weights.first):
            loss = loss_of(logits)
            if main:
                total.append(self._term("main", main, loss, is_share=True))
            if is_first and weights.first:
                total.append(self._term("first", weights.first, loss))
        if is_first and weights.keep:
            total.append(self._term("keep", weights.keep, self._distance(self.source_logits, logits)))
        if weights.consistency and recurrence == self.drawn:
            self._target = logits.detach()
        if weights.consistency and recurrence == weights.depth(self.drawn):
            total.append(self._term("consistency", weights.consistency, self._distance(self._target, logits)))
            self._target = None
        return sum(total) if total else None

    def _term(self, name, weight, value, is_share=False):
        """Notes a term, and returns it with its weight. The main loss is a mean, so its weight belongs to it."""
        weighted = weight * value
        noted = (weighted if is_share else value).detach()
        self.terms[name] = self.terms[name] + noted if name in self.terms else noted
        return weighted

    def _distance(self, target, logits):
        return relative_entropy(target, logits) / self.num_items


def relative_entropy(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """
    KL(target || model), summed over positions, in nats and float32.

    Args:
        target (`torch.Tensor` of shape `(positions, vocabulary)`): Logits. No gradient flows into them.
        logits (`torch.Tensor` of shape `(positions, vocabulary)`): The model's logits.

    Returns:
        A 0-d tensor, 0 for no positions.

    Example:

    ```python
    >>> import torch
    >>> from memreason_hf.training.scheduled.losses import relative_entropy

    >>> even, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -100.0]])
    >>> relative_entropy(sure, even)
    tensor(0.6931)
    ```
    """
    # A KL of float32 logits needs three tensors of their size, so that a large vocabulary is taken in parts.
    rows = max(_AT_ONCE // logits.shape[-1], 1)
    total = logits.float().sum() * 0 if len(logits) == 0 else 0
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        expected = target[part].detach().float().log_softmax(-1)
        actual = logits[part].float().log_softmax(-1)
        total = total + (expected.exp() * (expected - actual)).sum()
    return total
