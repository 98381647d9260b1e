"""The loss of a model that learns where to leave its loop: expected over the exit distribution of its gate."""

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F

from memreason_hf.models.exit_gates import exit_prior


# The value of `recurrence_loss` in training arguments.
EXIT_LOSS = "exit_gate"


class ExitLoss:
    """
    The expected loss of a micro-batch over the exit distribution of the gate, and the distance of that distribution
    from a prior: the argument `recurrence_loss` of [`RecurrentDepthForCausalLM`], with `labelled_logits_only`.

    For each label, sum_t q_t loss_t + weight * KL(q || prior), where q_t is the probability that the gate leaves after
    recurrence t; see `memreason_hf.models.exit_gates`. Gate and model learn together: the gradient of the losses is
    weighted by q, and the gate moves to recurrences of smaller loss.

    Args:
        labels (`torch.LongTensor` of shape `(labels,)`): The labels that are not ignored, in the order of the logits.
        num_recurrences (`int`): R, the depth that was drawn.
        num_items (`torch.Tensor` or `int`): The labels of the whole training step, which divide the sums.
        prior (`str`), stop (`float`): See `exit_prior`.
        weight (`float`): Of the distance.

    Attributes:
        terms (`dict[str, torch.Tensor]`): After the forward pass, detached: `main`, the expected loss, and
            `exit_prior`, the distance without its weight.
    """

    reads_gate = True

    def __init__(
        self,
        labels: torch.Tensor,
        num_recurrences: int,
        num_items: torch.Tensor | int,
        *,
        prior: str = "uniform",
        stop: float = 0.2,
        weight: float = 0.05,
    ):
        self.labels, self.drawn, self.num_items, self.weight = labels, num_recurrences, num_items, weight
        self.log_prior = exit_prior(prior, num_recurrences, stop).tolist()
        self.terms: dict[str, torch.Tensor] = {}
        self._stayed: torch.Tensor | None = None

    def recurrences(self, num_recurrences: int) -> Collection[int]:
        """All of them."""
        return range(1, num_recurrences + 1)

    def backprop_from(self, num_recurrences: int) -> Collection[int]:
        """Gradients of the states flow through the last recurrences alone, as for other weights of recurrences."""
        return {num_recurrences}

    def __call__(
        self,
        recurrence: int,
        logits: torch.Tensor,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        *,
        gate: torch.Tensor,
    ) -> torch.Tensor:
        """The weighted terms at a recurrence. `gate` has the shape of `labels`."""
        if logits.shape[:-1] != self.labels.shape:
            raise ValueError(
                f"labels has shape {tuple(self.labels.shape)}, but the logits are of shape {tuple(logits.shape)}. "
                "Pass labelled_logits_only=True, and the labels that are not ignored."
            )
        gate = gate.float()
        stayed = torch.zeros_like(gate) if self._stayed is None else self._stayed
        if recurrence < self.drawn:
            log_prob, self._stayed = stayed + F.logsigmoid(gate), stayed + F.logsigmoid(-gate)
        else:
            # All that stayed leave. The gate takes part, so that each of its parameters has a gradient.
            log_prob, self._stayed = stayed + 0 * gate, None
        probability = log_prob.exp()
        losses = F.cross_entropy(logits.float(), self.labels, reduction="none")
        expected = (probability * losses).sum() / self.num_items
        distance = (probability * (log_prob - self.log_prior[recurrence - 1])).sum() / self.num_items
        for name, value in (("main", expected), ("exit_prior", distance)):
            self.terms[name] = self.terms.get(name, 0) + value.detach()
        return expected + self.weight * distance


__all__ = ["EXIT_LOSS", "ExitLoss"]
