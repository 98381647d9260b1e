"""Low-rank updates of the looped layers that differ from recurrence to recurrence (arXiv 2410.20672)."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.pytorch_utils import Conv1D


class RecurrenceLoraPair(nn.Module):
    """
    The updates of one linear layer: `scale * B_t A_t x`, with a pair of matrices for each recurrence from the second.

    Args:
        in_features, out_features (`int`): The sizes of the linear layer.
        count (`int`): The number of pairs. Recurrence t uses pair t - 1; those after the last pair use the last.
        rank (`int`), scale (`float`): The rank of a pair, and the factor on its output.
    """

    def __init__(self, in_features: int, out_features: int, count: int, rank: int, scale: float):
        super().__init__()
        self.down = nn.Parameter(torch.empty(count, rank, in_features))
        self.up = nn.Parameter(torch.zeros(count, out_features, rank))
        self.scale = scale
        self.recurrence = 1

    def start(self, config) -> None:
        """`B_t` starts at 0, so that a pair starts without effect; `A_t` keeps the scale of its input."""
        init.normal_(self.down, std=self.down.shape[-1] ** -0.5)
        init.zeros_(self.up)

    def index(self, recurrence: int) -> int | None:
        """The pair of a recurrence, counted from 1; `None` for the first, which has none."""
        return None if recurrence == 1 else min(recurrence - 2, len(self.down) - 1)

    def delta(self, recurrence: int) -> torch.Tensor | float:
        """What a recurrence adds to the weight of the linear layer, `(out_features, in_features)`; 0 for the first."""
        pair = self.index(recurrence)
        return 0.0 if pair is None else self.scale * (self.up[pair] @ self.down[pair])

    def add_update(self, module, args, output):
        """A forward hook of the linear layer."""
        pair = self.index(self.recurrence)
        if pair is None:
            return output
        hidden = nn.functional.linear(args[0].to(self.down.dtype), self.down[pair])
        return output + (self.scale * nn.functional.linear(hidden, self.up[pair])).to(output.dtype)


class RecurrenceLora(nn.ModuleList):
    """
    The pairs of all linear layers in the loop: one `ModuleDict` for each looped layer.

    Args:
        config (`RecurrentDepthConfig`): The fields `recurrence_lora_*` are read.
        layers (`list` of `torch.nn.Module`): The looped layers.
    """

    def __init__(self, config, layers):
        count, rank = config.recurrence_lora_count, config.recurrence_lora_rank
        scale = 1.0 if config.recurrence_lora_alpha is None else config.recurrence_lora_alpha / rank
        super().__init__(
            nn.ModuleDict(
                {
                    name.replace(".", "/"): RecurrenceLoraPair(*_sizes(module), count, rank, scale)
                    for name, module in layer.named_modules()
                    if isinstance(module, nn.Linear | Conv1D)
                }
            )
            for layer in layers
        )
        self.is_attached = False

    def attach(self, layers) -> None:
        """Hooks the pairs to their layers: at the first forward pass, since quantisation replaces linear layers."""
        if self.is_attached:
            return
        for layer, pairs in zip(layers, self, strict=True):
            # Not the layer itself: gradient checkpointing runs a layer again without the hooks of the layer.
            attention = next(module for module in layer.children() if hasattr(module, "layer_idx"))
            attention.register_forward_pre_hook(_TakeRecurrence(pairs).take, with_kwargs=True)
            for name, pair in pairs.items():
                layer.get_submodule(name.replace("/", ".")).register_forward_hook(pair.add_update)
        self.is_attached = True


class _TakeRecurrence:
    """
    Hands the recurrence that a layer is called with to its pairs, before any of its linear layers runs. The attention
    comes first in a layer and receives the keyword arguments of the layer.
    """

    def __init__(self, pairs):
        self.pairs = pairs

    def take(self, module, args, kwargs):
        """A forward pre-hook of the attention."""
        kwargs = dict(kwargs)
        recurrence = kwargs.pop("recurrence")
        for pair in self.pairs.values():
            pair.recurrence = recurrence
        return args, kwargs


def _sizes(module):
    if isinstance(module, Conv1D):
        return module.weight.shape
    return module.in_features, module.out_features


__all__ = ["RecurrenceLora", "RecurrenceLoraPair"]
