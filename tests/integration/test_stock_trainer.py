"""The library's own `Trainer` on a model that draws the depth of its training steps."""

import pytest
import torch
from recurrent_models import random_ids, tiny_model
from transformers import Trainer, TrainingArguments


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
