"""A decoder of transformers becomes a recurrent-depth model with the family's own layers, and the reverse."""

from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig, PreTrainedConfig, PreTrainedModel

from memreason_hf.checks import check_int, check_type
from memreason_hf.models.conversion.layers import LayerPlan, config_with_layers, plan_layers
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from modeling_recurrent.families_recurrent import FAMILIES, make_block_config, strip_block_config


# What a converted model does where a call or the config does not say otherwise: one recurrence is the source, and the
# gates that lead back into the loop start closed, so that deeper ones start from there.
# A decoder of so many layers is none that anything could load.
MOST_RECURRENCES = 10_000
# What `convert_config` takes from the source and its layers.
_FROM_SOURCE = (
    *("block_model_type", "block_config", "num_prelude_layers", "num_recurrent_layers", "num_coda_layers"),
    *("vocab_size", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache"),
)
CONVERSION_DEFAULTS = {"num_recurrences": 1, "input_injection": "gate", "injection_gate_init": 0.0}

_REASONS = {
    "is_encoder_decoder": "it is an encoder-decoder. Only decoders can be looped",
    "num_local_experts": "its layers choose among experts, which is not supported",
    "num_experts": "its layers choose among experts, which is not supported",
    "state_size": "its layers keep a running state in place of keys and values, which is not supported",
    "text_config": "it reads more than text. Convert the language model inside it",
    "linear_num_value_heads": "some of its layers have linear attention, which is not supported",
}


def convert_decoder(
    model: PreTrainedModel,
    *,
    prelude: int | str | Sequence[int] | None = None,
    loop: int | str | Sequence[int] | None = None,
    coda: int | str | Sequence[int] | None = None,
    share_weights: bool = False,
    **fields,
) -> RecurrentDepthForCausalLM:
    """
    Turns a pretrained decoder into a recurrent-depth model whose layers are those of the decoder.

    With one recurrence the result computes what `model` computes, without the layers that were left out. More
    recurrences start from there: the way back into the loop is a gate for each channel that starts closed
    (`input_injection="gate"`), or open with `injection_gate_init=1.0`.

    Args:
        model (`PreTrainedModel`): A causal language model of a family in `FAMILIES`.
        prelude, loop, coda (`int`, `str` or sequence of `int`, *optional*):
            How many layers, or which; see `plan_layers`. By default all layers are kept and the middle half is looped.
        share_weights (`bool`, *optional*, defaults to `False`):
            Whether the result uses the tensors of `model` in place of copies. Training one then changes the other.
        fields:
            Further fields of `RecurrentDepthConfig`. The defaults are `num_recurrences=1`, `input_injection="gate"`.

    Returns:
        [`RecurrentDepthForCausalLM`] in evaluation mode, on the device and in the dtype of `model`.

    Raises:
        ValueError: the family cannot be looped, the source is quantised or has no head, or the layers cannot be
            chosen so.

    Example:

    ```python
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from memreason_hf.models.conversion.decoder import convert_decoder

    >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
    >>> llama = LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes)).eval()
    >>> model = convert_decoder(llama, prelude=2, loop=2, coda=2)
    >>> ids = torch.randint(100, (2, 7))
    >>> with torch.no_grad():
    ...     print((model(ids, num_recurrences=1).logits - llama(ids).logits).abs().max().item())
    0.0
    ```
    """
    check_type("model", model, PreTrainedModel, "a causal language model of transformers")
    check_type("share_weights", share_weights, bool, "True or False")
    check_family(model.config)
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        raise ValueError(
            "The source is quantised, and its layers would be copied as they are. Convert the model that it was "
            "quantised from, and quantise the result when it is loaded (quantization_config=...)."
        )
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"The source is a {type(model).__name__}, which has no language-model head. Load a causal LM."
        )
    plan = plan_layers(model.config.num_hidden_layers, prelude, loop, coda)
    config = convert_config(model.config, plan, **fields)
    config.dtype = model.dtype
    with torch.device("meta"):
        converted = RecurrentDepthForCausalLM(config)
    for name, tensor, is_parameter in converted_tensors(model, plan):
        place_tensor(converted, name, tensor if share_weights else tensor.detach().clone(), is_parameter)
    _start_new_modules(converted, model.device, model.dtype)
    converted.tie_weights()
    converted.set_attn_implementation(_attention_of(model.config))
    converted.generation_config = convert_generation_config(model.generation_config)
    converted.name_or_path = converted.config.name_or_path = model.name_or_path
    return converted.eval()


def _attention_of(config):
    return "eager" if config._attn_implementation is None else config._attn_implementation


