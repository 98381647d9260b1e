"""Decoder families of transformers whose own layers run inside the loop."""

import inspect
import sys
from dataclasses import dataclass

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


# The attention implementation of a family's layers. They then call `attend_in_slots`, whatever the model's own is.
SLOT_ATTENTION = "recurrent_depth_slots"

LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Family:
    """
    Where the decoder of a family keeps its parts; the defaults are those of Llama.

    Attributes:
        embed_tokens, layers, norm (`str`): Names of modules.
        embed_positions, embedding_dropout, rotary_emb (`str`, *optional*): Names of modules that a family may lack.
            The dropout may also be a probability.
        embedding_factor, logit_divisor, logit_factor, logit_softcap (`str`, *optional*): Names of fields of the
            family's config: factors on embeddings and logits, and the bound of `bound * tanh(logits / bound)`.
        refused (`tuple` of `str`): Names of fields of the family's config that must not be set, because their effect
            lies outside the layers or depends on the place of a layer in the original stack.
    """

    embed_tokens: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    rotary_emb: str | None = "rotary_emb"
    embed_positions: str | None = None
    embedding_dropout: str | None = None
    embedding_factor: str | None = None
    logit_divisor: str | None = None
    logit_factor: str | None = None
    logit_softcap: str | None = None
    refused: tuple[str, ...] = ()


_SOFTCAPPED = {"logit_softcap": "final_logit_softcapping", "refused": ("use_bidirectional_attention",)}

# By `model_type` of the decoder's config.
FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "smollm3": Family(),
    "olmo": Family(),
    "olmo2": Family(),
    "olmo3": Family(),
    "gemma": Family(refused=("use_bidirectional_attention",)),
    "gemma2": Family(**_SOFTCAPPED),
    "gemma3_text": Family(**_SOFTCAPPED),
    "phi3": Family(),
    "granite": Family(embedding_factor="embedding_multiplier", logit_divisor="logits_scaling"),
    "cohere": Family(logit_factor="logit_scale"),
    "cohere2": Family(logit_factor="logit_scale"),
    "starcoder2": Family(embedding_dropout="embedding_dropout"),
    "helium": Family(),
    "glm": Family(),
    "glm4": Family(),
    "seed_oss": Family(),
    "arcee": Family(),
    "exaone4": Family(),
    "ernie4_5": Family(),
    "hunyuan_v1_dense": Family(),
    "ministral": Family(),
    "apertus": Family(),
    "jais2": Family(),
    "gpt_neox": Family(embed_tokens="embed_in", norm="final_layer_norm", embedding_dropout="emb_dropout"),
    "gpt2": Family(
        embed_tokens="wte",
        layers="h",
        norm="ln_f",
        rotary_emb=None,
        embed_positions="wpe",
        embedding_dropout="drop",
        refused=("add_cross_attention", "reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx"),
    ),
}

# Fields that say how logits follow from the output of the head, and how the scores of attention are bounded.
LOGIT_FIELDS = {
    field
    for family in FAMILIES.values()
    for field in (family.logit_divisor, family.logit_factor, family.logit_softcap)
    if field is not None
} | {"attn_logit_softcapping"}

# Fields of a family's config that `RecurrentDepthConfig` has itself, or that say nothing about a layer.
OUTER_FIELDS = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "model_type",
    "num_hidden_layers",
    "pad_token_id",
    "tie_word_embeddings",
    "transformers_version",
    "use_cache",
    "vocab_size",
}


def strip_block_config(config: PreTrainedConfig) -> dict:
    """The fields of a family's config that describe its layers, for `RecurrentDepthConfig.block_config`."""
    outer = OUTER_FIELDS | {config.attribute_map.get(name, name) for name in OUTER_FIELDS}
    outer |= PreTrainedConfig().to_dict().keys()
    return {name: value for name, value in config.to_dict().items() if name not in outer}


