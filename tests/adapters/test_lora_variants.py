"""LoRA on layers by their names, DoRA and rsLoRA: what is wrapped, and what the formulas say."""

import re

import pytest
import torch
from small_adapters import adapted, as_if_trained, extended, save_base, some_ids
from small_tokenizers import MODELS

from memreason_hf.adapters.modes import AdapterArguments, load_adapter, save_adapter
from memreason_hf.adapters.targets import named_targets


def wrapped(model):
    """The paths of the layers with low-rank updates."""
    names = [name for name, _ in model.named_parameters() if ".lora_A." in name]
    return {name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight") for name in names}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["q_proj"], {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}),
        (["layers.1.self_attn.v_proj"], {"model.layers.1.self_attn.v_proj"}),
        (["model.layers.0.mlp.up_proj", "up_proj"], {f"model.layers.{n}.mlp.up_proj" for n in (0, 1)}),
    ],
    ids=["an ending", "a longer ending", "a path and an ending"],
)
def test_layers_by_name(names, found, tmp_path):
    base = save_base(tmp_path / "base", num_hidden_layers=2)
    model, _ = adapted(base, "lora", lora_modules=names)
    assert wrapped(model) == found


def test_names_that_fit_nothing_are_refused_with_those_that_there_are(tmp_path):
    base = save_base(tmp_path / "base")
    message = "lora_modules: LlamaForCausalLM has no linear layer 'c_attn'. Its linear layers: down_proj, gate_proj, "
    with pytest.raises(ValueError, match=re.escape(message)):
        adapted(base, "lora", lora_modules=["q_proj", "c_attn"])
    # An ending is one of whole names.
    with pytest.raises(ValueError, match="no linear layer 'proj'"):
        adapted(base, "lora", lora_modules=["proj"])
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(ValueError, match=f"'{name}'"):
            adapted(base, "lora", lora_modules=[name])
    for value in ([], "q_proj", [""], [3]):
        with pytest.raises(ValueError, match=r"lora_modules=.* must be a list of names"):
            AdapterArguments("lora", lora_modules=value)
    with pytest.raises(ValueError, match=r"lora_modules=.* has no effect in the mode 'tokens'"):
        AdapterArguments("tokens", lora_modules=["q_proj"])


def updated_weights(model, name):
    """The parts of one layer's update: base weight, A, B, and the magnitudes of DoRA."""
    layer = model.get_submodule(f"base_model.model.{name}")
    weight = layer.base_layer.weight
    if layer.fan_in_fan_out:
        weight = weight.T
    norms = getattr(layer.lora_magnitude_vector, "default", None) if layer.lora_magnitude_vector else None
    low_rank = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    return weight, low_rank, None if norms is None else norms.weight


@pytest.mark.parametrize("family", MODELS)
def test_the_formulas_and_the_merged_model(family, tmp_path):
    """rsLoRA: W + alpha / sqrt(r) BA. DoRA: m (W + alpha / r BA) / |W + alpha / r BA|, norms of rows of W."""
    base = save_base(tmp_path / "base", family)
    for arguments, scale in (({"use_rslora": True}, 8 / 4**0.5), ({"use_dora": True}, 8 / 4), ({}, 8 / 4)):
        model, tokenizer = adapted(base, "lora+tokens", lora_r=4, lora_alpha=8, lora_targets="all", **arguments)
        as_if_trained(model)
        expected = {}
        for name in wrapped(model):
            weight, low_rank, norms = updated_weights(model, name)
            expected[name] = weight + scale * low_rank
            assert (norms is not None) == ("use_dora" in arguments)
            if norms is not None:
                expected[name] = norms.reshape(-1, 1) * expected[name] / expected[name].norm(dim=1, keepdim=True)
        folder = tmp_path / "-".join(["adapter", *arguments])
        save_adapter(model, tokenizer, folder)
        ids = some_ids(tokenizer)
        with torch.no_grad():
            logits = model(input_ids=ids).logits
            loaded, _ = load_adapter(folder)
            torch.testing.assert_close(loaded(input_ids=ids).logits, logits, rtol=1e-5, atol=1e-5)
            merged = loaded.merge_and_unload()
            torch.testing.assert_close(merged(input_ids=ids).logits, logits, rtol=1e-3, atol=1e-3)
        for name, weight in expected.items():
            found = merged.get_submodule(name).weight
            found = found.T if found.shape != weight.shape or family == "gpt2" else found
            torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-4)


def test_the_head_is_found_by_no_name_of_another_layer(tmp_path):
    model, _, _ = extended(save_base(tmp_path / "base"))
    assert named_targets(model, ["down_proj"]) == ["model.layers.0.mlp.down_proj"]
