"""
Serving: one model used by many threads, continuous batching, and `transformers serve` on the loopback interface.

`transformers serve` finds the class of a model among the names of `transformers`, remote code or not. Importing
`modeling_recurrent` puts it there:

    python -c "import modeling_recurrent; from transformers.cli.transformers import main; main()" serve FOLDER

A server uses the depth of the folder's `generation_config.json` or `config.json`.
"""

import importlib.util
import json
import shutil
import socket
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import AutoConfig, ContinuousBatchingConfig, GenerationConfig

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
    """One slot for each layer is exact for a single recurrence. Everything else is refused."""

    def answers(self, model, tokenizer, **generation):
        config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0, **generation)
        rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
        # By default, the cache would take most of the machine's memory.
        small = ContinuousBatchingConfig(block_size=16, num_blocks=32, max_batch_tokens=16)
        outputs = model.generate_batch(
            rows, generation_config=config, continuous_batching_config=small, progress_bar=False
        )
        by_prompt = {tuple(output.prompt_ids): output.generated_tokens for output in outputs.values()}
        return [by_prompt[tuple(row)] for row in rows]

    @pytest.mark.parametrize("train", [False, True])
    @pytest.mark.parametrize("window", [None, 3])
    def test_one_recurrence_is_exact(self, saved, continuation, window, train):
        fields = {"num_recurrences": 1}
        if window is not None:
            fields |= {"sliding_window": window, "num_prelude_layers": 0, "num_coda_layers": 0}
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(saved.folder, **fields)
        model = RecurrentDepthForCausalLM(config).eval()
        expected = []
        for prompt in PROMPTS:
            ids = saved.tokenizer(prompt, return_tensors="pt")["input_ids"]
            expected.append(model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=-1)[0, ids.shape[1] :])
        model.train(train)
        assert self.answers(model, saved.tokenizer) == [ids.tolist() for ids in expected]

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({}, r"keeps one slot for each layer, but the model's config has num_recurrences=3"),
            ({"cache_recurrences": "last"}, "keeps one slot for each layer"),
            ({"num_recurrences": 1, "halting_criterion": "kl"}, "halting_criterion='kl'"),
            (
                {"num_recurrences": 1, "sliding_window": 3, "num_prelude_layers": 1},
                "applies sliding_window=3 to every layer",
            ),
        ],
        ids=str,
    )
    def test_what_would_change_the_texts_is_refused(self, saved, fields, message):
        model = RecurrentDepthForCausalLM(AutoConfig.from_pretrained(saved.folder, **fields))
        with pytest.raises(ValueError, match=f"Continuous batching would change the texts.*{message}"):
            self.answers(model, saved.tokenizer)

    def test_a_depth_that_it_would_ignore_is_refused(self, saved):
        model = RecurrentDepthForCausalLM(AutoConfig.from_pretrained(saved.folder, num_recurrences=1))
        with pytest.raises(ValueError, match="it ignores num_recurrences=7 of the generation_config"):
            self.answers(model, saved.tokenizer, num_recurrences=7)


@pytest.fixture(params=[None, 7], ids=["the config's depth", "a generation config's depth"])
def server(saved, request, tmp_path):
    """Asks a running `transformers serve`: `(path, body)` -> the text of the answer; `server.depth` is its own."""
    folder = saved.folder
    if request.param is not None:
        folder = str(shutil.copytree(saved.folder, tmp_path / "served"))
        config = json.loads((tmp_path / "served" / "generation_config.json").read_text(encoding="utf-8"))
        config = GenerationConfig(**{**config, "_from_model_config": False, "num_recurrences": request.param})
        config.save_pretrained(folder)
    missing = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    from transformers.cli.serve import Serve

    # Code that imported `transformers` earlier must find the class, too.
    assert transformers.RecurrentDepthForCausalLM is RecurrentDepthForCausalLM
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = Serve(
        force_model=folder, device="cpu", host="127.0.0.1", port=port, non_blocking=True, log_level="error"
    )

    def ask(path, body=None):
        data = None if body is None else json.dumps({"model": folder, **body}).encode()
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
        yield SimpleNamespace(ask=ask, depth={} if request.param is None else {"num_recurrences": request.param})
    finally:
        running.kill_server()


def test_transformers_serve(server, saved, continuation):
    for prompt in PROMPTS:
        expected = saved.tokenizer.decode(continuation(prompt, **server.depth)[0], skip_special_tokens=True)
        answer = json.loads(server.ask("/v1/completions", {"prompt": prompt, "max_tokens": 6, "temperature": 0.0}))
        assert answer["choices"][0]["text"] == expected
        stream = server.ask("/v1/completions", {"prompt": prompt, "max_tokens": 6, "temperature": 0.0, "stream": True})
        parts = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
        assert "".join(part["choices"][0]["text"] for part in parts) == expected
