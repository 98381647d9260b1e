"""Running a model for evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


# More recurrences than any evaluation could wait for; a larger number is a typing error.
MOST_RECURRENCES = 100_000


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """
    Turns gradients and dropout off. Afterwards every module of the model is in the mode that it was in, also where
    modules differ.

    Example:

        >>> model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 1))
        >>> with evaluation_mode(model):
        ...     model(torch.ones(1, 2)).requires_grad, model.training
        (False, False)
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
