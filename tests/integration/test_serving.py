"""
What servers do: one model asked from many threads, continuous batching, and `transformers serve` on the loopback.

`transformers serve` (5.23) finds the class of a model among the names of `transformers` alone, remote code or not. A
server of a recurrent-depth model therefore begins with two lines, which the test does, too:

    import transformers, modeling_recurrent
    transformers.RecurrentDepthForCausalLM = modeling_recurrent.RecurrentDepthForCausalLM

Its requests cannot name a depth: what the config of the served model says is what is used.
"""

import importlib.util
import json
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from modeling_recurrent import RecurrentDepthForCausalLM


PROMPTS = ["the cat", "what did the dog see? the dog saw", "a", "the dog ran after"]
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


class TestContinuousBatching:
    def answers(self, model, tokenizer):
        config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
        rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        # By itself it would take most of the machine's memory for its cache.
        small = ContinuousBatchingConfig(block_size=16, num_blocks=32, max_batch_tokens=64)
        outputs = model.generate_batch(
            rows, generation_config=config, continuous_batching_config=small, progress_bar=False
        )
        by_prompt = {tuple(output.prompt_ids): output.generated_tokens for output in outputs.values()}
        return [by_prompt[tuple(row)] for row in rows]

    @pytest.mark.parametrize("call", [{}, HALTING], ids=str)
    def test_decodes_as_with_the_last_slot_only(self, saved, continuation, call):
        model = AutoModelForCausalLM.from_pretrained(saved.folder, cache_recurrences="last", **call)
        for prompt, answer in zip(PROMPTS, self.answers(model, saved.tokenizer), strict=True):
            assert answer == continuation(prompt, cache_recurrences="last", eos_token_id=-1, **call)[0].tolist()

    def test_is_refused_where_it_would_change_the_model(self, saved):
        model = AutoModelForCausalLM.from_pretrained(saved.folder)
        with pytest.raises(ValueError, match="cache_recurrences='all'"):
            self.answers(model, saved.tokenizer)
        model.config.cache_recurrences = "last"
        model.config.halting_criterion, model.config.halting_granularity = "kl", "sequence"
        with pytest.raises(ValueError, match="halting_granularity='sequence'"):
            self.answers(model, saved.tokenizer)


@pytest.fixture
def server(saved, monkeypatch):
    """Asks a running `transformers serve`: `(path, body)` -> the text of the answer."""
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    from transformers.cli.serve import Serve

    monkeypatch.setattr(transformers, "RecurrentDepthForCausalLM", RecurrentDepthForCausalLM, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = Serve(
        force_model=saved.folder, device="cpu", host="127.0.0.1", port=port, non_blocking=True, log_level="error"
    )

    def ask(path, body=None):
        data = None if body is None else json.dumps({"model": saved.folder, **body}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=30).read().decode()

    try:
        for attempt in range(100):
            try:
                ask("/health")
                break
            except urllib.error.URLError:
                if attempt == 99:
                    raise
                time.sleep(0.1)
        yield ask
    finally:
        running.kill_server()


def test_transformers_serve(server, saved, continuation):
    for prompt in PROMPTS:
        expected = saved.tokenizer.decode(continuation(prompt)[0], skip_special_tokens=True)
        answer = json.loads(server("/v1/completions", {"prompt": prompt, "max_tokens": 6, "temperature": 0.0}))
        assert answer["choices"][0]["text"] == expected
        stream = server("/v1/completions", {"prompt": prompt, "max_tokens": 6, "temperature": 0.0, "stream": True})
        parts = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        assert "".join(part["choices"][0]["text"] for part in parts) == expected
