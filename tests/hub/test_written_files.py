"""What this package writes can be published as it is, although every path that it was given was absolute."""

import json
import os
import shutil

import pytest
import torch
from small_adapters import SCHEME, adapted, as_if_trained, save_base, some_ids
from small_runs import small_trainer
from transformers import AutoConfig

from memreason_hf.adapters.base_place import LOCAL_BASE_FILE, find_base
from memreason_hf.adapters.saving import load_adapter, save_adapter
from memreason_hf.commands import convert, evaluate, evaluate_steps, generate, perplexity, sweep, unroll
from memreason_hf.data.chains.multi_hop import MultiHopConfig, build_multi_hop, save_multi_hop
from memreason_hf.data.questions.memory_reason import build_memory_reason, save_memory_reason
from memreason_hf.hub.inspection import inspect_files
from memreason_hf.models.loading import load_any_config


# What never leaves is refused by its name, whatever it holds.
STAYS = ("record of a run", "training state", "place on this machine")


def private(*paths):
    """The findings in files that could leave."""
    found = inspect_files(paths)
    refused = {finding.path for finding in found if finding.kind in STAYS}
    return [finding for finding in found if finding.path not in refused]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a chain model, and the world it was trained on, by absolute paths."""
    folder = tmp_path_factory.mktemp("runs")
    config = MultiHopConfig(
        num_entities=6, num_relations=3, train_hops="2-4", test_hops="2-4", num_train_chains=40, num_test_chains=12
    )
    save_multi_hop(build_multi_hop(config), folder / "world")
    trainer = small_trainer(folder / "model", max_steps=4)
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "bases" / "llama", "llama")


@pytest.fixture
def adapter(base, tmp_path):
    model, tokenizer = adapted(base, "lora")
    save_adapter(as_if_trained(model), tokenizer, tmp_path / "runs" / "lora")
    return tmp_path / "runs" / "lora"


def test_a_run_and_its_data(run):
    assert private(run) == []
    refused = {finding.path for finding in inspect_files([run])}
    # The controls: these hold what must not leave, and are refused.
    assert {"model/run.json", "model/training_args.bin", "model/checkpoint-4/optimizer.pt"} <= refused


def test_results_figures_and_pages(run, tmp_path):
    common = [str(run / "model"), "--data", str(run / "world"), "--output_dir", str(tmp_path / "results")]
    common += ["--max_recurrences", "6", "--overwrite"]
    evaluate.main(common)
    sweep.main([*common, "--halting_results", str(tmp_path / "results" / "evaluation.json")])
    files = ["--html", str(tmp_path / "results" / "page.html"), "--json", str(tmp_path / "results" / "page.json")]
    generate.main([str(run / "model"), "--prompt", "<e_1><r_1>", "--max_new_tokens", "2", *files])
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "<e_1><r_1><r_2>"}\n' * 3)
    perplexity.main(
        [str(run / "model"), "--data", str(texts), "--max_recurrences", "3", "--output_dir", str(tmp_path / "text")]
    )
    names = {path.name for path in tmp_path.rglob("*.*")}
    assert {"evaluation.json", "depth_sweep.json", "depth_sweep.png", "depth_sweep.pdf", "page.html"} <= names
    assert private(tmp_path) == []
    document = json.loads((tmp_path / "results" / "evaluation.json").read_text())
    assert (document["model"]["name_or_path"], document["data"]["path"]) == ("model", "world")


def test_relative_paths_and_names_stay_as_they_are(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run)
    evaluate.main(["model", "--data", str(run / "world"), "--output_dir", str(tmp_path), "--max_recurrences", "2"])
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert (document["model"]["name_or_path"], document["data"]["path"]) == ("model", "world")


def test_conversions(base, tmp_path):
    looped, plain = tmp_path / "looped", tmp_path / "plain"
    layers = AutoConfig.from_pretrained(base).num_hidden_layers
    convert.main([str(base), str(looped), "--loop", str(layers), "--prelude", "0", "--coda", "0"])
    unroll.main([str(looped), str(plain), "--num_recurrences", "1"])
    assert private(looped, plain) == []
    assert json.loads((looped / "conversion.json").read_text())["source"]["name_or_path"] == "llama"


def test_solutions(adapter, tmp_path, capsys):
    for split in ("train", "test"):
        row = {"question": f"Is it for {split}?", "answer": "True", "cot_steps": ["[rag]: a"], "split": split}
        (tmp_path / f"StrategyQA_{split}_clean.json").write_text(json.dumps([row]))
    data = save_memory_reason(build_memory_reason("strategy_qa", str(tmp_path)), tmp_path / "questions")
    out = tmp_path / "out" / "texts.jsonl"
    command = [str(adapter), "--data", str(data), "--output_file", str(out), "--max_new_tokens", "3"]
    evaluate_steps.main(command)
    assert private(tmp_path / "out", data) == []
    settings = json.loads((tmp_path / "out" / "texts.jsonl.settings.json").read_text())
    assert (settings["model"], settings["data"]) == ("lora", "questions")
    # Also from another folder and by a relative path, it is the same file that goes on.
    before = out.read_bytes()
    folder = os.getcwd()
    os.chdir(tmp_path / "runs")
    try:
        evaluate_steps.main(["lora", *command[1:]])
    finally:
        os.chdir(folder)
    assert out.read_bytes() == before
    capsys.readouterr()


def test_an_adapter_on_a_local_base_is_refused_for_its_place(adapter):
    """Publishing names the base on the Hub instead; peft alone needs the place here."""
    found = {(finding.path, finding.kind) for finding in inspect_files([adapter])}
    expected = {("adapter_config.json", "absolute path"), (LOCAL_BASE_FILE, "absolute path")}
    assert found == expected | {(LOCAL_BASE_FILE, "place on this machine")}
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "owner/llama"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert private(adapter) == []


@pytest.mark.parametrize("moved", ["nothing", "adapter", "both"])
def test_the_base_is_found_from_any_folder(adapter, base, tmp_path, monkeypatch, moved):
    model, tokenizer = load_adapter(adapter)
    ids = some_ids(tokenizer)
    expected = model(ids).logits
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if moved == "adapter":
        adapter = shutil.move(adapter, elsewhere / "lora")
    elif moved == "both":
        shutil.move(tmp_path / "bases", elsewhere / "bases")
        shutil.move(tmp_path / "runs", elsewhere / "runs")
        adapter = elsewhere / "runs" / "lora"
    monkeypatch.chdir(elsewhere)
    again, _ = load_adapter(adapter)
    assert torch.equal(again(ids).logits, expected)
    assert load_any_config(str(adapter)).vocab_size == model.get_input_embeddings().weight.shape[0]


def test_without_its_base_an_adapter_says_what_to_do(adapter, base, tmp_path, monkeypatch):
    shutil.move(base, tmp_path / "hidden")
    with pytest.raises(OSError, match=r"base model '.*llama' of the adapter .*Pass its folder \(base="):
        load_adapter(adapter)
    assert load_adapter(adapter, base=tmp_path / "hidden")[0] is not None
    (adapter / LOCAL_BASE_FILE).write_text("[]")
    with pytest.raises(ValueError, match=r"local_base.json must hold an object .* pass base="):
        find_base(adapter, "llama")


def test_a_relative_base_is_named_as_it_was_given(tmp_path, monkeypatch):
    """peft alone loads it from the same folder, as before."""
    monkeypatch.chdir(tmp_path)
    save_base("models/llama", "llama")
    model, tokenizer = adapted("models/llama", "tokens", scheme=SCHEME)
    save_adapter(as_if_trained(model), tokenizer, "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/llama"
    places = json.loads((tmp_path / "lora" / LOCAL_BASE_FILE).read_text())
    assert places == {"path": str(tmp_path / "models" / "llama"), "relative_path": "../models/llama"}
    # Saving again into the folder gives the same file, though it is staged one folder deeper.
    save_adapter(model, tokenizer, "lora")
    assert json.loads((tmp_path / "lora" / LOCAL_BASE_FILE).read_text()) == places


def test_a_base_on_the_hub_has_no_place(adapter, tmp_path):
    model, tokenizer = load_adapter(adapter)
    model.get_base_model().name_or_path = model.peft_config["default"].base_model_name_or_path = "owner/llama"
    model.adapter_base["weights"] = {}
    save_adapter(model, tokenizer, adapter)
    assert not (adapter / LOCAL_BASE_FILE).exists()
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/llama"
