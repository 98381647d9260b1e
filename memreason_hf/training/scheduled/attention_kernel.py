"""Which SDPA kernel a training step uses on a CPU."""

import contextlib

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


# Up to this length plain matrix products are faster than the blocked kernel, whose backward takes 12 ms for 13 tokens
# on a CPU.
SHORT = 128


def short_attention(input_ids: torch.Tensor):
    """A context for the forward and the backward of a micro-batch, `input_ids` being `(batch, sequence)`."""
    if input_ids.device.type != "cpu" or input_ids.shape[1] > SHORT:
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


__all__ = ["short_attention"]
