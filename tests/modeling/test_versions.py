"""Checkpoints of other releases: older ones load bit for bit or say what to do, newer ones cause a warning."""

import copy
import json
import re

import pytest
import torch
from paths import ROOT
from recurrent_models import random_ids, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from modeling_recurrent.versions_recurrent import VERSION, VERSION_KEY, is_newer


def rewrite(folder, **changes):
    """Changes entries of config.json; None removes one."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def number_apart(folder, config):
    """Gives the weights the names of before release 0.1.0, where each kind of layer was numbered from 0."""
    kinds = ["prelude"] * config.num_prelude_layers + ["recurrent"] * config.num_recurrent_layers
    kinds += ["coda"] * config.num_coda_layers
    path = folder / "model.safetensors"

    def old(name):
        found = re.match(r"(.*\b)layers\.(\d+)\.(.*)", name)
        if not found:
            return name
        before, place, after = found.groups()
        kind = kinds[int(place)]
        return f"{before}{kind}_layers.{int(place) - kinds.index(kind)}.{after}"

    weights = {old(name): tensor for name, tensor in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    return weights


def test_the_version_is_that_of_the_package():
    (version,) = re.findall(r'version="(.+)"', (ROOT / "setup.py").read_text())
    assert version == VERSION


def test_a_config_names_the_release_that_wrote_it(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[VERSION_KEY] == VERSION
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert not hasattr(loaded, VERSION_KEY) and not hasattr(loaded, "_written_by")
    # It is no field of the model: a config is the same before and after, and can be made of its own entries.
    loaded._name_or_path, loaded.transformers_version = config._name_or_path, config.transformers_version
    assert loaded == config and RecurrentDepthConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert tiny_config(hidden_size=64) != config


@pytest.mark.parametrize("version", ["0.1.1", "0.2", "1.0.0.dev3", "10.0.0", "of tomorrow", 7])
def test_a_newer_release_warns_once_and_names_both(version, tmp_path, capture_warnings):
    tiny_model().save_pretrained(tmp_path)
    # Beside the same number: `warning_once` remembers texts, also of other tests.
    version = f"{version}+{tmp_path.parent.name}" if isinstance(version, str) else version + id(tmp_path)
    rewrite(tmp_path, **{VERSION_KEY: version})
    with capture_warnings() as text:
        for _ in range(2):
            AutoModelForCausalLM.from_pretrained(tmp_path)
    assert text().count(f"was written by release {version} of memreason-hf") == 1
    assert f"newer than the release {VERSION} that reads it" in text()


@pytest.mark.parametrize("version", [None, "0.0.9", "0.1", VERSION, f"{VERSION}.post1"])
def test_an_older_release_does_not_warn(version, tmp_path, capture_warnings):
    tiny_model().save_pretrained(tmp_path)
    rewrite(tmp_path, **{VERSION_KEY: version})
    with capture_warnings() as text:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "release" not in text()
    # What it saves is of this release.
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[VERSION_KEY] == VERSION


def test_versions_are_compared_as_numbers():
    assert is_newer("0.10.0") and is_newer("1.0") and not is_newer("0.0.10") and not is_newer("0.1")


SHAPES = [
    ("gpt2", {}),
    ("llama", {"num_prelude_layers": 2, "num_recurrent_layers": 12, "num_coda_layers": 1}),
    ("llama", {"num_prelude_layers": 1, "tie_word_embeddings": True, "input_injection": "concat"}),
]


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, RecurrentDepthForCausalLM.from_pretrained])
@pytest.mark.parametrize(("style", "extra"), SHAPES)
def test_names_of_before_load_bit_for_bit(style, extra, load, tmp_path, poisoned_memory):
    model = tiny_model(style, **extra)
    ids = random_ids(2, 7)
    model.save_pretrained(tmp_path / "old")
    new_names = set(load_file(tmp_path / "old" / "model.safetensors"))
    assert new_names - set(number_apart(tmp_path / "old", model.config))
    rewrite(tmp_path / "old", **{VERSION_KEY: None})
    loaded, info = load(tmp_path / "old", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    # Saved again, also by a copy, it has the names of now.
    for number, again in enumerate((loaded, copy.deepcopy(loaded))):
        folder = tmp_path / str(number)
        again.save_pretrained(folder)
        assert set(load_file(folder / "model.safetensors")) == new_names
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, model(ids).logits)
    decoder = AutoModel.from_pretrained(tmp_path / "old")
    assert torch.equal(model.compute_logits(decoder(ids).last_hidden_state), model(ids).logits)


def test_control_the_names_of_before_are_unknown_to_a_config_of_now(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    number_apart(tmp_path, model.config)
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and info["unexpected_keys"]


def test_a_mapping_of_the_call_comes_first(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    number_apart(tmp_path, model.config)
    rewrite(tmp_path, **{VERSION_KEY: None})
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, key_mapping={"^nothing$": "x"})
    assert info["missing_keys"]


def test_projections_of_their_own_are_refused(tmp_path):
    model = tiny_model("llama", num_key_value_heads=2)
    model.save_pretrained(tmp_path)
    weights = number_apart(tmp_path, model.config)
    sizes = [heads * model.config.head_dim for heads in (4, 2, 2)]
    apart = {}
    for name, tensor in weights.items():
        if "qkv_proj" in name:
            parts = tensor.split(sizes)
            apart |= {name.replace("qkv", kind): part.clone() for kind, part in zip("qkv", parts, strict=True)}
        else:
            apart[name] = tensor
    save_file(apart, tmp_path / "model.safetensors", metadata={"format": "pt"})
    rewrite(tmp_path, **{VERSION_KEY: None})
    with pytest.raises(
        ValueError, match=r"was saved before release 0\.1\.0, when q_proj.*Join their weights"
    ) as error:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_value_that_was_removed_says_what_to_do(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    rewrite(tmp_path, state_init="previous_token", **{VERSION_KEY: None})
    with pytest.raises(
        ValueError, match=r"state_init='previous_token' in config\.json was removed in .*train it again"
    ):
        AutoConfig.from_pretrained(tmp_path)
