"""The folder on disk: nothing is half-written, no foreign file is lost, and damage is noticed."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from memreason_hf.data import (
    MultiHopConfig,
    build_multi_hop,
    convert_multi_hop,
    load_multi_hop,
    prepare_multi_hop,
    save_multi_hop,
)
from memreason_hf.data.chains import folder as folder_module
from memreason_hf.data.chains import multi_hop
from memreason_hf.locks import lock_file


def small_config(**changes):
    sizes = {"num_entities": 9, "num_relations": 3, "train_hops": "2-4", "test_hops": "2-5"}
    return MultiHopConfig(**{**sizes, "num_train_chains": 40, "num_test_chains": 8, **changes})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_manifest_lists_the_folder(tmp_path):
    manifest = prepare_multi_hop(small_config(), tmp_path / "deep" / "data")
    written = contents(tmp_path / "deep" / "data")
    assert json.loads(written.pop("manifest.json")) == manifest
    assert manifest["files"] == {name: len(data) for name, data in written.items()}
    assert set(os.listdir(tmp_path / "deep" / "data")) == {
        *("train.json", "valid.json", "test.json", "test_small.json", "vocab.json"),
        *("train", "validation", "test", "test_small", "dataset_dict.json"),
        *("tokenizer.json", "tokenizer_config.json", "manifest.json"),
    }
    assert not any(str(tmp_path).encode() in data for data in written.values())


def test_the_same_data_set_is_not_built_again(tmp_path, monkeypatch):
    first = prepare_multi_hop(small_config(), tmp_path)
    monkeypatch.setattr(multi_hop, "build_multi_hop", lambda config: pytest.fail("built again"))
    assert prepare_multi_hop(small_config(), tmp_path) == first


def test_a_lock_file_of_a_killed_build_goes_when_the_data_set_is_found(tmp_path):
    """A build that is killed after its last rename leaves a whole data set, and its lock file next to it."""
    folder = tmp_path / "data"
    prepare_multi_hop(small_config(), folder)
    lock_file(folder, inside=False).write_text("")
    prepare_multi_hop(small_config(), folder)
    assert os.listdir(tmp_path) == ["data"]


def test_another_data_set_is_refused_before_it_is_built(tmp_path, monkeypatch):
    prepare_multi_hop(small_config(), tmp_path)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(multi_hop, "build_multi_hop", lambda config: pytest.fail("built"))
        with pytest.raises(FileExistsError, match="already holds another data set"):
            prepare_multi_hop(small_config(seed=1), tmp_path)
    with pytest.raises(FileExistsError, match="already holds another data set"):
        save_multi_hop(build_multi_hop(small_config(seed=1)), tmp_path)
    assert contents(tmp_path) == before


def test_overwriting_replaces_the_whole_folder(tmp_path):
    folder = tmp_path / "data"
    prepare_multi_hop(small_config(num_entities=12), folder)
    prepare_multi_hop(small_config(seed=1), folder, overwrite=True)
    prepare_multi_hop(small_config(seed=1), tmp_path / "fresh")
    assert contents(folder) == contents(tmp_path / "fresh")
    assert sorted(os.listdir(tmp_path)) == ["data", "fresh"]


def test_a_file_beside_the_data_set_is_never_deleted(tmp_path):
    prepare_multi_hop(small_config(), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds notes\.txt, which is not part of a multi-hop data set"):
        prepare_multi_hop(small_config(seed=1), tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_the_studys_folder_is_refused_and_can_be_converted_in_place(study_folder):
    with pytest.raises(FileExistsError, match="already holds another data set"):
        prepare_multi_hop(small_config(), study_folder)
    with pytest.raises(FileExistsError, match="already holds another data set"):
        convert_multi_hop(study_folder, study_folder)
    before = load_multi_hop(study_folder)
    convert_multi_hop(study_folder, study_folder, overwrite=True)
    assert (study_folder / "dataset_dict.json").is_file()
    assert load_multi_hop(study_folder)["test"].to_dict() == before["test"].to_dict()


@pytest.mark.parametrize("name", ["tokenizer.json", "train", "train/code.py"])
def test_what_is_no_data_set_is_never_overwritten(tmp_path, name):
    """A checkpoint has a tokenizer.json, a source tree may have a folder `train`."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name == "train" else path.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="not part of a multi-hop data set"):
            prepare_multi_hop(small_config(), tmp_path, overwrite=overwrite)
    assert path.exists()


