"""What vLLM must know of a model that it serves through its Transformers backend, and what it would serve wrongly."""

from transformers import GenerationConfig, PreTrainedConfig

from .parallel_recurrent import tensor_parallel_plan
from .positions_recurrent import ROPE_BY_LENGTH, rope_types


# Projections that are fused in a checkpoint, for vLLM's LoRA: without this entry it silently skips
# adapters of these projections.
PACKED = {"qkv_proj": ["qkv_proj"]}

# What `generate` also reads from the generation config, and vLLM only from the config of the model.
_IN_GENERATION_CONFIG = ("num_recurrences", "halting_criterion", "cache_recurrences", "state_seed")


def register() -> None:
    """
    The entry point `vllm.general_plugins`: where this package is installed, vLLM loads its models without remote code.

    Importing the package registers them, so there is nothing left to do.
    """


def prepare_for_vllm(config) -> None:
    """
    Fills in what vLLM reads from the config of a model, and refuses what it would serve with other texts.

    vLLM runs every token through all recurrences of the config. It computes the logits itself, and splits a fused
    projection of gate and up projection in its own way.

    Args:
        config (`RecurrentDepthConfig`): The config, with the values of `--hf-overrides`.

    Raises:
        `ValueError`: The texts would not be those of `generate`.
    """
    config.refuse_misspelt(vars(config))
    reason = _reason(config) or _forgotten_depth(config)
    if reason is not None:
        raise ValueError(f"vLLM would change the texts of this model: {reason}.")
    config.base_model_tp_plan = tensor_parallel_plan(config, packs=False)
    if config.block_model_type is not None:
        divisor = getattr(config.make_block_config(), "logits_scaling", None)
        if divisor is not None:
            config.logit_scale = 1 / divisor


def check_heads(slot, query, key) -> None:
    """
    Raises a `ValueError` if vLLM keeps other heads of a slot than the layer computes, where it splits a layer over
    processes but not its heads.

    Args:
        slot (`KeyValueSlot`): Its `attn` is vLLM's attention.
        query, key (`torch.Tensor` of shape `(1, heads, tokens, head_dim)`): What the layer computes.
    """
    heads = query.shape[1], key.shape[1]
    kept = slot.attn.num_heads, slot.attn.num_kv_heads
    if heads != kept:
        raise ValueError(
            f"A layer computes {heads[0]} query heads and {heads[1]} key heads, but vLLM expects {kept[0]} and "
            f"{kept[1]} of them in each process: it cannot split the heads of this model. Use tensor_parallel_size=1."
        )


def _reason(config):
    if config.halting_criterion is not None:
        return (
            f"it runs every token through num_recurrences={config.num_recurrences} recurrences, but the config has "
            f"halting_criterion={config.halting_criterion!r}. Serve it with `memreason serve`, or at a fixed depth "
            "with --hf-overrides '{\"halting_criterion\": null}'"
        )
    if config.cache_recurrences != "all":
        return (
            "it keeps the keys and values of all recurrences, but the config has cache_recurrences='last'. Pass "
            '--hf-overrides \'{"cache_recurrences": "all"}\''
        )
    if config.recurrence_lora_rank is not None:
        return (
            "it replaces the linear layers, but the config has recurrence_lora_rank="
            f"{config.recurrence_lora_rank}, updates of them that differ between recurrences. Serve it with "
            "`memreason serve`"
        )
    step = getattr(config, "step_attention", None)
    if step and step.get("variant"):
        return (
            f"it attends to all tokens, but the config has step_attention with variant={step['variant']!r}. Serve it "
            "with `memreason serve`"
        )
    kinds = rope_types(config) & set(ROPE_BY_LENGTH)
    if kinds:
        return (
            f"with rope_type={min(kinds)!r} positions depend on the longest text of a batch, in which it computes "
            "other requests, too. Use generate with one text at a time"
        )
    return None


def _forgotten_depth(config):
    """A depth in generation_config.json that the config, as it is in its file, does not have."""
    where = {"revision": getattr(config, "_commit_hash", None)}
    try:
        generation_config = GenerationConfig.from_pretrained(config.name_or_path, **where)
        written, _ = PreTrainedConfig.get_config_dict(config.name_or_path, **where)
    except (OSError, ValueError):
        return None  # there is none
    fields = type(config).__dataclass_fields__
    for name in _IN_GENERATION_CONFIG:
        given, value = getattr(generation_config, name, None), getattr(config, name)
        given = None if given == "none" else given
        # A value that was changed for this server is intentional.
        if given is None or given == value or written.get(name, fields[name].default) != value:
            continue
        ignored = (
            f"it ignores {name}={given!r} in generation_config.json, and the config has {value!r}. Remove it from "
            "generation_config.json"
        )
        if name in ("halting_criterion", "cache_recurrences"):
            # vLLM would refuse them in the config, too.
            return f"{ignored}, or serve with `memreason serve`"
        return f"{ignored}, or set {name}={given!r} in the config, for one server with --hf-overrides"
    return None


__all__ = ["PACKED", "check_heads", "prepare_for_vllm", "register"]
