"""Where the tokens of a call stand: their positions, padding, packed documents; and the state they start from."""

import torch

from .masks_recurrent import find_documents, takes_masks
from .positions_recurrent import cut_off, position_noise


def place_tokens(config, position_ids, attention_mask, shape, past, device, in_engine=False):
    """
    Finds out where the new tokens of a call stand.

    Args:
        config (`RecurrentDepthConfig`): `_attn_implementation` is read.
        position_ids (`torch.LongTensor` of shape `(batch or 1, sequence)`, *optional*): As in the call.
        attention_mask (`torch.Tensor`, *optional*): As in the call.
        shape (`tuple` of two `int`): Batch and sequence.
        past (`int` or 0-d `torch.LongTensor`): The number of tokens in the cache.
        device: The device of the input.
        in_engine (`bool`): Whether an inference engine calls, which separates documents itself.

    Returns:
        The positions of the new tokens; which of them are real, `(batch, sequence)` or `None` if all are; and the
        index of each token's document, `(batch or 1, sequence)` or `None` if every row holds one document or an
        inference engine separates them.

    Raises:
        `ValueError`: `attention_mask` does not have one entry for each token of the past and of the input.
    """
    given, real = position_ids, _real_tokens(attention_mask, shape, past, device)
    if given is None and real is None:
        position_ids = torch.arange(shape[1], device=device)[None] + past
    elif given is None:
        position_ids = (real.cumsum(-1) - 1).clamp_min(0)[:, -shape[1] :]
    real = None if real is None else real[:, -shape[1] :]
    documents = None if in_engine else _documents(config, given, attention_mask, real, past)
    return position_ids, real, documents


def _real_tokens(attention_mask, shape, past, device):
    """The padding mask as bool, `(batch, past + sequence)`; `None` if there is none or it was prepared."""
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return None
    batch, length = shape
    if not isinstance(past, torch.Tensor) and attention_mask.shape != (batch, past + length):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but must have {(batch, past + length)}: one "
            "entry for each token of the past and of the input."
        )
    return attention_mask.to(device=device, dtype=torch.bool)


def _documents(config, position_ids, attention_mask, real, past):
    prepared = attention_mask is not None and real is None
    if position_ids is None or prepared or position_ids.shape[-1] == 1 or not takes_masks(config):
        return None
    if not isinstance(past, torch.Tensor) and not past:
        return find_documents(position_ids, real)
    # After a past, a row that has drafts to spare repeats its last position. Only packed documents go back, or on
    # after a repeated position.
    if not torch.compiler.is_compiling() and position_ids.shape[-1] > 1:
        steps = position_ids.diff(dim=-1)
        if (steps < 0).any() or ((steps[:, :-1] == 0) & (steps[:, 1:] > 0)).any():
            return find_documents(position_ids, real)
    return None


def wants_cache(config, use_cache, past_key_values, documents) -> bool:
    """
    Whether a call returns a cache.

    Raises:
        `ValueError`: A cache is asked for, but rows hold several documents.
    """
    if documents is None:
        return config.use_cache and not torch.is_grad_enabled() if use_cache is None else use_cache
    # While compiling, there are always `documents`.
    if torch.compiler.is_compiling():
        return past_key_values is not None if use_cache is None else use_cache
    if use_cache or past_key_values is not None:
        raise ValueError(
            "position_ids restart within a row, which marks packed documents, but a cache is in use: later tokens "
            "would attend to all of them. Pass use_cache=False, or one document per row."
        )
    return False


def initial_state(config, inputs, position_ids, seed, given=None):
    """
    The state before the first recurrence.

    Args:
        config (`RecurrentDepthConfig`): `state_init`, `state_init_std` and `hidden_size` are read.
        inputs (`torch.Tensor` of shape `(batch, sequence, hidden)`): The input of the loop.
        position_ids (`torch.LongTensor` of shape `(batch or 1, sequence)`): The positions of the tokens.
        seed (`int`, or `Callable` from a device to one): The seed of the noise. It is called only where there is
            noise.
        given (`torch.Tensor` of the shape of `inputs`, *optional*): The state that a call gives.

    Raises:
        `ValueError`: `given` has another shape.
    """
    if given is not None:
        if given.shape != inputs.shape:
            raise ValueError(
                f"initial_state has shape {tuple(given.shape)}, but must have {tuple(inputs.shape)}: one state for "
                "each token of the input."
            )
        return given.to(inputs)
    if config.state_init == "embedding":
        return inputs
    if config.state_init == "zeros":
        return torch.zeros_like(inputs)
    noise = position_noise(position_ids, config.hidden_size, seed(inputs.device) if callable(seed) else seed)
    if config.state_init == "truncated_normal":
        noise = cut_off(noise)
    return (noise * config.state_init_std).to(inputs.dtype).expand_as(inputs)


__all__ = ["initial_state", "place_tokens", "wants_cache"]
