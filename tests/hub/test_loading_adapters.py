"""Adapters on the Hub: found by name with their base, by this package's loader and by PEFT."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_loading import files_of, put_folder
from huggingface_hub import constants, snapshot_download
from paths import ROOT
from peft import AutoPeftModelForCausalLM, PeftModel
from recurrent_models import tiny_model
from small_adapters import adapted, as_if_trained, extended, save_base, some_ids
from small_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from memreason_hf.adapters.base_place import LOCAL_BASE_FILE
from memreason_hf.adapters.modes import ADAPTER_MODES, load_adapter, save_adapter
from memreason_hf.command_line.model_flags import ModelFlags
from memreason_hf.command_line.solution_runs import SolutionRun
from memreason_hf.commands import generate
from memreason_hf.models.loading import load_any_config, load_model, load_tokenizer
from memreason_hf.steps.tokenization import read_scheme
from modeling_recurrent import RecurrentDepthForCausalLM
from modeling_recurrent.versions_recurrent import VERSION, VERSION_KEY


BASE, ADAPTER = "user/base", "user/adapter"


def recurrent_base(folder, **kwargs):
    """A looped base, whose vocabulary the new tokens outgrow."""
    model = tiny_model("llama", vocab_size=len(byte_level()), num_coda_layers=1, input_injection="add", **kwargs)
    model.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


def publish_both(hub, tmp_path, mode, make_base=recurrent_base):
    """
    A base on the Hub and, trained on it, an adapter. Then the branch of the base moves on to other weights.

    Returns the adapted model, its tokenizer and the commit of its base.
    """
    put_folder(hub, make_base(tmp_path / "base"), BASE)
    commit = hub.repositories.get(BASE).branches["main"]
    model, tokenizer = adapted(BASE, mode)
    as_if_trained(model)
    save_adapter(model, tokenizer, tmp_path / "adapter")
    put_folder(hub, tmp_path / "adapter", ADAPTER)
    torch.manual_seed(torch.randint(2**31, ()))
    other = make_base(tmp_path / "other")
    hub.repositories.put_files(hub.repositories.get(BASE), files_of(other))
    return model, tokenizer, commit


@pytest.mark.parametrize("make_base", [recurrent_base, save_base], ids=["recurrent", "llama"])
@pytest.mark.parametrize("mode", [mode for mode in ADAPTER_MODES if mode != "full"])
def test_an_adapter_and_its_base_by_their_names(mode, make_base, this_process, tmp_path, monkeypatch):
    trained, tokenizer, commit = publish_both(this_process, tmp_path, mode, make_base)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE and config["revision"] == commit
    ids = some_ids(tokenizer)
    expected = trained(input_ids=ids).logits.detach()
    shutil.rmtree(tmp_path / "base")
    shutil.rmtree(tmp_path / "adapter")
    # As on another machine.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache2"))

    loaded, its_tokenizer = load_adapter(ADAPTER)
    assert torch.equal(loaded(input_ids=ids).logits, expected)
    assert read_scheme(its_tokenizer) == read_scheme(tokenizer)
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert load_any_config(ADAPTER).vocab_size == expected.shape[-1]
    assert load_tokenizer(ADAPTER, None, load_any_config(ADAPTER)).get_vocab() == tokenizer.get_vocab()
    assert torch.equal(load_model(ADAPTER, merge=False)(input_ids=ids).logits, expected)
    # PEFT alone resizes the base for the tokenizer that it finds beside the adapter. With virtual tokens the rows of
    # new tokens are not stored, and it does not know them.
    by_peft = AutoPeftModelForCausalLM.from_pretrained(ADAPTER).eval()
    assert torch.equal(by_peft(input_ids=ids).logits, expected) == (mode != "prompt")
    # A control: the weights of the base today give something else.
    other, _ = load_adapter(ADAPTER, base=BASE, base_check="none")
    assert not torch.allclose(other(input_ids=ids).logits, expected)


def test_the_whole_model_of_the_mode_full(this_process, tmp_path):
    model, tokenizer, _ = extended(recurrent_base(tmp_path / "base"))
    save_adapter(model.eval(), tokenizer, tmp_path / "full")
    put_folder(this_process, tmp_path / "full", "user/full")
    ids = some_ids(tokenizer)
    loaded = load_model("user/full")
    assert type(loaded) is RecurrentDepthForCausalLM
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert read_scheme(AutoTokenizer.from_pretrained("user/full", trust_remote_code=False)) == read_scheme(tokenizer)


def test_on_a_loaded_base_peft_needs_the_new_rows(this_process, tmp_path):
    """
    PEFT wraps a loaded base as it is. One without the new rows is an IndexError there, before any of this package's
    code runs; this package's loader adds the rows first.
    """
    trained, tokenizer, commit = publish_both(this_process, tmp_path, "lora+tokens")
    ids = some_ids(tokenizer)
    expected = trained(input_ids=ids).logits
    base = AutoModelForCausalLM.from_pretrained(BASE, revision=commit)
    with pytest.raises(IndexError):
        PeftModel.from_pretrained(base, ADAPTER)
    base = AutoModelForCausalLM.from_pretrained(BASE, revision=commit)
    loaded, _ = load_adapter(ADAPTER, base=base)
    assert torch.equal(loaded(input_ids=ids).logits, expected)
    # What the card says for PEFT.
    base = AutoModelForCausalLM.from_pretrained(BASE, revision=commit)
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(ADAPTER)))
    by_peft = PeftModel.from_pretrained(base, ADAPTER).eval()
    assert torch.equal(by_peft(input_ids=ids).logits, expected)


def test_revisions_of_an_adapter(this_process, tmp_path):
    trained, tokenizer, _ = publish_both(this_process, tmp_path, "lora+tokens")
    ids = some_ids(tokenizer)
    first = trained(input_ids=ids).logits.detach().clone()
    repo = this_process.repositories.get(ADAPTER)
    repo.tags["v1"] = repo.branches["main"]
    as_if_trained(trained)
    save_adapter(trained, tokenizer, tmp_path / "second")
    this_process.repositories.put_files(repo, files_of(tmp_path / "second"))
    second = trained(input_ids=ids).logits
    assert not torch.allclose(first, second)
    for revision, expected in (("v1", first), (repo.tags["v1"], first), ("main", second), (None, second)):
        loaded, _ = load_adapter(ADAPTER, revision=revision)
        assert torch.equal(loaded(input_ids=ids).logits, expected), revision
        loaded = load_model(ADAPTER, revision=revision, merge=False)
        assert torch.equal(loaded(input_ids=ids).logits, expected), revision
    # `load_adapter` of the model, which a Trainer calls, takes a name, too.
    loaded.load_adapter(ADAPTER, revision="v1")
    assert torch.equal(loaded(input_ids=ids).logits, first)
    # A file of solutions of one revision is not continued with those of another.
    runs = [SolutionRun("", ModelFlags(ADAPTER, revision=revision), None, {}, False, {}) for revision in ("v1", None)]
    weights = [run.all_settings()["weights"] for run in runs]
    assert all(weights) and weights[0] != weights[1]


def test_a_command_runs_an_adapter_by_its_name(this_process, tmp_path, capsys):
    publish_both(this_process, tmp_path, "lora+tokens")
    argv = ["--device", "cpu", "--prompt", "Is it?", "--max_new_tokens", "3", "--depths", "none"]
    generate.main([ADAPTER, *argv])
    by_name = capsys.readouterr().out
    generate.main([str(tmp_path / "adapter"), *argv])
    assert capsys.readouterr().out == by_name and by_name


def test_another_base_of_the_hub_is_refused(this_process, tmp_path):
    publish_both(this_process, tmp_path, "lora")
    with pytest.raises(ValueError, match="'user/base' is not the base model of this adapter: its weight files differ"):
        load_adapter(ADAPTER, base=BASE)
    commit = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["revision"]
    load_adapter(ADAPTER, base=BASE, base_revision=commit)


LOAD = """
import sys, torch
from memreason_hf.adapters.saving import load_adapter
loaded, _ = load_adapter(sys.argv[1])
torch.save(loaded(input_ids=torch.load(sys.argv[2], weights_only=True)).logits, sys.argv[3])
"""


@pytest.mark.parametrize("place", ["the cache", "a local folder"])
def test_the_place_of_a_base_that_was_downloaded_is_not_read(this_process, tmp_path, place):
    """Whoever publishes an adapter must not choose which folder of this machine its base is read from."""
    trained, tokenizer, _ = publish_both(this_process, tmp_path, "lora+tokens")
    ids = some_ids(tokenizer)
    torch.save(ids, tmp_path / "ids.pt")
    # Another model with the same config.
    here = {"path": str(tmp_path / "other"), "relative_path": "../other"}
    repo = this_process.repositories.get(ADAPTER)
    this_process.repositories.put_files(repo, {LOCAL_BASE_FILE: json.dumps(here).encode()})
    snapshot_download(ADAPTER)
    name = ADAPTER
    if place == "a local folder":
        name = snapshot_download(ADAPTER, local_dir=tmp_path / "downloaded")
        assert Path(name, LOCAL_BASE_FILE).is_file()
    command = [sys.executable, "-c", LOAD, name, str(tmp_path / "ids.pt"), str(tmp_path / "logits.pt")]
    environment = {**this_process.environment(), "HF_HUB_CACHE": constants.HF_HUB_CACHE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), trained(input_ids=ids).logits)
    # A control: in a folder of this machine the file is read, and names the other model.
    (tmp_path / "adapter" / LOCAL_BASE_FILE).write_text(json.dumps(here))
    with pytest.raises(ValueError, match="other' is not the base model of this adapter: its weight files differ"):
        load_adapter(tmp_path / "adapter")


def test_an_adapter_of_another_program(this_process, tmp_path):
    publish_both(this_process, tmp_path, "lora")
    (tmp_path / "adapter" / "memreason_adapter.json").unlink()
    put_folder(this_process, tmp_path / "adapter", "user/foreign")
    with pytest.raises(ValueError, match=r"user/foreign holds an adapter without memreason_adapter\.json"):
        load_adapter("user/foreign")
    with pytest.raises(FileNotFoundError, match=r"user/base holds no adapter_config\.json, so it is not an adapter"):
        load_adapter(BASE)


def test_an_adapter_of_a_newer_release_warns(tmp_path, capture_warnings):
    model, tokenizer = adapted(save_base(tmp_path / "base"), "lora")
    save_adapter(model, tokenizer, tmp_path / "adapter")
    path = tmp_path / "adapter" / "memreason_adapter.json"
    note = json.loads(path.read_text())
    assert note[VERSION_KEY] == VERSION
    with capture_warnings() as text:
        load_adapter(tmp_path / "adapter")
    assert "release" not in text()
    newer = f"9.0+{tmp_path.name}"
    path.write_text(json.dumps({**note, VERSION_KEY: newer}))
    with capture_warnings() as text:
        load_adapter(tmp_path / "adapter")
    assert f"memreason_adapter.json was written by release {newer} of memreason-hf" in text()
