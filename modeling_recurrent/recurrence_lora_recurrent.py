"""Low-rank updates of the looped layers that differ from recurrence to recurrence (arXiv 2410.20672)."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.pytorch_utils import Conv1D

from .attention_recurrent import attention_of


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

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """
        The update of this recurrence, which must not be the first; or, where `recurrence` is a `torch.LongTensor` of
        shape `(rows,)`, of each row of `inputs` (`(rows, sequence, in_features)`) at its own recurrence.
        """
        if isinstance(self.recurrence, torch.Tensor):
            pairs = (self.recurrence - 2).clamp(0, len(self.down) - 1)
            hidden = torch.bmm(inputs.to(self.down.dtype), self.down[pairs].mT)
            update = self.scale * torch.bmm(hidden, self.up[pairs].mT)
            return update.masked_fill((self.recurrence == 1)[:, None, None], 0.0)
        pair = self.index(self.recurrence)
        hidden = nn.functional.linear(inputs.to(self.down.dtype), self.down[pair])
        return self.scale * nn.functional.linear(hidden, self.up[pair])

    def add_update(self, module, args, output):
        """A forward hook of the linear layer."""
        # A call of the module, not of its matrices: accelerate loads offloaded weights before it.
        if not isinstance(self.recurrence, torch.Tensor) and self.recurrence == 1:
            return output
        return output + self(args[0]).to(output.dtype)


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
        # The linear layers that have hooks: parent, name in it, and the layer itself. Not a ModuleList.
        self._hooked: list[tuple[nn.Module, str, nn.Module]] = []
        self._handles = []
        self.attach(layers)

    def attach(self, layers) -> None:
        """
        Hooks the pairs to their linear layers, and again when a linear layer was replaced: quantisation does so, and
        PEFT where it adds an adapter or merges it.
        """
        if self._hooked and all(parent._modules.get(name) is module for parent, name, module in self._hooked):
            return
        for handle in self._handles:
            handle.remove()
        self._hooked, self._handles = [], []
        for layer, pairs in zip(layers, self, strict=True):
            # Not the layer itself: gradient checkpointing runs a layer again without the hooks of the layer.
            take = attention_of(layer).register_forward_pre_hook(_TakeRecurrence(pairs).take, with_kwargs=True)
            self._handles.append(take)
            for key, pair in pairs.items():
                path, _, name = key.replace("/", ".").rpartition(".")
                parent = layer.get_submodule(path)
                module = parent.get_submodule(name)
                self._hooked.append((parent, name, module))
                self._handles.append(module.register_forward_hook(pair.add_update))


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
        # Outside of the loop there is none, and the pairs have no effect.
        recurrence = kwargs.pop("recurrence", 1)
        for pair in self.pairs.values():
            pair.recurrence = recurrence
        return args, kwargs


def _sizes(module):
    if isinstance(module, Conv1D):
        return module.weight.shape
    return module.in_features, module.out_features


__all__ = ["RecurrenceLora", "RecurrenceLoraPair"]
