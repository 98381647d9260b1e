"""Runs in child processes that are killed at the worst moments."""

import os
import shutil
import signal

import pytest
import torch
from processes import load_result, run_child, save_result
from small_runs import assert_same_weights, small_trainer, weights
from transformers import TrainerCallback

from memreason_hf.command_line.training_runs import run_training


# Stages change at the steps 5, 10 and 15; checkpoints are written at 4, 8, ...; training ends at step 18.
ARGUMENTS = {
    "curriculum": {"threshold": 1e-9, "eval_steps": 5, "gate": "train", "optimizer": "restart", "final_steps": 3},
    "max_steps": 30,
    "warmup_steps": 2,
    "save_total_limit": 2,
}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(trainer):
    """In the middle of step 11: the gradients are computed, but the weights have not changed."""
    training_step = trainer.training_step

    def step(*args):
        loss = training_step(*args)
        return kill() if trainer.state.global_step == 10 else loss

    trainer.training_step = step


def kill_between_files(trainer):
    """The weights of the third checkpoint are written, but the optimizer is not."""
    save = trainer._save_optimizer_and_scheduler
    trainer._save_optimizer_and_scheduler = lambda folder: kill() if trainer.state.global_step == 12 else save(folder)


def kill_in_a_file(trainer):
    """The optimizer of the third checkpoint is truncated."""

    def truncated(folder):
        if trainer.state.global_step == 12:
            with open(os.path.join(folder, "optimizer.pt"), "wb") as file:
                file.write(b"PK\x03\x04 and no more")
                file.flush()
                kill()
        save(folder)

    save = trainer._save_optimizer_and_scheduler
    trainer._save_optimizer_and_scheduler = truncated


def kill_before_renaming(trainer):
    rename = os.rename
    os.rename = lambda a, b: kill() if str(b).endswith("checkpoint-12") else rename(a, b)


def kill_while_deleting_old_ones(trainer):
    """The third checkpoint is complete, and the first one is being deleted."""
    rmtree = shutil.rmtree

    def half(path, **kwargs):
        name = os.path.basename(path)
        if name.startswith(".checkpoint-4.") and name.endswith(".deleted") and os.path.isdir(path):
            os.unlink(os.path.join(path, "model.safetensors"))
            kill()
        rmtree(path, **kwargs)

    shutil.rmtree = half


KILLS = [kill_in_step, kill_between_files, kill_in_a_file, kill_before_renaming, kill_while_deleting_old_ones]


def train_until_killed(folder, sabotage):
    trainer = small_trainer(folder, **ARGUMENTS)
    sabotage(trainer)
    trainer.train()


def train_to_the_end(folder, result):
    trainer = small_trainer(folder, **ARGUMENTS)
    resume = any(name.startswith("checkpoint-") for name in os.listdir(folder))
    trainer.train(resume_from_checkpoint=resume)
    optimizer = dict(enumerate(trainer.optimizer.state_dict()["state"].values()))
    save_result(result, (weights(trainer.model), optimizer, trainer.state.global_step, trainer.resumed_from))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_child(train_to_the_end, folder, folder / "result") == 0
    return load_result(folder / "result")


