"""The rows of a batch that are still computed, and what the layers need to know about them."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch

from .cache_recurrent import Slots
from .configuration_recurrent import RecurrentDepthConfig
from .masks_recurrent import create_mask


# The rows that masks are being created for, if these are not all rows. Registered mask functions can read it.
MASKED_ROWS: ContextVar[torch.Tensor | None] = ContextVar("masked_rows", default=None)


@dataclass
class ActiveRows:
    """
    What the layers need to know about the rows that are still computed.

    Attributes:
        config (`RecurrentDepthConfig`): The config for the masks, with eager attention if maps are returned.
        interface (`Callable`): The attention function.
        inputs (`torch.Tensor` of shape `(rows, sequence, hidden)`): The input of the loop.
        padding (`torch.Tensor` or `dict`, *optional*): The `attention_mask` of the call.
        documents (`torch.LongTensor` of shape `(rows or 1, sequence)`, *optional*): Packed documents.
        layer_types (`frozenset` of `str`): Which masks the layers need: `"full_attention"`, `"sliding_attention"`.
        angles (`dict`): By type of layer, cosines and sines of the rotation; empty without one.
        last (`torch.LongTensor` of shape `(rows,)`): The index of each row's last real token.
        slots (`Slots`, *optional*): The cache slots for keys and values.
        indices (`torch.LongTensor` of shape `(rows,)`, *optional*): The index of each row in the batch; `None` while
            all rows are computed.
        recurrence (`int`): The recurrence that runs, counted from 1.
        masks (`dict`): By type of layer, the mask; a list if the rows are read from the cache in several runs.
    """

    config: RecurrentDepthConfig
    interface: Callable
    inputs: torch.Tensor
    padding: torch.Tensor | dict | None
    documents: torch.Tensor | None
    layer_types: frozenset[str]
    angles: dict[str, tuple[torch.Tensor, torch.Tensor]]
    last: torch.Tensor
    slots: Slots | None
    indices: torch.Tensor | None = None
    recurrence: int = 1

    def __post_init__(self):
        if isinstance(self.padding, dict):  # prepared for a static cache
            self.masks = self.padding
        else:
            self.masks = {kind: self._make_mask(kind == "sliding_attention") for kind in self.layer_types}

    def _make_mask(self, window, rows=slice(None)):
        if self.indices is None:
            return self._mask_of(window, rows)
        token = MASKED_ROWS.set(self.indices[rows])
        try:
            return self._mask_of(window, rows)
        finally:
            MASKED_ROWS.reset(token)

    def _mask_of(self, window, rows):
        # Created again for fewer rows, because a flex attention mask cannot be sliced.
        mask = create_mask(
            self.config,
            self.inputs[rows],
            self._rows_of(self.padding, rows),
            None if self.slots is None else self.slots.cache,
            documents=self._rows_of(self.documents, rows),
            window=window,
        )
        runs = [] if self.slots is None else self.slots.runs
        if mask is None or rows != slice(None) or len(runs) < 2:
            return mask
        if isinstance(mask, torch.Tensor):
            return [mask[active] if mask.shape[0] > 1 else mask for active, _ in runs]
        return [self._make_mask(window, active) for active, _ in runs]

    @staticmethod
    def _rows_of(values, rows):
        # All rows may share one entry.
        return values if values is None or values.shape[0] == 1 else values[rows]

    def keep(self, rows: torch.LongTensor) -> "ActiveRows":
        """Keeps only `rows`, which are indices into these rows."""
        angles = {kind: tuple(self._rows_of(angle, rows) for angle in pair) for kind, pair in self.angles.items()}
        indices = rows if self.indices is None else self.indices[rows]
        if self.slots is not None:
            self.slots.keep(indices)
        return replace(
            self,
            inputs=self.inputs[rows],
            padding=self._rows_of(self.padding, rows),
            documents=self._rows_of(self.documents, rows),
            angles=angles,
            last=self.last[rows],
            indices=indices,
        )

    def spread(self, values: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """The values of all rows: `values` for these rows, and `before` for the others."""
        return values if self.indices is None else before.index_copy(0, self.indices, values)


__all__ = ["MASKED_ROWS", "ActiveRows"]
