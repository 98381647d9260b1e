"""Functions of the position of a token: rotation angles, sinusoids and noise."""

import math

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update

from .configuration_recurrent import RecurrentDepthConfig


# Types of RoPE whose angles depend on the longest text of a batch.
ROPE_BY_LENGTH = ("dynamic", "longrope")


def rope_types(config) -> set[str]:
    """The types of RoPE of a `RecurrentDepthConfig`: a family's layers may have one for each type of layer."""
    block = config if config.block_model_type is None else config.make_block_config()
    parameters = getattr(block, "rope_parameters", None) or {}
    nested = (parameters, *parameters.values())
    return {values["rope_type"] for values in nested if isinstance(values, dict) and "rope_type" in values}


class RecurrentDepthRotaryEmbedding(nn.Module):
    """
    Cosines and signed sines of the rotation angles, for the RoPE variants of `transformers.modeling_rope_utils`.

    Args:
        config (`RecurrentDepthConfig`): `rope_parameters` is read. With a `partial_rotary_factor` only the first
            channels of a head are rotated, and the angles are those of these channels.
    """

    def __init__(self, config: RecurrentDepthConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.rope_type = config.rope_parameters["rope_type"]
        compute = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = compute(config)
        # The library's `_init_weights` fills both again after loading, by these names.
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config, device=None, **kwargs):
        """Inverse frequencies `theta^(-2i/d)` of arXiv 2104.09864 and the (unused) attention factor."""
        rotary_dim = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float, device=device) / rotary_dim
        return config.rope_parameters["rope_theta"] ** -exponents, 1.0

    def _apply(self, fn, recurse=True):
        # `model.to(bfloat16)` must not round the frequencies: loading with that dtype does not.
        exact = self.inv_freq, self.original_inv_freq
        super()._apply(fn, recurse)
        # Buffers that leave the meta device are uninitialised; `_init_weights` fills them.
        if not (exact[0].is_meta or self.inv_freq.is_meta):
            self.inv_freq, self.original_inv_freq = (values.to(self.inv_freq.device) for values in exact)
        return self

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x, position_ids):
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        cos = torch.cat((angles, angles), dim=-1).cos() * self.attention_scaling
        sin = torch.cat((-angles, angles), dim=-1).sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate(x, cos, sin):
    """
    Rotates `(batch, heads, sequence, head_dim)` by angles of shape `(batch or 1, 1, sequence, rotary_dim)`.

    `sin` includes the signs of the rotation, negative in the first half. Channels after the first `rotary_dim` do not
    change.
    """
    rotary_dim = cos.shape[-1]
    if rotary_dim < x.shape[-1]:
        turned = rotate(x[..., :rotary_dim], cos, sin)
        return torch.cat((turned, x[..., rotary_dim:]), dim=-1)
    return torch.addcmul(x * cos, x.roll(rotary_dim // 2, -1), sin)


def sinusoidal_positions(position_ids, hidden_size, dtype):
    """Sines, then cosines, of `position * 10000^(-2i/hidden_size)`; shape `(*position_ids.shape, hidden_size)`."""
    steps = torch.arange(0, hidden_size, 2, dtype=torch.float, device=position_ids.device)
    angles = position_ids[..., None].float() * torch.exp(steps * (-math.log(10000.0) / hidden_size))
    return torch.cat((angles.sin(), angles.cos()), dim=-1).to(dtype)


def position_noise(position_ids, hidden_size, seed):
    """
    Standard normal noise that is a pure function of (seed, position, channel), by hashing and Box-Muller.

    With a generator, the noise of a row would depend on its place in the batch. Returns float32 values of shape
    `(*position_ids.shape, hidden_size)`.
    """
    channels = torch.arange(2 * hidden_size, device=position_ids.device)
    # Only the low 32 bits count, so that a seed of any size fits.
    start = (seed * 0x9E3779B1) & 0xFFFFFFFF
    bits = (position_ids[..., None] * (2 * hidden_size) + channels + start) & 0xFFFFFFFF
    for _ in range(2):  # an avalanche over 32 bits; int64 products wrap, which leaves the low bits right
        bits = ((bits ^ (bits >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
        bits = ((bits ^ (bits >> 15)) * 0x735A2D97) & 0xFFFFFFFF
    uniform = ((bits ^ (bits >> 15)) + 0.5) / 2**32
    radius, angle = uniform.float().chunk(2, dim=-1)
    return torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)


def cut_off(noise, bound=3.0):
    """Maps standard normal noise to the normal distribution cut off at `-bound` and `bound`."""
    # The distribution function of one and the inverse of the other's: (1 + erf(x / sqrt(2))) / 2 and its quantiles.
    inside = math.erf(bound / math.sqrt(2))
    return torch.erfinv(torch.erf(noise / math.sqrt(2)) * inside) * math.sqrt(2)


__all__ = [
    "ROPE_BY_LENGTH",
    "RecurrentDepthRotaryEmbedding",
    "cut_off",
    "position_noise",
    "rope_types",
    "rotate",
    "sinusoidal_positions",
]
