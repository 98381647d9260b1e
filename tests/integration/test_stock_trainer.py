"""The library's own `Trainer` on a model that draws the depth of its training steps."""

import pytest
import torch
from recurrent_models import random_ids, tiny_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging


FIELDS = {
    "recurrence_sampling": "uniform",
    "recurrence_min": 1,
    "recurrence_max": 9,
    "residual_dropout": 0.1,
    "state_init": "normal",
    "input_injection": "add",
}


class Rows(torch.utils.data.Dataset):
    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def train(folder, rows, resume=None, max_steps=8, **arguments):
    """The trained model, and the depth of every training step."""
    model = tiny_model(seed=0, **FIELDS)
    depths = []
    model.model.register_forward_hook(lambda _, args, output: depths.append(int(output.num_recurrences[0])))
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=max_steps,
        save_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **arguments,
    )
    Trainer(model, args, train_dataset=Rows(rows)).train(resume_from_checkpoint=resume)
    return model, depths


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_that_is_resumed_draws_the_depths_of_an_undisturbed_one(tmp_path, checkpointing):
    rows = random_ids(40, 6)
    call = {"gradient_checkpointing": checkpointing}
    whole, depths = train(tmp_path / "whole", rows, **call)
    train(tmp_path / "parts", rows, max_steps=4, **call)
    resumed, later = train(tmp_path / "parts", rows, resume=str(tmp_path / "parts" / "checkpoint-4"), **call)
    assert later == depths[4:] and len(set(depths)) >= 3
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    # The control: another seed draws other depths.
    assert train(tmp_path / "other", rows, seed=1, **call)[1] != depths


def first_step(folder, rows, fields, **arguments):
    """The loss and the gradients of the first training step."""
    model = tiny_model(seed=0, num_recurrences=3, input_injection="add", **fields)
    found = {}

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.update({name: p.grad.clone() for name, p in model.named_parameters()})

    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        max_grad_norm=0.0,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **{"per_device_train_batch_size": len(rows), **arguments},
    )
    trainer = Trainer(model, args, train_dataset=Rows(rows), callbacks=[Note()])
    trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry), found


def test_the_config_chooses_losses_over_recurrences(tmp_path, capture_warnings):
    rows = random_ids(8, 6)
    fields = {"recurrence_loss": "geometric", "recurrence_loss_decay": 0.5}
    logging.warning_once.cache_clear()
    with capture_warnings() as text:
        loss, gradients = first_step(tmp_path, rows, fields)
    model = tiny_model(seed=0, num_recurrences=3, input_injection="add").train()
    losses = [model(rows, labels=rows, num_recurrences=depth).loss for depth in (1, 2, 3)]
    expected = (losses[0] + 2 * losses[1] + 4 * losses[2]) / 7
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-6), name
    # Nothing is bypassed. Accumulation changes nothing; the control, another loss, does.
    assert "recurrence_loss" not in text()
    call = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parts, summed = first_step(tmp_path, rows, fields, **call)
    assert parts == pytest.approx(loss, rel=1e-4)
    assert all(torch.allclose(summed[name], gradients[name], atol=1e-6) for name in gradients)
    assert first_step(tmp_path, rows, {})[0] == pytest.approx(losses[2].item(), rel=1e-4)
    assert abs(losses[2].item() - loss) > 1e-3


def test_label_smoothing_bypasses_them_and_is_warned_about(tmp_path, capture_warnings):
    for fields, expected in (({"recurrence_loss": "uniform"}, True), ({}, False)):
        logging.warning_once.cache_clear()
        with capture_warnings() as text:
            first_step(tmp_path, random_ids(4, 6), fields, label_smoothing_factor=0.1)
        assert ("recurrence_loss='uniform'" in text()) == expected
