import pytest

from memreason_hf.evaluation.files import refuse_existing, whole_file


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
        refuse_existing([tmp_path / "a", tmp_path / "b"], overwrite=False)
    refuse_existing([tmp_path / "a"], overwrite=True)
    refuse_existing([tmp_path / "b"], overwrite=False)
