"""Packed solutions train as single ones do: the same gradient, and no solution sees another."""

import functools

import pytest
import torch
from small_adapters import adapted, save_base
from small_finetunes import FAMILIES, ITEMS, small_finetune, small_model, small_tokenizer
from small_runs import weights
from transformers import MambaConfig, MambaForCausalLM

from memreason_hf.data.questions.encoding import encode_solutions
from memreason_hf.steps.attention import set_step_attention
from memreason_hf.training.solutions import trainer as trainer_file
from memreason_hf.training.solutions.packing import PackedStepCollator, check_packing, pack_solutions


LENGTH = 100
# One step of SGD with the rate 1: the change of the weights is the gradient.
ONE_STEP = {
    "optim": "sgd",
    "learning_rate": 1.0,
    "max_steps": 1,
    "max_grad_norm": 0.0,
    "weight_decay": 0.0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "length_pool": 1,
}


def gradient(folder, family, rows, **arguments):
    model = small_model(family)
    if family == "recurrent":
        # Dropout would be drawn for other positions.
        model.config.residual_dropout = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    elif family == "gpt2":
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.attn_pdrop = 0.0
        for block in model.transformer.h:
            block.attn.attn_dropout.p = 0.0
    before = weights(model)
    trainer = small_finetune(folder, model=model, per_device_train_batch_size=rows, **ONE_STEP, **arguments)
    trainer.train()
    return trainer, {name: before[name] - value for name, value in weights(trainer.model).items()}


def difference(first, second):
    """The largest difference of two gradients, as a share of the largest entry."""
    return max(float((first[n] - second[n]).abs().max()) for n in first) / max(
        float(value.abs().max()) for value in first.values()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_changes_no_gradient(family, tmp_path, monkeypatch):
    """The control: the same rows with positions that go on, so that a solution sees those before it."""
    plain, expected = gradient(tmp_path / "plain", family, len(ITEMS))
    num_rows = len(pack_solutions(encode_solutions(small_tokenizer(), ITEMS)[0], LENGTH)[0])
    packed, found = gradient(tmp_path / "packed", family, num_rows, packing_length=LENGTH)
    assert 1 < num_rows < len(ITEMS) and packed.packing.num_solutions == len(plain.train_rows) == len(ITEMS)
    assert difference(expected, found) < 1e-4

    class GoingOn(PackedStepCollator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            del batch["position_ids"]
            return batch

    monkeypatch.setattr(trainer_file, "PackedStepCollator", GoingOn)
    _, seen = gradient(tmp_path / "seen", family, num_rows, packing_length=LENGTH)
    assert difference(expected, seen) > 1e-2


def test_rows_hold_every_solution_once_in_constant_length():
    rows, _ = encode_solutions(small_tokenizer(), ITEMS)
    packed, report = pack_solutions(rows, LENGTH)
    found = []
    for row in packed:
        start = 0
        for size in row["seq_lengths"]:
            found.append((row["input_ids"][start : start + size], row["label_ids"][start : start + size]))
            start += size
        assert start == len(row["input_ids"]) <= LENGTH
    assert sorted(found) == sorted((row["input_ids"], row["label_ids"]) for row in rows)
    assert report.num_tokens == sum(len(row["input_ids"]) for row in rows) and f"{LENGTH} tokens" in report.describe()
    batch = PackedStepCollator(small_tokenizer(), LENGTH)(list(packed))
    assert {value.shape for value in batch.values()} == {(len(packed), LENGTH)}
    # The last position of a solution has no label, so that none is compared with the next solution.
    starts = batch["position_ids"][:, 1:] == 0
    assert bool((batch["shift_labels"][:, :-1][starts] == -100).all())
    longest = max(len(row["input_ids"]) for row in rows)
    with pytest.raises(ValueError, match=f"packing_length={longest - 1} is less than the {longest} tokens"):
        pack_solutions(rows, longest - 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_models_that_keep_texts_apart_pass(family, batch_size):
    model = small_model(family).train()
    check_packing(model, batch_size)
    assert model.training


def test_models_that_mix_texts_are_refused_before_training(tmp_path):
    mixing = small_model("llama")
    forward = mixing.forward

    @functools.wraps(forward)
    def without_positions(*args, position_ids=None, **kwargs):
        return forward(*args, **kwargs)

    mixing.forward = without_positions
    trainer = small_finetune(tmp_path / "run", model=mixing, packing_length=LENGTH)
    with pytest.raises(ValueError, match="packing_length: in packed rows the texts of this llama would see each"):
        trainer.train()
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_state_that_runs_through_the_row_is_noticed():
    class Mamba(MambaForCausalLM):
        def forward(self, input_ids=None, position_ids=None, use_cache=None, **kwargs):
            return super().forward(input_ids=input_ids, use_cache=False, **kwargs)

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = Mamba(MambaConfig(vocab_size=100, **sizes))
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with pytest.raises(ValueError, match="the texts of this mamba would see each other"):
        check_packing(model)


def test_what_belongs_to_a_single_text_is_refused(tmp_path):
    model, tokenizer = small_model("llama"), small_tokenizer()
    set_step_attention(model, tokenizer, "own")
    with pytest.raises(ValueError, match="packing_length cannot be combined with step attention 'own'"):
        check_packing(model)
    model, _ = adapted(save_base(tmp_path / "base"), "prompt")
    with pytest.raises(ValueError, match=r"packing_length cannot be combined with adapter\.mode='prompt'"):
        check_packing(model)


def test_a_packed_run_that_is_resumed_is_the_undisturbed_one(tmp_path):
    arguments = {"packing_length": LENGTH, "per_device_train_batch_size": 1, "max_steps": 4, "eval_strategy": "no"}
    arguments |= {"save_strategy": "steps", "save_steps": 2}
    whole = small_finetune(tmp_path / "whole", **arguments)
    whole.train()
    again = small_finetune(tmp_path / "whole", **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = weights(whole.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again.model).items())
    assert whole.steps_per_epoch == len(whole.train_rows) < len(ITEMS)
