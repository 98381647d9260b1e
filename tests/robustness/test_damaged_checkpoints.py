"""One damaged file of a checkpoint: it is noticed, named, and the older checkpoint is taken."""

import os
import random
import shutil

import pytest
from small_finetunes import small_finetune
from small_runs import assert_same_weights, small_trainer, weights

from memreason_hf.training.runs import checkpoints
from memreason_hf.training.runs.errors import CheckpointError, TrainingError


KINDS = {"chains": (small_trainer, {"max_steps": 6, "save_steps": 3}), "solutions": (small_finetune, {})}
NEWEST, OLDER = {"chains": 6, "solutions": 9}, {"chains": 3, "solutions": 6}


def missing(path):
    path.unlink()


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))])


def one_bit(path):
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def nonsense(path):
    path.write_bytes(random.randbytes(path.stat().st_size))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = [missing, cut, one_bit, nonsense, pipe]


def trainer_of(kind, folder, **arguments):
    make, defaults = KINDS[kind]
    return make(folder, **{**defaults, **arguments})


@pytest.fixture(scope="module", params=KINDS)
def finished(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    trainer = trainer_of(request.param, folder)
    trainer.train()
    return request.param, folder, weights(trainer.model)


@pytest.fixture
def run(finished, tmp_path):
    return finished[0], shutil.copytree(finished[1], tmp_path / "run"), finished[2]


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__)
def test_every_damaged_file_is_noticed_and_named(run, caplog, damage):
    kind, folder, _ = run
    newest = folder / f"checkpoint-{NEWEST[kind]}"
    names = files_of(newest)
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json", "callbacks.json", "manifest.json"} <= set(names)
    for name in names:
        content = (newest / name).read_bytes()
        damage(newest / name)
        with pytest.raises(CheckpointError, match=f"{newest.name}.*{name}|{name}.*damaged"):
            checkpoints.verify(newest)
        caplog.clear()
        assert checkpoints.newest_complete(folder) == folder / f"checkpoint-{OLDER[kind]}"
        assert name in caplog.text and len(caplog.records) == 1
        (newest / name).unlink(missing_ok=True)
        (newest / name).write_bytes(content)
    # The control: the whole checkpoint again.
    assert checkpoints.newest_complete(folder) == newest


@pytest.mark.parametrize("damage", [missing, one_bit], ids=lambda function: function.__name__)
def test_the_run_goes_on_from_the_older_checkpoint_and_replaces_the_damaged_one(run, damage):
    kind, folder, expected = run
    newest = folder / f"checkpoint-{NEWEST[kind]}"
    damage(newest / random.choice(files_of(newest)))
    trainer = trainer_of(kind, folder)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.resumed_from == str(folder / f"checkpoint-{OLDER[kind]}")
    assert_same_weights(weights(trainer.model), expected)
    checkpoints.verify(newest)


def test_without_an_older_checkpoint_the_run_says_so_in_one_line(run):
    kind, folder, expected = run
    for checkpoint in checkpoints.list_checkpoints(folder):
        one_bit(checkpoint / "manifest.json")
    with pytest.raises(CheckpointError, match=r"All checkpoints of .* are damaged .*--restart"):
        trainer_of(kind, folder).train(resume_from_checkpoint=True)
    again = trainer_of(kind, folder, restart=True)
    again.train()
    assert_same_weights(weights(again.model), expected)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__)
def test_a_damaged_record_of_the_run_is_one_line(run, damage):
    """`run.json` is not part of a checkpoint, but decides whether one may be resumed."""
    kind, folder, _ = run
    damage(folder / "run.json")
    trainer = trainer_of(kind, folder)
    try:
        trainer.train(resume_from_checkpoint=True)
    except TrainingError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
    else:
        # The bit was in a name of a file, which decides nothing: the finished run was found.
        assert damage is one_bit and trainer.state.global_step == NEWEST[kind]
