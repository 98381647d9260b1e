"""Layers that train single rows of an embedding or a head, with gradients for those rows alone."""

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from torch.nn import functional


class TrainedRowsWrapper(TrainableTokensWrapper):
    """
    PEFT's wrapper of an embedding or a head with trained rows, with the bias of what it wraps.

    TRL's trainers compute the loss from `weight` and `bias` of the head, without calling it. PEFT's wrapper gives the
    weight with its trained rows, through which they get their gradients, but raises an AttributeError for the bias.
    """

    @property
    def bias(self) -> torch.Tensor | None:
        return getattr(self.original_module, "bias", None)


class TrainedRowsLayer(TrainableTokensLayer):
    """
    Computes what PEFT's `TrainableTokensLayer` computes, bit for bit, and the same gradients up to rounding.

    PEFT copies the matrix, inserts the rows and differentiates through the copy: it computes a gradient of the whole
    matrix and keeps only some of its rows. For the head of a large vocabulary that is a third of the work, and as much
    memory again. Here the copy has no gradient, and the rows get theirs from a term whose value is zero.

    PEFT creates its own layers; `patches.swap_class` turns them into this class.
    """

    def forward_adapters(self, x: torch.Tensor, active_adapters, *args, **kwargs) -> torch.Tensor:
        trained = [name for name in active_adapters if self.trainable_tokens_delta[name].requires_grad]
        if self.disable_adapters or self.merged or not trained or not torch.is_grad_enabled():
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        base = self.base_layer
        if len(active_adapters) > 1 or not isinstance(base, nn.Embedding | nn.Linear):
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        with torch.no_grad():
            matrix = self.get_merged_weights(active_adapters)
        ids = torch.tensor(self.token_indices[trained[0]], device=matrix.device)
        rows = self.trainable_tokens_delta[trained[0]].to(matrix)
        if isinstance(base, nn.Linear):
            # In place: for a long text and a large vocabulary no other tensor is as large.
            return functional.linear(x, matrix).index_add_(-1, ids, _zero(functional.linear(x.detach(), rows)))
        result = functional.embedding(x, matrix, max_norm=base.max_norm, norm_type=base.norm_type)
        place = torch.full((len(matrix),), -1, device=ids.device).index_copy(0, ids, torch.arange(len(ids)).to(ids))[x]
        result = result + _zero(functional.embedding(place.clamp(min=0), rows)) * (place >= 0).unsqueeze(-1)
        scale = self._get_embed_scale()
        return result if scale is None else result * scale.to(result.dtype)


def _zero(values):
    """Zeros with the gradient of the values."""
    return values - values.detach()
