"""The way back from the Hub: in a new process, with the package and without it, the same logits bit for bit."""

import json

import pytest
import torch
from fresh_loads import load_afresh
from hub_loading import files_of, put_folder
from recurrent_models import DECODING_GRID, random_ids, tiny_config, tiny_model
from text_models import save_text_model
from transformers import AutoModelForCausalLM

from modeling_recurrent import RecurrentDepthForQuestionAnswering, RecurrentDepthForSequenceClassification


CAUSAL = "AutoModelForCausalLM"
IDS = {"small": random_ids(2, 9)}


def logits_of(model):
    with torch.no_grad():
        return model(IDS["small"])[0]


def put_model(hub, folder, name, model, **saving):
    model.save_pretrained(folder, **saving)
    put_folder(hub, folder, name)
    return logits_of(model)


def put_versions(hub, tmp_path):
    """
    A repository with a tag of its first weights and a branch of others, whose code does not run any more.

    Returns the logits of both.
    """
    first, second = (tiny_model("llama", num_coda_layers=1, input_injection="add") for _ in range(2))
    before = put_model(hub, tmp_path / "first", "user/versions", first)
    repo = hub.repositories.get("user/versions")
    repo.tags["v1"] = repo.branches["main"]
    second.save_pretrained(tmp_path / "second")
    files = files_of(tmp_path / "second") | {"modeling_recurrent.py": b"raise RuntimeError('broken code')\n"}
    hub.repositories.put_files(repo, files)
    return before, logits_of(second)


def put_all(hub, tmp_path):
    """Repositories of every form; returns (cases, expected logits) of each load."""
    loads = []

    def add(expected, auto, name, call=None, **kwargs):
        loads.append(({"auto": auto, "name": name, "kwargs": kwargs, "call": call or {}}, expected))

    model = tiny_model("gpt2", num_prelude_layers=1)
    expected = put_model(hub, tmp_path / "gpt2", "user/gpt2", model)
    with torch.no_grad():
        deeper = model(IDS["small"], num_recurrences=7).logits
        state = model.model(IDS["small"]).last_hidden_state
        half = tiny_copy(model, tmp_path / "gpt2", torch.bfloat16)(IDS["small"]).logits
    add(expected, CAUSAL, "user/gpt2")
    add(deeper, CAUSAL, "user/gpt2", num_recurrences=7)
    add(deeper, CAUSAL, "user/gpt2", call={"num_recurrences": 7})
    add(half, CAUSAL, "user/gpt2", dtype="bfloat16")
    add(state, "AutoModel", "user/gpt2")
    add(expected, CAUSAL, "user/gpt2", device_map="cpu")
    add(expected, CAUSAL, "user/gpt2", device_map="auto")
    loads[-1][0]["memory"] = 12_000
    add(expected, CAUSAL, "user/gpt2", local_files_only=True)

    family = tiny_model("family:qwen3", num_coda_layers=1, input_injection="gate", recurrence_lora_rank=2)
    expected = put_model(hub, tmp_path / "family", "user/family", family, max_shard_size="20KB")
    assert len(list((tmp_path / "family").glob("model-*.safetensors"))) > 2
    add(expected, CAUSAL, "user/family")

    variant = tiny_model("llama")
    add(put_model(hub, tmp_path / "variant", "user/variant", variant, variant="ema"), CAUSAL, "user/variant")
    loads[-1][0]["kwargs"]["variant"] = "ema"

    for auto, cls in HEADS.items():
        head = cls(tiny_config("llama", num_labels=3)).eval()
        name = f"user/{auto.lower()}"
        add(put_model(hub, tmp_path / auto, name, head), auto, name)

    before, after = put_versions(hub, tmp_path)
    add(before, CAUSAL, "user/versions", revision="v1")
    add(after, CAUSAL, "user/versions", revision="main", code_revision="v1")
    return loads


HEADS = {
    "AutoModelForSequenceClassification": RecurrentDepthForSequenceClassification,
    "AutoModelForQuestionAnswering": RecurrentDepthForQuestionAnswering,
}


def tiny_copy(model, folder, dtype):
    return type(model).from_pretrained(folder, dtype=dtype).eval()


