"""The config of an adapter on the Hub names its base by a name that everyone can load."""

import json

import pytest
from small_adapters import adapted, save_base

from memreason_hf.adapters.saving import save_adapter
from memreason_hf.hub.adapter_config import stage_adapter_config
from memreason_hf.hub.inspection import inspect_files


def test_only_the_name_of_the_base_changes(tmp_path):
    folder, staged = tmp_path / "lora", tmp_path / "staged"
    staged.mkdir()
    save_adapter(*adapted(save_base(tmp_path / "base"), "lora", lora_r=2), folder)
    # The control: as it was trained, it is refused.
    assert inspect_files([folder / "adapter_config.json"])
    with pytest.raises(ValueError, match=r"base_model_name_or_path=.* is a folder of this machine.*\(base_model\)"):
        stage_adapter_config(folder, staged)
    path = stage_adapter_config(folder, staged, "owner/llama")
    assert inspect_files([path]) == []
    before, after = (json.loads((place / path.name).read_text()) for place in (folder, staged))
    assert {key for key in before if before[key] != after[key]} == {"base_model_name_or_path"}
    assert after["base_model_name_or_path"] == "owner/llama"


@pytest.mark.parametrize(
    ("name", "given", "result"),
    [
        ("owner/llama", None, "owner/llama"),
        ("gpt2", None, "gpt2"),
        ("owner/llama", "owner/other", "owner/other"),
        ("models/llama", None, "is a folder of this machine"),
        ("../llama", None, "is a folder of this machine"),
        ("C:\\models\\llama", None, "is a folder of this machine"),
        ("a/b/c", None, "is a folder of this machine"),
        (None, None, "names no base"),
        (None, "owner/llama", "owner/llama"),
        ("gpt2", "a/b/c", "base_model='a/b/c' is not the name of a repository"),
        ("gpt2", "models/llama", "is a folder here"),
    ],
)
def test_which_names_of_a_base_can_be_published(tmp_path, monkeypatch, name, given, result):
    monkeypatch.chdir(tmp_path)
    for folder in ("models/llama", "adapter", "staged"):
        (tmp_path / folder).mkdir(parents=True)
    config = {"base_model_name_or_path": name, "revision": "abc"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    if " " in result:
        with pytest.raises(ValueError, match=result):
            stage_adapter_config("adapter", "staged", given)
    else:
        written = json.loads(stage_adapter_config("adapter", "staged", given).read_text())
        assert written == {"base_model_name_or_path": result, "revision": "abc" if given is None else None}


@pytest.mark.parametrize("content", ["[]", "{"])
def test_a_damaged_config_is_refused(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        stage_adapter_config(tmp_path, tmp_path, "owner/llama")
