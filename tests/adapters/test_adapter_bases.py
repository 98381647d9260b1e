"""The base of an adapter: which models are accepted as it, and which are refused."""

import hashlib
import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from small_adapters import SCHEME, adapted, as_if_trained, extended, save_base, some_ids
from small_tokenizers import byte_level, llama
from transformers import AutoModelForCausalLM

from memreason_hf.adapters import base_files, saving
from memreason_hf.adapters.modes import (
    AdapterArguments,
    AdapterModel,
    add_adapter,
    load_adapter,
    save_adapter,
)
from memreason_hf.adapters.saving import read_adapter_note
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer


def refused(folder, **kwargs):
    with pytest.raises(ValueError, match="is not the base model of this adapter") as error:
        load_adapter(folder, **kwargs)
    return str(error.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"hidden_size": 32}, "width (hidden_size) is 32, the adapter's base has 16"),
        ({"tied": True}, "tying (tie_word_embeddings) is True, the adapter's base has False"),
        ({"padding": 3}, "vocabulary: its embedding has 303 rows, the adapter's base has 300"),
        ({"padding": 50}, "vocabulary: its embedding has 350 rows, the adapter's base has 300"),
        ({"make": "qwen2"}, "model_type is 'qwen2', the adapter's base has 'llama'"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2, the adapter's base has 1"),
        ({"intermediate_size": 48}, "intermediate_size is 48, the adapter's base has 32"),
        ({"num_attention_heads": 4, "num_key_value_heads": 2}, "num_attention_heads is 4, the adapter's base has 2"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, the adapter's base has 2"),
        ({}, "its weight files differ: model.safetensors"),
    ],
    ids=str,
)
def test_another_base_is_refused(on_a_base, other, said, tmp_path):
    base = save_base(tmp_path / "other", **other)
    assert said in refused(on_a_base / "adapter", base=base)
    message = refused(on_a_base / "adapter", base=AutoModelForCausalLM.from_pretrained(base))
    assert said in message and "Use the model that the adapter was trained on (base=)." in message
    assert message.startswith(f"'{base}' is not the base model")


