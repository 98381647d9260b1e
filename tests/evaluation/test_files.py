import os

import pytest

from memreason_hf.evaluation.files import check_places, whole_file


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
    with pytest.raises(FileExistsError, match="a: there already"):
        check_places([tmp_path / "a", tmp_path / "b"], overwrite=False)
    check_places([tmp_path / "a"], overwrite=True)
    check_places([tmp_path / "b"], overwrite=False)


def test_places_where_no_file_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match="is a folder; give a file"):
        check_places([tmp_path / "new", tmp_path], overwrite=True)
    with pytest.raises(NotADirectoryError, match=r"table.json: .*file is a file and no folder"):
        check_places([tmp_path / "file" / "sub" / "table.json"], overwrite=True)
    check_places([tmp_path / "new" / "sub" / "table.json"], overwrite=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_places_where_nothing_may_be_written(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match=r"nothing may be written in .*closed"):
        check_places([tmp_path / "closed" / "new" / "table.json"], overwrite=True)
