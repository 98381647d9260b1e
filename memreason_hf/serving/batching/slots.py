"""The slots of one forward of the core, whose rows stand at different recurrences."""

from dataclasses import dataclass

import torch

from .memory import CacheMemory, Region


@dataclass
class Place:
    """
    Where a row of one forward reads and writes.

    Attributes:
        region (`Region`): The memory of the row.
        position (`int`): The index of the row's newest token, whose keys and values are written.
        recurrence (`int`): The recurrence that the row takes, counted from 1.
    """

    region: Region
    position: int
    recurrence: int


class RegionSlots:
    """
    Writes keys and values into the regions of the rows and attends, row by row, to views of them.

    It is what the layers of the model take for `slots`: see `Slots.attend`. A row reads nothing but its own planes,
    cut to its own length, so there are no masks and no padding.

    Views were chosen by measurement on a CPU, for 32 rows of 8 heads of 64 channels. At 64 tokens their 32 calls take
    1.1 ms and one call over a contiguous batch 1.05 ms; at 1,024 tokens 9.5 and 9.1 ms. Gathering the keys of all rows
    into one padded tensor copies as much as attention reads, and takes twice to five times as long. Keys and values
    lie head by head, because reading a head is then one stream: token by token, 1,024 tokens take 1.7 times as long.
    `GatheredSlots` are for devices where the number of calls decides.

    Args:
        memory (`CacheMemory`): The memory.
        places (`list` of `Place`): One for each row.
        windows (`dict` from `int` to `int`): By index of a layer, its sliding window.
        layers (`range`): The layers that will run.
        plain (`bool`): Whether the attention is the library's SDPA with the usual scale, which is then called
            directly.
    """

    def __init__(self, memory: CacheMemory, places: list[Place], windows: dict, layers: range, plain: bool):
        self.memory, self.places, self.windows, self.plain = memory, places, windows, plain
        self.layers = layers
        self.looped = layers.start in memory.shape.loop if len(layers) else False
        self._index: torch.Tensor | None = None
        self._views: list[tuple[torch.Tensor, ...]] = []

    def attend(self, layer_idx: int, query, key, value, mask, attend):
        """
        Stores keys and values and attends to the whole slot of each row.

        Args:
            layer_idx (`int`): The layer.
            query, key, value (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): The newest token of each row.
            mask: Not used.
            attend (`Callable`): Maps query, key, value and mask to output and weights.
        """
        self.write(layer_idx, key, value)
        which = 2 * (layer_idx - self.layers.start)
        if not self.plain:
            rows = zip(query.split(1), self._views)
            outputs = [attend(part, views[which], views[which + 1], None)[0] for part, views in rows]
            return torch.cat(outputs), None
        heads, groups = key.shape[1], query.shape[1] // key.shape[1]
        # The heads that share keys are passed as queries of one head: no key is repeated.
        grouped = query.view(-1, heads, groups, query.shape[-1]) if groups > 1 else query
        attention = torch.nn.functional.scaled_dot_product_attention
        outputs = [
            attention(part, views[which], views[which + 1]) for part, views in zip(grouped.split(1), self._views)
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output.view(query.shape).transpose(1, 2), None

    def write(self, layer_idx: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Writes keys and values of shape `(rows, heads, 1, head_dim)` at the newest token of each row."""
        if self._index is None:
            self._prepare(key)
        which = 2 * (layer_idx - self.layers.start)
        cells, width = self.memory.cells, key.shape[-1]
        cells.index_copy_(0, self._index[which], key.reshape(-1, width))
        cells.index_copy_(0, self._index[which + 1], value.reshape(-1, width))

    def _prepare(self, key):
        """Finds the cells that are written, for all layers at once, and what is read."""
        cells, shape = self.memory.ready(key), self.memory.shape
        count = 2 * len(self.layers)
        firsts = [shape.plane_of(self.layers.start, place.region.limit) for place in self.places]
        if self.looped:
            firsts = [first + (place.recurrence - 1) * count for first, place in zip(firsts, self.places)]
        regions = [place.region for place in self.places]
        numbers = [
            [region.start + first * region.stride for first, region in zip(firsts, regions)],
            [region.stride for region in regions],
            [region.tokens for region in regions],
            [place.position for place in self.places],
        ]
        starts, strides, tokens, positions = torch.tensor(numbers, device=cells.device)
        by_head = starts[:, None] + tokens[:, None] * torch.arange(shape.heads, device=cells.device)
        planes = torch.arange(count, device=cells.device)[:, None]
        self._index = (by_head + positions[:, None] + (strides * planes)[:, :, None]).view(count, -1)
        self._prepare_reading(cells, firsts, count, by_head, strides, positions)

    def _prepare_reading(self, cells, firsts, count, by_head, strides, positions):
        for place, first in zip(self.places, firsts):
            planes = place.region.planes(cells).narrow(0, first, count)
            self._views.append(self._views_of(planes, place.position + 1))

    def _views_of(self, planes, length):
        """Views of keys and values of the layers, each of shape `(1, heads, length, head_dim)`."""
        views = planes.narrow(2, 0, length).unsqueeze(1).unbind(0)
        if not self.windows:
            return views
        views = list(views)
        for layer, window in self.windows.items():
            if layer in self.layers and length > window:
                which = 2 * (layer - self.layers.start)
                for plane in (which, which + 1):
                    views[plane] = views[plane].narrow(2, length - window, window)
        return views


def attend_grouped(query, keys, values, mask):
    """
    SDPA in which the heads that share keys are passed as queries of one head, so that no key is repeated.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, tokens, head_dim)`): The queries.
        keys, values (`torch.Tensor` of shape `(rows, kv_heads, length, head_dim)`): What they read.
        mask (`torch.BoolTensor` of shape `(rows, 1, tokens, length)`, *optional*): True where a token is read.

    Returns the output of shape `(rows, tokens, heads, head_dim)`.
    """
    rows, heads, tokens, width = query.shape
    groups = heads // keys.shape[1]
    if mask is not None and groups > 1 and tokens > 1:
        mask = mask.repeat(1, 1, groups, 1)
    grouped = query.reshape(rows, keys.shape[1], groups * tokens, width)
    output = torch.nn.functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
    return output.reshape(query.shape).transpose(1, 2)


class GatheredSlots(RegionSlots):
    """
    Gathers the keys and values of all rows into one padded tensor for each layer, and attends with one call.

    On a GPU a call for each row takes longer to start than to run, while copies are fast.
    """

    def attend(self, layer_idx: int, query, key, value, mask, attend):
        """See `RegionSlots.attend`."""
        self.write(layer_idx, key, value)
        which = 2 * (layer_idx - self.layers.start)
        index, mask = self._read[self.windows.get(layer_idx)]
        shape = (*index.shape, key.shape[-1])
        keys, values = (
            self.memory.cells.index_select(0, (index + self._strides * plane).flatten()).view(shape)
            for plane in (which, which + 1)
        )
        if not self.plain:
            return attend(query, keys, values, mask)
        return attend_grouped(query, keys, values, mask), None

    def _prepare_reading(self, cells, firsts, count, by_head, strides, positions):
        """By window, the cells of the first plane that are read, `(rows, heads, length)`, and their mask."""
        self._strides = strides[:, None, None]
        self._read = {}
        lengths = [place.position + 1 for place in self.places]
        for window in {self.windows.get(layer) for layer in self.layers}:
            width = max(lengths) if window is None else min(window, max(lengths))
            first = (positions + 1 - width).clamp_min(0)
            places = first[:, None] + torch.arange(width, device=cells.device)
            seen = places <= positions[:, None]
            # Beyond its end a row repeats its newest token, because cells that nobody has written may hold NaN.
            places = torch.minimum(places, positions[:, None])
            mask = None if min(lengths) >= width else seen[:, None, None]
            self._read[window] = by_head[:, :, None] + places[:, None], mask


__all__ = ["GatheredSlots", "Place", "RegionSlots", "attend_grouped"]
