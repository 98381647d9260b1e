import os

import pytest

from memreason_hf.files import check_places, clear_leftovers, move_files, whole_file, whole_folder, write_json


def test_the_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "table.txt"
    with whole_file(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
        temporary.write_text("half", encoding="utf-8")
        assert not path.exists()
        temporary.write_text("whole", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), whole_file(path, overwrite=True) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_existing_files_are_named(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError, match="a already exists"):
        check_places([tmp_path / "a", tmp_path / "b"], overwrite=False)
    check_places([tmp_path / "a"], overwrite=True)
    check_places([tmp_path / "b"], overwrite=False)


def test_places_where_no_file_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Give the name of a file"):
        check_places([tmp_path / "new", tmp_path], overwrite=True)
    with pytest.raises(NotADirectoryError, match=r"table.json cannot be written: .*file is a file, not a folder"):
        check_places([tmp_path / "file" / "sub" / "table.json"], overwrite=True)
    check_places([tmp_path / "new" / "sub" / "table.json"], overwrite=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_places_where_nothing_may_be_written(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match=r"the folder .*closed is read-only"):
        check_places([tmp_path / "closed" / "new" / "table.json"], overwrite=True)


def test_a_folder_appears_whole(tmp_path):
    folder = tmp_path / "new" / "data"
    with whole_folder(folder) as staged:
        (staged / "sub").mkdir()
        (staged / "sub" / "file").write_text("whole", encoding="utf-8")
        assert not folder.exists()
    assert (folder / "sub" / "file").read_text(encoding="utf-8") == "whole"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_leaves_the_folder_that_was_there(tmp_path, overwrite):
    folder = tmp_path / "data"
    folder.mkdir()
    if overwrite:
        (folder / "old").touch()
    with pytest.raises(RuntimeError), whole_folder(folder, overwrite=overwrite) as staged:
        (staged / "new").touch()
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [folder, *([folder / "old"] if overwrite else [])]


def test_a_folder_is_replaced_only_where_that_is_wanted(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(FileExistsError, match="data is not empty"), whole_folder(folder):
        pytest.fail("the block ran")
    with whole_folder(folder, overwrite=True) as staged:
        (staged / "new").touch()
    assert list(tmp_path.rglob("*")) == [folder, folder / "new"]


def test_a_folder_that_another_process_made_meanwhile_is_kept(tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(FileExistsError), whole_folder(folder) as staged:
        (staged / "slow").touch()
        folder.mkdir()
        (folder / "fast").touch()
    assert list(tmp_path.rglob("*")) == [folder, folder / "fast"]


def test_leftovers_of_killed_processes_are_cleared_and_nothing_else(tmp_path):
    for name in (".checkpoint-5.partial", ".data.17.partial", ".old.deleted", ".git", "data.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", "data.partial"]


def test_files_move_into_a_folder_with_its_config_last(tmp_path, monkeypatch):
    staged, folder = tmp_path / "staged", tmp_path / "model"
    (staged / "sub").mkdir(parents=True)
    folder.mkdir()
    for name in ("config.json", "a.json", "sub/weights"):
        (staged / name).write_text(name)
    (folder / "a.json").write_text("old")
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (moved.append(target.name), replace(source, target)))
    assert move_files(staged, folder, last=("config.json",)) == ["a.json", "sub/weights", "config.json"]
    assert moved == ["a.json", "weights", "config.json"]
    assert (folder / "a.json").read_text() == "a.json" and not staged.exists()


def test_json_refuses_what_json_has_no_number_for(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
