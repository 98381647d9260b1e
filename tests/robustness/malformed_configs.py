"""Malformed configs: values, misspelt names, contradictory pairs, and `config.json` files."""

import json
import math
import random
from dataclasses import fields
from pathlib import Path

import torch
from malformed_cases import (
    NO_VALUE,
    Case,
    field_cases,
    misspelt,
    some,
    wrong_bools,
    wrong_choices,
    wrong_floats,
    wrong_ints,
    wrong_mappings,
    wrong_texts,
)
from malformed_damage import damage_cases

from memreason_hf.models.loading import load_model_config
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


COUNTS = ("hidden_size", "vocab_size", "num_recurrent_layers", "num_attention_heads", "max_position_embeddings")
OPTIONAL_COUNTS = (
    *("intermediate_size", "num_key_value_heads", "head_dim", "sliding_window", "recurrence_lora_rank"),
    *("recurrence_min", "recurrence_max", "backprop_recurrences"),
)
DEPTHS = ("num_recurrences", "min_recurrences", "max_recurrences", "argmax_patience", "recurrence_lora_count")
WRONG = {
    **{name: wrong_ints(1) for name in (*COUNTS, *DEPTHS)},
    **{name: wrong_ints(1, optional=True) for name in OPTIONAL_COUNTS},
    **{name: wrong_ints(0) for name in ("num_prelude_layers", "num_coda_layers")},
    # Some configs on the Hub say -1 for none.
    "pad_token_id": wrong_ints(-1, optional=True),
    "bos_token_id": wrong_ints(0, optional=True),
    "state_seed": ["three", 2.5, math.nan, [1], None],
    "recurrence_seed": ["three", 2.5, math.nan, [1], None],
    "eos_token_id": ["three", 2.5, math.nan, {"a": 1}, ["a"], [0.5]],
    **{name: wrong_floats(0, open_low=True) for name in ("norm_eps", "embedding_scale")},
    **{name: wrong_floats(0) for name in ("initializer_range", "state_init_std")},
    "residual_init_scale": wrong_floats(optional=True),
    "recurrence_lora_alpha": wrong_floats(0, open_low=True, optional=True),
    "injection_gate_init": wrong_floats(),
    **{name: wrong_floats(0, 1) for name in ("attention_dropout", "residual_dropout", "embedding_dropout")},
    **{name: wrong_floats() for name in ("kl_threshold", "entropy_threshold", "margin_threshold")},
    **{name: wrong_floats() for name in ("state_difference_threshold", "acceleration_threshold")},
    **{name: wrong_floats(high=1) for name in ("confidence_threshold", "exit_gate_threshold")},
    "recurrence_loss_decay": wrong_floats(0, open_low=True),
    **{
        name: wrong_bools()
        for name in ("gated_mlp", "attention_bias", "mlp_bias", "tie_word_embeddings", "use_cache", "coda_norm")
    },
    "exit_gate": wrong_bools(),
    "attention_output_bias": wrong_bools(optional=True),
    "hidden_act": wrong_choices(["silu"]),
    "norm_type": wrong_choices(["layernorm"]),
    "block_norm": wrong_choices(["pre"]),
    "position_embedding_type": wrong_choices(["rope"]),
    "cache_recurrences": wrong_choices(["last"]),
    "input_injection": wrong_choices(["concat"]),
    "state_init": wrong_choices(["normal"]),
    "state_norm": wrong_choices(["layernorm"]),
    "recurrence_sampling": wrong_choices(["poisson"]),
    "recurrence_loss": wrong_choices(["uniform"]),
    "recurrence_gradients": wrong_choices(["separate"]),
    "halting_granularity": wrong_choices(["token"]),
    "halting_criterion": wrong_choices(["entropy"], optional=True),
    "block_model_type": [*wrong_texts(optional=True), "nonsense", "lama", "bert"],
    "block_config": wrong_mappings(optional=True),
    "rope_parameters": [*wrong_mappings(optional=True), {"rope_type": "nonsense"}, {"rope_theta": "big"}],
    "dtype": ["nonsense", 5, "float33"],
}
# Fields whose values contradict each other.
PAIRS = [
    {"hidden_size": 65, "num_attention_heads": 4},
    {"num_attention_heads": 4, "num_key_value_heads": 3},
    {"num_attention_heads": 4, "num_key_value_heads": 8},
    {"head_dim": 7},
    {"min_recurrences": 5, "max_recurrences": 4},
    {"recurrence_min": 5, "recurrence_max": 4},
    {"recurrence_sampling": "uniform"},
    {"recurrence_sampling": "uniform", "recurrence_min": 2},
    {"state_init": "normal"},
    {"state_init": "zeros", "input_injection": "none"},
    {"coda_norm": True},
    {"recurrence_gradients": "separate"},
    {"recurrence_gradients": "separate", "state_init": "zeros", "input_injection": "add"},
    {"halting_criterion": "exit_gate"},
    {"halting_criterion": "confidence", "num_coda_layers": 1, "halting_granularity": "token"},
    {"recurrence_lora_rank": 999},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.3}},
    {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}},
    {"rope_parameters": {"rope_type": "linear"}},
    {"block_model_type": "llama"},
    {"block_config": {"hidden_size": 16}},
    {"block_model_type": "llama", "block_config": {"hidden_size": "wide"}},
    {"block_model_type": "llama", "block_config": {"num_attention_heads": 3}},
    {"block_model_type": "llama", "block_config": {"hidden_size": -16}},
    {"block_model_type": "llama", "block_config": {}, "gated_mlp": False},
    {"block_model_type": "llama", "block_config": {}, "norm_type": "layernorm"},
    {"vocab_size": 60, "pad_token_id": 60},
    {"vocab_size": 60, "pad_token_id": 999},
    {"vocab_size": 60, "bos_token_id": 61},
    {"vocab_size": 60, "eos_token_id": [2, 80]},
    {"num_recurrences": 40, "recurrence_max": 30, "recurrence_sampling": "poisson"},
    {"position_embedding_type": "none", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    {"input_injection": "none", "injection_gate_init": 0.5},
    {"recurrence_loss": "last", "recurrence_loss_decay": 0.3},
    {"recurrence_lora_alpha": 2.0},
    {"attention_output_bias": True, "attention_bias": False},
    {"exit_gate": True, "halting_criterion": "exit_gate", "exit_gate_threshold": 2.0},
]
# Of the pairs above, those that are merely unusual.
HARMLESS = (
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.3}},
    *({"recurrence_lora_alpha": 2.0}, {"attention_output_bias": True, "attention_bias": False}),
    {"input_injection": "none", "injection_gate_init": 0.5},
    {"recurrence_loss": "last", "recurrence_loss_decay": 0.3},
    {"position_embedding_type": "none", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    {"num_recurrences": 40, "recurrence_max": 30, "recurrence_sampling": "poisson"},
    # Refused by the call, where the criterion can still be replaced.
    {"halting_criterion": "confidence", "num_coda_layers": 1, "halting_granularity": "token"},
    {"block_model_type": "llama", "block_config": {}, "gated_mlp": False},
    {"block_model_type": "llama", "block_config": {}, "norm_type": "layernorm"},
    {"block_config": {"hidden_size": 16}},
)
HUGE = ("num_recurrences", "max_recurrences", "recurrence_lora_count", "argmax_patience", "sliding_window")
SMALL = {"vocab_size": 61, "hidden_size": 16, "num_attention_heads": 2, "num_recurrent_layers": 1}


