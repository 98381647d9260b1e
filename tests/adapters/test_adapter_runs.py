"""Trainers write adapters as `save_adapter` does, and resume from them exactly."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from small_adapters import SCHEME, adapted, save_base, some_ids
from small_runs import assert_same_weights, small_chains, small_model, small_trainer, weights
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

from memreason_hf.adapters.modes import AdapterArguments, add_adapter, load_adapter
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer, read_scheme
from memreason_hf.training.runs.checkpoints import verify
from memreason_hf.training.runs.errors import OutputFolderError


MODES = ("lora", "tokens", "lora+tokens")
WEIGHTS = "adapter_model.safetensors"


def plain_trainer(output_dir, base, mode, **arguments):
    """The Trainer of the library."""
    set_seed(3)
    model, tokenizer = adapted(base, mode, lora_targets="all", lora_dropout=0.1)
    ids = some_ids(tokenizer, rows=24, length=8).tolist()
    defaults = {
        "output_dir": str(output_dir),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": [],
        "seed": 5,
    }
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    return Trainer(
        model=model,
        args=TrainingArguments(**{**defaults, **arguments}),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_checkpoints_of_the_plain_trainer(mode, tied, tmp_path):
    base = save_base(tmp_path / "base", tied=tied)
    trainer = plain_trainer(tmp_path / "run", base, mode)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    rows = len(SCHEME.tokens) * 16 * (1 if tied else 2)
    for folder in (tmp_path / "run" / "checkpoint-3", tmp_path / "run" / "checkpoint-6", tmp_path / "final"):
        stored = load_file(folder / WEIGHTS)
        assert sum(tensor.numel() for tensor in stored.values()) == trainable + rows * (mode == "lora")
        assert not (folder / "model.safetensors").exists()
        assert json.loads((folder / "memreason_adapter.json").read_text())["mode"] == mode
        loaded, tokenizer = load_adapter(folder)
        assert read_scheme(tokenizer) == SCHEME
    ids = some_ids(tokenizer)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, trainer.model.eval()(input_ids=ids).logits)

    resumed = plain_trainer(tmp_path / "run", base, mode)
    start = weights(resumed.model)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    end = weights(resumed.model)
    assert_same_weights(end, weights(trainer.model))
    trained = {name for name, parameter in resumed.model.named_parameters() if parameter.requires_grad}
    moved = {name for name in end if not torch.equal(start[name], end[name])}
    assert moved == trained


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    base = save_base(tmp_path / "base")
    arguments = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True, "learning_rate": 0.5}
    trainer = plain_trainer(tmp_path / "run", base, "lora+tokens", **arguments)
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/{WEIGHTS}")
    stored = trainer.model.stored_weights()
    assert stored.keys() == best.keys()
    assert all(torch.equal(stored[name], best[name]) for name in best)


def recurrent_trainer(output_dir, base, mode, **arguments):
    # A copy, because all runs share the tokenizer of the chains.
    tokenizer = copy.deepcopy(small_chains()[0])
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    extend_tokenizer(tokenizer, StepScheme(1, 1), model)
    model = add_adapter(model, tokenizer, AdapterArguments(mode, lora_targets="all", lora_r=4))
    trainer = small_trainer(output_dir, model, **arguments)
    trainer.processing_class = tokenizer
    return trainer


@pytest.fixture
def recurrent_base(tmp_path):
    small_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("mode", MODES)
def test_runs_of_recurrent_models(mode, recurrent_base, tmp_path):
    whole = recurrent_trainer(tmp_path / "whole", recurrent_base, mode)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-8"
    verify(checkpoint)
    assert (checkpoint / WEIGHTS).is_file() and not (checkpoint / "model.safetensors").exists()
    loaded, tokenizer = load_adapter(checkpoint)
    assert read_scheme(tokenizer) == StepScheme(1, 1) and loaded.adapter_mode == mode

    again = recurrent_trainer(tmp_path / "whole", recurrent_base, mode)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(weights(again.model), weights(whole.model))
    assert not torch.equal(
        next(iter(loaded.stored_weights().values())), next(iter(whole.model.stored_weights().values()))
    )

    whole.save_model()
    final, _ = load_adapter(tmp_path / "whole")
    stored = whole.model.stored_weights()
    assert all(torch.equal(value, stored[name]) for name, value in final.stored_weights().items())
    assert {"adapter_config.json", WEIGHTS} <= set(json.loads((tmp_path / "whole" / "run.json").read_text())["files"])


def test_another_adapter_is_another_run(recurrent_base, tmp_path):
    recurrent_trainer(tmp_path / "run", recurrent_base, "lora", max_steps=4).train()
    other = recurrent_trainer(tmp_path / "run", recurrent_base, "lora+tokens", max_steps=4)
    with pytest.raises(OutputFolderError, match=r"adapter\.mode was 'lora', now 'lora\+tokens'"):
        other.train(resume_from_checkpoint=True)
    # A folder with an adapter of unknown origin is not overwritten either.
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "adapter_config.json").write_text("{}")
    with pytest.raises(OutputFolderError, match=r"holds adapter_config\.json, but no run\.json"):
        recurrent_trainer(tmp_path / "strange", recurrent_base, "lora", max_steps=4).train()
