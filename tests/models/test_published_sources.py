"""Published loops from the Hub: what is downloaded, and what is said when that fails."""

import fnmatch
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from published_loops import published, save_published
from recurrent_models import random_ids

from memreason_hf.models.published import convert_published, detect, sources


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder of repositories in place of the Hub, and the patterns and names that were asked for."""
    repositories, cache, calls = tmp_path / "hub", tmp_path / "cache", []

    def snapshot(name, allow_patterns):
        calls.append(allow_patterns)
        for path in (repositories / name).iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                (cache / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / name)
        return str(cache / name)

    def download(name, file):
        calls.append(file)
        if not (repositories / name).is_dir():
            raise RepositoryNotFoundError("404: no such repository", response=_Response())
        if not (repositories / name / file).is_file():
            raise EntryNotFoundError("404: no such file")
        (cache / name).mkdir(parents=True, exist_ok=True)
        return shutil.copy(repositories / name / file, cache / name)

    monkeypatch.setattr(sources, "snapshot_download", snapshot)
    monkeypatch.setattr(sources, "hf_hub_download", download)
    # Names are relative: nothing of this folder must be taken for one.
    monkeypatch.chdir(tmp_path)
    return repositories, cache, calls


class _Response:
    headers = {}
    request = None


@pytest.mark.parametrize("pickled", [False, True])
def test_a_repository_is_read_without_its_code(hub, pickled):
    repositories, cache, calls = hub
    config, module = published("ouro")
    folder = repositories / "someone" / "loop"
    save_published(folder, config, module, pickled=pickled)
    (folder / "modeling_ouro.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    if not pickled:
        (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert detect("someone/loop") is not None
    assert calls == ["config.json"]
    model, _ = convert_published("someone/loop")
    names = {path.name for path in (cache / "someone" / "loop").iterdir()}
    assert names == {"config.json", "pytorch_model.bin" if pickled else "model.safetensors"}
    ids = random_ids(2, 4)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, convert_published(folder)[0](ids).logits)


def test_a_repository_of_something_else(hub):
    repositories, _, _ = hub
    (repositories / "someone" / "data").mkdir(parents=True)
    assert detect("someone/data") is None
    with pytest.raises(OSError, match=r"source='someone/nothing': no such folder, .* cannot be downloaded .*404"):
        detect("someone/nothing")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        detect(str(Path("a", "b", "c")))


def test_without_the_hub():
    with pytest.raises(OSError, match=r"source='someone/nothing': no such folder, .* cannot be downloaded"):
        detect("someone/nothing")
