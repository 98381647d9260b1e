"""Which weights learn from which recurrence: `recurrence_gradients` of the config."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


# The parts of a decoder that the first recurrence does not use.
RECURRENCE_PARTS = ("injection", "state_norm", "recurrence_lora")


def recurrence_parameters(decoder: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a decoder that only recurrences after the first use, with their names."""
    for part in RECURRENCE_PARTS:
        module = getattr(decoder, part)
        if module is not None:
            yield from module.named_parameters(prefix=part)


class SeparateGradients:
    """
    Lets the losses of later recurrences train only the parameters that belong to these recurrences.

    The shared weights do not require gradients while later recurrences run, and the state that these start from is
    detached. The gradients of the shared weights are then those of the loss after the first recurrence alone.

    Args:
        model (`torch.nn.Module`): The model with its head.
        decoder (`torch.nn.Module`): The decoder inside it.
    """

    def __init__(self, model, decoder):
        own = {id(parameter) for _, parameter in recurrence_parameters(decoder)}
        self.shared = [p for p in model.parameters() if p.requires_grad and id(p) not in own]

    def begin(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Ends the part that the shared weights learn from. Returns the tensors without their past."""
        for parameter in self.shared:
            parameter.requires_grad_(False)
        return [tensor.detach() for tensor in tensors]

    def end(self) -> None:
        for parameter in self.shared:
            parameter.requires_grad_(True)


@contextmanager
def separate_gradients(model, decoder, depth) -> Iterator[SeparateGradients | None]:
    """
    Separates the gradients of a forward pass if the config says so and the pass trains; otherwise gives `None`.

    Raises:
        `ValueError`: The depth differs from row to row, or gradient checkpointing would run layers again later.
    """
    if decoder.config.recurrence_gradients == "shared" or not (decoder.training and torch.is_grad_enabled()):
        yield None
        return
    if isinstance(depth, torch.Tensor) and depth.ndim > 0:
        raise ValueError("recurrence_gradients='separate' needs one depth for all rows. Pass an int num_recurrences.")
    if any(getattr(layer, "gradient_checkpointing", False) for layer in decoder.layers):
        raise ValueError(
            "recurrence_gradients='separate' cannot be combined with gradient checkpointing, which runs layers again "
            "when all weights learn. Call model.gradient_checkpointing_disable()."
        )
    separation = SeparateGradients(model, decoder)
    try:
        yield separation
    finally:
        separation.end()


__all__ = ["SeparateGradients", "recurrence_parameters", "separate_gradients"]