def test_a_foreign_folder_beside_a_data_set_is_never_overwritten(tmp_path, study_folder):
    (study_folder / "validation").mkdir()
    (study_folder / "validation" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds validation, which is not part of"):
        convert_multi_hop(study_folder, study_folder, overwrite=True)
    assert (study_folder / "validation" / "mine.txt").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        prepare_multi_hop(small_config(), tmp_path / "file")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("failing", ["write_vocabulary", "write_manifest"])
def test_an_error_while_writing_leaves_everything_as_it_was(tmp_path, monkeypatch, failing, overwrite):
    folder = tmp_path / "data"
    if overwrite:
        prepare_multi_hop(small_config(), folder)
    before = contents(tmp_path)

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(folder_module, failing, fail)
    with pytest.raises(OSError, match="no space left"):
        prepare_multi_hop(small_config(seed=1), folder, overwrite=overwrite)
    assert contents(tmp_path) == before and folder.exists() == overwrite


def test_a_killed_build_leaves_nothing_that_looks_like_a_data_set(tmp_path):
    folder = tmp_path / "data"
    code = (
        "import os, signal, sys; from memreason_hf.data.chains import folder, multi_hop;"
        "folder.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        "multi_hop.prepare_multi_hop(multi_hop.MultiHopConfig(num_train_chains=9, test_hops='2'), sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code, folder], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_multi_hop(folder)
    prepare_multi_hop(small_config(), folder)
    assert load_multi_hop(folder).num_rows["train"] == 27 + 3 * 40


def test_files_get_the_usual_permissions(tmp_path):
    prepare_multi_hop(small_config(), tmp_path / "data")
    (tmp_path / "plain").mkdir()
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "plain", tmp_path / "data", tmp_path / "data/train")
    ]
    assert len(set(modes)) == 1


@pytest.mark.parametrize("damage", ["cut", "remove"])
@pytest.mark.parametrize("name", ["train/data-00000-of-00001.arrow", "test_small/data-00000-of-00001.arrow"])
def test_a_damaged_arrow_file_is_noticed(tmp_path, name, damage):
    prepare_multi_hop(small_config(), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-100]) if damage == "cut" else path.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing or not of the size"):
        load_multi_hop(tmp_path)
    with pytest.raises(ValueError, match="again with overwrite"):
        prepare_multi_hop(small_config(), tmp_path)
    prepare_multi_hop(small_config(), tmp_path, overwrite=True)
    load_multi_hop(tmp_path)


@pytest.mark.parametrize("name", ["train/state.json", "test/dataset_info.json", "dataset_dict.json"])
def test_damage_beside_the_arrow_files_is_noticed(tmp_path, name):
    prepare_multi_hop(small_config(), tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(ValueError, match="the data set is damaged"):
        load_multi_hop(tmp_path)


def test_a_damaged_manifest_is_noticed(tmp_path):
    prepare_multi_hop(small_config(), tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        load_multi_hop(tmp_path)


def test_the_arrow_form_does_not_need_the_json_files(tmp_path):
    prepare_multi_hop(small_config(), tmp_path)
    for path in tmp_path.glob("t*.json"):
        path.unlink()
    assert load_multi_hop(tmp_path).num_rows["train"] == 27 + 3 * 40


def test_what_is_no_data_set_is_not_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_multi_hop(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"lacks train.json, valid.json"):
        load_multi_hop(tmp_path)


def test_another_saved_data_set_is_not_loaded(tmp_path):
    dataset = build_multi_hop(small_config()).dataset
    dataset.remove_columns(["entities"]).save_to_disk(tmp_path / "columns")
    with pytest.raises(ValueError, match="is not a multi-hop data set: split train lacks the columns entities"):
        load_multi_hop(tmp_path / "columns")
    dataset.pop("test_small")
    dataset.save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="lacks the split test_small"):
        load_multi_hop(tmp_path / "splits")


def test_two_builders_at_once_do_not_mix(tmp_path, monkeypatch):
    """The second build to finish finds the folder taken."""
    write_manifest = folder_module.write_manifest

    def be_slower(folder: Path, entries: dict):
        write_manifest(folder, entries)
        monkeypatch.setattr(folder_module, "write_manifest", write_manifest)
        prepare_multi_hop(small_config(seed=1), tmp_path)

    monkeypatch.setattr(folder_module, "write_manifest", be_slower)
    with pytest.raises(FileExistsError, match="is not empty"):
        prepare_multi_hop(small_config(), tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["config"]["seed"] == 1
    assert not list(tmp_path.parent.glob(".*.partial"))
