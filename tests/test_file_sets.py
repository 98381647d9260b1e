"""Files that belong together survive a kill: the same command replaces what was written, and nothing else."""

import os
import signal
import subprocess
import sys

import pytest
from paths import ROOT

from memreason_hf.file_sets import writing_together
from memreason_hf.files import check_places, whole_file


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
