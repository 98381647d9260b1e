"""`memreason serve` in a process of its own."""

import contextlib
import http.client
import json
import os
import re
import threading
import time
from pathlib import Path

from processes import child_process

from memreason_hf.commands.serve import main
from memreason_hf.serving.batching import DepthBatcher


KEY = "a-key-of-the-tests"


def serve_in_child(log, environment, argv):
    """Runs in a child process, with its output in a file."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    raise SystemExit(main(argv))


def fail_in_child(*args):
    """As `serve_in_child`, with a model that fails once it is served."""
    real_step = DepthBatcher.step

    def step(self):
        if threading.current_thread() is threading.main_thread():
            return real_step(self)
        raise RuntimeError("out of luck")

    DepthBatcher.step = step
    serve_in_child(*args)


class ServedProcess:
    """A server in a process."""

    def __init__(self, process, log):
        self.process, self.log = process, log
        line = self.wait_for(r"^Serving (.*) at http://\S+:(\d+)/v1, (.*)$")
        self.name, self.port, self.depth = line[1], int(line[2]), line[3]

    def wait_for(self, pattern, seconds=60):
        """Waits until a line is printed."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.log.read_text(), re.MULTILINE)) is None:
            assert self.process.is_alive() and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return found

    def begin(self, **fields):
        """Sends a request for a completion; returns the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/completions", json.dumps(fields), headers)
        return connection

    def ask(self, **fields):
        """The answer to a request for a completion."""
        with contextlib.closing(self.begin(**fields)) as connection:
            return json.loads(connection.getresponse().read())

    def metrics(self):
        """All metrics, by their line without the value."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        with contextlib.closing(connection):
            lines = connection.getresponse().read().decode().splitlines()
        pairs = (line.rpartition(" ")[::2] for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def end(self):
        """The exit code, and what was printed."""
        self.process.join(60)
        return self.process.exitcode, self.log.read_text()


@contextlib.contextmanager
def served_process(tmp_path, argv, environment=None, run=serve_in_child):
    """`memreason serve` with these arguments, on a free port. It is gone when the block ends."""
    log = Path(tmp_path) / "log.txt"
    log.touch()
    with child_process(run, str(log), environment or {}, [*argv, "--port", "0", "--device", "cpu"]) as process:
        yield ServedProcess(process, log)
