"""The slots of one forward of the core, whose tokens stand at different recurrences."""

from collections.abc import Sequence
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


@dataclass
class PartPlace:
    """
    Where tokens of a part of a prompt read and write.

    Attributes:
        region (`Region`): The memory of their row.
        positions (`Sequence` of `int`): The positions of the tokens that are computed, in order.
        recurrence (`int`): The recurrence that they take, counted from 1.
    """

    region: Region
    positions: Sequence[int]
    recurrence: int


class RegionSlots:
    """
    Writes keys and values into the regions of the rows and attends, row by row, to views of them.

    It is what the layers of the model take for `slots`: see `Slots.attend`. A row reads nothing but its own planes,
    cut to its own length, so there are no masks and no padding. The tokens of a part of a prompt are rows of the same
    forward, and attend together.

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
        parts (`list` of `PartPlace`): Parts of prompts, whose tokens follow the rows.
    """

    def __init__(
        self,
        memory: CacheMemory,
        places: list[Place],
        windows: dict,
        layers: range,
        plain: bool,
        parts: Sequence[PartPlace] = (),
    ):
        self.memory, self.places, self.windows, self.plain = memory, places, windows, plain
        self.layers, self.parts = layers, parts
        self.looped = layers.start in memory.shape.loop if len(layers) else False
        self._index: torch.Tensor | None = None
        self._views: list[tuple[torch.Tensor, ...]] = []
        self._part_views: list[tuple[torch.Tensor, ...]] = []
        # For each part, by window: the mask.
        self._part_masks: list[dict[int | None, torch.BoolTensor | None]] = []

    def attend(self, layer_idx: int, query, key, value, mask, attend):
        """
        Stores keys and values and attends to what each token may see.

        Args:
            layer_idx (`int`): The layer.
            query, key, value (`torch.Tensor` of shape `(tokens, heads, 1, head_dim)`): The newest token of each row,
                then the tokens of each part.
            mask: Not used.
            attend (`Callable`): Maps query, key, value and mask to output and weights.
        """
        self.write(layer_idx, key, value)
        if not self.parts:
            return self._attend_rows(layer_idx, query, attend), None
        rows = len(self.places)
        outputs = [self._attend_rows(layer_idx, query[:rows], attend)] if rows else []
        queries = query[rows:].split([len(part.positions) for part in self.parts])
        outputs += self._attend_parts(layer_idx, queries, attend)
        return torch.cat(outputs), None

    def _attend_rows(self, layer_idx, query, attend):
        which = 2 * (layer_idx - self.layers.start)
        if not self.plain:
            rows = zip(query.split(1), self._views)
            return torch.cat([attend(part, views[which], views[which + 1], None)[0] for part, views in rows])
        heads = self.memory.shape.heads
        groups = query.shape[1] // heads
        # The heads that share keys are passed as queries of one head: no key is repeated.
        grouped = query.view(-1, heads, groups, query.shape[-1]) if groups > 1 else query
        attention = torch.nn.functional.scaled_dot_product_attention
        queries = grouped.chunk(len(self._views))
        outputs = [attention(part, views[which], views[which + 1]) for part, views in zip(queries, self._views)]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return output.view(query.shape).transpose(1, 2)

    def _attend_parts(self, layer_idx, queries, attend):
        which, window = 2 * (layer_idx - self.layers.start), self.windows.get(layer_idx)
        outputs = []
        for query, views, masks in zip(queries, self._part_views, self._part_masks):
            query = query.transpose(0, 2)
            if self.plain:
                output = attend_grouped(query, views[which], views[which + 1], masks[window])
            else:
                output = attend(query, views[which], views[which + 1], masks[window])[0]
            outputs.append(output.transpose(0, 1))
        return outputs

    def write(self, layer_idx: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Writes keys and values of shape `(tokens, heads, 1, head_dim)` at the place of each token."""
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
        units = [*self.places, *self.parts]
        firsts = [shape.plane_of(self.layers.start, unit.region.limit) for unit in units]
        if self.looped:
            firsts = [first + (unit.recurrence - 1) * count for first, unit in zip(firsts, units)]
        regions = [unit.region for unit in units]
        numbers = [
            [region.start + first * region.stride for first, region in zip(firsts, regions)],
            [region.stride for region in regions],
            [region.tokens for region in regions],
        ]
        rows, sizes = len(self.places), [len(part.positions) for part in self.parts]
        for values in numbers if sizes else ():
            values[rows:] = [value for value, size in zip(values[rows:], sizes) for _ in range(size)]
        of_rows = [place.position for place in self.places]
        numbers.append([*of_rows, *(position for part in self.parts for position in part.positions)])
        starts, strides, tokens, positions = torch.tensor(numbers, device=cells.device)
        by_head = starts[:, None] + tokens[:, None] * torch.arange(shape.heads, device=cells.device)
        planes = torch.arange(count, device=cells.device)[:, None]
        self._index = (by_head + positions[:, None] + (strides * planes)[:, :, None]).view(count, -1)
        if rows:
            self._prepare_reading(cells, firsts[:rows], count, by_head[:rows], strides[:rows], positions[:rows])
        for part, first in zip(self.parts, firsts[rows:]):
            self._prepare_part(part, part.region.slices(cells, first, count, part.positions[-1] + 1))

    def _prepare_reading(self, cells, firsts, count, by_head, strides, positions):
        for place, first in zip(self.places, firsts):
            views = place.region.slices(cells, first, count, place.position + 1)
            self._views.append(self._in_window(views, place.position))

    def _prepare_part(self, part, views):
        positions, device = part.positions, views[0].device
        first, last = positions[0], positions[-1]
        self._part_views.append(self._in_window(views, first))
        masks = {}
        for window in {self.windows.get(layer) for layer in self.layers}:
            masks[window] = None
            if len(positions) > 1:
                start = self._start_of(first, window)
                behind = torch.tensor(positions, device=device)[:, None]
                behind = behind - torch.arange(start, last + 1, device=device)
                mask = behind >= 0 if window is None else (behind >= 0) & (behind < window)
                masks[window] = mask[None, None]
        self._part_masks.append(masks)

    @staticmethod
    def _start_of(first, window):
        """The first token that a token at the position `first` reads."""
        return 0 if window is None else max(0, first + 1 - window)

    def _in_window(self, views, first):
        """The views of the layers with a window without what no token from the position `first` on reads."""
        if not self.windows:
            return views
        views = list(views)
        for layer, window in self.windows.items():
            start = self._start_of(first, window)
            if layer in self.layers and start > 0:
                which = 2 * (layer - self.layers.start)
                for plane in (which, which + 1):
                    views[plane] = views[plane][:, :, start:]
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

    def _attend_rows(self, layer_idx, query, attend):
        which = 2 * (layer_idx - self.layers.start)
        index, mask = self._read[self.windows.get(layer_idx)]
        shape = (*index.shape, query.shape[-1])
        keys, values = (
            self.memory.cells.index_select(0, (index + self._strides * plane).flatten()).view(shape)
            for plane in (which, which + 1)
        )
        return attend_grouped(query, keys, values, mask) if self.plain else attend(query, keys, values, mask)[0]

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


__all__ = ["GatheredSlots", "PartPlace", "Place", "RegionSlots", "attend_grouped"]
