"""LoRA adapters of a decoder on the recurrent model that was converted from it."""

import json

import pytest
import torch
from family_models import NUM_LAYERS, tiny_source
from peft import LoraConfig, PeftModel, get_peft_model
from refusals import refused
from safetensors.torch import load_file, save_file
from small_adapters import as_if_trained
from transformers import AutoModelForCausalLM

from memreason_hf.commands.convert import main
from memreason_hf.models.conversion.adapters import convert_adapter
from memreason_hf.models.conversion.exactness import remove_layers
from memreason_hf.models.conversion.layers import plan_layers


IDS = torch.tensor([[3, 14, 15, 92, 65, 35], [8, 9, 79, 32, 38, 46]])
DROPPED = ["--prelude", "1", "--loop", "2", "--coda", "1"]
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen3": ["q_proj", "up_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
}


def save_parts(tmp_path, name, flags=(), **lora):
    """A saved source, an adapter of it that changes its logits, and a conversion; returns the folders."""
    source, adapter, converted = (tmp_path / part for part in ("source", "adapter", "converted"))
    tiny_source(name).save_pretrained(source)
    settings = {
        "r": 4,
        "target_modules": TARGETS[name],
        "fan_in_fan_out": name == "gpt2",
        "task_type": "CAUSAL_LM",
        **lora,
    }
    model = get_peft_model(tiny_source(name), LoraConfig(**settings))
    as_if_trained(model)
    model.save_pretrained(adapter)
    assert main([str(source), str(converted), *flags]) == 0
    return source, adapter, converted


def logits(model, **depth):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False, **depth).logits


def adapted(folder, adapter, **depth):
    model = AutoModelForCausalLM.from_pretrained(folder)
    return logits(PeftModel.from_pretrained(model, adapter), **depth)


