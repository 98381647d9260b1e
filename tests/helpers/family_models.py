"""Tiny decoders of every family that can be looped, with the features that make families differ."""

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from modeling_recurrent.families_recurrent import FAMILIES


# The families that the package promises. Those of `FAMILIES` have the same shape of layer.
FAMILY_NAMES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "olmo2",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
)
OTHER_NAMES = tuple(name for name in FAMILIES if name not in FAMILY_NAMES)

VOCAB_SIZE = 97
NUM_LAYERS = 6
# Shorter than the prompts of the tests, so that it matters.
WINDOW = 5
_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOW = {"sliding_window": WINDOW}
_FULL_BELOW = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
_GEMMA = {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}
_FEATURES = {
    "mistral": _WINDOW,
    "phi3": _WINDOW,
    "starcoder2": _WINDOW,
    "qwen2": _FULL_BELOW,
    "qwen3": {**_FULL_BELOW, "head_dim": 16},
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW, "no_rope_layer_interval": 3},
    "gemma": {"head_dim": 16},
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "gemma3_text": _GEMMA,
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "cohere2": _WINDOW,
    "olmo3": _WINDOW,
    "exaone4": {**_WINDOW, "sliding_window_pattern": 3},
    "ministral": {**_WINDOW, "head_dim": 16},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 16},
}
_WITHOUT = {"gpt2": ("num_key_value_heads", "intermediate_size"), "gpt_neox": ("num_key_value_heads",)}


def tiny_source(model_type: str, *, seed: int = 0, **overrides) -> PreTrainedModel:
    """
    A decoder of a family with random weights, in evaluation mode. Norms and biases do not have their initial values.

    Args:
        model_type: A name of `FAMILY_NAMES` or `OTHER_NAMES`.
        overrides: Fields of the family's config.
    """
    fields = {**_SIZES, **_FEATURES.get(model_type, {})}
    for name in _WITHOUT.get(model_type, ()):
        del fields[name]
    config = CONFIG_MAPPING[model_type](**{**fields, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_block_config(model_type: str, num_layers: int, **overrides):
    """The config of such a decoder; layers of both types, where a family has types, alternate."""
    fields = {**_SIZES, **_FEATURES.get(model_type, {}), "num_hidden_layers": num_layers, **overrides}
    for name in _WITHOUT.get(model_type, ()):
        del fields[name]
    config = CONFIG_MAPPING[model_type](**fields)
    if getattr(config, "layer_types", None) is not None and fields.get("sliding_window") is not None:
        kinds = [("sliding_attention", "full_attention")[index % 2] for index in range(num_layers)]
        config = CONFIG_MAPPING[model_type](**fields, layer_types=kinds)
    return config
