import json
import os

import pytest

from memreason_hf.training.runs import output_folder
from memreason_hf.training.runs.errors import OutputFolderError


RUN = {"training.seed": 1, "model.hidden_size": 16}


def test_the_same_run_is_accepted_again(tmp_path):
    output_folder.claim(tmp_path / "run", RUN, restart=False)
    output_folder.claim(tmp_path / "run", dict(reversed(RUN.items())), restart=False)
    assert os.listdir(tmp_path / "run") == ["run.json"]


def test_another_run_is_refused_and_named(tmp_path):
    output_folder.claim(tmp_path, RUN, restart=False)
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(OutputFolderError, match=r"training.seed was 1, now 2.*--restart"):
        output_folder.claim(tmp_path, RUN | {"training.seed": 2}, restart=False)
    with pytest.raises(OutputFolderError, match=r"curriculum.gate was None"):
        output_folder.claim(tmp_path, RUN | {"curriculum.gate": "train"}, restart=False)
    with pytest.raises(OutputFolderError, match=r"model.hidden_size was 16, now None"):
        output_folder.claim(tmp_path, {"training.seed": 1}, restart=False)
    assert (tmp_path / "run.json").read_text() == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_of_unknown_origin_is_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(OutputFolderError, match=name):
        output_folder.claim(tmp_path, RUN, restart=False)
    assert os.listdir(tmp_path) == [name]


def test_checkpoints_of_unknown_origin(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(OutputFolderError, match="checkpoint-3"):
        output_folder.claim(tmp_path, RUN, restart=False)


def test_other_files_may_be_in_the_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    output_folder.claim(tmp_path, RUN, restart=False)


def test_restart_removes_the_run_and_only_the_run(tmp_path):
    output_folder.claim(tmp_path, RUN, restart=False)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    staged = tmp_path / ".model.partial"
    staged.mkdir()
    for name in ("config.json", "model.safetensors"):
        (staged / name).write_text("x")
    output_folder.move_in(staged, tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "checkpoint-3",
        "config.json",
        "model.safetensors",
        "notes.txt",
        "run.json",
    ]
    output_folder.claim(tmp_path, RUN | {"training.seed": 2}, restart=True)
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "run.json"]


def model_files(folder, *names):
    staged = folder / ".model.partial"
    staged.mkdir()
    for name in names:
        (staged / name).write_text("x")
    output_folder.move_in(staged, folder)


def test_restart_removes_the_files_of_every_saved_model(tmp_path):
    """Also those that only an earlier save wrote, and some of which are gone."""
    folder = tmp_path / "a" / "run"
    output_folder.claim(folder, RUN, restart=False)
    model_files(folder, "config.json", "model.safetensors", "old.json")
    model_files(folder, "config.json", "model.safetensors")
    (folder / "model.safetensors").unlink()
    output_folder.claim(folder, RUN, restart=True)
    assert os.listdir(folder) == ["run.json"]
    assert json.loads((folder / "run.json").read_text()) == {"fingerprint": RUN, "files": []}


def test_a_model_in_a_folder_without_a_run_needs_no_record(tmp_path):
    model_files(tmp_path, "config.json")
    assert os.listdir(tmp_path) == ["config.json"]


def test_the_config_is_moved_last(tmp_path, monkeypatch):
    staged = tmp_path / ".model.partial"
    staged.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (staged / name).write_text("x")
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(os.path.basename(b)), replace(a, b)))
    output_folder.move_in(staged, tmp_path)
    assert moved == ["model.safetensors", "tokenizer.json", "config.json"]


def test_a_damaged_record_is_refused_but_can_be_removed(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(OutputFolderError, match="cannot be read"):
        output_folder.claim(tmp_path, RUN, restart=False)
    output_folder.claim(tmp_path, RUN, restart=True)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputFolderError, match="is a file"):
        output_folder.claim(tmp_path / "file", RUN, restart=False)
