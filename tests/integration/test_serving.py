"""
Serving: one model used by many threads, and `transformers serve` on the loopback interface, with continuous batching
and without.

`transformers serve` finds the class of a model among the names of `transformers`, remote code or not. Importing
`modeling_recurrent` puts it there:

    python -c "import modeling_recurrent; from transformers.cli.transformers import main; main()" serve FOLDER

A server uses the depth of the folder's `generation_config.json` or `config.json`, and continuous batching that of
`config.json`.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from engines import frozen_heap, share_all_slots
from processes import _free_port
from transformers import GenerationConfig

from modeling_recurrent import RecurrentDepthForCausalLM


PROMPTS = ["the cat", "what did the dog see? the dog saw", "a", "the dog ran after"]
# Long enough to span blocks of the cache, and with a common beginning.
LONG_PROMPTS = [
    f"{PROMPTS[1]} the cat on the mat, and the {end}" for end in ("dog", "cat sat", "mat", "dog ran after")
]
# Not all requests fit into the cache at once.
BATCHING = {"continuous_batching": True, "cb_block_size": 8, "cb_num_blocks": 12, "cb_max_batch_tokens": 16}
HALTING = {"halting_criterion": "kl", "kl_threshold": 0.1}


class Streamer:
    def __init__(self):
        self.ids, self.depths = [], []

    def put(self, value):
        self.ids.append(value.flatten())

    def put_recurrences(self, value):
        self.depths.append(value)

    def end(self):
        pass


def test_one_model_asked_from_many_threads(saved, continuation):
    calls = [{}, HALTING, {"num_recurrences": 7}, {**HALTING, "halting_granularity": "sequence"}] * 2
    requests = [(prompt, call) for call in calls for prompt in PROMPTS]
    streamers = [Streamer() for _ in requests]

    def answer(request, streamer):
        return continuation(request[0], streamer=streamer, **request[1])

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(answer, requests, streamers))
    for (prompt, call), (ids, output), streamer in zip(requests, answers, streamers, strict=True):
        expected, alone = continuation(prompt, **call)
        assert torch.equal(ids, expected)
        assert torch.equal(output.num_recurrences, alone.num_recurrences)
        assert torch.equal(torch.cat(streamer.depths, 1), alone.num_recurrences)
        assert torch.equal(torch.cat(streamer.ids[1:]), expected)


def skip_without_server():
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")


class Client:
    """Asks a server for completions of one model."""

    def __init__(self, folder, port):
        self.folder, self.port = folder, port

    def ask(self, path, body=None):
        data = None if body is None else json.dumps({"model": self.folder, **body}).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=60).read().decode()

    def wait(self, seconds=10.0):
        for _ in range(int(seconds * 10)):
            with contextlib.suppress(urllib.error.URLError):
                return self.ask("/health")
            time.sleep(0.1)
        raise TimeoutError("the server does not answer")

    def complete(self, prompt):
        body = {"prompt": prompt, "max_tokens": 6, "temperature": 0.0}
        return json.loads(self.ask("/v1/completions", body))["choices"][0]["text"]

    def stream(self, prompt):
        body = {"prompt": prompt, "max_tokens": 6, "temperature": 0.0, "stream": True}
        lines = self.ask("/v1/completions", body).splitlines()
        parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        return "".join(part["choices"][0]["text"] for part in parts)

    def texts(self, prompts):
        """What it answers at the same time, in a stream and at once, which must be the same."""
        with ThreadPoolExecutor(2 * len(prompts)) as pool:
            streams = pool.map(self.stream, prompts)
            answers = list(pool.map(self.complete, prompts))
        assert list(streams) == answers
        return answers


@contextlib.contextmanager
def serving(folder, **options):
    """A running `transformers serve` in this process."""
    skip_without_server()
    from transformers.cli.serve import Serve

    # Code that imported `transformers` earlier must find the class, too.
    assert transformers.RecurrentDepthForCausalLM is RecurrentDepthForCausalLM
    client = Client(folder, _free_port())
    with frozen_heap():
        running = Serve(
            force_model=folder,
            device="cpu",
            host="127.0.0.1",
            port=client.port,
            non_blocking=True,
            log_level="error",
            **options,
        )
        try:
            client.wait()
            yield client
        finally:
            running.kill_server()


@pytest.fixture
def expected(saved, continuation):
    """`(prompts, **depth)` -> the texts of `generate` for each prompt alone."""

    def write(prompts, **depth):
        ids = [continuation(prompt, **depth)[0] for prompt in prompts]
        return [saved.tokenizer.decode(row, skip_special_tokens=True) for row in ids]

    return write


@pytest.fixture
def deeper(saved, tmp_path):
    """The folder of the model with another depth in its generation config."""
    folder = Path(shutil.copytree(saved.folder, tmp_path / "served"))
    config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    GenerationConfig(**{**config, "_from_model_config": False, "num_recurrences": 7}).save_pretrained(folder)
    return str(folder)


def test_transformers_serve(saved, expected):
    with serving(saved.folder) as client:
        assert client.texts(PROMPTS) == expected(PROMPTS)


def test_transformers_serve_at_the_depth_of_the_generation_config(deeper, expected):
    """With the control: other depths give other texts."""
    with serving(deeper) as client:
        assert client.texts(PROMPTS) == expected(PROMPTS, num_recurrences=7) != expected(PROMPTS)


def test_transformers_serve_with_continuous_batching(saved, expected, monkeypatch):
    """With the control: in slots that all recurrences share, the texts are others."""
    prompts = PROMPTS + LONG_PROMPTS
    with serving(saved.folder, **BATCHING) as client:
        assert client.texts(prompts) == expected(prompts)
    share_all_slots(monkeypatch.setattr)
    with serving(saved.folder, **BATCHING) as client:
        assert [client.complete(prompt) for prompt in prompts] != expected(prompts)


def test_continuous_batching_refuses_a_depth_that_it_would_ignore(deeper):
    with serving(deeper, **BATCHING) as client:
        for ask in (client.complete, client.stream):
            with pytest.raises(urllib.error.HTTPError, match="500"):
                ask(PROMPTS[0])
        assert json.loads(client.ask("/health"))["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("batching", [False, True])
def test_transformers_serve_as_a_process(saved, expected, tmp_path, batching):
    skip_without_server()
    client = Client(saved.folder, _free_port())
    start = "import modeling_recurrent; from transformers.cli.transformers import main; main()"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in BATCHING.items() if value is not True]
    options = ["--continuous-batching", *options] if batching else []
    arguments = ["serve", saved.folder, "--device=cpu", "--host=127.0.0.1", f"--port={client.port}", *options]
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", start, *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            client.wait(60)
            prompts = PROMPTS + LONG_PROMPTS
            assert client.texts(prompts) == expected(prompts)
        finally:
            process.terminate()
            process.wait(30)
