"""
What a conversion has changed, measured: logits of two models in float32, with padding, cached and in `generate`.

    prompts = make_prompts(plain.config)
    expected = compute_logits(plain, prompts)
    differences(expected, compute_logits(converted, prompts, num_recurrences=1))

Only two copies of the logits exist at once, never two models: the first can be freed before the second is loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache, GenerationConfig, PreTrainedConfig, PreTrainedModel

from memreason_hf.models.conversion.decoder import source_names
from memreason_hf.models.conversion.layers import LayerPlan, config_with_layers
from modeling_recurrent import RecurrentDepthForCausalLM


# The comparisons, in the order in which they are printed.
CASES = ("no_padding", "left_padding", "right_padding", "cached", "generate")
# Above this difference, relative to the largest logit, a conversion is taken for wrong. Rounding stays far below.
TOLERANCE = 1e-4

_ROWS, _TOKENS, _NEW_TOKENS = 3, 20, 3
# Prompts reach over windows up to this size.
_LARGEST_WINDOW = 128


@dataclass(frozen=True)
class Prompts:
    """
    The tokens of a comparison.

    Attributes:
        ids (`torch.LongTensor` of shape `(rows, tokens)`): Random tokens.
        padding (`torch.LongTensor` of shape `(rows,)`): How many tokens of each row are padding where there is any.
    """

    ids: torch.Tensor
    padding: torch.Tensor

    def mask(self, side: str | None) -> torch.Tensor:
        """1 on real tokens, 0 on padding at `"left"`, at `"right"` or nowhere."""
        places = torch.arange(self.ids.shape[1])
        if side is None:
            return torch.ones_like(self.ids)
        places = places if side == "left" else places.flip(0)
        return (places >= self.padding[:, None]).long()


def make_prompts(config: PreTrainedConfig) -> Prompts:
    """
    Random prompts for a decoder, longer than its sliding window where that is short.

    Args:
        config: The config of the family.
    """
    tokens = _TOKENS
    window = getattr(config, "sliding_window", None)
    if window is not None and window <= _LARGEST_WINDOW:
        tokens = max(tokens, window + 12)
    room = getattr(config, "max_position_embeddings", None)
    if room is not None:
        tokens = max(1, min(tokens, room - _NEW_TOKENS))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (_ROWS, tokens), generator=generator)
    return Prompts(ids, torch.tensor([0, tokens // 5, tokens // 2]))


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """
    Lets a model compute in float32 without a copy of it: each module's own weights are float32 while it runs.

    Weights that are float32 already stay where they are. Modules of one shape share the memory of their float32
    weights, because fresh memory costs more than the conversion.
    """
    handles, free = [], {}
    for module in model.modules():
        names = [
            (places, name)
            for places in (module._parameters, module._buffers)
            for name, tensor in places.items()
            if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float32
        ]
        if names:
            before, after = _upcasting_hooks(names, free)
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _upcasting_hooks(names, free):
    own = {}

    def before(module, inputs):
        for places, name in names:
            tensor = own[name] = places[name]
            buffers = free.setdefault(tensor.shape, [])
            upcast = buffers.pop() if buffers else torch.empty_like(tensor, dtype=torch.float32)
            upcast.copy_(tensor.detach())
            places[name] = nn.Parameter(upcast, requires_grad=False) if isinstance(tensor, nn.Parameter) else upcast

    def after(module, inputs, output):
        for places, name in names:
            free[places[name].shape].append(places[name].detach())
            places[name] = own.pop(name)

    return before, after


@torch.no_grad()
def compute_logits(
    model: PreTrainedModel, prompts: Prompts, num_recurrences: int | None = None
) -> dict[str, torch.Tensor]:
    """
    The logits of a decoder in float32, for each of `CASES`, on real tokens only.

    Args:
        model: A decoder of transformers, or a recurrent one.
        prompts: See `make_prompts`.
        num_recurrences: The depth of a recurrent one.

    Returns:
        Logits by case, of shape `(tokens, vocab)`.
    """
    with in_float32(model):
        run = _Run(model, prompts, num_recurrences)
        return {
            "no_padding": run.padded(None),
            "left_padding": run.padded("left"),
            "right_padding": run.padded("right"),
            "cached": run.cached(),
            "generate": run.generated(),
        }


class _Run:
    """The calls of one model."""

    def __init__(self, model, prompts, num_recurrences):
        self.model, self.prompts = model, prompts
        self.is_recurrent = isinstance(model, RecurrentDepthForCausalLM)
        self.depth = {"num_recurrences": num_recurrences} if self.is_recurrent else {}

    def cache(self):
        # The sliding-window cache of a family drops old keys, which changes how sums are rounded. This one keeps all.
        return {} if self.is_recurrent else {"past_key_values": DynamicCache()}

    def padded(self, side):
        mask = self.prompts.mask(side)
        logits = self.model(
            self.prompts.ids, attention_mask=mask, use_cache=False, **self.positions(mask), **self.depth
        ).logits
        return logits[mask.bool()]

    def positions(self, mask):
        # A recurrent decoder counts real tokens by itself.
        return {} if self.is_recurrent else {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}

    def cached(self):
        """A prompt with padding on the left, then single tokens."""
        ids, mask = self.prompts.ids, self.prompts.mask("left")
        first = ids.shape[1] - min(_NEW_TOKENS, ids.shape[1] - 1)
        positions = self.positions(mask)
        cache, pieces = self.cache(), []
        for begin, end in [(0, first), *((place, place + 1) for place in range(first, ids.shape[1]))]:
            output = self.model(
                ids[:, begin:end],
                attention_mask=mask[:, :end],
                use_cache=True,
                **{name: value[:, begin:end] for name, value in positions.items()},
                **cache,
                **self.depth,
            )
            cache = {"past_key_values": output.past_key_values}
            pieces.append(output.logits)
        return torch.cat(pieces, dim=1)[mask.bool()]

    def generated(self):
        settings = self.model.generation_config
        # Neither the source's own way of choosing tokens nor an early end.
        self.model.generation_config = GenerationConfig(pad_token_id=0)
        try:
            output = self.model.generate(
                self.prompts.ids,
                attention_mask=self.prompts.mask("left"),
                max_new_tokens=_NEW_TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                use_cache=True,
                **self.cache(),
                **self.depth,
            )
        finally:
            self.model.generation_config = settings
        return torch.cat(output.logits)


def differences(expected: dict[str, torch.Tensor], computed: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest absolute difference of logits for each case. NaN, or another length of a text, is infinite."""
    found = {}
    for name, logits in expected.items():
        difference = torch.tensor(torch.inf)
        if logits.shape == computed[name].shape:
            difference = (logits - computed[name]).abs().max()
        found[name] = float(difference) if bool(difference.isfinite()) else float("inf")
    return found


def largest_logit(logits: dict[str, torch.Tensor]) -> float:
    """What differences are relative to."""
    return max(float(tensor.abs().max()) for tensor in logits.values())


def remove_layers(model: PreTrainedModel, plan: LayerPlan) -> None:
    """
    Removes layers from a decoder of transformers in place, with what its config says about each of them.

    Args:
        model: A model of a family that can be looped.
        plan: The layers that stay are `plan.kept`, in this order.
    """
    if not plan.dropped:
        return
    names = [source for source, target in source_names(model, plan) if target.startswith("model.layers.")]
    stays = [model.get_submodule(name) for name in names]
    for place, layer in enumerate(stays):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = place
    parent, _, name = names[0].rpartition(".")[0].rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(stays))
    shorter = config_with_layers(model.config, plan.kept).to_dict()
    for field, value in model.config.to_dict().items():
        if value != shorter[field]:
            setattr(model.config, field, shorter[field])
