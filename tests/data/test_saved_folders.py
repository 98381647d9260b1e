import pytest

from memreason_hf.data.saved_folders import check_replaceable


def test_a_folder_with_foreign_contents_is_not_replaced(tmp_path):
    def check(overwrite):
        check_replaceable(
            tmp_path / "data",
            contents="a data set",
            required=["table"],
            is_part=lambda path: path.name in ("table", "report"),
            overwrite=overwrite,
        )

    check(False)
    (tmp_path / "data").mkdir()
    check(False)
    (tmp_path / "data" / "report").touch()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="data holds report, which is not part of a data set"):
            check(overwrite)
    (tmp_path / "data" / "table").touch()
    check(True)
    with pytest.raises(FileExistsError, match="data already holds another data set"):
        check(False)
    (tmp_path / "data" / "notes").touch()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="data holds notes, which is not part of a data set"):
            check(overwrite)
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    (tmp_path / "data").rmdir()
    (tmp_path / "data").touch()
    with pytest.raises(NotADirectoryError, match="data is a file"):
        check(True)
