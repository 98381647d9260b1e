"""The weights of the losses at the recurrences of a training step."""

import torch


RECURRENCE_LOSSES = ("last", "uniform", "geometric")


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
