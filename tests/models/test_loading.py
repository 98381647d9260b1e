import json

import pytest
import torch
from text_models import save_text_model

from memreason_hf.models.loading import choose_device, load_any_config, load_model, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    save_text_model(tmp_path / "model")
    return tmp_path / "model"


def test_devices(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device='quantum' is not a device\. Pass cpu, cuda or cuda:1"):
        choose_device("quantum")
    # A device that torch knows is not one of this machine.
    with pytest.raises(ValueError, match="device='meta': torch finds no meta device on this machine"):
        choose_device("meta")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda': torch finds no cuda device on this machine"):
        choose_device("cuda")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="device='cuda:2': this machine has 2 cuda devices"):
        choose_device("cuda:2")
    with pytest.raises(ValueError, match="device='mps': torch finds no mps device"):
        choose_device("mps")


@pytest.mark.parametrize(
    ("name", "load"),
    [("config.json", load_any_config), ("config.json", load_model), ("generation_config.json", load_model)],
)
def test_json_that_is_nested_too_deeply(folder, name, load):
    load(str(folder))
    path = folder / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content)[:-1] + ', "deep": ' + "[" * 20_000 + "]" * 20_000 + "}")
    with pytest.raises(ValueError, match=f"{name} is not a JSON file .*nested too deeply to be read") as error:
        load(str(folder))
    assert "\n" not in str(error.value)


def test_an_unknown_architecture_is_one_line(folder):
    (folder / "config.json").write_text('{"model_type": "memreason_unheard_of"}')
    with pytest.raises(ValueError, match=r"cannot be read \(The checkpoint you are trying to load") as error:
        load_any_config(str(folder))
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_is_larger_than_the_model(folder):
    config = load_any_config(str(folder))
    assert len(load_tokenizer(str(folder), None, config)) == config.vocab_size
    config.vocab_size -= 1
    with pytest.raises(ValueError, match="The vocabulary does not match"):
        load_tokenizer(str(folder), None, config)
