"""The library's own caches, which have one layer for each key-value slot of a token at fixed depth."""

import copy

import torch
from transformers.cache_utils import Cache, DynamicCache, QuantizedCache, StaticCache

from .cache_recurrent import RecurrentDepthCache


# `cache_implementation` of `generate` for which the library has a cache and this package has none of its own.
STOCK_IMPLEMENTATIONS = ("offloaded", "offloaded_static", "quantized")


def is_stock(cache) -> bool:
    """Whether a cache is one of the library's."""
    return isinstance(cache, Cache) and not isinstance(cache, RecurrentDepthCache)


def config_at(config, num_recurrences: int):
    """A copy of a `RecurrentDepthConfig` with another depth, by which the library's caches are sized."""
    config = copy.copy(config)
    config.num_recurrences = num_recurrences
    return config


def make_stock_cache(implementation: str, config, max_cache_len: int, cache_config: dict | None = None) -> Cache:
    """
    The cache that the library makes for a `cache_implementation`.

    Args:
        implementation (`str`): One of `STOCK_IMPLEMENTATIONS`.
        config (`RecurrentDepthConfig`): Its `num_recurrences` is the depth of all calls.
        max_cache_len (`int`): The tokens that a static cache has room for.
        cache_config (`dict`, *optional*): The arguments of a `QuantizedCache`.
    """
    if implementation == "offloaded":
        return DynamicCache(config=config, offloading=True)
    if implementation == "offloaded_static":
        return StaticCache(config=config, max_cache_len=max_cache_len, offloading=True)
    arguments = {"backend": "quanto", **(cache_config or {}), "config": config}
    return QuantizedCache(**arguments)


class StockSlots:
    """
    The layers of a library's cache that one forward pass writes and reads; as `Slots`, for a fixed depth.

    Args:
        cache (`Cache`): The cache. It is empty or holds tokens of calls of the same depth.
        config (`RecurrentDepthConfig`): The config of the model.
        depth (`int`): The recurrences of the call.

    Attributes:
        recurrence (`int`): The recurrence that runs, counted from 1.
    """

    rows = held = None
    runs = ((slice(None), slice(None)),)

    def __init__(self, cache: Cache, config, depth: int):
        self.cache = cache
        self.depth = depth
        self.loop = range(config.num_prelude_layers, config.num_prelude_layers + config.num_recurrent_layers)
        self.recurrence = 1

    def keep(self, rows) -> None:
        """At a fixed depth all rows are computed to the end."""

    def commit(self, count: int, depths, real=None) -> None:
        """The layers have counted their tokens already."""

    def attend(self, layer_idx: int, query, key, value, mask, attend):
        """Stores keys and values and attends to all that are stored; see `Slots.attend`."""
        if layer_idx in self.loop:
            repeats = self.recurrence - 1
        else:
            repeats = 0 if layer_idx < self.loop.start else self.depth - 1
        key, value = self.cache.update(key, value, layer_idx + repeats * len(self.loop))
        return attend(query, key, value, mask)


def check_stock_cache(cache: Cache, config, layer_types, depth, shape, cache_recurrences=None) -> None:
    """
    Checks that a library's cache fits a call.

    Args:
        cache (`Cache`): The cache.
        config (`RecurrentDepthConfig`): The config of the model.
        layer_types (`list` of `str`): The types of its physical layers.
        depth (`int` or `HaltingRule`): The depth of the call.
        shape (`tuple` of two `int`): The rows and the tokens of the call.
        cache_recurrences (`str`, *optional*): That of the call.

    Raises:
        `ValueError`: The cache has other layers than the call needs, other rows or no room for the tokens, or the call
            has no fixed depth.
    """
    name = type(cache).__name__
    if not isinstance(depth, int):
        raise ValueError(
            f"past_key_values is a {name}, which keeps all recurrences of a fixed depth, but the call has counts per "
            "row or a halting criterion. Use a RecurrentDepthCache, or an int num_recurrences without a criterion."
        )
    if (cache_recurrences or config.cache_recurrences) != "all":
        raise ValueError(
            f"cache_recurrences='last' with a {name} as past_key_values, which keeps all recurrences. Use a "
            "RecurrentDepthCache, or cache_recurrences='all'."
        )
    kinds = config.spread_over_slots(layer_types, depth)
    if cache.layers and len(cache.layers) != len(kinds):
        raise ValueError(
            f"past_key_values is a {name} of {len(cache.layers)} layers, but num_recurrences={depth} needs "
            f"{len(kinds)}: one for each prelude and coda layer, and one for each looped layer and recurrence. Make "
            f"the cache with a config whose num_recurrences is {depth}, or pass a RecurrentDepthCache."
        )
    for index, (layer, kind) in enumerate(zip(cache.layers, kinds, strict=False)):
        window = config.sliding_window if kind == "sliding_attention" else None
        if not _fits(layer, window):
            raise ValueError(
                f"past_key_values is a {name} whose layer {index} keeps a sliding window, but the model has "
                f"{kind} with sliding_window={config.sliding_window} there. Make the cache with this model's config."
            )
        if layer.is_sliding and (kept := layer.get_max_length()) < window:
            needed = layer.get_seq_length() + shape[1]
            if needed > kept:
                raise ValueError(
                    f"past_key_values has room for {kept} tokens, fewer than sliding_window={window}, but needs to "
                    f"keep {needed}. Create the {name} with a greater max_cache_len."
                )
    keys = cache.layers[0].keys if cache.layers else None
    if isinstance(keys, torch.Tensor) and keys.ndim == 4 and keys.shape[0] != shape[0]:
        raise ValueError(f"past_key_values holds {keys.shape[0]} rows, but the input has {shape[0]}.")


def check_stock_losses(cache: Cache, config, on_recurrence) -> None:
    """
    Checks that the coda runs once in a call with a library's cache, which keeps what every run writes.

    Args:
        cache (`Cache`): The cache of the call.
        config (`RecurrentDepthConfig`): The config of the model.
        on_recurrence (`Callable`, *optional*): That of the call; losses at several recurrences have one, too.

    Raises:
        `ValueError`: The coda would run after each recurrence.
    """
    if on_recurrence is not None and config.num_coda_layers:
        raise ValueError(
            "on_recurrence and losses at several recurrences run the coda after each recurrence, and a "
            f"{type(cache).__name__} would keep the keys and values of every run. Use a RecurrentDepthCache."
        )


def keeps_windows(cache: Cache, config) -> bool:
    """Whether all layers of a cache keep a whole window, so that texts of any length fit."""
    return all(layer.is_sliding and layer.get_max_length() == config.sliding_window for layer in cache.layers)


def _fits(layer, window: int | None) -> bool:
    """Whether a layer of a cache keeps all tokens that a token may attend to."""
    if not layer.is_sliding:
        return True
    kept = layer.get_max_length()
    # A static layer that has no room for the window keeps everything that it has room for.
    return window is not None and (kept == window or (layer.is_compileable and kept < window))


__all__ = [
    "STOCK_IMPLEMENTATIONS",
    "StockSlots",
    "check_stock_cache",
    "check_stock_losses",
    "config_at",
    "is_stock",
    "keeps_windows",
    "make_stock_cache",
]
