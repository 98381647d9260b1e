import hashlib
import json
import os

import pytest

from memreason_hf import files
from memreason_hf.training.runs import checkpoints
from memreason_hf.training.runs.errors import CheckpointError


def write(folder, step, **contents):
    final = folder / f"checkpoint-{step}"
    staged = files.staging_folder(final)
    staged.mkdir(parents=True)
    for name, content in {"weights": "0123456789", **contents}.items():
        (staged / name).write_text(content)
    checkpoints.commit(staged, final)
    return final


def test_commit_leaves_a_verified_folder_and_nothing_else(tmp_path):
    final = write(tmp_path, 5)
    checkpoints.verify(final)
    assert os.listdir(tmp_path) == ["checkpoint-5"]
    manifest = json.loads((final / "manifest.json").read_text())
    digest = hashlib.sha256(b"0123456789").hexdigest()
    assert manifest["files"] == {"weights": {"size": 10, "sha256": digest}}
    assert (manifest["step"], manifest["run"]) == (5, None)


def test_commit_replaces_a_checkpoint_of_the_same_step(tmp_path):
    write(tmp_path, 5)
    final = write(tmp_path, 5, more="x")
    checkpoints.verify(final)
    assert os.listdir(tmp_path) == ["checkpoint-5"]
    assert (final / "more").read_text() == "x"


def test_folders_inside_a_checkpoint_count(tmp_path):
    final = tmp_path / "checkpoint-1"
    staged = files.staging_folder(final)
    (staged / "optimizer_0").mkdir(parents=True)
    (staged / "optimizer_0" / "part").write_text("abc")
    checkpoints.commit(staged, final)
    (final / "optimizer_0" / "part").unlink()
    with pytest.raises(CheckpointError, match="optimizer_0/part"):
        checkpoints.verify(final)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "weights").unlink(), "lacks the file weights"),
        (lambda folder: (folder / "weights").write_text("01234"), "weights has 5 bytes instead of 10"),
        (lambda folder: (folder / "manifest.json").unlink(), "lacks the file manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
    ],
)
def test_damage_is_found_and_the_one_before_is_taken(tmp_path, caplog, damage, message):
    good, bad = write(tmp_path, 8), write(tmp_path, 12)
    damage(bad)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.verify(bad)
    with caplog.at_level("WARNING"):
        assert checkpoints.newest_complete(tmp_path) == good
    assert message in caplog.text
    damage(good)
    with pytest.raises(CheckpointError, match="--restart"):
        checkpoints.newest_complete(tmp_path)


def test_every_single_bit_is_noticed(tmp_path):
    final = write(tmp_path, 5)
    for name in ("weights", "manifest.json"):
        content = (final / name).read_bytes()
        for bit in range(0, 8 * len(content)):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            (final / name).write_bytes(damaged)
            with pytest.raises(CheckpointError):
                checkpoints.verify(final)
        (final / name).write_bytes(content)
    checkpoints.verify(final)


def test_a_manifest_of_an_earlier_version_is_accepted_with_a_word(tmp_path, caplog):
    final = write(tmp_path, 5)
    (final / "manifest.json").write_text(json.dumps({"files": {"weights": 10}}))
    with caplog.at_level("WARNING"):
        checkpoints.verify(final)
    assert "has no checksums" in caplog.text
    (final / "weights").write_text("01234")
    with pytest.raises(CheckpointError, match="5 bytes instead of 10"):
        checkpoints.verify(final)


def test_a_renamed_checkpoint_is_noticed(tmp_path):
    with pytest.raises(CheckpointError, match="holds the checkpoint of step 5"):
        checkpoints.verify(write(tmp_path, 5).rename(tmp_path / "checkpoint-9"))


def test_rotation_counts_and_deletes_only_complete_checkpoints_of_the_run(tmp_path, caplog):
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / "checkpoint-999").mkdir()
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "notes.txt").write_text("x")
    (tmp_path / "checkpoint-1" / "notes.txt").write_text("x")
    checkpoints.rotate(tmp_path, 1, None)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1", "checkpoint-3", "checkpoint-7", "checkpoint-999"]
    assert "did not write notes.txt" in caplog.text
    other = checkpoints.run_digest({"seed": 2})
    checkpoints.rotate(tmp_path, 1, None, runs=(other,))
    assert (tmp_path / "checkpoint-3").is_dir()


def test_a_damaged_later_checkpoint_does_not_push_out_good_ones(tmp_path):
    """Of a run that was resumed at step 3 and has just saved step 4: step 9 has its size, but another content."""
    for step in (2, 3, 4, 9):
        write(tmp_path, step)
    (tmp_path / "checkpoint-9" / "weights").write_text("damaged!!!")
    checkpoints.rotate(tmp_path, 1, None, last_step=4)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-4", "checkpoint-9"]
    checkpoints.rotate(tmp_path, 1, None)  # the control
    assert os.listdir(tmp_path) == ["checkpoint-9"]


def test_no_checkpoint_at_all(tmp_path):
    assert checkpoints.newest_complete(tmp_path) is None
    assert checkpoints.newest_complete(tmp_path / "absent") is None
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        checkpoints.verify(tmp_path / "checkpoint-3")


def test_steps_are_compared_as_numbers(tmp_path):
    for step in (9, 100, 20):
        write(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-20",
        "checkpoint-100",
    ]


@pytest.mark.parametrize(
    "limit, best, left",
    [
        (None, None, [1, 2, 3, 4]),
        (2, None, [3, 4]),
        (1, None, [4]),
        (2, "checkpoint-1", [1, 4]),
        (1, "elsewhere/checkpoint-1", [1, 4]),
        (3, "checkpoint-4", [2, 3, 4]),
        (9, None, [1, 2, 3, 4]),
    ],
)
def test_rotation(tmp_path, limit, best, left):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    checkpoints.rotate(tmp_path, limit, best)
    assert sorted(os.listdir(tmp_path)) == [f"checkpoint-{step}" for step in left]


def test_leftovers_are_cleared_and_nothing_else(tmp_path):
    write(tmp_path, 4)
    for name in (".checkpoint-8.partial", ".checkpoint-2.deleted", ".model.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / ".git").mkdir()
    files.clear_leftovers(tmp_path)
    files.clear_leftovers(tmp_path / "absent")
    assert sorted(os.listdir(tmp_path)) == [".git", "checkpoint-4"]


@pytest.mark.parametrize("by", ["a rotation", "a checkpoint of the same step"])
def test_a_kill_half_way_through_a_removal_leaves_no_damaged_checkpoint(tmp_path, monkeypatch, by):
    for step in (3, 4):
        write(tmp_path, step)

    def killed(folder, ignore_errors=False):
        if folder.exists():
            (folder / "weights").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.rotate(tmp_path, 1, None) if by == "a rotation" else write(tmp_path, 3)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["checkpoint-4"]
    monkeypatch.undo()
    files.clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["checkpoint-4"]


def test_nothing_is_renamed_before_it_is_synced(tmp_path, monkeypatch):
    events = []
    sync, rename = files.sync, os.rename
    monkeypatch.setattr(files, "sync", lambda path: (events.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(("rename", b.name)), rename(a, b)))
    write(tmp_path, 3)
    renamed = events.index(("rename", "checkpoint-3"))
    assert {name for kind, name in events[:renamed] if kind == "sync"} >= {"weights", ".checkpoint-3.partial"}
    assert events[renamed + 1 :] == [("sync", tmp_path.name)]