def check(results, loads, module):
    for result, (case, expected) in zip(results, loads, strict=True):
        assert "error" not in result, (case, result["error"])
        assert result["module"].startswith(module), (case, result["module"])
        logits = result["logits"]
        assert logits.dtype == expected.dtype and torch.equal(logits, expected), case
    # A control: none of it would pass if the weights were those of another repository or depth.
    different = [expected.float() for _, expected in loads if expected.shape == loads[0][1].shape]
    assert sum(not torch.equal(one, different[0]) for one in different) >= 5


def test_without_the_package(hub, tmp_path):
    loads = put_all(hub, tmp_path)
    save_text_model(tmp_path / "text")
    put_folder(hub, tmp_path / "text", "user/text")
    cases = [{**case, "trust": True} for case, _ in loads]
    others = [
        {"auto": "AutoConfig", "name": "user/gpt2", "trust": True},
        {"auto": "AutoTokenizer", "name": "user/text", "trust": True},
        # Controls: without the flag it is refused, although standard input says yes; and the code of main is broken.
        {"auto": CAUSAL, "name": "user/gpt2", "kwargs": {"trust_remote_code": False}},
        {"auto": CAUSAL, "name": "user/versions", "trust": True},
        # From the cache alone, after everything was loaded once.
        {**cases[0], "offline": True},
    ]
    results = load_afresh(tmp_path / "out", hub.environment(), cases + others, IDS, installed=False)
    check(results[: len(cases)], loads, "transformers_modules")
    config, tokenizer, untrusted, broken, offline = results[len(cases) :]
    assert config["class"] == "RecurrentDepthConfig" and config["module"].startswith("transformers_modules")
    assert tokenizer["ids"]
    assert untrusted["error"].startswith("ValueError") and "trust_remote_code=True" in untrusted["error"]
    assert broken["error"] == "RuntimeError: broken code" and hub.matching("HEAD", r"_recurrent\.py$")
    assert torch.equal(offline["logits"], loads[0][1])
    assert "meta" in results[6]["devices"]


@pytest.mark.slow
def test_with_the_package(hub, tmp_path):
    """No `trust_remote_code` is needed, and if it is given, the installed code runs all the same."""
    loads = put_all(hub, tmp_path)
    cases = [case for case, _ in loads]
    trusting = {"auto": CAUSAL, "name": "user/gpt2", "trust": True}
    broken = {"auto": CAUSAL, "name": "user/versions"}
    results = load_afresh(tmp_path / "out", hub.environment(), [*cases, trusting, broken], IDS, installed=True)
    check([*results[:-1]], [*loads, (trusting, loads[0][1])], "modeling_recurrent")
    # The repository's own code, which is broken on main, was not even asked for.
    assert "error" not in results[-1] and not hub.matching("HEAD", r"_recurrent\.py$")


def test_the_repository_names_its_own_code(hub, this_process, tmp_path):
    """A model that was loaded from the Hub and saved again does not point back to the repository it came from."""
    put_model(this_process, tmp_path / "first", "user/first", tiny_model("llama"))
    AutoModelForCausalLM.from_pretrained("user/first").save_pretrained(tmp_path / "again")
    assert "--" not in json.dumps(json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"])
    assert (tmp_path / "again" / "versions_recurrent.py").is_file()


@pytest.mark.slow
def test_every_style_without_the_package_also_offline(hub, tmp_path):
    loads = []
    for style, extra in DECODING_GRID:
        repository = f"user/{len(loads)}"
        model = tiny_model(style, **extra)
        expected = put_model(hub, tmp_path / repository, repository, model, max_shard_size="30KB")
        loads.append(({"auto": CAUSAL, "name": repository, "trust": True, "kwargs": {}}, expected))
    cases = [case for case, _ in loads]
    for number, changes in enumerate(({}, {"HF_HUB_OFFLINE": "1"})):
        hub.requests.clear()
        environment = hub.environment(**changes)
        results = load_afresh(tmp_path / f"out-{number}", environment, cases, IDS, installed=False)
        check(results, loads, "transformers_modules")
        assert bool(hub.requests) == (number == 0)
