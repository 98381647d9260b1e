"""Files of a checkpoint that fit its manifest and cannot be read: one line, not the traceback of a library."""

import json
import shutil

import pytest
from small_runs import small_trainer

from memreason_hf.training.runs import checkpoints
from memreason_hf.training.runs.errors import CheckpointError


@pytest.fixture(scope="module")
def run_of_four_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    small_trainer(folder, max_steps=4).train()
    return folder


def spoiled(run, folder, name, content, checksums):
    """The checkpoint of a copy of a run, with another content of one file, of which the manifest knows."""
    shutil.copytree(run, folder)
    checkpoint = folder / "checkpoint-4"
    (checkpoint / name).write_text(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    if checksums:
        (checkpoint / "manifest.json").unlink()
        checkpoints.write_manifest(checkpoint, 4, manifest["run"])
    else:
        sizes = {name: (checkpoint / name).stat().st_size for name in manifest["files"]}
        (checkpoint / "manifest.json").write_text(json.dumps({"files": sizes}))
    return checkpoint


@pytest.mark.parametrize("checksums", [True, False], ids=["edited manifest", "manifest without checksums"])
@pytest.mark.parametrize(
    "name, content",
    [
        ("callbacks.json", "null"),
        ("callbacks.json", "{"),
        ("callbacks.json", '{"run": 5}'),
        ("callbacks.json", '{"run": {"loss_sum": "x"}}'),
        ("trainer_state.json", "null"),
        ("trainer_state.json", "{}"),
        ("trainer_state.json", "{"),
        ("optimizer.pt", "x"),
        ("scheduler.pt", "x"),
        ("rng_state.pth", "x"),
        ("model.safetensors", "x"),
        ("config.json", "x"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(run_of_four_steps, tmp_path, name, content, checksums):
    checkpoint = spoiled(run_of_four_steps, tmp_path / "run", name, content, checksums)
    with pytest.raises(CheckpointError) as caught:
        small_trainer(tmp_path / "run", max_steps=8).train(resume_from_checkpoint=True)
    assert str(checkpoint) in str(caught.value) and "\n" not in str(caught.value)
    assert "damaged" in str(caught.value)


def test_another_step_of_the_same_size_is_noticed_without_checksums(run_of_four_steps, tmp_path):
    state = (run_of_four_steps / "checkpoint-4" / "trainer_state.json").read_text()
    changed = state.replace('"global_step": 4', '"global_step": 9')
    assert changed != state
    spoiled(run_of_four_steps, tmp_path / "run", "trainer_state.json", changed, checksums=False)
    with pytest.raises(CheckpointError, match=r"trainer_state\.json has global_step=9: .* damaged"):
        small_trainer(tmp_path / "run", max_steps=12).train(resume_from_checkpoint=True)
    shutil.rmtree(tmp_path / "run")
    spoiled(run_of_four_steps, tmp_path / "run", "trainer_state.json", state, checksums=False)
    small_trainer(tmp_path / "run", max_steps=5).train(resume_from_checkpoint=True)
