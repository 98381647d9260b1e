"""Malformed calls of the functions that make, convert, adapt and load models."""

import math
import random
from pathlib import Path

import torch
from family_models import tiny_source
from malformed_cases import (
    Case,
    field_cases,
    show,
    wrong_choices,
    wrong_floats,
    wrong_ints,
    wrong_texts,
)
from malformed_functions import NOT_PATHS, NOWHERE, case, one_argument
from small_tokenizers import byte_level, llama, recurrent
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaModel

from memreason_hf import StepScheme, extend_tokenizer
from memreason_hf.adapters.modes import AdapterArguments, add_adapter, load_adapter
from memreason_hf.models import convert_decoder, convert_published, unroll_decoder
from memreason_hf.models.loading import choose_device, load_model, load_tokenizer
from memreason_hf.models.new_models import NewModelArguments, build_new_model
from memreason_hf.models.recurrent_models import make_model


def cases(rng: random.Random, world: Path) -> list[Case]:
    torch.manual_seed(rng.getrandbits(30))
    return _models(rng, world)


def _models(rng, world):
    wrong = {
        "architecture": wrong_choices(["llama"], optional=True),
        **{name: wrong_ints(1) for name in ("hidden_size", "num_layers", "num_attention_heads")},
        **{name: wrong_ints(1) for name in ("max_position_embeddings", "num_recurrences")},
    }
    tokenizer = byte_level()
    small = {"architecture": "recurrent", "hidden_size": 16, "num_layers": 3, "num_attention_heads": 2}
    made = field_cases(
        rng, "build_new_model", lambda **v: build_new_model(NewModelArguments(**{**small, **v}), tokenizer), wrong, 5
    )
    made.append(
        case(
            "build_new_model",
            "heads that do not divide",
            lambda: build_new_model(NewModelArguments(**{**small, "num_attention_heads": 3}), tokenizer),
            ["num_attention_heads"],
        )
    )
    for style in ("nonsense", 5, None):
        made += one_argument("make_model", lambda v: make_model({}, tokenizer, style=v), "style", [style])
    for values in (
        {"hiden_size": 5},
        {"hidden_size": "x"},
        {"vocab_size": 5},
        {"path": NOWHERE},
        {"path": str(world / "base")},
        {"path": str(world / "text_model"), "hidden_size": 99},
        {"style": "nonsense"},
    ):
        made.append(case("make_model", f"{values}", lambda v=values: make_model(v, tokenizer), [*values, "base"]))
    made += _conversions(world)
    made += _loading(world)
    base = {
        "mode": wrong_choices(["lora"]),
        "lora_r": wrong_ints(1),
        "lora_alpha": wrong_floats(0, open_low=True),
        "lora_dropout": wrong_floats(0, 1),
        "lora_targets": wrong_texts(),
    }

    def adapter(**values):
        tokenizer = byte_level()
        model = llama(len(tokenizer))
        extend_tokenizer(tokenizer, StepScheme(1, 1), model)
        return add_adapter(model, tokenizer, AdapterArguments(**{"mode": "lora", **values}))

    made += field_cases(rng, "add_adapter", adapter, base, 5)
    made += one_argument("add_adapter", lambda v: adapter(lora_targets=v), "lora_targets", ["nonsense", "", "q_prj"])
    made += one_argument("add_adapter", lambda v: adapter(lora_r=v), "lora_r", [10**12])
    return made


