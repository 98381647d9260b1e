"""Which kernel of SDPA a training step takes on a CPU."""

import contextlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


# Up to here plain matrix products win over the blocked kernel, whose backward on a CPU costs 12 ms for 13 tokens.
SHORT = 128


def short_attention(input_ids: torch.Tensor):
    """A context for a forward and its backward over `input_ids`, of shape `(batch, sequence)`."""
    if input_ids.device.type != "cpu" or input_ids.shape[1] > SHORT:
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


__all__ = ["short_attention"]