def make_block_config(config) -> PreTrainedConfig:
    """
    The family's config for the layers of a recurrent-depth model.

    Args:
        config (`RecurrentDepthConfig`): `block_model_type`, `block_config`, the number of physical layers and the
            vocabulary are read.

    Raises:
        `ValueError`: The family is not known, or uses something that cannot run in a loop.
    """
    name = config.block_model_type
    if name not in FAMILIES or name not in CONFIG_MAPPING:
        raise ValueError(
            f"block_model_type={name!r} is not a family whose layers can be looped. Choose one of "
            f"{', '.join(sorted(FAMILIES))}."
        )
    fields = dict(config.block_config or {})
    outer = sorted(fields.keys() & OUTER_FIELDS)
    if outer:
        raise ValueError(
            f"block_config holds {', '.join(outer)}, which RecurrentDepthConfig has itself or computes. Remove them "
            "from block_config."
        )
    layers = config.num_physical_layers
    outer = {"num_hidden_layers": layers, "vocab_size": config.vocab_size, "pad_token_id": config.pad_token_id}
    outer |= {"tie_word_embeddings": config.tie_word_embeddings, "bos_token_id": None, "eos_token_id": None}
    try:
        block = CONFIG_MAPPING[name](**fields, **outer)
    except (ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"block_config must describe a {name} model: {' '.join(str(reason).split())}") from error
    block._attn_implementation = SLOT_ATTENTION
    for field in FAMILIES[name].refused:
        if getattr(block, field, None):
            raise ValueError(f"{name} with {field}={getattr(block, field)!r} cannot be looped.")
    for kind in layer_types(block):
        if kind not in LAYER_TYPES:
            raise ValueError(
                f"{name} has layers of type {kind!r}, which cannot be looped. Only {' and '.join(LAYER_TYPES)} can."
            )
    return block


def layer_types(block: PreTrainedConfig) -> list[str]:
    """`"full_attention"` or `"sliding_attention"` for each layer of a family's config."""
    kinds = getattr(block, "layer_types", None)
    if kinds is not None:
        return list(kinds)
    windowed = getattr(block, "sliding_window", None) is not None
    return [LAYER_TYPES[windowed]] * block.num_hidden_layers


