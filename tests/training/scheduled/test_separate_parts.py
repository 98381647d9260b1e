"""What later recurrences add is trained apart from the first recurrence: gradients, clipping, learning rate."""

import pytest
import torch
from processes import load_result, run_ranks, save_result
from small_runs import assert_same_weights, small_model, small_trainer, weights

from memreason_hf.training.scheduled.trainer import may_leave_out_parameters


BLOCKS = {"residual_dropout": 0.0, "initializer_range": 0.2, "state_norm": "none", "num_prelude_layers": 1}
LATER = {
    "recurrence_gradients": "separate",
    "input_injection": "gate",
    "injection_gate_init": 0.5,
    "recurrence_lora_rank": 4,
    "recurrence_lora_count": 1,
    "recurrence_min": 2,
    "recurrence_max": 5,
}
STATIC = {"input_injection": "none", "recurrence_sampling": "fixed", "num_recurrences": 1, "recurrence_min": None}
# Gradients of the first steps are well above this norm, so that clipping decides every step.
RUN = {"supervision": "prefix", "max_steps": 10, "save_strategy": "no", "max_grad_norm": 0.3, "logging_steps": 1}


def later_model(**fields):
    """The static model with what later recurrences add, which starts without effect on the first."""
    model = small_model(**BLOCKS, **{**LATER, **fields})
    shared = weights(small_model(**BLOCKS, **{**STATIC, "recurrence_max": None}))
    missing = model.load_state_dict(shared, strict=False)
    assert not missing.unexpected_keys
    return model, shared


def norms(trainer):
    return [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]


@pytest.mark.parametrize("consistency_weight", [0.0, 0.5])
def test_one_recurrence_is_trained_as_the_static_model_is_bit_for_bit(tmp_path, consistency_weight):
    static = small_model(**BLOCKS, **{**STATIC, "recurrence_max": None})
    small_trainer(tmp_path / "static", static, **RUN).train()
    model, before = later_model()
    trainer = small_trainer(
        tmp_path / "looped",
        model,
        **RUN,
        first_weight=1.0,
        consistency_weight=consistency_weight,
        recurrence_learning_rate=0.05,
    )
    trainer.train()
    found = weights(model)
    assert_same_weights(weights(static), {name: found[name] for name in before})
    # What later recurrences add has learned, and the shared weights have moved.
    own = {id(parameter) for parameter in trainer.recurrence_parameters()}
    start = weights(later_model()[0])
    for name, parameter in model.named_parameters():
        assert id(parameter) in own or not torch.equal(found[name], before[name]), name
    moved = {name for name in found if not torch.equal(found[name], start[name])} - set(before)
    assert len(moved) > 3 and any("injection" in name for name in moved)
    assert min(norms(trainer)) > RUN["max_grad_norm"]