def make_config(style="llama", **values):
    # Only rotary positions read their parameters.
    is_gpt2 = style == "gpt2" and "rope_parameters" not in values
    preset = RecurrentDepthConfig.gpt2_style if is_gpt2 else RecurrentDepthConfig.llama_style
    return preset(**{**SMALL, **values})


def fault_of_config(config):
    """An accepted config can be written, read and made a model of, whose logits are finite."""
    values = json.loads(json.dumps(config.to_diff_dict(), allow_nan=False))
    model = RecurrentDepthForCausalLM(RecurrentDepthConfig(**values)).eval()
    with torch.no_grad():
        logits = model(torch.randint(0, min(61, config.vocab_size), (1, 4)), num_recurrences=2, use_cache=False).logits
    return None if logits.isfinite().all() else "logits are not finite"


def cases(rng: random.Random, world: Path) -> list[Case]:
    style = rng.choice(["llama", "gpt2"])
    made = field_cases(rng, "RecurrentDepthConfig", lambda **values: make_config(style, **values), WRONG, 5)
    made += [_pair(values) for values in PAIRS]
    made += [_huge(name, rng.choice([10**9, 10**12, 10**18])) for name in HUGE]
    names = [field.name for field in fields(RecurrentDepthConfig) if len(field.name) > 6 and field.name in WRONG]
    made += [_typo(name, misspelt(name, rng)) for name in some(rng, names, 25)]
    made += _set_later(rng)
    return made + _files(rng, world)


