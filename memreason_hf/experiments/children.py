"""
The processes of an experiment, one for each part: a few run at a time, and none outlives the experiment.

A child is in a session of its own, so Ctrl-C in a terminal reaches only the parent, which ends its children and waits
for them. If the parent is killed, the pipe to the child's standard input closes, and the child ends itself.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging

from memreason_hf.files import read_text
from memreason_hf.locks import locked


# How long a child may take to end after SIGTERM: a training step.
GRACE_SECONDS = 20.0
# Whether standard input is the pipe to the parent: a child may also be started by hand.
_IS_CHILD = "MEMREASON_IS_CHILD"


def run_children(names: Iterable, at_once: int, start: Callable, end: Callable) -> None:
    """
    Runs a process for each name, in order. If anything fails, or a signal arrives, all of them are ended.

    Args:
        names: of the parts.
        at_once: how many run at the same time.
        start: `start(name)` returns a process of `start_child`.
        end: `end(name, exit code)` is called when it has ended.
    """
    waiting = list(names)
    running: dict[object, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                running[name] = start(name)
            time.sleep(0.2)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                process = running.pop(name)
                _close(process)
                end(name, process.returncode)
    finally:
        _end_all(running.values())


def run_missing(
    folders: Mapping[str, Path], at_once: int, *, read: Callable[[Path], object], start: Callable, end: Callable
) -> None:
    """
    Runs a process for each part without results, in order, and prints which results are kept.

    Args:
        folders: of the parts, by name.
        at_once, start, end: see `run_children`.
        read: `read(folder)` returns the results in a folder, or None.
    """
    waiting = []
    for name, folder in folders.items():
        if read(folder) is None:
            waiting.append(name)
        else:
            print(f"{name}: kept the results in {folder}.", flush=True)
    run_children(waiting, at_once, start, end)


def start_child(module: str, *arguments: str, log: Path, threads: int | None = 1) -> subprocess.Popen:
    """
    Starts `python -m module arguments` with its output in the file `log`. Its `main` must call `end_with_parent`.

    Args:
        threads: of torch on the CPU; None for its default.
    """
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", _IS_CHILD: "1"}
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with open(log, "w", encoding="utf-8") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def check_end(name: str, code: int, is_finished: bool, log: Path) -> None:
    """
    Checks that a child has done its part.

    Args:
        name: of the part.
        code: the exit code of the child.
        is_finished: whether it left results.
        log: its output.

    Raises:
        ValueError: it has failed; the message quotes the end of the log.
    """
    if code or not is_finished:
        lines = read_text(log, errors="replace").rstrip().splitlines()
        raise ValueError(f"{name} ended with code {code}: {' '.join(lines[-3:])[-600:]} The whole log is in {log}.")


def end_with_parent() -> None:
    """
    Called by a child at its start: from now on it ends when its standard input closes, as if it got SIGTERM. Does
    nothing in a process that `start_child` has not started.
    """

    def watch():
        # Not the buffered reader, whose lock would be held when the interpreter ends.
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    if os.environ.get(_IS_CHILD) == "1":
        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def running_child(folder: str | Path, *, threads: int | None = 1) -> Iterator[None]:
    """
    What a child does around its part: it ends with its parent, is quiet, and holds the folder of the part.

    Args:
        folder: of the part.
        threads: of torch on the CPU: several parts run at the same time. None for its default.

    Raises:
        InUseError: another process works in the folder for longer than a child may take to end.
    """
    end_with_parent()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    # The child of an experiment that was killed may still be ending.
    with locked(folder, inside=True, wait=2 * GRACE_SECONDS):
        yield


def _end_all(processes):
    processes = list(processes)
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            # Ctrl-C once more: it need not finish its step.
            process.kill()
            process.wait()
        _close(process)


def _close(process):
    if process.stdin is not None:
        process.stdin.close()
