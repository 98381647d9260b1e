"""What cannot be written in the middle of a run is one line that says what is safe, and the same command goes on."""

import errno
import os
import resource
import shutil
import stat

import pytest
from processes import load_result, run_child, save_result
from safetensors import SafetensorError
from small_runs import assert_same_weights, small_trainer, weights
from transformers import TrainerCallback

from memreason_hf.command_line.training_runs import run_training
from memreason_hf.training.runs import checkpoints
from memreason_hf.training.runs.errors import SaveError
from memreason_hf.training.runs.writing import is_write_error, save_error


class Before(TrainerCallback):
    """Calls a function before the checkpoint of a step is written."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def train_on_a_small_disk(folder, result, missing=None):
    def act():
        # The last bytes of the largest file are written when it is closed, with another error.
        largest = folder / "checkpoint-4" / "optimizer.pt"
        limit_files(2_000 if missing is None else largest.stat().st_size - missing)

    trainer = small_trainer(folder, callbacks=[Before(8, act)])
    try:
        trainer.train()
    except SaveError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        save_result(result, str(error))


@pytest.mark.parametrize("missing", [None, 1, 100, 1_000])
def test_no_room_for_a_checkpoint(tmp_path, missing):
    run = tmp_path / "run"
    assert run_child(train_on_a_small_disk, run, tmp_path / "result", missing) == 0
    message = load_result(tmp_path / "result")
    assert message.startswith(f"{run}/checkpoint-8 could not be written: ") and "\n" not in message
    assert f"{run}/checkpoint-4 is complete, and nothing of it has changed." in message
    assert "the same command resumes there" in message
    # No staging folder keeps the disk full, and nothing damaged is left.
    assert sorted(os.listdir(run)) == ["checkpoint-4", "run.json"]
    checkpoints.verify(run / "checkpoint-4")
    resumed, whole = small_trainer(run), small_trainer(tmp_path / "whole")
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    assert_same_weights(weights(resumed.model), weights(whole.model))


def test_a_folder_that_disappears_is_not_made_again(tmp_path, capsys):
    run = tmp_path / "run"
    trainer = small_trainer(run, callbacks=[Before(8, lambda: shutil.rmtree(run))])
    with pytest.raises(SystemExit) as stop:
        run_training(trainer, "memreason train")
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("memreason train: error: ") and "has lost its run.json since the run began" in error
    assert "No checkpoint of this run is there" in error
    assert not run.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_becomes_read_only(tmp_path):
    run = tmp_path / "run"
    trainer = small_trainer(run, callbacks=[Before(8, lambda: run.chmod(0o555))])
    try:
        with pytest.raises(SaveError, match=r"Permission denied.*checkpoint-4 is complete.*Make the folder writable"):
            trainer.train()
    finally:
        run.chmod(0o755)


def test_the_trained_model_that_finds_no_room(tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path, max_steps=4)
    trainer.train()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("memreason_hf.files.os.replace", full)
    with pytest.raises(SaveError, match=r"No space left on device\. .*checkpoint-4 is complete.*Free some space"):
        trainer.save_model()
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-4", "run.json"]
    trainer.save_model()
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "error, expected",
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("x"), False),
    ],
)
def test_errors_of_all_writers_are_recognised(tmp_path, error, expected):
    assert is_write_error(error) is expected
    if expected:
        assert str(save_error(tmp_path, error, None)).startswith(f"{tmp_path} could not be written: ")


def test_files_get_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        trainer = small_trainer(tmp_path / "run", max_steps=4)
        trainer.train()
        trainer.save_model()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {0o640}, modes
