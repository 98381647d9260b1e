"""A model that cannot be loaded from the Hub ends in one line that says what to do."""

import shutil
import socket
import time
from types import SimpleNamespace

import pytest
import torch
from hub_loading import put_folder
from huggingface_hub import constants
from local_hub import READER, STRANGER, Fault, point_client_at
from refusals import refused
from small_adapters import adapted, save_base
from text_models import save_text_model

from memreason_hf.adapters.base_place import LOCAL_BASE_FILE
from memreason_hf.adapters.modes import load_adapter, save_adapter
from memreason_hf.commands import generate
from memreason_hf.models.loading import load_any_config, load_model, load_tokenizer


REPO = "user/model"
ARGUMENTS = ["--device", "cpu", "--prompt", "the cat", "--max_new_tokens", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_text_model(folder)
    return folder


@pytest.fixture(scope="module")
def on_the_hub(tmp_path_factory):
    """A folder with a base and one with an adapter that names it by its Hub name."""
    folder = tmp_path_factory.mktemp("on_the_hub")
    model, tokenizer = adapted(save_base(folder / "base"), "lora")
    model.peft_config["default"].base_model_name_or_path = "user/base"
    save_adapter(model, tokenizer, folder / "adapter")
    # It says where the base is on this machine, and is never published.
    (folder / "adapter" / LOCAL_BASE_FILE).unlink()
    return folder


def error_of(capsys, *flags, repo=REPO):
    """The line in which `memreason generate` ends, without its beginning."""
    line = refused(capsys, generate.main, [repo, *ARGUMENTS, *flags])
    assert line.startswith("memreason generate: error: "), line
    return line.removeprefix("memreason generate: error: ")


def test_control_it_loads(this_process, folder, capsys):
    put_folder(this_process, folder)
    generate.main([REPO, *ARGUMENTS])
    assert capsys.readouterr().out
    assert this_process.matching("HEAD", "model.safetensors")


def test_a_missing_repository(this_process, capsys):
    line = error_of(capsys)
    assert line.startswith(
        f"model='{REPO}': no such folder, and the Hub ({this_process.url}) has no such model, or it is "
    )
    assert "use a token of that account (`hf auth login`, or HF_TOKEN)" in line


def test_a_missing_revision(this_process, folder, capsys):
    put_folder(this_process, folder)
    assert error_of(capsys, "--revision", "v9") == f"model='{REPO}': it has no branch, tag or commit 'v9'."
    assert error_of(capsys, "--revision", "0" * 40).startswith(f"model='{REPO}': it has no branch, tag or commit '000")


def test_a_private_repository(this_process, folder, capsys, monkeypatch):
    put_folder(this_process, folder, private=True)
    monkeypatch.delenv("HF_TOKEN")
    assert "it is private, log in (`hf auth login`, or HF_TOKEN)" in error_of(capsys)
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    assert "it is private, use a token of that account" in error_of(capsys)
    monkeypatch.setenv("HF_TOKEN", READER)
    load_model(REPO)


def test_a_wrong_token(this_process, folder, capsys, monkeypatch):
    put_folder(this_process, folder)
    monkeypatch.setenv("HF_TOKEN", "no-such-token")
    line = error_of(capsys)
    assert line.startswith(f"model='{REPO}': the Hub ({this_process.url}) does not accept the token. Log in again")
    assert "no-such-token" not in line


def test_a_gated_repository(this_process, folder, capsys, monkeypatch):
    repo = put_folder(this_process, folder, gated="auto")
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    line = error_of(capsys)
    assert line.startswith(f"model='{REPO}': it is gated. Accept its conditions at {this_process.url}/{REPO}, then")
    repo.granted.add("stranger")
    load_model(REPO)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The client tries again after 1, 2, 4, 8 and 8 s."""
    no_sleep = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", no_sleep)


def without_network(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
    point_client_at(nowhere, monkeypatch)
    return nowhere


def test_no_network_and_nothing_in_the_cache(this_process, capsys, monkeypatch):
    nowhere = without_network(monkeypatch)
    line = error_of(capsys)
    assert line.startswith(
        f"model='{REPO}': no such folder or cached model, and the Hub ({nowhere}) cannot be reached."
    )


def test_offline_and_nothing_in_the_cache(this_process, folder, capsys, monkeypatch):
    put_folder(this_process, folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = error_of(capsys)
    assert line.startswith(f"model='{REPO}': no such folder, and not in the cache of the Hub either. HF_HUB_OFFLINE=1")
    assert not this_process.requests


def test_what_was_loaded_once_loads_without_a_network(this_process, folder, on_the_hub, monkeypatch):
    put_folder(this_process, folder)
    put_folder(this_process, on_the_hub / "base", "user/base")
    put_folder(this_process, on_the_hub / "adapter", "user/adapter")
    names = (REPO, "user/adapter")
    ids = torch.randint(3, 50, (1, 6))

    def load_all():
        results = []
        for name in names:
            config = load_any_config(name)
            tokenizer, model = load_tokenizer(name, None, config), load_model(name)
            results += [len(tokenizer), *model(ids).logits.flatten().tolist()]
        return results

    before = load_all()
    without_network(monkeypatch)
    assert load_all() == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    this_process.requests.clear()
    assert load_all() == before and not this_process.requests


def test_the_server_fails(this_process, folder, capsys):
    put_folder(this_process, folder)
    this_process.faults.append(Fault("HEAD", "config.json", status=503, times=99))
    line = error_of(capsys)
    assert line.startswith(f"model='{REPO}': the Hub ({this_process.url}) answered with status 503")


def weights_on(hub, repo):
    return hub.repositories.blob(repo.find_commit("main").files["model.safetensors"].sha256)


def test_a_file_that_is_cut_off_on_the_way(this_process, folder, capsys):
    blob = weights_on(this_process, put_folder(this_process, folder))
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-100])
    line = error_of(capsys)
    assert line.startswith(f"model='{REPO}': ") and "cut off on the way. Run the same command again" in line
    blob.write_bytes(whole)
    load_model(REPO)


@pytest.mark.parametrize("place", [3, -1])
def test_a_file_that_is_changed_on_the_way(place, this_process, folder, capsys):
    """Of the same length: huggingface_hub keeps it, and a changed last byte is a model with another weight."""
    blob = weights_on(this_process, put_folder(this_process, folder))
    whole = blob.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 1
    blob.write_bytes(bytes(damaged))
    line = error_of(capsys)
    assert line.startswith(f"model='{REPO}': model.safetensors arrived with another content than the Hub announces")
    blob.write_bytes(whole)
    # It was removed from the cache, so that the next try downloads it again.
    ids = torch.randint(3, 50, (1, 6))
    assert torch.equal(load_model(REPO)(ids).logits, load_model(str(folder))(ids).logits)


def test_the_adapter_or_its_base_is_changed_on_the_way(this_process, on_the_hub):
    base = put_folder(this_process, on_the_hub / "base", "user/base")
    adapter = put_folder(this_process, on_the_hub / "adapter", "user/adapter")
    files = (("adapter_model.safetensors", adapter, "model='user/adapter'"), ("model.safetensors", base, "base="))
    for name, repo, said in files:
        blob = this_process.repositories.blob(repo.find_commit("main").files[name].sha256)
        whole = blob.read_bytes()
        blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(OSError, match=rf"{said}.*: {name} arrived with another content"):
            load_model("user/adapter")
        blob.write_bytes(whole)
    load_adapter("user/adapter")


def test_an_adapter_whose_base_is_missing(this_process, on_the_hub, capsys):
    put_folder(this_process, on_the_hub / "adapter", "user/adapter")
    line = error_of(capsys, repo="user/adapter")
    assert line.startswith("The base model 'user/base' of the adapter user/adapter cannot be read (base='user/base': ")
    assert "has no such model, or it is private" in line and line.endswith("Pass its folder (base=).")
    with pytest.raises(OSError, match="of the adapter user/adapter cannot be read"):
        load_adapter("user/adapter")
    load_model("user/adapter", base=str(on_the_hub / "base"))


def test_a_repository_without_a_model(this_process, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "part", ignore=shutil.ignore_patterns("config.json"))
    put_folder(this_process, tmp_path / "part")
    assert error_of(capsys).startswith(f"model='{REPO}'")
    shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    put_folder(this_process, tmp_path / "other", "user/other")
    line = error_of(capsys, repo="user/other")
    assert "user/other" in line and "model.safetensors" in line


def test_a_revision_of_a_folder(folder, capsys):
    line = error_of(capsys, "--revision", "v1", repo=str(folder))
    assert line == f"revision='v1' is for a repository of the Hub, but model='{folder}' is a folder."


@pytest.mark.parametrize("name", ["user/mo del", "user/..", "user//model", "a/b/c", "user/model.git", ".user/model"])
def test_a_name_that_is_none(name, this_process, capsys):
    line = error_of(capsys, repo=name)
    assert line == f"model={name!r}: no such folder. Pass a folder, or a name on the Hub (owner/name)."
    assert not this_process.requests
