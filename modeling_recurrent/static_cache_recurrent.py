"""The cache of fixed size, for `torch.compile`: its buffers do not grow, and its length is a tensor."""

import torch

from .cache_recurrent import RecurrentDepthCache, RecurrentDepthCacheLayer


class RecurrentDepthStaticCacheLayer(RecurrentDepthCacheLayer):
    """
    A `RecurrentDepthCacheLayer` whose buffers never change their size or address.

    Args:
        slots (`int`), capacity (`int`): The number of recurrences and tokens that the layer has room for.
        shape (`tuple`): `(batch, kv_heads, head_dim)` of keys and values.
        dtype, device: The dtype and device of keys and values.
    """

    is_compileable = True

    def __init__(self, slots, capacity, shape, dtype, device):
        super().__init__(single=slots == 1)
        batch, heads, head_dim = shape
        self.dtype, self.device = dtype, device
        # Zeros, because masked values are multiplied by zero, which NaN would survive.
        self.keys = torch.zeros(slots, batch, heads, capacity, head_dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.length = torch.zeros((), dtype=torch.long, device=device)
        self.is_initialized = True
        for tensor in (self.keys, self.values, self.length):
            torch._dynamo.mark_static_address(tensor)

    def store(self, key_states, value_states, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes states of shape `(batch, kv_heads, tokens, head_dim)` after the last token. Returns the slot."""
        places = torch.arange(key_states.shape[2], device=self.device) + self.length
        # Under autocast, keys and values may have another dtype.
        self.keys[slot].index_copy_(2, places, key_states.to(self.dtype))
        self.values[slot].index_copy_(2, places, value_states.to(self.dtype))
        return self.keys[slot], self.values[slot]

    def commit(self, count: int, depths) -> None:
        places = torch.arange(count, device=self.device) + self.length
        for slot in range(depths, self.keys.shape[0]):
            for buffer in (self.keys, self.values):
                buffer[slot].index_copy_(2, places, buffer[depths - 1].index_select(2, places))
        self.length.add_(count)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[3], 0

    def get_max_length(self) -> int:
        return self.keys.shape[3]

    def reset(self) -> None:
        for tensor in (self.keys, self.values, self.length):
            tensor.zero_()

    def crop(self, tokens: int) -> None:
        shorter = self.length.clamp(max=tokens) if tokens > 0 else (self.length + tokens).clamp(min=0)
        self.length.copy_(shorter)


class RecurrentDepthStaticCache(RecurrentDepthCache):
    """
    A `RecurrentDepthCache` of fixed sizes, for an `int` number of recurrences.

    `generate(..., cache_implementation="static")` creates one automatically.

    Args:
        config (`RecurrentDepthConfig`): The config of the model.
        max_batch_size (`int`), max_cache_len (`int`): The number of rows and tokens that the cache has room for.
        num_recurrences (`int`, *optional*, defaults to `config.max_recurrences`): The deepest call it can serve.
        dtype, device: The dtype and device of keys and values.
        cache_recurrences (`"all"` or `"last"`, *optional*): As in `RecurrentDepthCache`.
        num_key_value_heads (`int`, *optional*, defaults to the config's): The key heads of this process, if tensor
            parallelism splits them.
    """

    def __init__(
        self,
        config,
        max_batch_size,
        max_cache_len,
        num_recurrences=None,
        dtype=torch.float32,
        device="cpu",
        cache_recurrences=None,
        num_key_value_heads=None,
    ):
        super().__init__(config, cache_recurrences)
        slots = config.max_recurrences if num_recurrences is None else num_recurrences
        sizes = {"max_batch_size": max_batch_size, "max_cache_len": max_cache_len, "num_recurrences": slots}
        for name, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
        heads = config.num_key_value_heads if num_key_value_heads is None else num_key_value_heads
        shape = (max_batch_size, heads, config.head_dim)
        self.layers = [
            RecurrentDepthStaticCacheLayer(1 if layer.single else slots, max_cache_len, shape, dtype, device)
            for layer in self.layers
        ]
        self.num_recurrences = slots
        # One count for each position, shared by all rows, because a call has one depth.
        self.depths = torch.zeros(max_cache_len, dtype=torch.long, device=device)
        torch._dynamo.mark_static_address(self.depths)

    def check(self, config, batch: int, depth) -> None:
        super().check(config, batch, depth)
        if not isinstance(depth, int):
            raise ValueError("A static cache needs an int num_recurrences: halting drops rows, which changes sizes.")
        if depth > self.num_recurrences and self.cache_recurrences == "all":
            raise ValueError(
                f"num_recurrences={depth} exceeds the {self.num_recurrences} slots of the static cache. Create one "
                f"with num_recurrences={depth}."
            )

    @property
    def counts(self) -> torch.LongTensor:
        """`(batch, tokens)`: the recurrences that each token took. Padding has the count of its call."""
        return self.depths[: int(self.get_seq_length())].expand(self.batch_size, -1)

    def commit(self, count: int, depths: int, real=None) -> None:
        places = torch.arange(count, device=self.depths.device) + self.get_seq_length().to(self.depths.device)
        self.depths.index_fill_(0, places, depths)
        for layer in self.layers:
            layer.commit(count, depths)


__all__ = ["RecurrentDepthStaticCache"]
