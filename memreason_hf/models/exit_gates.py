"""
Exit gates: the distribution over recurrences that a gate gives, what it is trained with, and how a model gets one.

    log_probs = exit_log_probs(gate_logits)                                   # (labels, R): where each label leaves
    expected_exit_loss(gate_logits, losses, exit_prior("geometric", R, stop=0.2), weight=0.05)

After recurrence t, the gate gives the probability that a unit which has stayed so far leaves. Nobody stays beyond the
last recurrence R, whatever the gate says there. The criterion `"exit_gate"` halts where the probability of having left
reaches a threshold.
"""

import torch
import torch.nn.functional as F

from memreason_hf.checks import check_choice, check_int, check_number


EXIT_PRIORS = ("uniform", "geometric")


def exit_log_probs(gate_logits: torch.Tensor) -> torch.Tensor:
    """
    The logarithm of the probability of leaving after each recurrence.

    Args:
        gate_logits (`torch.Tensor` of shape `(..., R)`): What the gate gives, before the sigmoid. The last entry has
            no effect.

    Returns:
        A tensor of the same shape, whose exponentials sum to 1 over the last axis.

    Example:

    ```python
    >>> import torch
    >>> from memreason_hf.models.exit_gates import exit_log_probs

    >>> exit_log_probs(torch.zeros(3)).exp()
    tensor([0.5000, 0.2500, 0.2500])
    ```
    """
    leaves = F.logsigmoid(gate_logits[..., :-1])
    stays = F.logsigmoid(-gate_logits[..., :-1]).cumsum(-1)
    never = torch.zeros_like(gate_logits[..., :1])
    return torch.cat((leaves, never), -1) + torch.cat((never, stays), -1)


def exit_prior(name: str, num_recurrences: int, stop: float = 0.2) -> torch.Tensor:
    """
    The logarithm of a prior over the recurrences 1..R.

    Args:
        name (`str`): `"uniform"`, under which the KL divergence of a distribution is log R minus its entropy (Ouro,
            arXiv 2510.25741), or `"geometric"` (PonderNet, arXiv 2107.05407).
        num_recurrences (`int`): R.
        stop (`float`, *optional*, defaults to 0.2): For `"geometric"`: the probability of leaving after each
            recurrence, between 0 and 1. What lies beyond R is spread over 1..R in proportion.

    Returns:
        A float32 tensor of shape `(R,)`.

    Raises:
        ValueError: a value is out of range.

    Example:

    ```python
    >>> from memreason_hf.models.exit_gates import exit_prior

    >>> exit_prior("geometric", 3, stop=0.5).exp()
    tensor([0.5714, 0.2857, 0.1429])
    ```
    """
    check_choice("exit_prior", name, EXIT_PRIORS)
    check_int("num_recurrences", num_recurrences, least=1)
    check_number("exit_prior_stop", stop, above=0, below=1)
    rate = 0.0 if name == "uniform" else torch.log1p(torch.tensor(-stop, dtype=torch.float64))
    return (rate * torch.arange(num_recurrences, dtype=torch.float64)).log_softmax(0).float()


def expected_exit_loss(
    gate_logits: torch.Tensor, losses: torch.Tensor, log_prior: torch.Tensor, weight: float
) -> torch.Tensor:
    """
    The expected loss where the gate leaves, and the distance of its distribution q from a prior, by label.

    sum_t q_t loss_t + weight * KL(q || prior)

    Args:
        gate_logits (`torch.Tensor` of shape `(..., R)`): What the gate gives, before the sigmoid.
        losses (`torch.Tensor` of shape `(..., R)`): The loss after each recurrence.
        log_prior (`torch.Tensor` of shape `(R,)`): See `exit_prior`.
        weight (`float`): Of the distance.

    Returns:
        A tensor of shape `(...)`.
    """
    log_probs = exit_log_probs(gate_logits)
    return (log_probs.exp() * (losses + weight * (log_probs - log_prior))).sum(-1)


def improvement_loss(
    gate_logits: torch.Tensor, losses: torch.Tensor, *, slope: float = 50.0, threshold: float = 0.005
) -> torch.Tensor:
    """
    How far a gate is from staying exactly where the last recurrence still improved the loss, by label: the second
    stage of Ouro (arXiv 2510.25741, section 3.4).

    The target of staying after recurrence t is sigmoid(slope * (max(0, loss_{t-1} - loss_t) - threshold)), from the
    second recurrence on; the loss is the mean of the binary cross-entropies. The losses are constants.

    Args:
        gate_logits, losses (`torch.Tensor` of shape `(..., R)`): See `expected_exit_loss`. R is at least 2.
        slope (`float`), threshold (`float`): As in the paper.

    Returns:
        A tensor of shape `(...)`.
    """
    improved = (losses[..., :-1] - losses[..., 1:]).clamp_min(0).detach()
    stays = torch.sigmoid(slope * (improved - threshold))
    return F.binary_cross_entropy_with_logits(-gate_logits[..., 1:], stays, reduction="none").mean(-1)


def settled_loss(gate_logits: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
    """
    How far a gate is from leaving exactly where the answer has settled, by label.

    The answer has settled after recurrence t if it is the same from there up to R. The loss is the mean binary
    cross-entropy over the recurrences before R.

    Args:
        gate_logits (`torch.Tensor` of shape `(..., R)`): See `expected_exit_loss`. R is at least 2.
        predictions (`torch.LongTensor` of shape `(..., R)`): The most probable token after each recurrence.

    Returns:
        A tensor of shape `(...)`.
    """
    same = (predictions == predictions[..., -1:]).flip(-1).long().cumprod(-1).flip(-1)
    target = same[..., :-1].to(gate_logits.dtype)
    return F.binary_cross_entropy_with_logits(gate_logits[..., :-1], target, reduction="none").mean(-1)


def add_exit_gate(model: torch.nn.Module) -> torch.nn.Module:
    """
    Gives a recurrent-depth model a gate, unless it has one. Nothing else of the model changes.

    The weights of the new gate are 0: it leaves with probability 1/2 after each recurrence.

    Args:
        model ([`RecurrentDepthForCausalLM`]): The model, which is changed.

    Returns:
        The same model.
    """
    decoder = model.model
    if decoder.exit_gate is not None:
        return model
    reference = decoder.embed_tokens.weight
    gate = torch.nn.Linear(decoder.config.hidden_size, 1, device=reference.device, dtype=reference.dtype)
    torch.nn.init.zeros_(gate.weight)
    torch.nn.init.zeros_(gate.bias)
    decoder.exit_gate = gate.train(decoder.training)
    decoder.config.exit_gate = True
    return model


__all__ = [
    "EXIT_PRIORS",
    "add_exit_gate",
    "exit_log_probs",
    "exit_prior",
    "expected_exit_loss",
    "improvement_loss",
    "settled_loss",
]