def check_family(config: PreTrainedConfig) -> None:
    """
    Checks that the layers of a decoder can run in a loop.

    Raises:
        ValueError: the family is not known, with the reason.
    """
    name = config.model_type
    if isinstance(config, RecurrentDepthConfig):
        raise ValueError("The source is a recurrent-depth model already. Load it as it is, or pass a plain decoder.")
    if name in FAMILIES:
        return
    reason = next((text for field, text in _REASONS.items() if getattr(config, field, None)), None)
    if reason is None:
        reason = "its layers are not known to run in a loop"
    raise ValueError(
        f"A model of type {name!r} cannot be converted: {reason}. Families that can: {', '.join(sorted(FAMILIES))}."
    )


def convert_config(source: PreTrainedConfig, plan: LayerPlan, **fields) -> RecurrentDepthConfig:
    """
    The config of a converted model.

    Args:
        source: The config of the source.
        plan: The layers of the result.
        fields: Fields of `RecurrentDepthConfig`, before `CONVERSION_DEFAULTS`.
    """
    check_family(source)
    follows = [name for name in fields if name in _FROM_SOURCE]
    if follows:
        raise ValueError(
            f"{follows[0]}={fields[follows[0]]!r} cannot be chosen: it follows from the source and its layers. "
            "Leave it out."
        )
    block = config_with_layers(source, plan.kept)
    given = {**CONVERSION_DEFAULTS, **fields}
    if "input_injection" in fields and fields["input_injection"] != "gate":
        given.pop("injection_gate_init")
        if "injection_gate_init" in fields:
            raise ValueError(
                f"injection_gate_init={fields['injection_gate_init']} is for input_injection='gate', got "
                f"{fields['input_injection']!r}. Leave one of them out."
            )
    if fields.get("recurrence_lora_count") is not None and not fields.get("recurrence_lora_rank"):
        raise ValueError(
            f"recurrence_lora_count={fields['recurrence_lora_count']} has no effect without recurrence_lora_rank. "
            "Give a rank, or leave it out."
        )
    return RecurrentDepthConfig(
        block_model_type=source.model_type,
        block_config=strip_block_config(block),
        num_prelude_layers=len(plan.prelude),
        num_recurrent_layers=len(plan.loop),
        num_coda_layers=len(plan.coda),
        vocab_size=source.vocab_size,
        tie_word_embeddings=bool(source.tie_word_embeddings),
        pad_token_id=source.pad_token_id,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        use_cache=bool(getattr(source, "use_cache", True)),
        **given,
    )


def convert_generation_config(generation_config):
    """A copy without the cache that a family asks for: a loop needs one with a slot for every recurrence."""
    copied = deepcopy(generation_config)
    if copied is not None:
        copied.cache_implementation = None
    return copied


def source_names(model: PreTrainedModel, plan: LayerPlan) -> Iterator[tuple[str, str]]:
    """
    The modules of a source that a converted model keeps: pairs of the name in the source and in the result, for
    example `("model.layers.10", "model.layers.4")`.
    """
    family = FAMILIES[model.config.model_type]
    prefix = model.base_model_prefix
    for part in ("embed_tokens", "embed_positions", "norm", "rotary_emb"):
        if getattr(family, part) is not None:
            yield f"{prefix}.{getattr(family, part)}", f"model.{part}"
    for place, index in enumerate(plan.kept):
        yield f"{prefix}.{family.layers}.{index}", f"model.layers.{place}"
    head = model.get_output_embeddings()
    yield next(name for name, module in model.named_modules() if module is head), "lm_head"


