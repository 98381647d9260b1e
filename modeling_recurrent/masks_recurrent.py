"""Attention masks of the layers: causal, within a sliding window of real tokens, and within packed documents."""

import copy

import torch
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    causal_mask_function,
    create_causal_mask,
    create_sliding_window_causal_mask,
)


def has_holes(real):
    """Whether padding stands between the real tokens of a row; `real` is `(batch, tokens)` and bool."""
    starts = real[:, :1].sum(-1) + (real[:, 1:] & ~real[:, :-1]).sum(-1)
    return bool((starts > 1).any())


def find_documents(position_ids, real=None):
    """
    Finds the documents that are packed into rows. As in the library, a document begins where the position does not
    increase by 1; after padding within a row, where the position is not above that of the last real token.

    Args:
        position_ids (`torch.LongTensor` of shape `(batch or 1, sequence)`): The positions of all tokens of the rows.
        real (`torch.BoolTensor` of shape `(batch, sequence)`, *optional*): `False` on padding, whose positions are
            ignored.

    Returns:
        `torch.LongTensor` of shape `(batch or 1, sequence)`: The index of each token's document; `None` if every row
        holds one document. Under `torch.compile` always a tensor, because the type must not depend on the values.
    """
    # Tensors keep the length of the sequence, because an exported program would not take a length of 2 otherwise.
    place = torch.arange(position_ids.shape[-1], device=position_ids.device)
    starts = (position_ids - position_ids.roll(1, -1) != 1) & (place > 0)
    if real is not None:
        position_ids = position_ids.expand(real.shape)
        last = torch.where(real, place, -1).cummax(-1).values.roll(1, -1)
        last = torch.where(place > 0, last, -1)
        goes_back = position_ids <= position_ids.gather(1, last.clamp_min(0))
        starts = torch.where(last == place - 1, starts, goes_back) & (last >= 0) & real
    if not torch.compiler.is_compiling() and not starts.any():
        return None
    return starts.cumsum(-1)


def takes_masks(config) -> bool:
    """Whether the library creates masks for the attention of a config. Some inference engines do this themselves."""
    return config._attn_implementation in ALL_MASK_ATTENTION_FUNCTIONS


def with_eager_attention(config, attention_mask=None):
    """
    A copy of `config` with eager attention, which can return attention maps.

    Raises:
        `ValueError`: Eager attention would compute something else than the attention of `config`, or cannot take the
            prepared `attention_mask`.
    """
    name = config._attn_implementation
    masks = attention_mask.values() if isinstance(attention_mask, dict) else (attention_mask,)
    prepared = [type(mask).__name__ for mask in masks if not isinstance(mask, torch.Tensor | None)]
    if prepared:
        raise ValueError(
            f"output_attentions=True needs a mask that is a tensor, but attention_mask is a {prepared[0]}. Call "
            "model.set_attn_implementation('eager') before the mask is created."
        )
    if name.endswith("eager"):  # other packages can register one under their own name
        return config
    if name not in ("sdpa", "flex_attention") and not is_flash(config):
        raise ValueError(
            f"output_attentions=True needs an attention that returns its maps, but attn_implementation={name!r} may "
            "not. Call model.set_attn_implementation('eager')."
        )
    config = copy.copy(config)
    config._attn_implementation = "eager"
    return config


def create_mask(config, inputs_embeds, attention_mask, past_key_values, documents=None, window=False):
    """
    The mask of one forward pass, in the form that the attention of `config` takes.

    The library's function creates the mask where its result is right. It measures a sliding window in slots of the
    cache, so this function counts real tokens where padding stands between the tokens of a row (after a right-padded
    prompt or a rejected draft). The library also separates packed documents only without a mask and without a cache.

    Args:
        config (`RecurrentDepthConfig`): `_attn_implementation` and `sliding_window` are read.
        inputs_embeds (`torch.Tensor` of shape `(batch, sequence, hidden)`): What is computed now.
        attention_mask (`torch.Tensor` of shape `(batch, past + sequence)`, or prepared, *optional*): 0 on padding.
        past_key_values (`Cache`, *optional*): The past of the rows.
        documents (`torch.LongTensor` of shape `(batch or 1, sequence)`, *optional*): See `find_documents`.
        window (`bool`): Whether tokens attend to the sliding window only.

    A compiled forward pass assumes that there is no padding between tokens: looking for it would break the graph.
    """
    padded = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
    real = attention_mask.to(device=inputs_embeds.device, dtype=torch.bool) if padded else None
    create = ALL_MASK_ATTENTION_FUNCTIONS.get(config._attn_implementation)
    holes = window and padded and not torch.compiler.is_compiling() and has_holes(real)
    if create is None or not (holes or documents is not None):
        create = create_sliding_window_causal_mask if window else create_causal_mask
        return create(
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
    if is_flash(config):
        return _flash_mask(real, documents, holes)
    if past_key_values is not None and True in past_key_values.is_sliding:
        raise ValueError(
            f"A {type(past_key_values).__name__} with sliding layers keeps a window of slots, but attention_mask has "
            "padding between the tokens of a row, so that the window of real tokens is longer. Use a "
            "RecurrentDepthCache, or pad on the left."
        )
    batch, length, _ = inputs_embeds.shape
    tokens = length if real is None else real.shape[1]
    if past_key_values is not None and past_key_values.is_compileable:
        real = torch.nn.functional.pad(real, (0, past_key_values.get_mask_sizes(length, 0)[0] - tokens))
    rules = [causal_mask_function]
    if window:
        place = torch.ones_like(documents) if real is None else real
        rules.append(_within_window(place.cumsum(-1).expand(batch, -1), config.sliding_window))
    if documents is not None:
        rules.append(_within_document(documents.expand(batch, -1)))
    # Not through `create_causal_mask(and_mask_function=...)`, which calls it by vmap: 40 times slower here.
    return create(
        batch_size=batch,
        q_length=length,
        kv_length=tokens if real is None else real.shape[1],
        q_offset=tokens - length,
        kv_offset=0,
        mask_function=and_masks(*rules),
        attention_mask=real,
        allow_is_causal_skip=False,
        dtype=inputs_embeds.dtype,
        config=config,
        use_vmap=False,
        device=inputs_embeds.device,
    )


def is_flash(config) -> bool:
    """Whether the attention of a config is computed by flash attention, which takes positions in place of masks."""
    return "flash" in config._attn_implementation


def _flash_mask(real, documents, holes):
    """Returns `None`: flash attention separates packed documents by their positions."""
    if holes:
        raise ValueError(
            "Flash attention measures a sliding window in slots, not in real tokens, but attention_mask has padding "
            "between the tokens of a row. Use attn_implementation='sdpa'."
        )
    if documents.shape[0] > 1 or (real is not None and not real.all()):
        raise ValueError(
            "Flash attention takes packed documents as one row without padding. Pack all of them into one row, or use "
            "attn_implementation='sdpa'."
        )


def _within_window(place, sliding_window):
    def within_window(batch_idx, head_idx, q_idx, kv_idx):
        return place[batch_idx, q_idx] - place[batch_idx, kv_idx] < sliding_window

    return within_window


def _within_document(documents):
    def within_document(batch_idx, head_idx, q_idx, kv_idx):
        return documents[batch_idx, q_idx] == documents[batch_idx, kv_idx]

    return within_document


__all__ = ["create_mask", "find_documents", "has_holes", "is_flash", "takes_masks", "with_eager_attention"]
