import json
import os

import pytest

from memreason_hf import files
from memreason_hf.training.runs import checkpoints, output_folder
from memreason_hf.training.runs.errors import OutputFolderError
from modeling_recurrent.card_recurrent import CARD_MARK, keep_card


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


def checkpoint(folder, step, *names):
    final = folder / f"checkpoint-{step}"
    staged = files.staging_folder(final)
    staged.mkdir()
    for name in names:
        (staged / name).write_text("x")
    output_folder.record_checkpoint(staged, final)
    checkpoints.commit(staged, final)
    return final


def test_restart_deletes_nothing_that_the_run_did_not_write(tmp_path, caplog):
    folder = tmp_path / "run"
    thesis, absolute, linked = tmp_path / "thesis.txt", tmp_path / "absolute.txt", tmp_path / "elsewhere"
    linked.mkdir()
    for path in (thesis, absolute, linked / "file"):
        path.write_text("x")
    folder.mkdir()
    (folder / "link").symlink_to(linked)
    (folder / "own.json").symlink_to(thesis)
    (folder / "config.json").write_text("x")
    names = ["../thesis.txt", str(absolute), "link/file", "own.json", "..", "", ".", "config.json"]
    (folder / "run.json").write_text(json.dumps({"fingerprint": RUN, "files": names}))
    output_folder.claim(folder, RUN, restart=True)
    assert all(path.is_file() for path in (thesis, absolute, linked / "file"))
    assert sorted(os.listdir(folder)) == ["link", "own.json", "run.json"]
    assert "outside of the folder" in caplog.text


@pytest.mark.parametrize("record", ["run.json", "no run.json", "damaged run.json"])
@pytest.mark.parametrize("content", ["notes.txt", "model.safetensors", "link"])
def test_restart_refuses_a_foreign_checkpoint_by_name_and_changes_nothing(tmp_path, record, content):
    output_folder.claim(tmp_path, RUN, restart=False)
    checkpoint(tmp_path, 3, "weights")
    if record != "run.json":
        (tmp_path / "run.json").unlink()
    if record == "damaged run.json":
        (tmp_path / "run.json").write_text("{")
    foreign = tmp_path / "checkpoint-7"
    foreign.mkdir()
    if content == "link":
        (foreign / content).symlink_to(tmp_path)
    else:
        (foreign / content).write_text("x")
    before = sorted(path for path in tmp_path.rglob("*") if path.parent.name != "link")
    with pytest.raises(OutputFolderError, match=rf"checkpoint-7 holds {content}.*Move the folder"):
        output_folder.claim(tmp_path, RUN, restart=True)
    assert before == sorted(path for path in tmp_path.rglob("*") if path.parent.name != "link")


def test_restart_removes_an_own_checkpoint_without_its_manifest(tmp_path):
    output_folder.claim(tmp_path, RUN, restart=False)
    (checkpoint(tmp_path, 3, "weights", "state") / "manifest.json").unlink()
    output_folder.claim(tmp_path, RUN, restart=True)
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_checkpoint_does_not_replace_what_the_run_did_not_write(tmp_path):
    output_folder.claim(tmp_path, RUN, restart=False)
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "notes.txt").write_text("x")
    with pytest.raises(OutputFolderError, match=r"checkpoint-7 already holds notes\.txt"):
        checkpoint(tmp_path, 7, "weights")
    assert os.listdir(tmp_path / "checkpoint-7") == ["notes.txt"]


def test_the_model_of_one_run_is_not_saved_under_the_name_of_another(tmp_path):
    output_folder.claim(tmp_path, RUN, restart=False)
    staged = tmp_path / ".model.partial"
    staged.mkdir()
    (staged / "config.json").write_text("x")
    with pytest.raises(OutputFolderError, match="holds another run by now"):
        output_folder.move_in(staged, tmp_path, RUN | {"training.seed": 2})
    output_folder.move_in(staged, tmp_path, RUN)


def test_a_checkpoint_of_another_run_is_refused_and_the_difference_is_named(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    output_folder.claim(old, RUN, restart=False)
    staged = old / ".checkpoint-4.partial"
    staged.mkdir()
    checkpoints.commit(staged, old / "checkpoint-4", checkpoints.run_digest(RUN))
    other = RUN | {"training.seed": 7}
    with pytest.raises(
        OutputFolderError, match=r"checkpoint-4' belongs to another run \(training.seed was 1, now 7\)"
    ):
        output_folder.open_run(new, other, resume=str(old / "checkpoint-4"))
    assert not new.exists()
    (old / "run.json").unlink()
    with pytest.raises(OutputFolderError, match=r"belongs to another run\. Give"):
        output_folder.open_run(new, other, resume=str(old / "checkpoint-4"))
    assert output_folder.open_run(new, RUN, resume=str(old / "checkpoint-4")) == old / "checkpoint-4"


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


PERSONAL_CARD = "---\nlicense: mit\n---\n# My model\n\nWhat I found.\n"


@pytest.mark.parametrize("card, kept", [(PERSONAL_CARD, True), (f"{CARD_MARK}\n# A run\n", False)])
def test_restart_keeps_the_card_that_a_person_wrote(tmp_path, card, kept):
    output_folder.claim(tmp_path, RUN, restart=False)
    model_files(tmp_path, "config.json")
    (tmp_path / "README.md").write_text(card)
    output_folder.record_file(tmp_path, "README.md")
    output_folder.claim(tmp_path, RUN, restart=True)
    assert sorted(os.listdir(tmp_path)) == (["README.md", "run.json"] if kept else ["run.json"])


def test_a_card_in_another_encoding_is_kept(tmp_path):
    card = "# Mein Modell für Ärzte\n".encode("latin-1")
    (tmp_path / "README.md").write_bytes(card)
    (tmp_path / "staged").mkdir()
    keep_card(tmp_path, tmp_path / "staged")
    assert (tmp_path / "staged" / "README.md").read_bytes() == card
    output_folder.claim(tmp_path, RUN, restart=False)
    output_folder.record_file(tmp_path, "README.md")
    output_folder.claim(tmp_path, RUN, restart=True)
    assert (tmp_path / "README.md").read_bytes() == card


def test_hidden_folders_of_others_outlive_a_claim(tmp_path):
    for name in (".mine.partial", ".old.deleted", f".data.{os.getpid()}-0a1b2c3d.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("x")
    (tmp_path / ".push-3.partial").mkdir()
    output_folder.claim(tmp_path, RUN, restart=False)
    assert len(list(tmp_path.glob(".*/notes.txt"))) == 3 and not (tmp_path / ".push-3.partial").exists()


def test_a_claim_is_taken_back_only_where_nothing_was_saved(tmp_path):
    for name in ("failed", "checkpoint", "model"):
        output_folder.claim(tmp_path / name, RUN, restart=False)
        output_folder.record_file(tmp_path / name, output_folder.DATA_FILE)
        (tmp_path / name / output_folder.DATA_FILE).write_text("{}")
        (tmp_path / name / "notes.txt").write_text("x")
    checkpoint(tmp_path / "checkpoint", 3, "weights")
    model_files(tmp_path / "model", "config.json")
    for name in ("failed", "checkpoint", "model", "absent"):
        output_folder.release(tmp_path / name)
    assert os.listdir(tmp_path / "failed") == ["notes.txt"]
    assert (tmp_path / "checkpoint" / "run.json").exists() and (tmp_path / "model" / "run.json").exists()
    output_folder.claim(tmp_path / "failed", RUN | {"training.seed": 2}, restart=False)