def _pair(values):
    return Case(
        "RecurrentDepthConfig",
        f"{values}",
        lambda scratch: make_config(**values),
        # What a block config says is also a field of ours.
        names=(*values, *values.get("block_config", {}), *(["hidden_size"] if "block_model_type" in values else [])),
        is_wrong=values not in HARMLESS,
        fault=fault_of_config,
    )


def _huge(name, value):
    return Case(
        "RecurrentDepthConfig",
        f"{name}={value}",
        lambda scratch: make_config(**{name: value}),
        names=(name,),
        value=value,
        is_wrong=False,
    )


def _typo(name, typo):
    return Case(
        "RecurrentDepthConfig",
        f"{typo}= for {name}",
        lambda scratch: make_config(**{typo: 1}),
        names=(typo,),
    )


def _set_later(rng):
    """Values that are set on a config that was right."""

    def change(name, value):
        config = make_config()
        setattr(config, name, value)
        config.validate()

    wrong = {name: values for name, values in WRONG.items() if name not in ("dtype", "block_model_type")}
    return [
        Case(
            "RecurrentDepthConfig.validate",
            f"{name}={value!r} set later",
            lambda scratch, name=name, value=value: change(name, value),
            names=(name,),
            value=value,
        )
        for name in some(rng, wrong, 20)
        for value in some(rng, wrong[name], 1)
    ]


def _files(rng, world):
    """`config.json` of a model folder, damaged, and with wrong values."""
    made = damage_cases(
        rng, "load_model_config", world / "text_model", ["config.json"], lambda folder: load_model_config(str(folder))
    )
    right = json.loads((world / "text_model" / "config.json").read_text())
    jsonable = {
        name: [value for value in values if _is_json(value)] for name, values in WRONG.items() if name in right
    }
    made += [
        _value_in_file(right, {name: value}, (name,), value)
        for name in some(rng, jsonable, 25)
        for value in some(rng, jsonable[name], 1)
    ]
    for values, names, value in [
        ({"model_type": "nonsense"}, ("model_type", "Python code"), NO_VALUE),
        ({"model_type": "llama"}, ("model_type",), "llama"),
        ({"model_type": 5}, ("model_type", "Python code"), NO_VALUE),
        ({"model_type": None}, ("model_type", "Python code"), NO_VALUE),
        ({"model_type": ["recurrent_depth"]}, ("model_type",), NO_VALUE),
        # Perhaps a field of a newer release.
        ({"num_recurences": 9}, ("num_recurences",), NO_VALUE),
        ({"dtype": "nonsense"}, ("dtype",), "nonsense"),
        ({"pad_token_id": 999}, ("pad_token_id",), 999),
        ({"architectures": 5}, ("architectures",), 5),
        ({"rope_parameters": {"rope_theta": {"a": 1}}}, ("rope",), NO_VALUE),
    ]:
        made.append(_value_in_file(right, values, names, value))
    return made


def _value_in_file(right, values, names, value):
    def read(scratch):
        (scratch / "model").mkdir()
        (scratch / "model" / "config.json").write_text(json.dumps({**right, **values}))
        return load_model_config(str(scratch / "model"))

    label = f"config.json with {values}"
    return Case(
        "load_model_config",
        label,
        read,
        names=names,
        value=value,
        is_wrong=not {"architectures", "num_recurences"} & set(values),
    )


def _is_json(value):
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
