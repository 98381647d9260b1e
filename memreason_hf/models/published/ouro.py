"""
Ouro (LoopLM, arXiv 2510.25741), `model_type` "ouro": all layers run again and again.

Its layers have a norm before and a norm after each sublayer. The last norm of the model runs after every recurrence,
and the next recurrence reads what it gives. A linear layer on the same gives the probability of leaving there.
"""

from pathlib import Path

import torch

from memreason_hf.models.published.reading import (
    PublishedLoop,
    layer_name,
    need,
    read_fields,
    read_tokenizer,
    refuse_fields,
    rope_parameters,
    token_ids,
)
from memreason_hf.models.published.tensors import TensorFiles
from modeling_recurrent import RecurrentDepthConfig


MODEL_TYPE = "ouro"
# The name of a norm of ours in a layer, and theirs.
_NORMS = {
    "input_layernorm": "input_layernorm",
    "attention_output_layernorm": "input_layernorm_2",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp_output_layernorm": "post_attention_layernorm_2",
}


def read_ouro(folder: Path) -> PublishedLoop:
    """
    Reads the folder of an Ouro model.

    Raises:
        FileNotFoundError, ValueError: files are missing or damaged, a field cannot be expressed, or a tensor is
            missing, has another shape or has no place.
    """
    fields, files = read_fields(folder), TensorFiles(folder)
    config = _read_config(folder, fields)
    return PublishedLoop("Ouro", config, _read_tensors(config, files), read_tokenizer(folder))


def _read_config(folder, fields):
    refuse_fields(folder, fields, "Ouro", {"hidden_act": "silu", "early_exit_step": None})
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
    sizes = dict(zip(names, need(folder, fields, *names)))
    layers, recurrences = need(folder, fields, "num_hidden_layers", "total_ut_steps")
    rotation = fields.get("rope_parameters")
    if rotation is None:
        rotation = rope_parameters(*need(folder, fields, "rope_theta"), fields.get("rope_scaling"))
    return RecurrentDepthConfig(
        **sizes,
        num_key_value_heads=fields.get("num_key_value_heads"),
        head_dim=fields.get("head_dim"),
        num_recurrent_layers=layers,
        num_recurrences=recurrences,
        max_recurrences=recurrences,
        rope_parameters=rotation,
        sliding_window=_window(folder, fields, layers),
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        initializer_range=fields.get("initializer_range", 0.02),
        attention_dropout=fields.get("attention_dropout", 0.0),
        tie_word_embeddings=fields.get("tie_word_embeddings", False),
        block_norm="sandwich",
        state_norm="last",
        exit_gate=True,
        **_threshold(fields),
        **token_ids(fields),
    )


def _threshold(fields):
    threshold = fields.get("early_exit_threshold")
    return {} if threshold is None else {"exit_gate_threshold": threshold}


def _window(folder, fields, layers):
    """The window of all layers. Layers of both kinds in one loop cannot be expressed."""
    kinds = set(fields.get("layer_types") or ["full_attention"])
    if fields.get("layer_types") is None and fields.get("use_sliding_window"):
        first = fields.get("max_window_layers", layers)
        kinds = {"sliding_attention" if index >= first else "full_attention" for index in range(layers)}
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"}:
        raise ValueError(
            f"{folder}: layer_types of an Ouro model holds {', '.join(sorted(kinds))}, but the looped layers of a "
            "recurrent-depth model share one kind of attention."
        )
    return need(folder, fields, "sliding_window")[0]


def _read_tensors(config, files):
    take, width = files.take, config.hidden_size
    query_width, key_width = (
        heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    yield "model.embed_tokens.weight", take("model.embed_tokens.weight", config.vocab_size, width)
    for index in range(config.num_recurrent_layers):
        ours, theirs = layer_name(index), f"model.layers.{index}"
        rows = {"q": query_width, "k": key_width, "v": key_width}
        fused = [take(f"{theirs}.self_attn.{name}_proj.weight", size, width) for name, size in rows.items()]
        yield f"{ours}.self_attn.qkv_proj.weight", torch.cat(fused)
        yield f"{ours}.self_attn.o_proj.weight", take(f"{theirs}.self_attn.o_proj.weight", width, query_width)
        fused = [take(f"{theirs}.mlp.{name}_proj.weight", config.intermediate_size, width) for name in ("gate", "up")]
        yield f"{ours}.mlp.gate_up_proj.weight", torch.cat(fused)
        yield (
            f"{ours}.mlp.down_proj.weight",
            take(f"{theirs}.mlp.down_proj.weight", width, config.intermediate_size),
        )
        for name, norm in _NORMS.items():
            yield f"{ours}.{name}.weight", take(f"{theirs}.{norm}.weight", width)
    yield "model.norm.weight", take("model.norm.weight", width)
    yield "model.exit_gate.weight", take("model.early_exit_gate.weight", 1, width)
    yield "model.exit_gate.bias", take("model.early_exit_gate.bias", 1)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", take("lm_head.weight", config.vocab_size, width)
    files.refuse_rest(("lm_head.weight",) if config.tie_word_embeddings else ())


__all__ = ["MODEL_TYPE", "read_ouro"]
