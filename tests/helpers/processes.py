"""Runs functions in child processes, which may be killed. They are forked from a server that has all imports."""

import contextlib
import faulthandler
import functools
import gc
import multiprocessing
import os
import random
import socket
import sys
import traceback
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import torch


# Seconds that children may take; shortly before, they print where they are.
TIMEOUT = 120
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["small_runs"]
_CONTEXT.set_forkserver_preload(_PRELOADED)


def preload(module):
    """Has the server import a module, so that its functions start at once. No effect on a server that runs already."""
    _PRELOADED.append(module)
    _CONTEXT.set_forkserver_preload(_PRELOADED)


@functools.cache
def _start_server():
    """Starts the server with the path of this process, so that the server can import the helpers."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def run_child(function, *args, environment=None):
    """Runs `function(*args)` in a new process. Returns its exit code, negative for a signal."""
    return run_children([(function, args, environment or {})])[0]


@contextlib.contextmanager
def child_process(function, *args):
    """A new process that runs `function(*args)`, for tests that kill it. It is gone when the block ends."""
    _start_server()
    process = _CONTEXT.Process(target=_run, args=(function, args, {}), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def run_ranks(function, *args, world_size=2):
    """Runs `function(*args)` in `world_size` processes as a launcher would start them. All must succeed."""
    port = _free_port()
    common = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    calls = [(function, args, {**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(world_size)]
    codes = run_children(calls)
    assert codes == [0] * world_size


def _free_port():
    """
    A port below those that the system gives to connections (from 32768 on Linux): of tests that run at the same time,
    one could otherwise be given the port that another has just found free.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


def run_children(calls, timeout=TIMEOUT):
    """Runs (function, arguments, environment) in one process each, at the same time. Returns the exit codes."""
    _start_server()
    processes = [_CONTEXT.Process(target=_run, args=call, daemon=True) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            for other in processes:
                other.kill()
            raise TimeoutError(f"{calls[0][0].__name__} took more than {timeout} s")
    return [process.exitcode for process in processes]


def _run(function, args, environment):
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    # See quick_runs: a collection of everything that the server has imported takes 0.4 s.
    gc.freeze()
    faulthandler.dump_traceback_later(TIMEOUT - 10)
    try:
        function(*args)
    except Exception:
        traceback.print_exc()
        os._exit(1)


def save_result(path, value):
    """Saves the result of a child for `load_result` in the test."""
    torch.save(_plain(value), path)


def _plain(value):
    """Without numpy's numbers, which `torch.load(weights_only=True)` refuses."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def load_result(path):
    """What a child saved with `save_result`."""
    return torch.load(Path(path), weights_only=True)
