"""The ids of the tokens in a cache, kept with it: what is decoded later has to know the steps of what came before."""

from types import MethodType

import torch
from transformers import Cache


_IDS = "_memreason_ids"

# What a cache can do to its rows or tokens, and the same for the ids. Cutting its end is seen from its length.
_CHANGES = {
    "reorder_cache": lambda ids, rows: ids[rows.to(ids.device)],
    "batch_select_indices": lambda ids, rows: ids[rows.to(ids.device)],
    "batch_repeat_interleave": lambda ids, repeats: ids.repeat_interleave(repeats, dim=0),
    "keep_tokens": lambda ids, places: ids.gather(1, places.to(ids.device)),
}


def read_past(cache: Cache | None, batch: int) -> torch.LongTensor | None:
    """
    The ids of the tokens in a cache, `(batch, tokens)`; None if there are none.

    Raises:
        ValueError: it was filled by a model that kept no ids, or with another batch.
    """
    length = 0 if cache is None else int(cache.get_seq_length())
    if length == 0:
        return None
    ids = getattr(cache, _IDS, None)
    if ids is None or ids.shape[1] < length:
        known = 0 if ids is None else ids.shape[1]
        raise ValueError(
            f"past_key_values holds {length} tokens, of which only {known} were read with attention between steps. "
            "Run the whole text with it, and an empty cache."
        )
    if ids.shape[0] != batch:
        raise ValueError(f"past_key_values holds {ids.shape[0]} rows, the input has {batch}.")
    return ids[:, :length]


def record_ids(cache: Cache, ids: torch.LongTensor) -> None:
    """Keeps the ids (`(batch, tokens)`) of all tokens in a cache with it; they follow what is done to its rows."""
    if not hasattr(cache, _IDS):
        for name, change in _CHANGES.items():
            if hasattr(cache, name):
                setattr(cache, name, MethodType(_followed(name, change), cache))
    setattr(cache, _IDS, ids)


def cache_in(output) -> Cache | None:
    """The cache that a forward made itself, in its output."""
    values = output.values() if hasattr(output, "values") else output
    return next((value for value in values if isinstance(value, Cache)), None) if values is not None else None


def _followed(name, change):
    # Bound by MethodType, so that a copy of the cache has methods of its own.
    def method(cache, *args, **kwargs):
        result = getattr(type(cache), name)(cache, *args, **kwargs)
        setattr(cache, _IDS, change(getattr(cache, _IDS), *args, *kwargs.values()))
        return result

    return method
