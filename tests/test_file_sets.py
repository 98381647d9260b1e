"""Files that belong together survive a kill: the same command replaces what was written, and nothing else."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from paths import ROOT

from memreason_hf.file_sets import reserved, writing_together
from memreason_hf.files import check_places, whole_file
from memreason_hf.locks import InUseError, lock_file


KILLED = """
import os, signal, sys
from memreason_hf.file_sets import writing_together
from memreason_hf.files import whole_file
paths = sys.argv[1:]
with writing_together(paths, overwrite=False):
    with whole_file(paths[1]) as temporary:
        temporary.write_text("half a set")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(paths, overwrite=False):
    check_places(paths, overwrite=overwrite)
    with writing_together(paths, overwrite=overwrite):
        for path in paths:
            with whole_file(path, overwrite=overwrite) as temporary:
                temporary.write_text("whole")


@pytest.mark.parametrize("relative", [False, True])
def test_a_set_that_a_killed_process_has_begun_can_be_written(tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    paths = [name if relative else str(tmp_path / name) for name in ("results.json", "figure.png")]
    other = tmp_path / "other.png"
    other.write_text("x")
    code = subprocess.run([sys.executable, "-c", KILLED, *paths], check=False).returncode
    assert code == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == [".results.json.lock", "figure.png", "other.png"]
    with pytest.raises(FileExistsError, match=r"other\.png already exists"):
        check_places([*paths, other], overwrite=False)
    write(paths)
    assert sorted(os.listdir(tmp_path)) == ["figure.png", "other.png", "results.json"]
    # The set is whole now, so it is not replaced any more.
    with pytest.raises(FileExistsError):
        write(paths)
    write(paths, overwrite=True)


def test_a_set_that_fails_leaves_nothing(tmp_path):
    paths = [tmp_path / "new" / "results.json", tmp_path / "new" / "figure.png"]
    with pytest.raises(ZeroDivisionError), writing_together(paths, overwrite=False):
        paths[1].write_text("x")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


COMPUTING = """
import os, signal, sys
from memreason_hf.file_sets import reserved
with reserved(sys.argv[1:], overwrite=True):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def in_another_thread(function):
    """What `function` raises in another thread, to which this one is a stranger."""
    raised = []

    def run():
        try:
            function()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def test_files_are_reserved_while_they_are_computed(tmp_path):
    paths = [tmp_path / "out" / name for name in ("results.json", "figure.png")]

    def reserve():
        with reserved(paths, overwrite=False):
            pass

    with reserved(paths, overwrite=False):
        (error,) = in_another_thread(reserve)
        assert isinstance(error, InUseError)
        (error,) = in_another_thread(lambda: write(paths))
        assert isinstance(error, InUseError)
        write(paths)
    assert sorted(os.listdir(tmp_path / "out")) == ["figure.png", "results.json"]
    (error,) = in_another_thread(reserve)
    assert isinstance(error, FileExistsError)
    for path in paths:
        path.unlink()
    assert in_another_thread(reserve) == []  # a control


def test_a_set_that_was_finished_while_another_process_came_is_kept(tmp_path, monkeypatch):
    """The first check passes, because the lock of the first process names the files that it is writing."""
    paths = [tmp_path / "results.json"]
    calls = []

    def check(found, *, overwrite):
        calls.append(found)
        if len(calls) == 1:
            paths[0].write_text("theirs")
        else:
            check_places(found, overwrite=overwrite)

    monkeypatch.setattr("memreason_hf.file_sets.check_places", check)
    with pytest.raises(FileExistsError), reserved(paths, overwrite=False):
        pass
    assert paths[0].read_text() == "theirs" and os.listdir(tmp_path) == ["results.json"]


def test_what_a_killed_process_left_goes_before_the_next_one_computes(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    paths = [str(tmp_path / name) for name in ("results.json", "figure.png")]
    assert subprocess.run([sys.executable, "-c", KILLED, *paths], check=False).returncode == -signal.SIGKILL
    with pytest.raises(ZeroDivisionError), reserved(paths, overwrite=False):
        assert os.listdir(tmp_path) == [".results.json.lock"]
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    # A lock file that names somebody else's file does not get it deleted.
    lock = lock_file(paths[0], inside=False)
    lock.write_text('{"pid": 1, "files": ["thesis.txt", "../thesis.txt", "figure.png"]}')
    for name in ("thesis.txt", "figure.png"):
        (tmp_path / name).write_text("x")
    with reserved(paths, overwrite=False):
        pass
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_results_that_a_killed_process_was_to_replace_are_still_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    paths = [str(tmp_path / name) for name in ("results.json", "figure.png")]
    write(paths)
    assert subprocess.run([sys.executable, "-c", COMPUTING, *paths], check=False).returncode == -signal.SIGKILL
    assert lock_file(paths[0], inside=False).is_file()
    with pytest.raises(FileExistsError), reserved(paths, overwrite=False):
        pass
    with reserved(paths, overwrite=True):
        assert all(os.path.exists(path) for path in paths)
