"""Keys and values that outlive a recurrence: what a halted token goes on showing to the others."""

import torch


class HeldKeyValues:
    """
    One scratch slot a looped layer: keys and values of the last recurrence of every token of a forward.

    A token that has halted is still attended to, as it was at its last recurrence; the tokens that go on overwrite
    theirs.

    Attributes:
        held (`torch.BoolTensor` of shape `(rows, sequence)`, or `None`): Who has halted, for the rows still computed.
    """

    def __init__(self):
        self.held: torch.Tensor | None = None
        self._slots: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes keys and values of shape `(rows, kv_heads, sequence, head_dim)`; returns them with the held ones."""
        if self.held is not None:
            held = self.held[:, None, :, None]
            old_key, old_value = self._slots[layer_idx]
            key, value = torch.where(held, old_key, key), torch.where(held, old_value, value)
        self._slots[layer_idx] = key, value
        return key, value

    def keep(self, rows: torch.Tensor):
        """Forgets all rows but `rows` (indices into those still computed)."""
        self.held = None if self.held is None else self.held[rows]
        self._slots = {layer: (key[rows], value[rows]) for layer, (key, value) in self._slots.items()}


__all__ = ["HeldKeyValues"]