def adapted_without_layers(source, adapter, sizes):
    """The source with its adapter, of which both then lose layers."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), adapter)
    remove_layers(model.get_base_model(), plan_layers(NUM_LAYERS, *sizes))
    return logits(model)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_published_adapters_fit_as_they_are(name, tmp_path):
    source, adapter, converted = save_parts(tmp_path, name)
    expected = adapted(source, adapter)
    assert torch.equal(adapted(converted, adapter, num_recurrences=1), expected)
    # A control: the adapter does something.
    assert (logits(AutoModelForCausalLM.from_pretrained(source)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("flags", [[], DROPPED], ids=["all layers", "layers dropped"])
@pytest.mark.parametrize("name", TARGETS)
def test_renamed_adapters_fit(name, flags, tmp_path, capsys):
    source, adapter, converted = save_parts(tmp_path, name, flags)
    out = tmp_path / "renamed"
    capsys.readouterr()
    assert main([str(adapter), str(out), "--base", str(converted)]) == 0
    count = len(TARGETS[name])
    left_out = f"; {2 * count} were left out, because their layers were dropped" if flags else ""
    kept = (4 if flags else 6) * count
    assert capsys.readouterr().out.splitlines()[0] == f"{kept} modules with LoRA weights were renamed{left_out}."
    expected = adapted_without_layers(source, adapter, (1, 2, 1) if flags else (1, 4, 1))
    assert torch.equal(adapted(converted, out, num_recurrences=1), expected)
    written = json.loads((out / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(converted)


def test_an_adapter_that_was_not_renamed_is_another_one(tmp_path):
    """A control: with layers dropped, PEFT puts the adapter of a layer on another one."""
    source, adapter, converted = save_parts(tmp_path, "llama", DROPPED)
    expected = adapted_without_layers(source, adapter, (1, 2, 1))
    wrong = adapted(converted, adapter, num_recurrences=1)
    assert (wrong - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_settings_by_layer_follow(name, tmp_path):
    layer = {"llama": "layers", "gpt2": "h"}[name]
    first, second, *_ = TARGETS[name]
    path = {"llama": "self_attn", "gpt2": "attn"}[name]
    source, adapter, converted = save_parts(
        tmp_path,
        name,
        DROPPED,
        layers_to_transform=[1, 3, 5],
        layers_pattern=layer,
        rank_pattern={rf"{layer}.3.{path}.{first}": 2, second: 3},
        alpha_pattern={rf"{layer}.5.{path}.{first}": 20},
        modules_to_save=["lm_head"],
    )
    counts = convert_adapter(adapter, converted, tmp_path / "renamed")
    targets = len(TARGETS[name])
    assert (counts.kept, counts.left_out) == (2 * targets, targets)
    expected = adapted_without_layers(source, adapter, (1, 2, 1))
    assert torch.equal(adapted(converted, tmp_path / "renamed", num_recurrences=1), expected)
    tensors = load_file(tmp_path / "renamed" / "adapter_model.safetensors")
    ranks = {key.split(".lora_A")[0]: len(tensor) for key, tensor in tensors.items() if ".lora_A" in key}
    assert {rank for key, rank in ranks.items() if f"layers.1.{path}.{first}" in key} == {2}
    assert set(ranks.values()) == {2, 3, 4}


def test_a_pattern_of_all_linear_layers_follows(tmp_path):
    source, adapter, converted = save_parts(tmp_path, "qwen3", DROPPED, target_modules="all-linear")
    assert convert_adapter(adapter, converted, tmp_path / "renamed").kept == 4 * 7
    expected = adapted_without_layers(source, adapter, (1, 2, 1))
    assert torch.equal(adapted(converted, tmp_path / "renamed", num_recurrences=1), expected)


def edit(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def other_tensors(folder):
    path = folder / "adapter_model.safetensors"
    tensors = {key.replace("self_attn", "attention"): tensor for key, tensor in load_file(path).items()}
    save_file(tensors, path)


def narrower(folder):
    path = folder / "adapter_model.safetensors"
    save_file({key: t[:, :31].contiguous() if ".lora_A" in key else t for key, t in load_file(path).items()}, path)


def pickled(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


ERRORS = {
    "another family": (lambda f: rename(f, "model.layers", "transformer.h"), "does not fit"),
    "another module": (other_tensors, "the model has no layers"),
    "another width": (narrower, "reads 31 channels"),
    "pickled": (pickled, "Only adapter_model.bin is there, which is not read"),
    "replicated layers": (lambda f: edit(f, layer_replication=[[0, 2], [1, 3]]), "layer_replication"),
    "not LoRA": (lambda f: edit(f, peft_type="IA3"), "Only LoRA can be renamed"),
    "cut off": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"1234"), "cannot be read"),
    "no type": (lambda f: (f / "adapter_config.json").write_text("{}"), "has peft_type=None"),
    "damaged config": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
    "beyond the source": (lambda f: rename(f, "layers.5.", "layers.6."), "layers.6."),
}


def rename(folder, old, new):
    path = folder / "adapter_model.safetensors"
    save_file({key.replace(old, new): tensor for key, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(("damage", "message"), ERRORS.values(), ids=ERRORS)
def test_adapters_that_do_not_fit(damage, message, tmp_path, capsys):
    _, adapter, converted = save_parts(tmp_path, "llama", DROPPED)
    damage(adapter)
    line = refused(capsys, main, [str(adapter), str(tmp_path / "out"), "--base", str(converted)])
    assert message in line and not (tmp_path / "out").exists()


def test_a_base_that_is_not_a_conversion(tmp_path, capsys):
    source, adapter, converted = save_parts(tmp_path, "llama")
    argv = [str(adapter), str(tmp_path / "out"), "--base"]
    assert "has no conversion.json" in refused(capsys, main, [*argv, str(source)])
    line = refused(capsys, main, [*argv, str(converted), "--loop", "2"])
    assert "loop='2' is for decoders" in line
    line = refused(capsys, main, [str(adapter), str(converted), "--base", str(converted), "--overwrite"])
    assert "base=" in line and "are the same folder" in line and (converted / "conversion.json").is_file()