def _conversions(world):
    source = tiny_source("llama", num_hidden_layers=3)
    made = []
    for values in (
        {"prelude": -1},
        {"prelude": 9},
        {"prelude": "x"},
        {"prelude": "0-9"},
        {"prelude": "2-1"},
        {"prelude": 2.5},
        {"prelude": [0.5]},
        {"prelude": [7]},
        {"loop": 0},
        {"loop": []},
        {"loop": ""},
        {"loop": "0-1", "prelude": "0-1"},
        {"loop": "0", "coda": "0"},
        {"loop": {"a": 1}},
        {"coda": 3},
        {"coda": math.nan},
        {"prelude": 2, "loop": 2},
        {"hidden_size": 5},
        {"vocab_size": 5},
        {"num_recurrences": 0},
        {"num_recurrences": "x"},
        {"num_recurences": 3},
        {"input_injection": "nonsense"},
        {"injection_gate_init": math.nan},
        {"recurrence_lora_rank": -1},
        {"recurrence_lora_rank": 10**9},
        {"num_coda_layers": 1},
        {"state_init": "normal", "input_injection": "none"},
        {"share_weights": "maybe"},
    ):
        made.append(case("convert_decoder", f"{values}", lambda v=values: convert_decoder(source, **v), values))
    bert = BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=50, is_decoder=True)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 50}
    for label, model, name in (
        ("BERT", BertLMHeadModel(bert), "bert"),
        ("a recurrent model", recurrent(50), "recurrent-depth"),
        ("no head", LlamaModel(LlamaConfig(**sizes, intermediate_size=16)), "head"),
        ("a text", "text", "model"),
        ("None", None, "model"),
        ("a module", torch.nn.Linear(2, 2), "model"),
    ):
        made.append(case("convert_decoder", label, lambda m=model: convert_decoder(m), [name]))
    looped = convert_decoder(source, prelude=1, loop=1, coda=1, input_injection="none")
    made += one_argument(
        "unroll_decoder", lambda v: unroll_decoder(looped, v), "num_recurrences", [0, -1, "x", 2.5, None, math.nan]
    )
    gated = convert_decoder(source, prelude=1, loop=1, coda=1)
    made.append(case("unroll_decoder", "a closed gate", lambda: unroll_decoder(gated, 3), ["num_recurrences"], 3))
    for label, model in (("a decoder", source), ("our own blocks", recurrent(50)), ("a text", "text"), ("None", None)):
        made.append(case("unroll_decoder", label, lambda m=model: unroll_decoder(m, 2), ["model", "block_model_type"]))
    for path in (*NOT_PATHS, str(world / "texts"), str(world / "base"), str(world / "text_model"), 5, None):
        name = str(path)[:20] or "source"
        made.append(
            case("convert_published", show(path), lambda p=path: convert_published(p), [name, "source", "base"])
        )
    for values in ({"num_attention_heads": 3}, {"hidden_size": 5}, {"num_recurrences": 0}, {"nonsense": 1}):
        made.append(
            case(
                "convert_published", f"{values}", lambda v=values: convert_published(str(world / "ouro"), **v), values
            )
        )
    return made


def _loading(world):
    made = []
    text_model = str(world / "text_model")
    for path in (*NOT_PATHS, str(world / "texts"), str(world / "texts" / "a.txt"), 5, None, [1]):
        name = str(path)[:20] or "model"
        made.append(case("load_model", show(path), lambda p=path: load_model(p), [name, "model"]))
        made.append(case("load_adapter", show(path), lambda p=path: load_adapter(p), [name, "folder", "adapter"]))
    made += one_argument(
        "load_model", lambda v: load_model(text_model, v), "dtype", ["nonsense", "", 5, None, "float33"]
    )
    made += one_argument(
        "load_model", lambda v: load_model(text_model, base=v), "base", [str(world / "base"), NOWHERE]
    )
    made.append(case("load_model", "no adapter", lambda: load_model(text_model, nonsense=5), ["nonsense"]))
    made += one_argument(
        "load_adapter",
        lambda v: load_adapter(world / "adapter", base=v),
        "base",
        [NOWHERE, str(world / "texts"), str(world / "text_model"), 5, str(world / "steps_model")],
        names=("steps_model", "text_model", "texts", "tokenizer"),
    )
    made += one_argument(
        "load_adapter", lambda v: load_adapter(world / "adapter", base_check=v), "base_check", ["x", 5, None]
    )
    made += one_argument("load_adapter", lambda v: load_adapter(world / "adapter", dtype=v), "dtype", ["nonsense", 5])
    config = llama(50).config
    made += one_argument(
        "load_tokenizer",
        lambda v: load_tokenizer(text_model, v, config),
        "tokenizer",
        [NOWHERE, "", str(world / "texts"), str(world / "huginn"), 5],
    )
    made += one_argument("choose_device", choose_device, "device", ["nonsense", "", "cuda:99", "cpu:x", 5, "meta"])
    return made
