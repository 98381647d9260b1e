"""The cache of a looped decoder: one buffer for each layer with weights, with a slot for every recurrence."""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache


class RecurrentDepthCacheLayer(CacheLayerMixin):
    """
    Keys and values of one physical layer, in buffers of shape `(slots, batch, kv_heads, capacity, head_dim)`.

    Slot t of a token holds the keys and values that the token computed at recurrence min(t, n), where n is its number
    of recurrences. Layers outside the loop have one slot. So do all layers if only the last recurrence is kept.

    Args:
        single (`bool`): Whether there is one slot for all recurrences.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, single: bool):
        super().__init__()
        self.single = single
        self.length = 0

    @property
    def batch_size(self) -> int:
        return self.keys.shape[1]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty((1, *key_states.shape[:2], 0, key_states.shape[-1]))
        self.values = value_states.new_empty((1, *value_states.shape[:2], 0, value_states.shape[-1]))
        self.is_initialized = True

    def reserve(self, slots: int, length: int) -> None:
        """Makes room for `slots` slots and `length` tokens. A new slot starts as a copy of the deepest one."""
        old_slots, _, _, old_capacity, _ = self.keys.shape
        if slots <= old_slots and length <= old_capacity:
            return
        slots = max(slots, old_slots)
        capacity = old_capacity if length <= old_capacity else max(length, 2 * old_capacity, 16)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty((slots, *old.shape[1:3], capacity, old.shape[-1]))
            # The whole capacity is copied, because the tokens of the current forward pass are not committed yet.
            new[:old_slots, :, :, :old_capacity] = old
            new[old_slots:, :, :, : self.length] = old[-1:, :, :, : self.length]
            setattr(self, name, new)

    def write(self, key_states, value_states, slot: int, rows, held, before=None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Writes keys and values of shape `(rows, kv_heads, new tokens, head_dim)` after the committed ones.

        Tokens in the mask `held` (of shape `(rows, new tokens)`, or `None`) keep the keys and values of the previous
        recurrence: `before`, or without gradients what its slot holds. Returns the content of the slot for the new
        tokens of `rows`, or of all rows if `rows` is `None`.
        """
        count = key_states.shape[2]
        if held is not None:
            if before is None:
                previous = slot if self.single else slot - 1
                before = tuple(self._new(buffer, previous, count, rows) for buffer in (self.keys, self.values))
            kept = held[:, None, :, None]
            key_states = torch.where(kept, before[0], key_states)
            value_states = torch.where(kept, before[1], value_states)
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            new = self._new(buffer, slot, count)
            if rows is None:
                new.copy_(states.detach())
            else:
                new[rows] = states.detach()
        return key_states, value_states

    def _new(self, buffer, slot, count, rows=None):
        """The part of a slot after the committed tokens. Every layer calls this, so it uses the fast `narrow`."""
        new = buffer[slot].narrow(2, self.length, count)
        return new if rows is None else new[rows]

    def read(self, slot: int, rows: slice, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the first `length` tokens of a slice of rows, without a copy."""
        keys, values = self.keys[slot].narrow(2, 0, length), self.values[slot].narrow(2, 0, length)
        return (keys, values) if rows == slice(None) else (keys[rows], values[rows])

    def commit(self, count: int, depths) -> None:
        """
        Ends a forward pass over `count` new tokens: fills the slots that they did not reach, then adds to the length.

        `depths` is the number of recurrences of all tokens (`int`), of each row (shape `(batch,)`) or of each token
        (shape `(batch, count)`).
        """
        slots = self.keys.shape[0]
        new = slice(self.length, self.length + count)
        self.length += count
        if slots == 1 or (isinstance(depths, int) and depths >= slots):
            return
        if isinstance(depths, int):
            for buffer in (self.keys, self.values):
                buffer[depths:, :, :, new] = buffer[depths - 1, :, :, new]
            return
        last = depths.clamp(1, slots) - 1
        last = last[:, None] if last.ndim == 1 else last
        source = torch.minimum(torch.arange(slots, device=last.device)[:, None, None], last)[:, :, None, :, None]
        for buffer in (self.keys, self.values):
            part = buffer[:, :, :, new]
            buffer[:, :, :, new] = part.gather(0, source.expand_as(part))

    def update(self, key_states, value_states, *args, **kwargs):
        raise TypeError("Only recurrent-depth models can update a RecurrentDepthCache: slots belong to recurrences.")

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self.length = 0

    def crop(self, tokens: int) -> None:
        """Keeps the first `tokens` tokens if positive, drops the last `-tokens` if negative; 0 changes nothing."""
        if not isinstance(tokens, int | torch.Tensor):
            raise TypeError(
                f"crop: the length {tokens!r} must be a whole number of tokens, got {type(tokens).__name__}."
            )
        tokens = int(tokens)  # transformers 5.17 passes a tensor, which `commit` would then change in place
        self.length = min(self.length, tokens) if tokens > 0 else max(self.length + tokens, 0)

    def keep_tokens(self, places: torch.LongTensor) -> None:
        """Keeps the tokens at `places` (`(batch, kept)`) of each row, in that order."""
        kept = places.shape[1]
        for buffer in (self.keys, self.values):
            index = places[None, :, None, :, None].expand(buffer.shape[0], -1, buffer.shape[2], -1, buffer.shape[-1])
            buffer[:, :, :, :kept] = buffer.gather(3, index)
        self.length = kept

    def _select(self, choose) -> None:
        if self.is_initialized:
            self.keys, self.values = choose(self.keys), choose(self.values)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._select(lambda buffer: buffer.index_select(1, beam_idx.to(buffer.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(lambda buffer: buffer.repeat_interleave(repeats, dim=1))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(lambda buffer: buffer[:, indices.to(buffer.device)])


class RecurrentDepthCache(Cache):
    """
    The cache of a recurrent-depth model, for `past_key_values`. `generate` creates one automatically.

    Args:
        config (`RecurrentDepthConfig`): The config of the model.
        cache_recurrences (`"all"` or `"last"`, *optional*, defaults to the config's):
            `"all"` keeps the keys and values of every recurrence, so that a token attends to what the others computed
            at the same recurrence. `"last"` keeps those of each token's last recurrence only. Memory then does not
            grow with depth, but the results are approximate as soon as the cache holds earlier tokens.

    Example:

    ```python
    >>> import torch
    >>> from modeling_recurrent import RecurrentDepthCache, RecurrentDepthConfig, RecurrentDepthForCausalLM

    >>> config = RecurrentDepthConfig.llama_style(vocab_size=100, hidden_size=32, num_attention_heads=4)
    >>> model = RecurrentDepthForCausalLM(config).eval()
    >>> cache = RecurrentDepthCache(config)
    >>> with torch.no_grad():
    ...     for part in torch.randint(100, (2, 9)).split(3, dim=1):
    ...         output = model(part, past_key_values=cache, num_recurrences=5)
    >>> cache.get_seq_length(), cache.counts.unique().tolist()
    (9, [5])
    ```
    """

    def __init__(self, config, cache_recurrences: str | None = None):
        if not hasattr(config, "cache_recurrences"):
            raise TypeError(f"config={config!r} must be a RecurrentDepthConfig, got {type(config).__name__}.")
        cache_recurrences = config.cache_recurrences if cache_recurrences is None else cache_recurrences
        if cache_recurrences not in ("all", "last"):
            raise ValueError(f"cache_recurrences={cache_recurrences!r} must be 'all' or 'last'.")
        loop = range(config.num_prelude_layers, config.num_prelude_layers + config.num_recurrent_layers)
        super().__init__(
            layers=[
                RecurrentDepthCacheLayer(single=cache_recurrences == "last" or index not in loop)
                for index in range(config.num_physical_layers)
            ]
        )
        self.cache_recurrences = cache_recurrences
        self._counts: torch.Tensor | None = None
        self.shape = _shape(config)

    @property
    def nbytes(self) -> int:
        """The bytes of the keys and values of committed tokens, over all layers."""
        return sum(
            buffer[:, :, :, : layer.length].numel() * buffer.element_size()
            for layer in self.layers
            if layer.is_initialized
            for buffer in (layer.keys, layer.values)
        )

    def check(self, config, batch: int, depth) -> None:
        """Raises a `ValueError` if the cache belongs to another model or batch, or cannot hold `depth`."""
        expected = _shape(config)
        if self.shape != expected:
            raise ValueError(
                "past_key_values belongs to a model with (prelude, recurrent and coda layers, key heads, head size) = "
                f"{self.shape}, but this model has {expected}. Make a RecurrentDepthCache with this model's config."
            )
        if self.is_initialized and self.batch_size != batch:
            raise ValueError(f"past_key_values holds {self.batch_size} rows, but the input has {batch}.")

    @property
    def counts(self) -> torch.LongTensor:
        """`(batch, tokens)`: the recurrences that each token took; 0 on padding."""
        return self._counts[:, : self.get_seq_length()]

    def commit(self, count: int, depths: int | torch.Tensor, real: torch.Tensor | None = None) -> None:
        """
        Ends a forward pass over `count` new tokens; see `RecurrentDepthCacheLayer.commit`.

        `real` (`(batch, count)`, *optional*) is `False` on padding.
        """
        past = self.get_seq_length()
        for layer in self.layers:
            layer.commit(count, depths)
        new = torch.as_tensor(depths, device=self.layers[0].device)
        new = (new[:, None] if new.ndim == 1 else new).expand(self.batch_size, count)
        new = new if real is None else new.masked_fill(~real, 0)
        self._counts = new if past == 0 else torch.cat((self._counts[:, :past], new), dim=1)

    def _select_rows(self, choose) -> None:
        self._counts = None if self._counts is None else choose(self._counts)

    def keep_tokens(self, places: torch.LongTensor) -> None:
        """Keeps the tokens at `places` (`(batch, kept)`) of each row, in that order, which removes gaps."""
        self._counts = self.counts.gather(1, places)
        for layer in self.layers:
            layer.keep_tokens(places)

    def reset(self) -> None:
        super().reset()
        self._counts = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._select_rows(lambda rows: rows[beam_idx.to(rows.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._select_rows(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._select_rows(lambda rows: rows[indices.to(rows.device)])


def check_cache_type(cache) -> None:
    """Raises a `TypeError` for what is no cache of a decoder."""
    if cache is not None and (not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache)):
        raise TypeError(
            f"past_key_values must be a RecurrentDepthCache, another Cache of a decoder or None, got a "
            f"{type(cache).__name__}."
        )


def _shape(config):
    layers = config.num_prelude_layers, config.num_recurrent_layers, config.num_coda_layers
    return *layers, config.num_key_value_heads, config.head_dim


class Slots:
    """
    The slots of a cache that one forward pass writes and reads.

    Args:
        cache (`RecurrentDepthCache`): The cache that keys and values are written to.
        limit (`int`): The last recurrence that may run.
        certain (`bool`): Whether all recurrences up to `limit` will run. Otherwise slots are doubled as needed.

    Attributes:
        recurrence (`int`): The recurrence that runs, counted from 1.
        rows (`torch.LongTensor` of shape `(rows,)`, or `None`): The rows of the batch that are still computed; `None`
            for all rows.
        held (`torch.BoolTensor` of shape `(rows, new tokens)`, or `None`): The tokens of these rows that have halted.
    """

    def __init__(self, cache: RecurrentDepthCache, limit: int, certain: bool):
        self.cache = cache
        self.limit = limit
        self.certain = certain
        self.static = cache.is_compileable
        self.past = cache.get_seq_length()
        self.recurrence = 1
        self.held: torch.Tensor | None = None
        # By layer, the keys and values of the previous recurrence with their gradients, which buffers do not have.
        self._recorded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.rows: torch.Tensor | None = None
        self.keep(None)

    def keep(self, rows: torch.Tensor | None) -> None:
        """Restricts the slots to these rows, which are grouped into contiguous runs, each read as a slice."""
        if rows is None:
            self._recorded = {}
        elif self._recorded:
            stay = rows if self.rows is None else torch.searchsorted(self.rows, rows)
            self._recorded = {layer: (key[stay], value[stay]) for layer, (key, value) in self._recorded.items()}
        self.rows = rows
        self.runs = [(slice(None), slice(None))]
        if rows is None or self.static or not self.past:
            return
        places = rows.tolist()
        starts = [i for i, place in enumerate(places) if i == 0 or place != places[i - 1] + 1]
        self.runs = [
            (slice(start, end), slice(places[start], places[end - 1] + 1))
            for start, end in zip(starts, [*starts[1:], len(places)])
        ]

    def commit(self, count: int, depths: int | torch.Tensor, real: torch.Tensor | None = None) -> None:
        """Ends the forward pass; see `RecurrentDepthCache.commit`."""
        self.cache.commit(count, depths, real)

    def attend(self, layer_idx: int, query, key, value, mask, attend):
        """
        Stores keys and values and attends to the whole slot.

        Args:
            layer_idx (`int`): The layer.
            query, key, value (`torch.Tensor` of shape `(rows, heads, new tokens, head_dim)`): The rows still computed.
            mask: The mask of these rows, or a list with one mask for each of `runs`.
            attend (`Callable`): Maps query, key, value and mask to output and weights, both with rows first.
        """
        layer = self.cache.layers[layer_idx]
        slot = 0 if layer.single else self.recurrence - 1
        if self.static:
            return attend(query, *layer.store(key, value, slot), mask)
        new = key.shape[2]
        if not layer.is_initialized:
            layer.lazy_initialization(key, value)
        slots = slot + 1
        if slots > layer.keys.shape[0]:
            slots = self.limit if self.certain else min(2 * slot, self.limit)
        layer.reserve(slots, self.past + new)
        # The buffers carry no gradient; the new tokens do.
        records = torch.is_grad_enabled() and key.requires_grad
        key, value = layer.write(key, value, slot, self.rows, self.held, self._recorded.get(layer_idx))
        if records and not self.certain:
            self._recorded[layer_idx] = key, value
        if not self.past:
            return attend(query, key, value, mask)
        if len(self.runs) == 1 and not records:
            return attend(query, *layer.read(slot, self.runs[0][1], self.past + new), mask)
        outputs = []
        for index, (active, places) in enumerate(self.runs):
            if records:
                past = layer.read(slot, places, self.past)
                keys, values = (torch.cat(pair, dim=2) for pair in zip(past, (key[active], value[active])))
            else:
                keys, values = layer.read(slot, places, self.past + new)
            outputs.append(attend(query[active], keys, values, mask[index] if isinstance(mask, list) else mask))
        output, weights = zip(*outputs)
        return torch.cat(output), None if weights[0] is None else torch.cat(weights)


__all__ = ["RecurrentDepthCache", "Slots", "check_cache_type"]
