"""A small valid folder of everything that the entrances read: models, adapters, data, recipes, results."""

import contextlib
import io
import json
from pathlib import Path

import torch
from family_models import tiny_source
from published_loops import published, save_any
from small_adapters import adapted, as_if_trained, save_base
from small_tokenizers import byte_level, llama
from text_models import TEXT, save_text_model

from memreason_hf.adapters.modes import save_adapter
from memreason_hf.commands import convert, evaluate, evaluate_steps, perplexity, sweep
from memreason_hf.data import (
    MultiHopConfig,
    build_memory_reason,
    build_multi_hop,
    load_multi_hop_tokenizer,
    save_memory_reason,
    save_multi_hop,
)
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


WORLD_SIZES = {
    "num_entities": 6,
    "num_relations": 3,
    "train_hops": "2-3",
    "test_hops": "2-4",
    "num_train_chains": 20,
    "num_test_chains": 4,
    "num_small_test_chains": 2,
    "num_atomic_probes": 3,
    "num_train_probes": 3,
    "cap_to_available": True,
}
TRAINING = {
    "per_device_train_batch_size": 4,
    "max_steps": 1,
    "save_steps": 1,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "disable_tqdm": True,
}
TEXT_FIELDS = {
    "style": "llama",
    "vocab_size": 280,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_recurrent_layers": 1,
    "num_recurrences": 2,
    "input_injection": "add",
}
CHAIN_FIELDS = {
    "style": "gpt2",
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_recurrent_layers": 1,
    "num_recurrences": 2,
    "position_embedding_type": "none",
    "input_injection": "add",
    "state_norm": "layernorm",
}


def question_items(count=4):
    return [
        {
            "question": f"Is the step {number} a reason?",
            "answer": str(number % 2 == 0),
            "cot_steps": [f"[rag]: the {number}", "[reason]: so it is"],
        }
        for number in range(count)
    ]


def build_world(folder: Path) -> Path:
    """Fills `folder`, which does not exist."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        _chains(folder)
        _texts(folder)
        _steps(folder)
        _conversions(folder)
        _recipes(folder)
    return folder


def _chains(folder):
    save_multi_hop(build_multi_hop(MultiHopConfig(**WORLD_SIZES)), folder / "chains")
    tokenizer = load_multi_hop_tokenizer(folder / "chains")
    fields = {name: value for name, value in CHAIN_FIELDS.items() if name != "style"}
    config = RecurrentDepthConfig.gpt2_style(
        vocab_size=len(tokenizer),
        max_recurrences=6,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        **fields,
    )
    RecurrentDepthForCausalLM(config).save_pretrained(folder / "chain_model")
    tokenizer.save_pretrained(folder / "chain_model")
    arguments = [str(folder / "chain_model"), "--data", str(folder / "chains"), "--no_progress"]
    arguments += ["--output_dir", str(folder / "results"), "--hops", "2", "--max_recurrences", "3"]
    evaluate.main([*arguments, "--halting_criterion", "kl"])
    sweep.main(arguments)


def _texts(folder):
    save_text_model(folder / "text_model")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(TEXT)
    lines = [json.dumps({"text": f"{index} {TEXT}"}) for index in range(8)]
    (folder / "texts" / "b.jsonl").write_text("\n".join(lines) + "\n")
    arguments = [str(folder / "text_model"), "--data", str(folder / "texts" / "a.txt"), "--no_progress"]
    perplexity.main([*arguments, "--max_recurrences", "2", "--output_dir", str(folder / "results")])


def _steps(folder):
    tokenizer = byte_level()
    model = llama(len(tokenizer), max_position_embeddings=256)
    extend_tokenizer(tokenizer, StepScheme(1, 2), model)
    model.save_pretrained(folder / "steps_model")
    tokenizer.save_pretrained(folder / "steps_model")
    save_base(folder / "base", max_position_embeddings=256)
    byte_level().save_pretrained(folder / "base")
    model, tokenizer = adapted(folder / "base", "lora+tokens")
    save_adapter(as_if_trained(model), tokenizer, folder / "adapter")
    json_folder = folder / "question_files"
    json_folder.mkdir()
    for split in ("train", "test"):
        items = [{**item, "question": f"{item['question']} In {split}?"} for item in question_items()]
        (json_folder / f"StrategyQA_{split}_clean.json").write_text(json.dumps(items))
    save_memory_reason(build_memory_reason("strategy_qa", str(json_folder)), folder / "questions")
    evaluate_steps.main(
        [
            *(str(folder / "steps_model"), "--data", str(folder / "questions"), "--max_new_tokens", "4"),
            *("--output_file", str(folder / "generations.jsonl"), "--no_progress"),
        ]
    )


def _conversions(folder):
    tokenizer = byte_level()
    tiny_source("llama", vocab_size=len(tokenizer), num_hidden_layers=3).save_pretrained(folder / "source")
    tokenizer.save_pretrained(folder / "source")
    layers = ["--prelude", "1", "--loop", "1", "--coda", "1", "--input_injection", "none"]
    convert.main([str(folder / "source"), str(folder / "looped"), *layers])
    for kind in ("huginn", "ouro"):
        save_any(folder / kind, kind, *published(kind))


def _recipes(folder):
    recipes = {
        "chains": {
            "model": CHAIN_FIELDS,
            "data": {"path": str(folder / "chains"), **WORLD_SIZES},
            "training": TRAINING,
        },
        "text": {
            "model": TEXT_FIELDS,
            "data": {"kind": "text", "files": str(folder / "texts" / "*.jsonl"), "sequence_length": 24},
            "training": TRAINING,
        },
        "finetune": {
            "data": {"path": str(folder / "question_files"), "name": "strategy_qa"},
            "model": {"path": str(folder / "base")},
            "steps": {"num_prefix_tokens": 1, "num_step_tokens": 2},
            "adapter": {"mode": "full"},
            "training": {**TRAINING, "max_new_tokens": 2, "num_test": 1, "lr_scheduler_type": "constant"},
        },
    }
    (folder / "recipes").mkdir()
    for name, content in recipes.items():
        (folder / "recipes" / f"{name}.yaml").write_text(json.dumps(content, indent=1))
