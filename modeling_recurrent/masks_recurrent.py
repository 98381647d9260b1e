"""Who sees whom in the looped layers: a sliding window that counts real tokens."""

import torch
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    create_sliding_window_causal_mask,
)


def has_holes(real):
    """Whether padding stands between the real tokens of a row; `real` is `(batch, tokens)` and bool."""
    starts = real[:, :1].sum(-1) + (real[:, 1:] & ~real[:, :-1]).sum(-1)
    return bool((starts > 1).any())


def create_window_mask(config, inputs_embeds, attention_mask, past_key_values, position_ids=None):
    """
    The library's sliding-window mask, which counts places in the cache. Where padding stands among a row's tokens (a
    right-padded prompt that goes on, rejected drafts) this one counts the tokens instead.

    Arguments and result are those of `create_causal_mask`. A compiled forward takes it that there are no holes:
    looking for them would break its graph.
    """
    padded = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
    real = attention_mask.to(device=inputs_embeds.device, dtype=torch.bool) if padded else None
    create = ALL_MASK_ATTENTION_FUNCTIONS.get(config._attn_implementation)
    if create is None or not padded or torch.compiler.is_compiling() or not has_holes(real):
        return create_sliding_window_causal_mask(
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
    (batch, length, _), tokens = inputs_embeds.shape, real.shape[1]
    if past_key_values is not None and past_key_values.is_compileable:
        real = torch.nn.functional.pad(real, (0, past_key_values.get_mask_sizes(length, 0)[0] - tokens))
    place = real.cumsum(-1)

    def within_window(batch_idx, head_idx, q_idx, kv_idx):
        return place[batch_idx, q_idx] - place[batch_idx, kv_idx] < config.sliding_window

    # Not through `create_causal_mask(and_mask_function=...)`, which calls it by vmap: 40 times slower here.
    return create(
        batch_size=batch,
        q_length=length,
        kv_length=real.shape[1],
        q_offset=tokens - length,
        kv_offset=0,
        mask_function=and_masks(causal_mask_function, within_window),
        attention_mask=real,
        allow_is_causal_skip=False,
        dtype=inputs_embeds.dtype,
        config=config,
        use_vmap=False,
        device=inputs_embeds.device,
    )


__all__ = ["create_window_mask", "has_holes"]
