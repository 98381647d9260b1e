"""`memreason finetune --visible_marks true`: only the tokenizer differs, and it keeps the switch."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_tokenizers import byte_level, llama
from transformers import AutoTokenizer, pipeline

from memreason_hf.adapters.saving import load_adapter
from memreason_hf.commands import finetune
from memreason_hf.steps.tokenization import has_visible_marks, read_scheme


QUESTIONS = [
    {
        "question": f"Is the step {number} a memory?",
        "answer": str(number % 2 == 0),
        "cot_steps": ["[rag]: The memory is a step.", "[reason]: So it is."],
    }
    for number in range(6)
]
TRAINING = {"max_steps": 2, "learning_rate": 1e-2, "eval_strategy": "no", "use_cpu": True, "disable_tqdm": True}


@pytest.fixture
def train(tmp_path):
    """Trains two steps from a small Llama; returns the folder."""
    (tmp_path / "data").mkdir()
    for split, items in (("train", QUESTIONS[:4]), ("test", QUESTIONS[4:])):
        (tmp_path / "data" / f"StrategyQA_{split}_clean.json").write_text(json.dumps(items))
    tokenizer = byte_level()
    torch.manual_seed(0)
    llama(len(tokenizer), max_position_embeddings=256).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")

    def run(name, *flags, mode="full"):
        recipe = {
            "data": {"path": str(tmp_path / "data"), "name": "strategy_qa"},
            "model": {"path": str(tmp_path / "base")},
            "steps": {"num_prefix_tokens": 1, "num_step_tokens": 2},
            "adapter": {"mode": mode},
            "training": {**TRAINING, "output_dir": str(tmp_path / name)},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        assert finetune.main([str(path), *flags]) == 0
        return tmp_path / name

    return run


def test_only_the_tokenizer_differs(train):
    hidden, visible = train("hidden"), train("visible", "--visible_marks", "true")
    weights = [load_file(folder / "model.safetensors") for folder in (hidden, visible)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (hidden, visible)]
    assert [has_visible_marks(tokenizer) for tokenizer in tokenizers] == [False, True]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert read_scheme(tokenizers[0]) == read_scheme(tokenizers[1])
    text = pipeline("text-generation", model=str(visible), device="cpu")("<prefix><memory_0>", max_new_tokens=1)
    assert text[0]["generated_text"].startswith("<prefix><memory_0>")


def test_an_adapter_keeps_the_switch(train):
    folder = train("adapter", "--visible_marks", "true", mode="lora+tokens")
    _, tokenizer = load_adapter(folder)
    assert has_visible_marks(tokenizer)
