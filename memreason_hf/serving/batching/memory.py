"""Where keys and values lie: one block of memory, cut into a region for each running request."""

from pathlib import Path

import psutil  # accelerate needs it
import torch


# Where a container finds its limit and what it has taken of it, by version of control groups.
_CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
# Of the memory that is free when a batcher is created, the part that its cache may take.
FREE_MEMORY_SHARE = {"cpu": 0.3, "cuda": 0.8}


class CacheShape:
    """
    How many cells a request needs. A *cell* holds the key or the value of one head for one token in one layer at one
    recurrence.

    Args:
        config (`RecurrentDepthConfig`): The config of the model.
    """

    def __init__(self, config):
        self.heads, self.width = config.num_key_value_heads, config.head_dim
        self.looped = config.num_recurrent_layers
        self.outer = config.num_physical_layers - config.num_recurrent_layers
        start = config.num_prelude_layers
        self.loop = range(start, start + self.looped)

    def planes(self, recurrences: int) -> int:
        """The planes of a region: one for keys and one for values of each layer, in the loop of each recurrence."""
        return 2 * (self.looped * recurrences + self.outer)

    def plane_of(self, layer_idx: int, limit: int) -> int:
        """
        The plane of the keys of a layer, at the first recurrence for a layer in the loop; that of the values is the
        next. `limit` is the number of recurrences of the region.
        """
        if layer_idx in self.loop:
            return 2 * (layer_idx - self.loop.start)
        outer = layer_idx if layer_idx < self.loop.start else layer_idx - self.looped
        return 2 * (self.looped * limit + outer)

    def cells(self, tokens: int, recurrences: int) -> int:
        """The cells of a region for `tokens` tokens of up to `recurrences` recurrences."""
        return tokens * self.heads * self.planes(recurrences)


class Region:
    """
    The memory of one request: planes of shape `(heads, tokens, head_dim)`, each of one layer, one recurrence, and of
    keys or values. The planes of a recurrence lie together.

    Args:
        shape (`CacheShape`): The shape of the model's cache.
        start (`int`): The first cell.
        tokens (`int`): The number of tokens that fit.
        limit (`int`): The number of recurrences that fit.
    """

    def __init__(self, shape: CacheShape, start: int, tokens: int, limit: int):
        self.shape, self.start, self.tokens, self.limit = shape, start, tokens, limit
        self.size = shape.cells(tokens, limit)
        # Cells from a plane to the next.
        self.stride = shape.heads * tokens
        self._recurrences: torch.Tensor | None = None

    def planes(self, cells: torch.Tensor) -> torch.Tensor:
        """A view of `cells`, of shape `(planes, heads, tokens, head_dim)`."""
        return cells.narrow(0, self.start, self.size).view(-1, self.shape.heads, self.tokens, self.shape.width)

    def slices(self, cells: torch.Tensor, plane: int, count: int, length: int) -> tuple[torch.Tensor, ...]:
        """
        Views of the first `length` tokens of `count` planes from `plane` on, each of shape
        `(1, heads, length, head_dim)`.
        """
        shape = self.shape
        first = self.start + plane * self.stride
        # Every row needs them in every forward of the core, where one view takes half the time of five.
        views = cells.as_strided(
            (count, 1, shape.heads, length, shape.width),
            (self.stride * shape.width, 0, self.tokens * shape.width, shape.width, 1),
            cells.storage_offset() + first * shape.width,
        )
        return views.unbind(0)

    def recurrences(self, cells: torch.Tensor) -> torch.Tensor:
        """A view of the looped layers, of shape `(recurrences, 2 * layers, heads, tokens, head_dim)`."""
        if self._recurrences is None:
            count = 2 * self.shape.looped
            planes = self.planes(cells)[: self.limit * count]
            self._recurrences = planes.view(self.limit, count, self.shape.heads, self.tokens, self.shape.width)
        return self._recurrences


class CacheMemory:
    """
    The memory of all requests.

    A region is contiguous, so that attention reads it without a copy. A request takes the first gap that is large
    enough, and gaps that touch are joined.

    Args:
        config (`RecurrentDepthConfig`): The config of the model.
        cells (`int`): The number of cells.

    Attributes:
        cells (`torch.Tensor` of shape `(cells, head_dim)`, or `None`): The memory, allocated at the first use.
        used (`int`): The number of cells in regions.
    """

    def __init__(self, config, cells: int):
        self.shape = CacheShape(config)
        self.total, self.used = cells, 0
        self.cells: torch.Tensor | None = None
        self._gaps: list[tuple[int, int]] = [(0, cells)]  # (start, size), by start

    def fits(self, tokens: int, recurrences: int) -> bool:
        """Whether a region of this size would fit into the empty memory."""
        return self.shape.cells(tokens, recurrences) <= self.total

    def allocate(self, tokens: int, recurrences: int) -> Region | None:
        """A region for one request, or `None` while there is no room for it."""
        size = self.shape.cells(tokens, recurrences)
        for index, (start, room) in enumerate(self._gaps):
            if size <= room:
                self._gaps[index : index + 1] = [(start + size, room - size)] if room > size else []
                self.used += size
                return Region(self.shape, start, tokens, recurrences)
        return None

    def free(self, region: Region) -> None:
        """Takes a region back."""
        self.used -= region.size
        joined: list[tuple[int, int]] = []
        for start, size in sorted([*self._gaps, (region.start, region.size)]):
            if joined and sum(joined[-1]) == start:
                start, size = joined[-1][0], joined[-1][1] + size
                joined.pop()
            joined.append((start, size))
        self._gaps = joined

    def ready(self, like: torch.Tensor) -> torch.Tensor:
        """The memory, with the type and the device of the keys `like`."""
        if self.cells is None:
            self.cells = like.new_empty((self.total, self.shape.width))
        return self.cells


def free_memory() -> int:
    """The bytes that this process can still take, with those of the page cache, within the limit of its container."""
    free = psutil.virtual_memory().available
    for limit, taken in _CONTROL_GROUPS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(taken).read_text()))
        except (OSError, ValueError):  # there is no such group, or its limit is "max"
            continue
    return max(0, free)


def default_cache_tokens(config, device: torch.device, itemsize: int, max_rows: int, recurrences: int) -> int:
    """
    The tokens that a cache may hold by default: those of `max_rows` rows of the longest texts, or as many as fit into
    a part of the memory that is free now.
    """
    shape = CacheShape(config)
    bytes_of_token = shape.cells(1, recurrences) * shape.width * itemsize
    if device.type == "cuda":
        # What torch keeps of freed tensors does not count as free.
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = free_memory()
    share = FREE_MEMORY_SHARE.get(device.type, FREE_MEMORY_SHARE["cpu"])
    return max(1, min(max_rows * config.max_position_embeddings, int(share * free) // bytes_of_token))


__all__ = ["CacheMemory", "CacheShape", "Region", "default_cache_tokens", "free_memory"]
