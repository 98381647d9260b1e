"""
What is trained: the whole model, the loop, or LoRA in the loop.

The loop is the looped layers and what re-enters them, the input injection and the norm of the state. With LoRA the
looped layers get low-rank updates, and what re-enters them is trained as it is: it has few weights, and a converted
model with a closed gate would repeat its first recurrence whatever LoRA learns.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from memreason_hf.adapters.targets import LORA_TARGETS, lora_targets
from memreason_hf.checks import check_field_types, check_number
from modeling_recurrent import RecurrentDepthForCausalLM


TRAINED_PARTS = ("all", "loop", "lora")
# Parts of the decoder that are neither in the loop nor on the way back into it.
_OUTSIDE = ("embed_tokens", "embed_positions", "rotary_emb", "norm")


@dataclass
class PartArguments:
    """
    What is trained, the end of section `model`.

    Raises:
        ValueError: a value out of range.
    """

    train: Literal["all", "loop", "lora"] = field(
        default="all",
        metadata={
            "help": "What is trained: all, the loop (looped layers and what re-enters them), or LoRA in the loop."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the low-rank updates."})
    lora_alpha: float = field(default=16, metadata={"help": "Their scale is lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the low-rank updates."})
    lora_targets: Literal["mlp", "attention", "all"] = field(
        default="all", metadata={"help": "The linear layers of the loop that get updates: mlp, attention or all."}
    )

    def __post_init__(self):
        check_field_types(self)
        check_number("lora_alpha", self.lora_alpha)
        for name, known in (("train", TRAINED_PARTS), ("lora_targets", LORA_TARGETS)):
            if getattr(self, name) not in known:
                raise ValueError(f"model.{name}={getattr(self, name)!r} must be one of {', '.join(known)}.")
        if self.lora_r < 1:
            raise ValueError(f"model.lora_r={self.lora_r} must be at least 1.")
        if not self.lora_alpha > 0:
            raise ValueError(f"model.lora_alpha={self.lora_alpha} must be above 0.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"model.lora_dropout={self.lora_dropout} must be at least 0 and below 1.")


def choose_parts(model: RecurrentDepthForCausalLM, arguments: PartArguments) -> None:
    """
    Freezes what is not trained, in place. For `train="lora"` it adds the low-rank updates to the looped layers.

    Args:
        model ([`RecurrentDepthForCausalLM`]): Any model of the package.
        arguments (`PartArguments`): What is trained.

    Raises:
        ValueError: no linear layer in the loop is one of `lora_targets`.
    """
    model.requires_grad_(True)
    if arguments.train == "all":
        return
    outside, looped = _outside(model), _parameters(model.model.recurrent_layers)
    if arguments.train == "lora":
        inject_adapter_in_model(_lora_config(model, arguments), model)
    for name, parameter in model.named_parameters():
        is_update = ".lora_" in name
        in_loop = id(parameter) not in outside and (arguments.train == "loop" or id(parameter) not in looped)
        parameter.requires_grad_(is_update or in_loop)


def has_lora(model: nn.Module) -> bool:
    """Whether low-rank updates were added to a model."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """
    The weights of a model with its low-rank updates added, under the names of the model without them. The model does
    not change.
    """
    state = {}
    for name, value in model.state_dict().items():
        if ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = value
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            with torch.no_grad():
                weight = module.get_base_layer().weight
                updates = [module.get_delta_weight(adapter) for adapter in module.active_adapters]
                state[f"{name}.weight"] = weight + sum(updates).to(weight.dtype)
    return state


def _outside(model):
    """The ids of the parameters outside of the loop."""
    decoder = model.model
    modules = [model.lm_head, *(getattr(decoder, name) for name in _OUTSIDE)]
    layers = [*decoder.prelude_layers, *decoder.coda_layers]
    return _parameters([module for module in modules if module is not None] + layers)


def _parameters(modules):
    return {id(parameter) for module in modules for parameter in module.parameters()}


def _lora_config(model, arguments):
    looped = {id(module) for layer in model.model.recurrent_layers for module in layer.modules()}
    paths = [path for path in lora_targets(model, arguments.lora_targets) if id(model.get_submodule(path)) in looped]
    if not paths:
        raise ValueError(
            f"model.lora_targets={arguments.lora_targets!r}: the loop of {type(model).__name__} has no such linear "
            "layer. Use all, or train=loop."
        )
    return LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=paths,
        fan_in_fan_out=all(isinstance(model.get_submodule(path), Conv1D) for path in paths),
    )
