"""Ctrl-C and SIGTERM end every command with one line and the exit code of shells, also while it is loading."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from paths import ROOT

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.signals import signals_raise
from memreason_hf.interrupts import Terminated


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
# Python runs this at its start: the import of torch says so, and waits.
SLOW_IMPORT = """
import sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        # datasets comes first where torch is imported by nothing else.
        if name in ("torch", "datasets"):
            print("loading", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Finder())
"""


PROGRAMS = {
    "memreason evaluate": ["-m", "memreason_hf.cli", "evaluate"],
    "memreason train": ["-m", "memreason_hf.cli", "train"],
    "memreason": ["-m", "memreason_hf.commands.train"],
    "build_multi_hop.py": [str(ROOT / "data_scripts" / "build_multi_hop.py")],
    "build_memory_reason.py": [str(ROOT / "data_scripts" / "build_memory_reason.py")],
    "convert_multi_hop.py": [str(ROOT / "data_scripts" / "convert_multi_hop.py")],
    "fetch_data.py": [str(ROOT / "data_scripts" / "fetch_data.py")],
}


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_while_it_is_loading(tmp_path, number, program):
    (tmp_path / "sitecustomize.py").write_text(SLOW_IMPORT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, *PROGRAMS[program], "somewhere"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == CODES[number]
    (line,) = errors.strip().splitlines()
    assert line == f"{program}: stopped by {NAMES[number]}; it was still loading, and nothing was written."


ENDED = """
import sys, time
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.signals import stop_while_loading
stop_while_loading("memreason train")
with user_errors("memreason train", stopped="the same command resumes"):
    pass
print("ended", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", CODES)
def test_after_its_work(number):
    """Between two parts of a command, and while Python ends: no traceback, and not the bare end by the signal."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", ENDED], cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "ended\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == CODES[number]
    assert errors.strip() == f"memreason train: stopped by {NAMES[number]}; the same command resumes."


@pytest.mark.parametrize("number", CODES)
def test_while_it_runs(capsys, number):
    before = {number: signal.getsignal(number) for number in CODES}
    cleaned = []
    with pytest.raises(SystemExit) as stop, user_errors("memreason sweep", stopped="nothing was written"):
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleaned.append(True)
    assert stop.value.code == CODES[number] and cleaned
    assert capsys.readouterr().err == f"\nmemreason sweep: stopped by {NAMES[number]}; nothing was written.\n"
    assert {number: signal.getsignal(number) for number in CODES} == before


@pytest.mark.parametrize("number", CODES)
def test_where_python_ignores_exceptions(capsys, number):
    """The exception of a signal that arrives in a `__del__` or in the callback of a weak reference is ignored."""

    class Dying:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    with pytest.raises(SystemExit) as stop, user_errors("memreason sweep", stopped="nothing was written"):
        Dying()
        time.sleep(30)
    assert stop.value.code == CODES[number]
    assert capsys.readouterr().err == f"\nmemreason sweep: stopped by {NAMES[number]}; nothing was written.\n"


def test_other_ignored_exceptions_are_shown_as_before(monkeypatch):
    shown = []

    class Broken:
        def __del__(self):
            raise ZeroDivisionError

    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    before = sys.unraisablehook
    with user_errors("memreason sweep"):
        Broken()
    assert [entry.exc_type for entry in shown] == [ZeroDivisionError] and sys.unraisablehook is before


def test_handlers_of_a_program_that_calls_a_command_stay():
    arrived = []
    before = signal.signal(signal.SIGTERM, lambda *args: arrived.append(True))
    try:
        with signals_raise():
            os.kill(os.getpid(), signal.SIGTERM)
        assert arrived
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(Terminated), signals_raise():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()


def test_in_another_thread_nothing_is_installed():
    ended = []

    def run():
        with user_errors("memreason sweep"):
            ended.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended == [signal.getsignal(signal.SIGTERM)]


def test_other_ranks_say_nothing(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), user_errors("memreason train"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_a_signal_that_is_back_before_its_thread_has_started(monkeypatch, capsys):
    """As on a busy machine: the exception is then raised inside the hook, where Python ignores it as well."""
    start, slow = threading.Timer.start, []

    def start_slowly(timer):
        start(timer)
        if not slow:
            slow.append(True)
            time.sleep(0.5)

    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    monkeypatch.setattr(threading.Timer, "start", start_slowly)
    with pytest.raises(SystemExit) as stop, user_errors("memreason sweep", stopped="nothing was written"):
        Dying()
        time.sleep(30)
    assert slow and stop.value.code == CODES[signal.SIGTERM]
