"""Which linear layers of a model are adapted: those of its attention, of its feed-forward networks, or both."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


LORA_TARGETS = ("mlp", "attention", "all")

# Parts of the names of classes and attributes around a linear layer, in lower case: GPT2Attention, self_attn.
_ATTENTION = ("attention", "attn")
# RecurrentDepthMLP, feed_forward, block_sparse_moe, experts.
_MLP = ("mlp", "feedforward", "feed_forward", "ffn", "moe", "expert")


def linear_layers(model: PreTrainedModel) -> dict[str, str]:
    """
    The linear layers inside the decoder layers of a model.

    A decoder layer is an item of an outermost `ModuleList`, whatever the model's type. The kind of a linear layer
    follows from the modules around it, from the innermost outwards, and not from its own name: GPT-2 has a `c_proj` in
    both its MLP and its attention. A linear layer directly in the decoder layer belongs to the feed-forward network,
    as in OPT. 8-bit and 4-bit layers and GPT-2's `Conv1D` count as linear layers. The head does not, wherever it is.

    Args:
        model ([`~transformers.PreTrainedModel`]): Any decoder.

    Returns:
        `dict[str, str]`: the kind, `"mlp"`, `"attention"` or `"other"`, by the full path of the module.
    """
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    kinds = {}
    for path, module in modules.items():
        if module is head or not isinstance(module, nn.Linear | Conv1D):
            continue
        names = path.split(".")
        lists = [n for n in range(1, len(names)) if isinstance(modules[".".join(names[:n])], nn.ModuleList)]
        # After the path of the list come the decoder layer and something inside it.
        if lists and len(names) >= lists[0] + 2:
            ends = range(len(names) - 1, lists[0] + 1, -1)
            kinds[path] = _kind([(names[end - 1], modules[".".join(names[:end])]) for end in ends])
    return kinds


def lora_targets(model: PreTrainedModel, targets: str) -> list[str]:
    """
    The full module paths of the linear layers to adapt.

    Args:
        model ([`~transformers.PreTrainedModel`]): Any decoder.
        targets (`str`): `"mlp"`, `"attention"` or `"all"` (every linear layer inside a decoder layer).

    Raises:
        ValueError: another word, or a model without such layers. The message lists its linear layers.
    """
    if targets not in LORA_TARGETS:
        raise ValueError(f"lora_targets={targets!r} must be one of {', '.join(LORA_TARGETS)}.")
    layers = linear_layers(model)
    chosen = [path for path, kind in layers.items() if targets in ("all", kind)]
    if not chosen:
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
        shown = ", ".join(f"{name} ({layers.get(name, 'outside of decoder layers')})" for name in linear[:20])
        more = f" and {len(linear) - 20} more" if len(linear) > 20 else ""
        raise ValueError(
            f"lora_targets={targets!r}: {type(model).__name__} has no such layer. Its linear layers: "
            f"{shown or 'none'}{more}. Use another one of {', '.join(LORA_TARGETS)}."
        )
    return chosen


def named_targets(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """
    The full module paths of the linear layers with given names, wherever they are in the model.

    Args:
        model ([`~transformers.PreTrainedModel`]): Any decoder.
        names (`Sequence[str]`):
            Paths of modules or their endings, as in PEFT's `target_modules`: `"q_proj"`, `"self_attn.q_proj"` or
            `"layers.0.self_attn.q_proj"`.

    Raises:
        ValueError: a name that no linear layer has, with those that there are; or the name of the head.
    """
    head = model.get_output_embeddings()
    linear = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    chosen: dict[str, None] = {}
    for name in names:
        found = [path for path in linear if path == name or path.endswith(f".{name}")]
        if not found:
            known = sorted({path.rpartition(".")[2] for path, module in linear.items() if module is not head})
            raise ValueError(
                f"lora_modules: {type(model).__name__} has no linear layer {name!r}. Its linear layers: "
                f"{', '.join(known) or 'none'}."
            )
        if any(linear[path] is head for path in found):
            raise ValueError(
                f"lora_modules: {name!r} is the head, whose rows of new tokens are trained by the modes tokens and "
                "lora+tokens. Leave it out."
            )
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def _kind(parents):
    for name, module in parents:
        words = f"{name} {type(module).__name__}".lower()
        if any(word in words for word in _ATTENTION):
            return "attention"
        if any(word in words for word in _MLP):
            return "mlp"
    return "other" if parents else "mlp"
