"""`memreason merge`: the merged model computes what the base with its adapter computes; both stay as they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from small_adapters import SCHEME, adapted, as_if_trained, save_base, some_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from memreason_hf.adapters.modes import load_adapter, save_adapter
from memreason_hf.commands.merge import main
from memreason_hf.steps.attention import get_step_attention, restore_step_attention, set_step_attention
from memreason_hf.steps.tokenization import read_scheme


def saved_adapter(folder, mode="lora+tokens", family="llama", prepare=None, amount=0.3, **arguments):
    """An adapter as after a long training, beside its base. Returns its logits for some ids."""
    model, tokenizer = adapted(save_base(folder / "base", family), mode, lora_targets="all", **arguments)
    if prepare is not None:
        prepare(model, tokenizer)
    as_if_trained(model, amount)
    save_adapter(model, tokenizer, folder / "adapter")
    ids = some_ids(tokenizer)
    with torch.no_grad():
        return ids, model(input_ids=ids).logits


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("mode", "arguments", "family"),
    [
        ("lora", {}, "llama"),
        ("tokens", {}, "recurrent"),
        ("lora+tokens", {}, "qwen2"),
        ("lora+tokens", {"use_dora": True}, "gpt2"),
        ("lora+tokens", {"use_dora": True}, "recurrent"),
        ("lora+tokens", {"use_rslora": True}, "llama"),
    ],
    ids=str,
)
def test_the_merged_model_is_the_model_with_its_adapter(mode, arguments, family, tmp_path, capsys):
    ids, expected = saved_adapter(tmp_path, mode, family, **arguments)
    before = files_of(tmp_path / "base"), files_of(tmp_path / "adapter")
    assert main([str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
    assert f"Merged an adapter of the mode {mode} into" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found = merged(input_ids=ids).logits
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        # The control: the base alone computes something else.
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
        rows = plain.config.vocab_size
        assert not torch.allclose(plain(input_ids=ids.clamp(max=rows - 1)).logits, expected[..., :rows], atol=1e-2)
    assert read_scheme(AutoTokenizer.from_pretrained(tmp_path / "out")) == SCHEME
    assert not [name for name in files_of(tmp_path / "out") if name.startswith(("adapter_", "memreason_adapter"))]
    assert (files_of(tmp_path / "base"), files_of(tmp_path / "adapter")) == before


def test_in_another_dtype_and_from_another_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # The base is named by a relative path. Larger updates would magnify the rounding of bfloat16 to almost any size.
    ids, expected = saved_adapter(Path(), amount=0.15)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["../adapter", "merged", "--dtype", "bfloat16"]) == 0
    assert "parameters in bfloat16" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained("merged").eval()
    assert merged.dtype == torch.bfloat16
    with torch.no_grad():
        found = merged.float()(input_ids=ids).logits
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    with torch.no_grad():
        # The control: the base alone is further away.
        plain = AutoModelForCausalLM.from_pretrained("../base").eval()
        rows = plain.config.vocab_size
        difference = plain(input_ids=ids.clamp(max=rows - 1)).logits - expected[..., :rows]
    assert difference.abs().max() > 0.1 * expected.abs().max()
    # The folder is not empty now.
    assert "Choose another folder or pass --overwrite" in refused(capsys, main, ["../adapter", "merged"])
    assert main(["../adapter", "merged", "--overwrite"]) == 0
    assert AutoModelForCausalLM.from_pretrained("merged").dtype == torch.float32


def test_attention_between_steps_is_kept(tmp_path):
    saved_adapter(tmp_path, prepare=lambda model, tokenizer: set_step_attention(model, tokenizer, "own"))
    assert main([str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    restore_step_attention(merged)
    assert get_step_attention(merged) == "own"


def test_what_cannot_be_merged_is_refused_and_nothing_is_written(tmp_path, capsys):
    saved_adapter(tmp_path)
    adapter, base, out = (str(tmp_path / name) for name in ("adapter", "base", "out"))
    assert f"adapter={base!r} holds no adapter" in refused(capsys, main, [base, out])
    assert "are the same folder" in refused(capsys, main, [adapter, base, "--overwrite"])
    assert "are the same folder" in refused(capsys, main, [adapter, adapter, "--overwrite"])
    other = save_base(tmp_path / "other")
    assert "is not the base model of this adapter" in refused(capsys, main, [adapter, out, "--base", str(other)])
    shutil.copytree(adapter, tmp_path / "damaged")
    path = tmp_path / "damaged" / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_B" in name)
    save_file({**weights, name: torch.full_like(weights[name], float("nan"))}, path, metadata={"format": "pt"})
    assert "merged weights would not be finite" in refused(capsys, main, [str(tmp_path / "damaged"), out])
    saved_adapter(tmp_path / "virtual", "prompt")
    message = refused(capsys, main, [str(tmp_path / "virtual" / "adapter"), out])
    assert "has the mode 'prompt': virtual tokens are inputs" in message
    assert not (tmp_path / "out").exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    note = json.loads((tmp_path / "adapter" / "memreason_adapter.json").read_text())
    assert note["mode"] == "lora+tokens" and load_adapter(adapter)
