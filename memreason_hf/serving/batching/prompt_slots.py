"""The slots of one forward of the core over tokens of one prompt."""

import torch

from .memory import CacheMemory, Region
from .slots import attend_grouped


class PromptSlots:
    """
    Writes the keys and values of some tokens of a row into its region, and attends with one call for each layer.

    It is what the layers of the model take for `slots`: see `Slots.attend`. The tokens between those that are computed
    have halted; of them a slot holds copies, so that all of it can be read.

    Args:
        memory (`CacheMemory`): The memory.
        region (`Region`): The memory of the row.
        places (`torch.LongTensor` of shape `(tokens,)`): The positions of the tokens that are computed, in order.
        recurrence (`int`): The recurrence that they take, counted from 1.
        windows (`dict` from `int` to `int`): By index of a layer, its sliding window.
        plain (`bool`): Whether the attention is the library's SDPA with the usual scale, which is then called
            directly.
    """

    def __init__(
        self,
        memory: CacheMemory,
        region: Region,
        places: torch.LongTensor,
        recurrence: int,
        windows: dict[int, int],
        plain: bool,
    ):
        self.memory, self.region, self.places, self.recurrence = memory, region, places, recurrence
        self.windows, self.plain = windows, plain
        first, last = places[[0, -1]].tolist()
        self.first, self.length = first, last + 1
        self.dense = self.length - first == len(places)
        # By window: the first token that is read, and the mask.
        self._reads: dict[int | None, tuple[int, torch.BoolTensor | None]] = {}

    def attend(self, layer_idx: int, query, key, value, mask, attend):
        """
        Stores keys and values and attends to what each token may see.

        Args:
            layer_idx (`int`): The layer.
            query, key, value (`torch.Tensor` of shape `(1, heads, tokens, head_dim)`): The tokens at `places`.
            mask: Not used.
            attend (`Callable`): Maps query, key, value and mask to output and weights.
        """
        shape = self.memory.shape
        plane = shape.plane_of(layer_idx, self.region.limit)
        if layer_idx in shape.loop:
            plane += 2 * shape.looped * (self.recurrence - 1)
        start, mask = self._reading(self.windows.get(layer_idx))
        keys, values = self.region.planes(self.memory.ready(key)).narrow(0, plane, 2)
        self._write(keys, key)
        self._write(values, value)
        keys, values = (states[None, :, start : self.length] for states in (keys, values))
        if not self.plain:
            return attend(query, keys, values, mask)
        return attend_grouped(query, keys, values, mask), None

    def _write(self, plane, states):
        if self.dense:
            plane[:, self.first : self.length] = states[0]
        else:
            plane.index_copy_(1, self.places, states[0])

    def _reading(self, window):
        """The first token that a layer with this window reads, and its mask; `None` where each query sees all."""
        if window not in self._reads:
            start = 0 if window is None else max(0, self.first + 1 - window)
            mask = None
            if len(self.places) > 1:
                tokens = torch.arange(start, self.length, device=self.places.device)
                behind = self.places[:, None] - tokens
                mask = behind >= 0 if window is None else (behind >= 0) & (behind < window)
                mask = mask[None, None]
            self._reads[window] = start, mask
        return self._reads[window]


__all__ = ["PromptSlots"]