def described_fields(block: PreTrainedConfig) -> dict:
    """
    The fields of `RecurrentDepthConfig` that say the same as a family's config, with the family's values: sizes for
    caches and masks, and what tools read.
    """
    heads = block.num_attention_heads
    windowed = "sliding_attention" in layer_types(block)
    eps = [getattr(block, name, None) for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")]
    positions = "rope" if FAMILIES[block.model_type].rotary_emb else "learned"
    values = {
        "hidden_size": block.hidden_size,
        "intermediate_size": getattr(block, "intermediate_size", None) or 4 * block.hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(block, "num_key_value_heads", None) or heads,
        "head_dim": getattr(block, "head_dim", None) or block.hidden_size // heads,
        "sliding_window": block.sliding_window if windowed else None,
        "max_position_embeddings": block.max_position_embeddings,
        "position_embedding_type": positions,
        "norm_eps": next((float(value) for value in eps if value is not None), 1e-6),
    }
    if getattr(block, "initializer_range", None) is not None:
        values["initializer_range"] = float(block.initializer_range)
    return values


class FamilyDecoder:
    """
    The parts of a family's decoder, taken out of an instance of its own class, and how its layers are called.

    Args:
        config (`RecurrentDepthConfig`): With a `block_model_type`.
    """

    def __init__(self, config):
        block = make_block_config(config)
        self.family = FAMILIES[config.block_model_type]
        self.model_class = MODEL_MAPPING[type(block)]
        # The weights start later, by `init_weights`, or are loaded.
        with no_init_weights():
            decoder = self.model_class(block)
        family = self.family
        self.embed_tokens, self.layers, self.norm, self.rotary_emb, self.embed_positions, self.embedding_dropout = (
            None if name is None else getattr(decoder, name)
            for name in (
                family.embed_tokens,
                family.layers,
                family.norm,
                family.rotary_emb,
                family.embed_positions,
                family.embedding_dropout,
            )
        )
        if isinstance(self.embedding_dropout, float | int):
            self.embedding_dropout = nn.Dropout(self.embedding_dropout)
        self.block = block


def support_of(config) -> dict:
    """The attention implementations that a family supports, as attributes of a model; empty for our own blocks."""
    if config.block_model_type is None:
        return {}
    model_class = MODEL_MAPPING[type(make_block_config(config))]
    names = ("_supports_flash_attn", "_supports_sdpa", "_supports_flex_attn")
    return {name: bool(getattr(model_class, name, False)) for name in names}


def init_family_weights(block: PreTrainedConfig, module: nn.Module) -> None:
    """Starts the weights of one module as the family's own class does."""
    model_class = MODEL_MAPPING[type(block)]
    shell = model_class.__new__(model_class)
    nn.Module.__init__(shell)
    shell.config = block
    shell._init_weights(module)


def family_eager_attention(block: PreTrainedConfig):
    """The family's own attention in plain operations, from the file that defines its decoder."""
    # Not from the class of a layer, which FSDP2 replaces.
    eager = sys.modules[MODEL_MAPPING[type(block)].__module__].eager_attention_forward

    def attend(module, query, key, value, attention_mask, **kwargs):
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            # Prepared for SDPA: true where a token attends. The families add their masks.
            lowest = torch.finfo(query.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, lowest)
        if attention_mask is not None:
            # Far from the lowest number of the scores and of float32, in which the softmax is computed: on padding,
            # where everything is masked, -inf would become NaN.
            lowest = max(torch.finfo(query.dtype).min, torch.finfo(torch.float32).min) / 2
            attention_mask = attention_mask.clamp_min(lowest)
        return eager(module, query, key, value, attention_mask, **kwargs)

    return attend


class AttentionMaps:
    """Receives the attention weights of a layer. Not a list: accelerate and FSDP pass copies of lists to a layer."""

    def __init__(self):
        self.weights = None


def attend_in_slots(
    module,
    query,
    key,
    value,
    attention_mask,
    slots=None,
    slot=None,
    maps=None,
    position_embeddings=None,
    **kwargs,
):
    """
    The attention function of a family's layers: writes keys and values into the cache, and attends in the slot of this
    layer and recurrence.

    Args:
        module (`torch.nn.Module`): The family's attention. Its `layer_idx` is the index of the physical layer.
        query, key, value (`torch.Tensor` of shape `(rows, heads, sequence, head_dim)`): Of the rows still computed.
        attention_mask: The mask of these rows; see `ActiveRows`.
        slots (`Slots`, *optional*): See `ActiveRows`.
        slot (`KeyValueSlot`): Attends.
        maps (`AttentionMaps`, *optional*): Receives the attention weights, or `None`.
        position_embeddings: Not used: the keys are rotated already.
    """

    def attend(query, key, value, mask):
        return slot(query, key, value, mask, **kwargs)

    if slots is None:
        output, weights = attend(query, key, value, attention_mask)
    else:
        output, weights = slots.attend(module.layer_idx, query, key, value, attention_mask, attend)
    if maps is not None:
        maps.weights = weights
    return output, weights


ALL_ATTENTION_FUNCTIONS.register(SLOT_ATTENTION, attend_in_slots)


def run_family_layer(layer, hidden_states, mask, angles, slots, slot, **kwargs):
    """Calls a family's layer; returns the new hidden states and the attention weights, as our own blocks do."""
    maps = AttentionMaps()
    hidden_states = layer(
        hidden_states,
        attention_mask=mask,
        position_embeddings=angles,
        slots=slots,
        slot=slot,
        maps=maps,
        **kwargs,
    )
    return hidden_states, maps.weights


def family_angles(rotary_emb, hidden_states, position_ids, kinds):
    """Cosines and sines of a family's rotation, by type of layer where the types have their own frequencies."""
    if "layer_type" not in inspect.signature(rotary_emb.forward).parameters:
        return rotary_emb(hidden_states, position_ids)
    return {kind: rotary_emb(hidden_states, position_ids, kind) for kind in set(kinds)}


def scale_embeddings(inputs_embeds: torch.Tensor, block: PreTrainedConfig) -> torch.Tensor:
    """What the decoder of a family does to its embeddings."""
    factor = FAMILIES[block.model_type].embedding_factor
    return inputs_embeds if factor is None else inputs_embeds * getattr(block, factor)


def scale_logits(logits: torch.Tensor, block: PreTrainedConfig) -> torch.Tensor:
    """What a family does to the logits of its head."""
    family = FAMILIES[block.model_type]
    if family.logit_divisor is not None:
        logits = logits / getattr(block, family.logit_divisor)
    if family.logit_factor is not None:
        logits = logits * getattr(block, family.logit_factor)
    bound = None if family.logit_softcap is None else getattr(block, family.logit_softcap)
    return logits if bound is None else torch.tanh(logits / bound) * bound


__all__ = [
    "FAMILIES",
    "LOGIT_FIELDS",
    "Family",
    "FamilyDecoder",
    "described_fields",
    "family_angles",
    "family_eager_attention",
    "init_family_weights",
    "layer_types",
    "make_block_config",
    "run_family_layer",
    "scale_embeddings",
    "scale_logits",
    "strip_block_config",
    "support_of",
]
