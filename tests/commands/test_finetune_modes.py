"""`memreason finetune` in its adapter modes and packed: from the recipe to solutions, from any folder."""

import json

import pytest
import torch
from refusals import refused
from small_tokenizers import byte_level, llama
from test_finetune import TRAINING, write_questions
from transformers import AutoModelForCausalLM

from memreason_hf.adapters.modes import load_adapter
from memreason_hf.commands import evaluate_steps, finetune, merge


STEPS = {"num_prefix_tokens": 1, "num_step_tokens": 2}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with questions and a base, which commands name by relative paths, and another folder."""
    tokenizer = byte_level()
    llama(len(tokenizer), max_position_embeddings=256).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    write_questions(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_recipe(adapter, **training):
    recipe = {
        "data": {"path": "data", "name": "strategy_qa"},
        "model": {"path": "base"},
        "steps": STEPS,
        "adapter": adapter,
        "training": {**TRAINING, "output_dir": "run", "num_train_epochs": 1, **training},
    }
    with open("recipe.yaml", "w") as file:
        json.dump(recipe, file)
    return "recipe.yaml"


@pytest.mark.parametrize(
    ("adapter", "flags"),
    [
        ({"mode": "prompt"}, ["--prompt_init_text", "the first step is a memory"]),
        ({"mode": "lora+tokens", "use_rslora": True}, ["--lora_modules", "q_proj", "v_proj", "--use_dora"]),
        ({"mode": "lora"}, ["--packing_length", "200"]),
    ],
    ids=["prompt", "dora", "packed"],
)
def test_trained_evaluated_and_merged_from_another_folder(world, adapter, flags, monkeypatch, capsys):
    assert finetune.main([write_recipe(adapter), *flags]) == 0
    printed = capsys.readouterr().out
    assert ("Packed into" in printed) == ("--packing_length" in flags) and "Its eval_acc is" in printed
    monkeypatch.chdir(world / "elsewhere")
    inputs = ["../run", "--data", "../data", "--name", "strategy_qa", "--max_new_tokens", "6", "--no_progress"]
    assert evaluate_steps.main([*inputs, "--output_file", "texts.jsonl"]) == 0
    model, _ = load_adapter("../run")
    if adapter["mode"] == "prompt":
        assert model.num_virtual_tokens == len(byte_level()("the first step is a memory")["input_ids"])
        assert "virtual tokens are inputs" in refused(capsys, merge.main, ["../run", "merged"])
        return
    names = {name.split(".")[-4] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert names == ({"q_proj", "v_proj"} if "--use_dora" in flags else {"gate_proj", "up_proj", "down_proj"})
    assert merge.main(["../run", "merged"]) == 0
    assert isinstance(AutoModelForCausalLM.from_pretrained("merged").lm_head, torch.nn.Linear)


def test_a_finished_run_is_extended_by_the_same_command(world, capsys, caplog):
    recipe = write_recipe({"mode": "tokens"}, lr_scheduler_type="cosine")
    assert finetune.main([recipe]) == 0
    line = refused(capsys, finetune.main, [recipe, "--num_train_epochs", "2"])
    assert "num_train_epochs was 1.0, now 2.0" in line and "add --extend" in line
    assert finetune.main([recipe, "--num_train_epochs", "2", "--extend"]) == 0
    assert "Trained for 4 steps" in capsys.readouterr().out and "is extended (training.num_train" in caplog.text
    assert finetune.main([recipe, "--num_train_epochs", "2"]) == 0
    assert "The run was finished already, after 4 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("adapter", "flags", "message"),
    [
        ({"mode": "prompt"}, ["--packing_length", "200"], "packing_length cannot be combined with adapter.mode"),
        ({"mode": "prompt"}, ["--num_virtual_tokens", "300"], "adapter.num_virtual_tokens=300 must be below"),
        ({"mode": "lora"}, ["--packing_length", "10"], "items are longer than 10 tokens"),
        ({"mode": "lora"}, ["--lora_modules", "c_attn"], "has no linear layer 'c_attn'"),
        ({"mode": "tokens"}, ["--use_dora"], "use_dora=True has no effect in the mode 'tokens'"),
        ({"mode": "prompt"}, ["--step_attention", "own"], "mode='prompt' cannot be combined with step attention"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_one_line(world, adapter, flags, message, capsys):
    assert message in refused(capsys, finetune.main, [write_recipe(adapter), *flags])
    assert not (world / "run" / "run.json").exists()
