"""A run that is trained on to a greater length: only on request, by the schedule of the new length, and resumable."""

import json

import pytest
import torch
from small_finetunes import small_finetune
from small_runs import assert_same_weights, weights
from transformers import TrainerCallback

from memreason_hf.training.runs.checkpoints import list_checkpoints
from memreason_hf.training.runs.errors import OutputFolderError


def run_of(folder, epochs, **arguments):
    """3 steps an epoch."""
    defaults = {"lr_scheduler_type": "cosine", "save_strategy": "epoch", "eval_strategy": "no", "warmup_steps": 2}
    return small_finetune(folder, num_train_epochs=epochs, **{**defaults, **arguments})


def rates(trainer):
    return {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}


@pytest.fixture
def finished(tmp_path):
    trainer = run_of(tmp_path / "run", 2)
    trainer.train()
    trainer.save_model()
    return trainer


class Interrupt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
        control.should_save = control.should_save or control.should_training_stop
        return control


def test_the_new_schedule_takes_over_where_the_run_goes_on(finished, tmp_path):
    longer = run_of(tmp_path / "run", 4, extend=True)
    longer.train(resume_from_checkpoint=True)
    whole = run_of(tmp_path / "whole", 4)
    whole.train()
    assert longer.state.global_step == whole.state.global_step == 12
    found, expected, before = rates(longer), rates(whole), rates(finished)
    assert {step: found[step] for step in range(7, 13)} == {step: expected[step] for step in range(7, 13)}
    assert (
        before != {step: expected[step] for step in before} and {step: found[step] for step in range(1, 7)} == before
    )
    # The control: it is no run of 4 epochs from the start.
    assert any(not torch.equal(value, weights(whole.model)[name]) for name, value in weights(longer.model).items())


def test_the_first_step_has_the_new_rate(finished, tmp_path):
    """With the rate of the shorter schedule, 0 at its end, the first step would change nothing."""
    longer = run_of(tmp_path / "run", 4, extend=True, callbacks=[Interrupt(7)])
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 7
    moved = [n for n, value in weights(longer.model).items() if not torch.equal(value, weights(finished.model)[n])]
    assert len(moved) > len(weights(longer.model)) / 2


def test_an_extended_run_is_resumed_as_any_other(finished, tmp_path):
    whole = run_of(tmp_path / "run", 4, extend=True)
    whole.train(resume_from_checkpoint=True)
    expected = weights(whole.model)

    again = run_of(tmp_path / "again", 2)
    again.train()
    run_of(tmp_path / "again", 4, extend=True, callbacks=[Interrupt(8)]).train(resume_from_checkpoint=True)
    # It is a run of 4 epochs now, so that the flag is not needed again; with it nothing else happens.
    rest = run_of(tmp_path / "again", 4, callbacks=[Interrupt(10)])
    rest.train(resume_from_checkpoint=True)
    rest = run_of(tmp_path / "again", 4, extend=True)
    rest.train(resume_from_checkpoint=True)
    assert rest.state.global_step == 12
    assert_same_weights(weights(rest.model), expected)
    record = json.loads((tmp_path / "again" / "run.json").read_text())
    assert record["fingerprint"]["training.num_train_epochs"] == 4 and len(record["earlier_runs"]) == 1
    # A third length, from a checkpoint of the first.
    third = run_of(tmp_path / "again", 6, extend=True, max_steps=13)
    third.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-3"))
    assert third.state.global_step == 13
    # The model of the run is replaced by that of the longer one.
    third.save_model()


def test_it_happens_only_on_request(finished, tmp_path):
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(OutputFolderError, match=r"num_train_epochs was 2, now 4\).* add --extend \(extend=True\)"):
        run_of(tmp_path / "run", 4).train(resume_from_checkpoint=True)
    # Something else than the length differs: the flag is neither named nor followed.
    for extend in (False, True):
        with pytest.raises(OutputFolderError, match="seed was 7, now 8") as error:
            run_of(tmp_path / "run", 4, seed=8, extend=extend).train(resume_from_checkpoint=True)
        assert "--extend" not in str(error.value)
    with pytest.raises(OutputFolderError, match="holds a run of 6 steps, which cannot be extended to 3"):
        run_of(tmp_path / "run", 1, extend=True).train(resume_from_checkpoint=True)
    with pytest.raises(OutputFolderError, match="restart=True and extend=True contradict each other"):
        run_of(tmp_path / "run", 4, extend=True, restart=True).train()
    with pytest.raises(OutputFolderError, match="holds no checkpoint of a run that could be extended"):
        run_of(tmp_path / "none", 4, extend=True).train()
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_checkpoints_of_the_shorter_run_are_deleted_in_their_turn(tmp_path):
    run_of(tmp_path / "run", 2, save_total_limit=2).train()
    run_of(tmp_path / "run", 4, save_total_limit=2, extend=True).train(resume_from_checkpoint=True)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-9", "checkpoint-12"]
