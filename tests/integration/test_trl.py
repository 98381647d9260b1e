"""
TRL's trainers on a recurrent-depth model, which must work although they have no arguments for depth.

`SFTTrainer` calls the decoder and the weights of the head, never `RecurrentDepthForCausalLM.forward`.
"""

import pytest
import torch
from datasets import Dataset
from engines import shared_slots
from transformers import AutoModelForCausalLM
from transformers.utils import logging


trl = pytest.importorskip("trl", reason="trl is not installed")

TEXTS = ["the cat sat on the mat", "a dog", "what did the dog see? the cat", "the dog ran after the cat"] * 2
COMMON = {
    "max_steps": 1,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "bf16": False,
}


def load(saved, **fields):
    return AutoModelForCausalLM.from_pretrained(saved.folder, **fields)


def sft_loss(saved, folder, model, **arguments):
    """The loss of the first step over all texts."""
    config = trl.SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(TEXTS),
        learning_rate=1e-3,
        **COMMON,
        **{"max_length": 64, **arguments},
    )
    trainer = trl.SFTTrainer(
        model, config, train_dataset=Dataset.from_dict({"text": TEXTS}), processing_class=saved.tokenizer
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("fields", [{}, {"sliding_window": 3}], ids=str)
def test_packing_changes_no_loss(saved, tmp_path, fields):
    """Packed documents that attended to each other would have another loss."""
    plain = sft_loss(saved, tmp_path, load(saved, **fields), packing=False, padding_free=False)
    for packing in ({"padding_free": True, "max_length": None}, {"packing": True, "packing_strategy": "bfd"}):
        assert sft_loss(saved, tmp_path, load(saved, **fields), **packing) == pytest.approx(plain, rel=1e-4), packing


def test_depth_is_drawn(saved, tmp_path):
    model = load(saved, recurrence_sampling="uniform", recurrence_min=2, recurrence_max=6)
    depths = []
    model.model.register_forward_hook(lambda _, args, output: depths.append(int(output.num_recurrences[0])))
    config = trl.SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, max_length=64, **{**COMMON, "max_steps": 8}
    )
    dataset = Dataset.from_dict({"text": TEXTS})
    trl.SFTTrainer(model, config, train_dataset=dataset, processing_class=saved.tokenizer).train()
    assert len(depths) >= 8 and len(set(depths)) >= 3 and set(depths) <= set(range(2, 7))


def test_losses_over_recurrences_that_it_bypasses_are_warned_about(saved, tmp_path, capture_warnings):
    """With the controls: a model without them, and the plain Trainer (`test_stock_trainer.py`), say nothing."""
    for fields, expected in (({"recurrence_loss": "uniform"}, True), ({}, False)):
        logging.warning_once.cache_clear()
        with capture_warnings() as text:
            loss = sft_loss(saved, tmp_path, load(saved, num_recurrences=3, **fields))
        assert ("recurrence_loss='uniform'" in text() and "SFTTrainer" in text()) == expected
        # The loss is that of the last recurrence, as the warning says.
        ids = [saved.tokenizer(t + saved.tokenizer.eos_token, return_tensors="pt")["input_ids"] for t in TEXTS]
        with torch.no_grad():
            losses = [saved.model(row, labels=row, num_recurrences=3).loss * (row.shape[1] - 1) for row in ids]
        assert loss == pytest.approx(float(sum(losses)) / sum(row.shape[1] - 1 for row in ids), rel=1e-3)


def test_grpo_generates_at_the_depth_of_inference(saved, tmp_path):
    """The trainer generates in training mode: with the config's criterion, and without drawing a depth per token."""
    fields = {"recurrence_sampling": "uniform", "recurrence_min": 5, "recurrence_max": 6}
    halting = {"halting_criterion": "state_difference", "state_difference_threshold": 0.4, "max_recurrences": 4}
    model = load(saved, **fields, **halting)
    generated, trained = set(), set()

    def watch(_, args, output):
        (trained if torch.is_grad_enabled() else generated).update(output.num_recurrences.flatten().tolist())

    model.model.register_forward_hook(watch)
    config = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        gradient_checkpointing=False,
        **COMMON,
    )
    trl.GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": TEXTS}),
        processing_class=saved.tokenizer,
    ).train()
    assert generated - {0} <= {1, 2, 3, 4} and len(generated - {0}) >= 2
    assert trained <= {5, 6} and trained


def grpo_completions(saved, folder, model, **arguments):
    """Trains with completions of continuous batching; returns them, as the reward function receives them."""
    config = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=6,
        learning_rate=1e-3,
        use_transformers_continuous_batching=True,
        # By default, the cache would take half of the machine's memory. Not all requests fit into this one at once.
        transformers_continuous_batching_config={"page_size": 8, "num_blocks": 6, "max_batch_tokens": 8},
        **{**COMMON, **arguments},
    )
    completions = []

    def reward(completion_ids, **_):
        completions.extend(completion_ids)
        return [float(len(set(ids))) for ids in completion_ids]

    trainer = trl.GRPOTrainer(
        model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": TEXTS[:4]}),
        processing_class=saved.tokenizer,
    )
    trainer.train()
    assert model.config._attn_implementation == "sdpa"
    return completions


def test_grpo_with_continuous_batching_is_exact(saved, tmp_path):
    """Sampling from one token is greedy. The control: with one slot for all recurrences, it writes other texts."""
    expected = set()
    for text in TEXTS[:4]:
        ids = saved.tokenizer(text, return_tensors="pt")["input_ids"]
        output = saved.model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False)
        expected.add(tuple(output[0, ids.shape[1] :].tolist()))
    arguments = {"top_k": 1, "gradient_accumulation_steps": 2}
    written = grpo_completions(saved, tmp_path, load(saved), **arguments)
    assert {tuple(ids) for ids in written} == expected and len(written) == 8
    model = load(saved)
    with shared_slots(model):
        assert {tuple(ids) for ids in grpo_completions(saved, tmp_path, model, **arguments)} != expected


def test_grpo_trains_on_completions_of_continuous_batching(saved, tmp_path):
    """The depth of a training step is drawn; that of a completion is the config's."""
    model = load(saved, recurrence_sampling="uniform", recurrence_min=5, recurrence_max=6)
    before = {name: value.clone() for name, value in model.named_parameters()}
    generated, trained = set(), set()

    def watch(_, args, output):
        (trained if torch.is_grad_enabled() else generated).add(int(output.num_recurrences[0]))

    model.model.register_forward_hook(watch)
    completions = grpo_completions(saved, tmp_path, model, max_steps=3)
    assert generated == {3} and trained <= {5, 6} and trained
    assert len({tuple(ids) for ids in completions}) > 4
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