def test_clipping_by_the_norm_of_all_would_change_the_first_recurrence(tmp_path, monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr(
        "memreason_hf.training.scheduled.trainer.ScheduledTrainer._clip_grad_norm",
        lambda self, model: self.accelerator.clip_grad_norm_(model.parameters(), self.args.max_grad_norm),
    )
    static = small_model(**BLOCKS, **{**STATIC, "recurrence_max": None})
    small_trainer(tmp_path / "static", static, **RUN).train()
    model, before = later_model()
    small_trainer(tmp_path / "looped", model, **RUN, first_weight=1.0).train()
    found = weights(model)
    with pytest.raises(AssertionError):
        assert_same_weights(weights(static), {name: found[name] for name in before})


def test_later_recurrences_have_a_learning_rate_of_their_own(tmp_path):
    model, _ = later_model()
    trainer = small_trainer(
        tmp_path, model, **RUN, first_weight=1.0, recurrence_learning_rate=0.05, lr_scheduler_type="linear"
    )
    optimizer = trainer.create_optimizer()
    own = {id(parameter) for parameter in trainer.recurrence_parameters()}
    rates, grouped = {}, []
    for group in optimizer.param_groups:
        grouped += [id(parameter) for parameter in group["params"]]
        for parameter in group["params"]:
            rates[id(parameter)] = group["lr"]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    assert all(rate == (0.05 if key in own else 0.01) for key, rate in rates.items())
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {0.0, trainer.args.weight_decay}
    # Both follow the schedule.
    scheduler = trainer.create_scheduler(10, optimizer)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert sorted({round(group["lr"], 6) for group in optimizer.param_groups}) == [0.005, 0.025]
    # The control: by default all parameters have one rate, in the parent's groups.
    plain = small_trainer(tmp_path / "plain", later_model()[0], **RUN, first_weight=1.0).create_optimizer()
    assert {group["lr"] for group in plain.param_groups} == {0.01} and len(plain.param_groups) == 2


def test_a_run_with_groups_resumes_exactly(tmp_path):
    arguments = {**RUN, "first_weight": 1.0, "recurrence_learning_rate": 0.05, "max_steps": 6}
    arguments |= {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    whole = small_trainer(tmp_path / "whole", later_model()[0], **arguments)
    whole.train()
    small_trainer(tmp_path / "parts", later_model()[0], **{**arguments, "max_steps": 3}).train()
    again = small_trainer(tmp_path / "parts", later_model()[0], **arguments)
    again.train(resume_from_checkpoint=True)
    assert again.resumed_from.endswith("checkpoint-3")
    assert_same_weights(weights(again.model), weights(whole.model))


def test_what_would_have_no_effect_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"recurrence_learning_rate=0\.1 has no effect"):
        small_trainer(tmp_path, small_model(state_norm="none"), recurrence_learning_rate=0.1)
    with pytest.raises(ValueError, match="Set first_weight=1, or freeze the shared weights"):
        small_trainer(tmp_path, later_model()[0], **RUN)
    # Where the shared weights are frozen, later recurrences may be trained alone.
    model, _ = later_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("injection" in name or "lora" in name)
    small_trainer(tmp_path, model, **RUN).train()


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"recurrence_min": 2, "recurrence_lora_count": 1}, False),
        ({"recurrence_min": 1, "recurrence_lora_count": 1}, True),
        ({"recurrence_min": 2, "recurrence_lora_count": 3}, True),
        ({"recurrence_min": 4, "recurrence_lora_count": 3}, False),
        ({"recurrence_min": 2, "recurrence_lora_rank": None}, False),
        ({"recurrence_min": 1, "recurrence_lora_rank": None}, True),
    ],
    ids=str,
)
def test_steps_that_leave_out_parameters(fields, expected):
    assert may_leave_out_parameters(later_model(**fields)[0].config) == expected


def train(folder, result, world_size):
    trainer = small_trainer(
        folder,
        later_model()[0],
        **RUN,
        first_weight=1.0,
        recurrence_learning_rate=0.05,
        per_device_train_batch_size=16 // world_size,
    )
    trainer.train()
    save_result(f"{result}-{trainer.args.process_index}", (weights(trainer.model), norms(trainer)))


def test_two_processes_train_as_one(tmp_path):
    run_ranks(train, tmp_path / "one", tmp_path / "single", 1, world_size=1)
    run_ranks(train, tmp_path / "two", tmp_path / "double", 2)
    expected, expected_norms = load_result(tmp_path / "single-0")
    for rank in range(2):
        found, found_norms = load_result(tmp_path / f"double-{rank}")
        assert found_norms == pytest.approx(expected_norms, rel=1e-3)
        for name, value in expected.items():
            if not name.endswith("qkv_proj.bias"):  # the gradient of a key's bias is only rounding
                assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-4), name


def test_activation_checkpointing_is_refused_before_training(tmp_path):
    model, _ = later_model()
    with pytest.raises(ValueError, match="'separate' cannot be combined with activation_checkpointing=True"):
        small_trainer(tmp_path, model, **RUN, first_weight=1.0, activation_checkpointing=True)
