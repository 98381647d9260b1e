"""The ids of the tokens in a cache, kept with the cache: later tokens depend on the steps of earlier ones."""

import torch
from transformers import Cache

from memreason_hf.patches import attach, attached, override


_IDS = "ids"


def read_past(cache: Cache | None, batch: int) -> torch.LongTensor | None:
    """
    The ids of the tokens in a cache.

    Args:
        cache ([`~transformers.Cache`], *optional*): The cache of a forward.
        batch (`int`): The rows of the forward.

    Returns:
        `torch.LongTensor` of shape `(batch, tokens)`, or `None` for an empty cache.

    Raises:
        ValueError: the cache was filled without attention between steps, or with another number of rows.
    """
    length = 0 if cache is None else int(cache.get_seq_length())
    if length == 0:
        return None
    ids = attached(cache, _IDS)
    if ids is None or ids.shape[1] < length:
        known = 0 if ids is None else ids.shape[1]
        raise ValueError(
            f"past_key_values holds {length} tokens, of which only {known} were read with attention between steps. "
            "Start with an empty cache and run the whole text with it."
        )
    if ids.shape[0] != batch:
        raise ValueError(f"past_key_values has {ids.shape[0]} rows, but the input has {batch}.")
    # The cache may have been cropped since.
    return ids[:, :length]


def record_ids(cache: Cache, ids: torch.LongTensor) -> None:
    """
    Keeps the ids of all tokens of a cache with it. They follow every method that moves its rows or tokens.

    Args:
        cache ([`~transformers.Cache`]): The cache after a forward.
        ids (`torch.LongTensor` of shape `(batch, tokens)`): The ids of past and new tokens.
    """
    if attached(cache, _IDS) is None:
        for name, follow in _FOLLOWERS.items():
            if hasattr(cache, name):
                override(cache, name, follow)
    attach(cache, _IDS, ids)


def cache_in(output) -> Cache | None:
    """The cache in the output of a forward, which may have created it itself."""
    values = output.values() if hasattr(output, "values") else output
    return next((value for value in values if isinstance(value, Cache)), None) if values is not None else None


# The methods of a cache that move its rows or tokens, each followed by the same change of the ids. Cropping needs
# none, because it shows in the length of the cache.


def _reorder(cache, beam_idx):
    type(cache).reorder_cache(cache, beam_idx)
    _change(cache, lambda ids: ids[beam_idx.to(ids.device)])


def _select(cache, indices):
    type(cache).batch_select_indices(cache, indices)
    _change(cache, lambda ids: ids[indices.to(ids.device)])


def _repeat(cache, repeats):
    type(cache).batch_repeat_interleave(cache, repeats)
    _change(cache, lambda ids: ids.repeat_interleave(repeats, dim=0))


def _keep(cache, places):
    type(cache).keep_tokens(cache, places)
    _change(cache, lambda ids: ids.gather(1, places.to(ids.device)))


def _change(cache, change):
    attach(cache, _IDS, change(attached(cache, _IDS)))


_FOLLOWERS = {
    "reorder_cache": _reorder,
    "batch_select_indices": _select,
    "batch_repeat_interleave": _repeat,
    "keep_tokens": _keep,
}
