"""Weights of the losses at the recurrences of a step."""

import torch


RECURRENCE_LOSSES = ("last", "uniform", "geometric")


def recurrence_loss_weights(recurrence_loss: str, num_recurrences: int, decay: float = 0.5) -> torch.Tensor | None:
    """
    The weights of a step's recurrences.

    Args:
        recurrence_loss: `"last"`, `"uniform"` (1 / R each) or `"geometric"` (proportional to `decay ** (R - t)` at
            recurrence t of R).
        num_recurrences: R.
        decay: above 0; below 1 the last recurrence weighs most.

    Returns:
        Float32 tensor of shape `(R,)` that sums to 1, or `None` for `"last"`: the model's ordinary loss.
    """
    if recurrence_loss == "last":
        return None
    if recurrence_loss == "uniform":
        weights = torch.ones(num_recurrences, dtype=torch.float64)
    elif recurrence_loss == "geometric":
        weights = torch.tensor(decay, dtype=torch.float64) ** torch.arange(num_recurrences - 1, -1, -1)
        # A large decay to the power of a large R would overflow: only ratios matter.
        if decay > 1:
            weights = torch.tensor(1 / decay, dtype=torch.float64) ** torch.arange(num_recurrences)
    else:
        raise ValueError(f"recurrence_loss={recurrence_loss!r} must be one of {', '.join(RECURRENCE_LOSSES)}.")
    return (weights / weights.sum()).float()
