"""Locks: one holder at a time, nothing left behind, and a killed holder frees its lock."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from paths import ROOT

from memreason_hf.locks import InUseError, clear_free_lock, lock_file, locked


HOLD = """
import sys, time
from memreason_hf.locks import locked
with locked(sys.argv[1], inside=sys.argv[2] == "inside"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path, inside):
    command = [sys.executable, "-c", HOLD, str(path), "inside" if inside else "beside"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("inside", [True, False])
def test_another_process_is_refused_by_the_name_of_the_holder(tmp_path, inside):
    path = tmp_path / "place"
    with holder(path, inside) as process:
        message = rf"place is in use by process {process.pid} on .*Wait until"
        with pytest.raises(InUseError, match=message), locked(path, inside=inside):
            raise AssertionError("two holders")
        process.stdin.close()
        assert process.wait() == 0
    assert os.listdir(tmp_path) == []
    with locked(path, inside=inside):
        assert lock_file(path, inside=inside).is_file()
    assert os.listdir(tmp_path) == []


def test_a_killed_holder_leaves_no_lock(tmp_path):
    with holder(tmp_path, inside=True) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock_file(tmp_path, inside=True).is_file()  # the file alone means nothing
        with locked(tmp_path, inside=True):
            assert json.loads(lock_file(tmp_path, inside=True).read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("inside", [True, False])
def test_the_lock_file_of_a_killed_holder_is_cleared_and_that_of_a_living_one_is_kept(tmp_path, inside):
    path = tmp_path / "place"
    clear_free_lock(path, inside=inside)
    assert os.listdir(tmp_path) == []
    with holder(path, inside) as process:
        clear_free_lock(path, inside=inside)
        assert lock_file(path, inside=inside).is_file()
        with pytest.raises(InUseError), locked(path, inside=inside):
            raise AssertionError("two holders")
        process.kill()
        process.wait()
        assert lock_file(path, inside=inside).is_file()
        clear_free_lock(path, inside=inside)
        assert not lock_file(path, inside=inside).exists()
    with locked(path, inside=inside):  # also not the one that this process holds
        clear_free_lock(path, inside=inside)
        assert lock_file(path, inside=inside).is_file()


def test_waiting_ends_when_the_holder_does(tmp_path, caplog):
    with holder(tmp_path, inside=True) as process:
        threading.Timer(0.3, process.kill).start()
        started = time.monotonic()
        with caplog.at_level(logging.WARNING), locked(tmp_path, inside=True, wait=60):
            assert 0.2 < time.monotonic() - started < 30
    assert f"process {process.pid}" in caplog.text


def test_a_thread_may_take_its_lock_again_and_another_may_not(tmp_path):
    refused = []

    def try_it():
        try:
            with locked(tmp_path, inside=True):
                pass
        except InUseError as error:
            refused.append(str(error))

    with locked(tmp_path, inside=True):
        with locked(tmp_path, inside=True):
            pass
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "another thread of this process" in refused[0]
    try_it()
    assert len(refused) == 1


def test_never_two_at_once(tmp_path):
    """Many threads wait for one lock, whose file is removed and created again all the time, also by a bystander."""
    inside, most, done = [], [], threading.Event()

    def clear():
        while not done.is_set():
            clear_free_lock(tmp_path / "file")
            time.sleep(0.0005)

    def work():
        for _ in range(10):
            with locked(tmp_path / "file", wait=60):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    bystander = threading.Thread(target=clear)
    bystander.start()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    bystander.join()
    assert len(most) == 40 and max(most) == 1
    assert os.listdir(tmp_path) == []


def test_a_child_does_not_keep_the_lock_of_its_killed_parent(tmp_path):
    script = f"""
import os, signal
from memreason_hf.locks import locked
lock = locked({str(tmp_path)!r}, inside=True)
lock.__enter__()
if os.fork() == 0:
    import time
    print(os.getpid(), flush=True)
    time.sleep(60)
else:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as process:
        child = int(process.stdout.readline())
        try:
            process.wait()
            with locked(tmp_path, inside=True):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_link_in_the_place_of_the_lock_file_is_not_followed(tmp_path):
    target = tmp_path / "thesis.txt"
    target.write_text("x")
    (tmp_path / ".memreason.lock").symlink_to(target)
    with pytest.raises(OSError), locked(tmp_path, inside=True):
        pass
    assert target.read_text() == "x"
