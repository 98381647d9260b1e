"""The rows of a batch that are still computed, and what the layers need to know of them."""

from contextvars import ContextVar
from dataclasses import dataclass

import torch
from transformers.masking_utils import create_causal_mask

from .cache_recurrent import Slots
from .configuration_recurrent import RecurrentDepthConfig
from .masks_recurrent import create_window_mask


# While masks are made for fewer rows: which ones. For registered mask functions that look at more than the padding.
MASKED_ROWS: ContextVar[torch.Tensor | None] = ContextVar("masked_rows", default=None)


@dataclass
class ActiveRows:
    """
    What the layers need to know of the rows that are still computed.

    `inputs` is what the loop is fed, `last` the position of each row's last real token, `indices` the place of each
    row in the batch (`None` while all are computed). Two masks: of the looped layers, and of prelude and coda; each a
    list where the rows are read from the cache in several runs.
    """

    config: RecurrentDepthConfig
    inputs: torch.Tensor
    padding: torch.Tensor | None
    angles: tuple[torch.Tensor, torch.Tensor] | None
    last: torch.Tensor
    slots: Slots | None
    indices: torch.Tensor | None = None

    def __post_init__(self):
        if isinstance(self.padding, dict):  # both masks, prepared for a static cache
            self.mask, self.looped_mask = self.padding["full_attention"], self.padding["sliding_attention"]
            return
        windowed = self.config.sliding_window is not None
        self.looped_mask = self._make_mask(create_window_mask if windowed else create_causal_mask)
        self.mask = self.looped_mask
        if windowed and self.config.num_hidden_layers > self.config.num_recurrent_layers:
            self.mask = self._make_mask(create_causal_mask)

    def _make_mask(self, create, rows=slice(None)):
        if self.indices is None:
            return self._mask_of(create, rows)
        token = MASKED_ROWS.set(self.indices[rows])
        try:
            return self._mask_of(create, rows)
        finally:
            MASKED_ROWS.reset(token)

    def _mask_of(self, create, rows):
        # Made anew for fewer rows, not sliced: a mask of flex attention cannot be.
        mask = create(
            config=self.config,
            inputs_embeds=self.inputs[rows],
            attention_mask=None if self.padding is None else self.padding[rows],
            past_key_values=None if self.slots is None else self.slots.cache,
            position_ids=None,
        )
        runs = [] if self.slots is None else self.slots.runs
        if mask is None or rows != slice(None) or len(runs) < 2:
            return mask
        if isinstance(mask, torch.Tensor):
            return [mask[active] if mask.shape[0] > 1 else mask for active, _ in runs]
        return [self._make_mask(create, active) for active, _ in runs]

    def keep(self, rows):
        """These rows without all but `rows` (indices into them)."""
        angles = self.angles
        if angles is not None and angles[0].shape[0] > 1:
            angles = angles[0][rows], angles[1][rows]
        indices = rows if self.indices is None else self.indices[rows]
        if self.slots is not None:
            self.slots.keep(indices)
        return ActiveRows(
            config=self.config,
            inputs=self.inputs[rows],
            padding=None if self.padding is None else self.padding[rows],
            angles=angles,
            last=self.last[rows],
            slots=self.slots,
            indices=indices,
        )

    def spread(self, values, before):
        """`values` of these rows among those of all rows `before`."""
        return values if self.indices is None else before.index_copy(0, self.indices, values)


__all__ = ["MASKED_ROWS", "ActiveRows"]