def trained_further(base, folder, name):
    """The base after a step of training in one of its tensors, saved into a folder."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_parameter(name).mul_(1.001)
    model.save_pretrained(folder)
    return folder


def test_a_base_that_was_trained_further_is_another(on_a_base, tmp_path):
    base = on_a_base / "base"
    for index, (name, _) in enumerate(AutoModelForCausalLM.from_pretrained(base).named_parameters()):
        other = trained_further(base, tmp_path / str(index), name)
        assert "its weight files differ: model.safetensors" in refused(on_a_base / "adapter", base=other)


def test_a_base_that_was_trained_further_in_its_own_folder_is_noticed(on_a_base, tmp_path):
    folder = shutil.copytree(on_a_base, tmp_path / "both")
    load_adapter(folder / "adapter", base=folder / "base")
    trained_further(folder / "base", folder / "base", "model.norm.weight")
    for check in ("blocks", "sha256"):
        message = refused(folder / "adapter", base=folder / "base", base_check=check)
        assert "its weight files differ" in message and "base_check='none'" in message
    loaded, _ = load_adapter(folder / "adapter", base=folder / "base", base_check="none")
    assert isinstance(loaded, AdapterModel)
    with pytest.raises(ValueError, match="base_check='quick' must be one of blocks, sha256, none"):
        load_adapter(folder / "adapter", base_check="quick")


def test_a_base_that_was_saved_in_another_way_is_accepted_on_request(on_a_base, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(on_a_base / "base")
    base.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    shards = len(list((tmp_path / "shards").glob("*.safetensors")))
    assert shards > 1
    message = refused(on_a_base / "adapter", base=tmp_path / "shards")
    assert "its weight files differ: model-00001-of" in message and message.count("model-0000") <= 3
    load_adapter(on_a_base / "adapter", base=tmp_path / "shards", base_check="none")
    # Each shard is recorded.
    model, tokenizer = adapted(tmp_path / "shards", "tokens")
    save_adapter(model, tokenizer, tmp_path / "adapter")
    assert len(read_adapter_note(tmp_path / "adapter")["base"]["weights"]) == shards
    load_adapter(tmp_path / "adapter", base_check="sha256")


def test_the_note_holds_whole_hashes_from_the_first_save_on(on_a_base, tmp_path, monkeypatch):
    base = shutil.copytree(on_a_base / "base", tmp_path / "base")
    model, tokenizer = adapted(base, "tokens")
    read = []
    sha256 = base_files._sha256
    monkeypatch.setattr(base_files, "_sha256", lambda path: (read.append(path.name), sha256(path))[1])
    for folder in ("first", "second"):
        save_adapter(model, tokenizer, tmp_path / folder)
        weights = read_adapter_note(tmp_path / folder)["base"]["weights"]
        content = (base / "model.safetensors").read_bytes()
        assert weights["model.safetensors"]["sha256"] == hashlib.sha256(content).hexdigest()
    # Read whole once, and not to load the adapter.
    loaded, _ = load_adapter(tmp_path / "second")
    save_adapter(loaded, tokenizer, tmp_path / "third")
    assert read == ["model.safetensors"]
    assert read_adapter_note(tmp_path / "third") == read_adapter_note(tmp_path / "second")
    load_adapter(tmp_path / "second", base_check="sha256")
    assert read == ["model.safetensors"] * 2


def test_a_base_that_changes_before_the_first_save_keeps_its_blocks(on_a_base, tmp_path, caplog):
    base = shutil.copytree(on_a_base / "base", tmp_path / "base")
    model, tokenizer = adapted(base, "tokens")
    before = base_files.block_digests(base_files.weight_files(str(base)))
    trained_further(base, base, "model.norm.weight")
    with caplog.at_level("WARNING"):
        save_adapter(model, tokenizer, tmp_path / "adapter")
    assert "changed or disappeared after it was loaded" in caplog.text
    assert read_adapter_note(tmp_path / "adapter")["base"]["weights"] == before
    assert "its weight files differ" in refused(tmp_path / "adapter")
    # Without sha256 in the note, a whole check compares the blocks.
    assert "its weight files differ" in refused(tmp_path / "adapter", base_check="sha256")
    load_adapter(tmp_path / "adapter", base=on_a_base / "base", base_check="sha256")


def test_blocks_of_a_large_file(tmp_path):
    """They show a tensor that was trained further, and a changed size. A single changed byte needs a whole check."""
    path, size = tmp_path / "model.safetensors", 20 * 2**20
    distance = size // 1023

    def digests_with(place, content):
        with path.open("wb") as file:
            file.truncate(size)
            file.seek(place)
            file.write(content)
        return base_files.block_digests(files)

    path.touch()
    files = base_files.weight_files(str(tmp_path))
    before = digests_with(0, b"")
    assert base_files.add_sha256(before, files)
    assert base_files.differing_files(before, files) == base_files.differing_files(before, files, whole=True) == []
    for place in (0, size // 3, size - 2 * distance):
        assert digests_with(place, b"x" * 2 * distance) != {path.name: {"blocks": before[path.name]["blocks"]}}
    for place in (0, size - 1):
        digests_with(place, b"x")
        assert base_files.differing_files(before, files) == [path.name]
    between = 4096 + 10
    digests_with(between, b"x")
    assert base_files.differing_files(before, files) == []
    assert base_files.differing_files(before, files, whole=True) == [path.name]
    digests_with(size, b"x")
    assert base_files.differing_files(before, files) == [path.name]
    assert not base_files.add_sha256(dict(before), files)
    path.unlink()
    assert base_files.weight_files(str(tmp_path)) == {}
    assert base_files.differing_files(before, {}) == [path.name]


def test_new_rows_of_the_base_do_not_count(tmp_path):
    """The adapter stores its own."""
    base = save_base(tmp_path / "base", padding=40)
    model, tokenizer = adapted(base, "lora+tokens")
    save_adapter(as_if_trained(model), tokenizer, tmp_path / "adapter")
    other, _, new = extended(base)
    with torch.no_grad():
        for matrix in (other.get_input_embeddings().weight, other.get_output_embeddings().weight):
            matrix[new] += 1
    ids = some_ids(tokenizer)
    with torch.no_grad():
        loaded, _ = load_adapter(tmp_path / "adapter", base=other)
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_base_on_the_hub_is_loaded_at_its_commit(on_a_base, tmp_path, monkeypatch):
    """Three downloaded commits, as huggingface_hub stores them. The branch has moved on since the training."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--base"
    first, second, third = "a" * 40, "b" * 40, "c" * 40
    shutil.copytree(on_a_base / "base", repository / "snapshots" / first)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(first)
    model, tokenizer = adapted("owner/base", "lora")
    as_if_trained(model)
    save_adapter(model, tokenizer, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["revision"] == first

    trained_further(on_a_base / "base", repository / "snapshots" / second, "model.embed_tokens.weight")
    save_base(repository / "snapshots" / third, hidden_size=32)
    (repository / "refs" / "main").write_text(third)
    ids = some_ids(tokenizer)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        loaded, _ = load_adapter(tmp_path / "adapter")
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        peft = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        assert torch.equal(peft(input_ids=ids).logits, expected)
        # A copy in a folder is the same base. The other commit is not.
        copied, _ = load_adapter(tmp_path / "adapter", base=on_a_base / "base")
        assert torch.equal(copied(input_ids=ids).logits, expected)
    assert "width (hidden_size) is 32" in refused(tmp_path / "adapter", base="owner/base")
    assert "its weight files differ" in refused(tmp_path / "adapter", base_revision=second)
    # A base that has to be downloaded first is checked afterwards.
    weight_files, calls = base_files.weight_files, []

    def before_and_after_the_download(name, revision=None):
        calls.append((name, revision))
        return {} if len(calls) == 1 else weight_files(name, revision)

    monkeypatch.setattr(saving, "weight_files", before_and_after_the_download)
    assert "its weight files differ" in refused(tmp_path / "adapter", base_revision=second)
    assert calls == [("owner/base", second)] * 2


def test_a_tokenizer_that_is_not_the_adapters(tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base", padding=40), "lora")
    adapter = tmp_path / "adapter"
    save_adapter(model, tokenizer, adapter)
    byte_level().save_pretrained(adapter)
    with pytest.raises(ValueError, match="has no scheme of steps"):
        load_adapter(adapter)
    other = byte_level()
    extend_tokenizer(other, StepScheme(1, 1))
    other.save_pretrained(adapter)
    with pytest.raises(ValueError, match=r"is not the one that the adapter was trained with: its tokens or their ids"):
        load_adapter(adapter)
    # The scheme has more tokens than the tokenizer.
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    config["step_scheme"]["num_step_tokens"] = 9
    (adapter / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks .* of the .* tokens of StepScheme"):
        load_adapter(adapter)


def test_an_adapter_on_a_model_that_was_never_saved(tmp_path):
    tokenizer = byte_level()
    torch.manual_seed(5)
    model = llama(len(tokenizer))
    model.save_pretrained(tmp_path / "base")
    extend_tokenizer(tokenizer, SCHEME, model)
    model = add_adapter(model, tokenizer, AdapterArguments("tokens"))
    save_adapter(model, tokenizer, tmp_path / "adapter")
    with pytest.raises(ValueError, match="names no base model: it was trained on a model that was never saved"):
        load_adapter(tmp_path / "adapter")
    # Its weights cannot be recognised, but its shape can.
    assert read_adapter_note(tmp_path / "adapter")["base"]["weights"] == {}
    load_adapter(tmp_path / "adapter", base=tmp_path / "base")
    message = refused(tmp_path / "adapter", base=llama(300, hidden_size=32))
    assert message.startswith("'llama' is not the base model") and "width (hidden_size)" in message
