"""The processes of an experiment: a few at a time, and none outlives the experiment, however it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paths import ROOT

from memreason_hf.experiments.children import run_children, start_child
from memreason_hf.experiments.folders import check_removable, claim_folder
from modeling_recurrent.card_recurrent import CARD_MARK


CHILD = """
import os, pathlib, sys, time
from memreason_hf.experiments.children import end_with_parent

end_with_parent()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""
PARENT = """
import pathlib, sys
from memreason_hf.command_line.errors import user_errors
from memreason_hf.experiments.children import run_children, start_child

def start(name):
    return start_child("child", name, "60", "0", log=pathlib.Path(name + ".log"))

with user_errors("memreason testbed"):
    run_children(["one", "two"], 2, start, print)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    return tmp_path


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process whose parent has not asked for its exit code yet is none.
    return ") Z" not in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP])
def test_a_signal_to_the_parent_alone_ends_its_children(folder, number):
    with subprocess.Popen([sys.executable, "-c", PARENT], stderr=subprocess.PIPE, text=True) as parent:
        files = [folder / "one", folder / "two"]
        wait_for(lambda: all(file.is_file() and file.read_text() for file in files))
        children = [int(file.read_text()) for file in files]
        assert all(map(is_running, children))
        parent.send_signal(number)
        errors = parent.communicate(timeout=30)[1]
    if number in (signal.SIGTERM, signal.SIGINT):
        assert parent.returncode == 128 + number
        assert len(errors.strip().splitlines()) == 1
        # The parent has waited for them.
        assert not any(map(is_running, children))
    wait_for(lambda: not any(map(is_running, children)))


def test_a_few_run_at_a_time_and_all_end(folder):
    most, running, ended = [], set(), []

    def start(name):
        running.add(name)
        most.append(len(running))
        return start_child("child", name, "0.1", "0", log=folder / "log")

    def end(name, code):
        running.remove(name)
        ended.append((name, code))

    run_children(["a", "b", "c"], 2, start, end)
    assert max(most) == 2 and sorted(ended) == [("a", 0), ("b", 0), ("c", 0)]


def test_one_that_fails_ends_the_others(folder):
    def start(name):
        return start_child("child", name, "0" if name == "bad" else "60", "3", log=folder / "log")

    def end(name, code):
        wait_for((folder / "good").is_file)
        raise ValueError(f"{name} ended with code {code}")

    with pytest.raises(ValueError, match="bad ended with code 3"):
        run_children(["good", "bad"], 2, start, end)
    pid = int((folder / "good").read_text())
    wait_for(lambda: not is_running(pid))


def test_restart_deletes_only_what_an_experiment_wrote(tmp_path):
    part = tmp_path / "part"
    claim_folder(part, {"seed": 1}, restart=False)
    (part / "model.safetensors").write_text("x")
    claim_folder(part, {"seed": 2}, restart=True)
    assert os.listdir(part) == ["settings.json"]
    (part / "looped").mkdir()
    (part / "looped" / "thesis.txt").write_text("x")
    for act in (lambda: claim_folder(part, {"seed": 3}, restart=True), lambda: check_removable([part])):
        with pytest.raises(ValueError, match=r"looped/thesis\.txt was not written by an experiment"):
            act()
    assert (part / "looped" / "thesis.txt").is_file()


@pytest.mark.parametrize(
    ("name", "content", "is_own"),
    [
        ("README.md", "My notes.", False),
        ("README.md", f"{CARD_MARK}\n# A card", True),
        (".env", "x", False),
        (".git/config", "x", False),
        ("my.lock", "x", False),
        (".thesis.txt.lock", "x", False),
        (".memreason.lock", "", True),
        (".solutions.jsonl.lock", "", True),
        (".model.partial/anything.bin", "x", True),
        (".results.17-0123456789ab.json", "{", True),
    ],
)
def test_which_hidden_files_and_cards_are_of_an_experiment(tmp_path, name, content, is_own):
    part = tmp_path / "part"
    claim_folder(part, {"seed": 1}, restart=False)
    (part / name).parent.mkdir(exist_ok=True)
    (part / name).write_text(content)
    if is_own:
        claim_folder(part, {"seed": 2}, restart=True)
        assert os.listdir(part) == ["settings.json"]
        return
    with pytest.raises(ValueError, match=f"{re.escape(name)} was not written by an experiment"):
        claim_folder(part, {"seed": 2}, restart=True)
    assert (part / name).read_text() == content