@pytest.mark.parametrize("sabotage", KILLS, ids=lambda function: function.__name__)
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, undisturbed, sabotage):
    assert run_child(train_until_killed, tmp_path, sabotage) == -signal.SIGKILL
    assert run_child(train_to_the_end, tmp_path, tmp_path / "result") == 0
    result, optimizer, steps, resumed_from = load_result(tmp_path / "result")
    expected, expected_optimizer, expected_steps, _ = undisturbed
    assert steps == expected_steps == 18
    assert resumed_from.endswith("checkpoint-12" if sabotage is kill_while_deleting_old_ones else "checkpoint-8")
    assert_same_weights(result, expected)
    for name, state in expected_optimizer.items():
        assert all(torch.equal(value, optimizer[name][key]) for key, value in state.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-16", "checkpoint-18", "result", "run.json"]


def test_killed_again_and_again(tmp_path, undisturbed):
    for sabotage in (kill_in_a_file, kill_in_step, kill_before_renaming):
        assert run_child(resume_until_killed, tmp_path, sabotage) == -signal.SIGKILL
    assert run_child(train_to_the_end, tmp_path, tmp_path / "result") == 0
    assert_same_weights(load_result(tmp_path / "result")[0], undisturbed[0])


def resume_until_killed(folder, sabotage):
    trainer = small_trainer(folder, **ARGUMENTS)
    sabotage(trainer)
    trainer.train(resume_from_checkpoint=any(name.startswith("checkpoint-") for name in os.listdir(folder)))


class Interrupt(TrainerCallback):
    """Sends a signal in the middle of the given steps."""

    def __init__(self, *steps, number=signal.SIGINT):
        self.steps, self.number = steps, number

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            os.kill(os.getpid(), self.number)


def interrupted(folder, result, *steps):
    trainer = small_trainer(folder, **ARGUMENTS, callbacks=[Interrupt(*steps)])
    before = signal.getsignal(signal.SIGINT)
    trainer.train()
    assert signal.getsignal(signal.SIGINT) is before
    save_result(result, (trainer.interrupted, trainer.state.global_step, trainer.last_checkpoint))


def test_ctrl_c_finishes_the_step_saves_and_stops(tmp_path, undisturbed):
    assert run_child(interrupted, tmp_path, tmp_path / "stopped", 6) == 0
    was_interrupted, step, checkpoint = load_result(tmp_path / "stopped")
    assert was_interrupted
    assert step == 7
    assert checkpoint == str(tmp_path / f"checkpoint-{step}")
    assert run_child(train_to_the_end, tmp_path, tmp_path / "result") == 0
    assert_same_weights(load_result(tmp_path / "result")[0], undisturbed[0])


def terminated(folder, result):
    trainer = small_trainer(folder, **ARGUMENTS, callbacks=[Interrupt(6, number=signal.SIGTERM)])
    before = signal.getsignal(signal.SIGTERM)
    code = run_training(trainer, "memreason train")
    assert signal.getsignal(signal.SIGTERM) is before
    save_result(result, (code, trainer.interrupted_by, trainer.state.global_step))


def test_sigterm_saves_and_ends_within_the_step(tmp_path, undisturbed):
    assert run_child(terminated, tmp_path, tmp_path / "stopped") == 0
    assert load_result(tmp_path / "stopped") == (143, signal.SIGTERM, 7)
    assert (tmp_path / "checkpoint-7" / "manifest.json").is_file()
    assert not (tmp_path / "config.json").exists()
    assert run_child(train_to_the_end, tmp_path, tmp_path / "result") == 0
    assert_same_weights(load_result(tmp_path / "result")[0], undisturbed[0])


def interrupted_twice(folder, result):
    trainer = small_trainer(folder, **{**ARGUMENTS, "save_steps": 100}, callbacks=[Interrupt(6)])
    trainer._save_checkpoint = lambda *args: os.kill(os.getpid(), signal.SIGINT)
    try:
        trainer.train()
    except KeyboardInterrupt:
        save_result(result, trainer.state.global_step)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    assert run_child(interrupted_twice, tmp_path, tmp_path / "stopped") == 0
    assert load_result(tmp_path / "stopped") == 7


def stopped_at_once(folder, first, second):
    arguments = {**ARGUMENTS, "save_steps": 100}
    trainer = small_trainer(folder, **arguments, callbacks=[Interrupt(6, number=first)])
    trainer._save_checkpoint = lambda *args: os.kill(os.getpid(), second)
    run_training(trainer, "memreason train")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_that_of_the_signal_that_stops_at_once(tmp_path, first, second, code):
    assert run_child(stopped_at_once, tmp_path, first, second) == code


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_processes_are_shut_down_is_one_line(tmp_path, capsys, monkeypatch, number, code):
    trainer = small_trainer(tmp_path, max_steps=4)
    monkeypatch.setattr(trainer, "end", lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stopped:
        run_training(trainer, "memreason train")
    assert stopped.value.code == code and "memreason train: stopped by" in capsys.readouterr().err
    assert (tmp_path / "config.json").is_file()
