"""Attention functions: the one that a config selects, and attention in plain operations."""

import inspect
from functools import partial

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .families_recurrent import family_eager_attention


# Rows of up to this length train faster on a CPU with SDPA's math kernel than with its blocked kernel, whose backward
# pass takes 12 ms for 13 tokens.
SHORT_ROW = 128

# The name under which vLLM registers its attention function.
VLLM = "vllm"

# Whether a paged cache is updated as the other caches are. In transformers 5.17, it is not.
_PAGED_LIKE_OTHERS = "kwargs" in inspect.signature(PagedAttentionCache.update).parameters


def attention_of(layer: nn.Module) -> nn.Module:
    """The attention of a layer, ours or a family's: the module that has the index of the layer."""
    return next(module for module in layer.children() if hasattr(module, "layer_idx"))


def attention_interface(config, hidden_states, trains, block=None):
    """
    The attention function that a config selects. It is looked up once for each forward pass, not in every layer.

    Args:
        config (`RecurrentDepthConfig`): `_attn_implementation` is read.
        hidden_states (`torch.Tensor` of shape `(batch, sequence, hidden)`): The input of the layers.
        trains (`bool`): Whether the forward pass trains. In evaluation, the kernel is that of other models.
        block (`PreTrainedConfig`, *optional*): The config of the family whose eager attention is meant; ours by
            default.
    """
    name = config._attn_implementation
    if name == "paged|eager" and bounds_scores(config) and batches_bounded_scores(name):
        return partial(_attend_to_pages, eager_attention_of(block))
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_of(block))
    trains = trains and not torch.compiler.is_compiling()
    if trains and name == "sdpa" and hidden_states.device.type == "cpu":
        return partial(_with_plain_kernel, interface) if hidden_states.shape[1] <= SHORT_ROW else interface
    return interface


def _with_plain_kernel(interface, *args, **kwargs):
    with sdpa_kernel(SDPBackend.MATH):
        return interface(*args, **kwargs)


def bounds_scores(config) -> bool:
    """Whether the layers bound the scores of attention by `bound * tanh(score / bound)`, as Gemma 2 does."""
    return getattr(config, "attn_logit_softcapping", None) is not None


def batches_bounded_scores(attention: str) -> bool:
    """Whether continuous batching with an attention implementation bounds scores."""
    return "flash" in attention or (attention in ("eager", "paged|eager") and _PAGED_LIKE_OTHERS)


def _attend_to_pages(eager, module, query, key, value, attention_mask, *, cache, **kwargs):
    # The library's `paged|eager` does not bound scores.
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    return eager(module, query, key, value, attention_mask, **kwargs)


def eager_attention_of(block=None):
    """Attention in plain operations: that of a family, given its config, or ours."""
    return eager_attention_forward if block is None else family_eager_attention(block)


def repeat_kv(states, repeats):
    """`(batch, kv_heads, sequence, head_dim)` -> `(batch, kv_heads * repeats, sequence, head_dim)`."""
    return states if repeats == 1 else states.repeat_interleave(repeats, dim=1)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention in plain PyTorch operations, which also returns the attention weights."""
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    # At least float32: in float16, scores below the lowest number would become -inf, and a row of them NaN.
    precise = torch.promote_types(query.dtype, torch.float32)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        # Prepared for SDPA: true where a token attends.
        weights = weights.masked_fill(~attention_mask, torch.finfo(weights.dtype).min)
    elif attention_mask is not None:
        weights = weights.to(precise) + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=precise).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


__all__ = [
    "VLLM",
    "attention_interface",
    "attention_of",
    "batches_bounded_scores",
    "bounds_scores",
    "eager_attention_forward",
    "eager_attention_of",
]