def converted_tensors(model: PreTrainedModel, plan: LayerPlan) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Every tensor of a converted model that comes from the source: name, tensor, and whether it is a parameter."""
    for source, target in source_names(model, plan):
        module = model.get_submodule(source)
        for name, tensor in module.named_parameters():
            yield f"{target}.{name}", tensor, True
        for name, tensor in module.named_buffers():
            yield f"{target}.{name}", tensor, False


def place_tensor(model: nn.Module, name: str, tensor: torch.Tensor, is_parameter: bool) -> None:
    """Puts a tensor in the place of a parameter or buffer of the same shape."""
    module_name, _, tensor_name = name.rpartition(".")
    module = model.get_submodule(module_name)
    places = module._parameters if is_parameter else module._buffers
    if places[tensor_name].shape != tensor.shape:
        raise ValueError(
            f"{name}: the source has the shape {tuple(tensor.shape)}, but its config asks for "
            f"{tuple(places[tensor_name].shape)}."
        )
    if not is_parameter:
        places[tensor_name] = tensor
    else:
        places[tensor_name] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)


def _start_new_modules(converted, device, dtype):
    """Creates and starts what the source does not have: the way back into the loop, the norm of the state."""
    for module in converted.model.modules():
        missing = [tensor for tensor in (*module.parameters(False), *module.buffers(False)) if tensor.is_meta]
        if missing:
            module.to_empty(device=device, recurse=False).to(dtype)
            converted.model._init_weights(module)


def unroll_decoder(model: RecurrentDepthForCausalLM, num_recurrences: int) -> PreTrainedModel:
    """
    Writes a loop out as a plain decoder of the family, with the looped layers as often as they run.

    Args:
        model ([`RecurrentDepthForCausalLM`]): With the layers of a family.
        num_recurrences (`int`): How often the looped layers run.

    Returns:
        A model such as [`~transformers.LlamaForCausalLM`], with copies of the weights, that computes what `model`
        computes with `num_recurrences`.

    Raises:
        ValueError: `model` has our own blocks, or something between its recurrences that a plain decoder cannot
            express.
    """
    check_type("model", model, RecurrentDepthForCausalLM, "a RecurrentDepthForCausalLM")
    check_int("num_recurrences", num_recurrences, least=1, most=MOST_RECURRENCES)
    config = model.config
    check_unrollable(model, num_recurrences)
    block = make_block_config(config)
    prelude, loop = config.num_prelude_layers, config.num_recurrent_layers
    order = [
        *range(prelude),
        *(list(range(prelude, prelude + loop)) * num_recurrences),
        *range(prelude + loop, config.num_physical_layers),
    ]
    plain = config_with_layers(block, order)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache"):
        setattr(plain, name, getattr(config, name))
    plain.dtype = model.dtype
    with torch.device("meta"):
        unrolled = MODEL_FOR_CAUSAL_LM_MAPPING[type(plain)](plain)
    every_layer = LayerPlan(tuple(range(len(order))), (), (), len(order))
    for target, source in source_names(unrolled, every_layer):
        if source.startswith("model.layers."):
            source = f"model.layers.{order[int(source.rpartition('.')[2])]}"
        module = model.get_submodule(source)
        for name, tensor in module.named_parameters():
            place_tensor(unrolled, f"{target}.{name}", tensor.detach().clone(), True)
        for name, tensor in module.named_buffers():
            place_tensor(unrolled, f"{target}.{name}", tensor.detach().clone(), False)
    unrolled.tie_weights()
    unrolled.set_attn_implementation(model.config._attn_implementation)
    unrolled.generation_config = _plain_generation_config(model.generation_config)
    return unrolled.eval()


def _plain_generation_config(generation_config):
    """Without fields that only recurrent models have, such as the depth."""
    known = GenerationConfig().to_dict()
    return GenerationConfig(**{name: value for name, value in generation_config.to_dict().items() if name in known})


def check_unrollable(model: RecurrentDepthForCausalLM, num_recurrences: int) -> None:
    """
    Checks that a plain decoder can compute what a recurrent one computes.

    Raises:
        ValueError: with what stands in the way.
    """
    check_unrollable_config(model.config, num_recurrences)
    is_gated = num_recurrences > 1 and model.config.input_injection == "gate"
    if is_gated and not bool((model.model.injection.weight == 1).all()):
        _refuse_unrolling(num_recurrences, "the gates on the way back into the loop mix the state with the input")


def check_unrollable_config(config: RecurrentDepthConfig, num_recurrences: int) -> None:
    """`check_unrollable` before the weights are read."""
    if num_recurrences < 1:
        raise ValueError(f"num_recurrences={num_recurrences} must be at least 1.")
    if config.block_model_type is None:
        raise ValueError(
            "block_model_type=None: the model has our own blocks, whose fused weights are not those of a family. Only "
            "models that were converted from a decoder can be written out."
        )
    reason = None
    if config.state_init != "embedding":
        reason = f"state_init={config.state_init!r} starts the loop from another state than its input"
    elif config.coda_norm:
        reason = "coda_norm=True puts a norm between the loop and the coda"
    elif num_recurrences > 1 and config.state_norm != "none":
        reason = f"state_norm={config.state_norm!r} stands between recurrences"
    elif num_recurrences > 1 and config.input_injection not in ("none", "gate"):
        reason = f"input_injection={config.input_injection!r} mixes the state with the input"
    elif num_recurrences > 1 and config.recurrence_lora_rank:
        reason = f"recurrence_lora_rank={config.recurrence_lora_rank} gives each recurrence weights of its own"
    if reason is not None:
        _refuse_unrolling(num_recurrences, reason)


def _refuse_unrolling(num_recurrences, reason):
    advice = "Write out num_recurrences=1" if num_recurrences > 1 else "Convert with state_init='embedding'"
    raise ValueError(
        f"A plain decoder cannot compute num_recurrences={num_recurrences} of this model: {reason}. {advice}, or "
        "train with input_injection='none'."
    )
