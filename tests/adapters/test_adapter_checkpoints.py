"""Adapters on disk: the files, the programs that read them, and what a damaged folder says."""

import itertools
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from paths import ROOT
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from small_adapters import SCHEME, adapted, as_if_trained, extended, save_base, some_ids
from small_tokenizers import MODELS, byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer

from memreason_hf.adapters.modes import (
    AdapterArguments,
    AdapterModel,
    add_adapter,
    is_adapter_folder,
    load_adapter,
    save_adapter,
)
from memreason_hf.steps import StepScheme
from memreason_hf.steps.attention import get_step_attention, set_step_attention
from memreason_hf.steps.tokenization import extend_tokenizer, read_scheme


MODES = ("lora", "tokens", "lora+tokens")
WEIGHTS = "adapter_model.safetensors"
FILES = {"adapter_config.json", WEIGHTS, "memreason_adapter.json", "tokenizer.json", "tokenizer_config.json"}

READER = """
import sys
import torch
from peft import AutoPeftModelForCausalLM
from memreason_hf.adapters.modes import load_adapter

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    ids = torch.load(f"{folder}/ids.pt", weights_only=True)
    ours, tokenizer = load_adapter(f"{folder}/adapter")
    peft = AutoPeftModelForCausalLM.from_pretrained(f"{folder}/adapter").eval()
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (ours, peft)]
    rows = [model.get_base_model().get_input_embeddings().weight.shape[0] for model in (ours, peft)]
    found = {"ours": logits[0], "peft": logits[1], "rows": rows, "memory": tokenizer.memory_token_id}
    torch.save(found, f"{folder}/read.pt")
"""


@pytest.fixture(scope="module")
def read_elsewhere(tmp_path_factory):
    """Every mode with tied and untied, exact and padded embeddings of all families, read by a new process."""
    folder, cases = tmp_path_factory.mktemp("adapters"), {}
    families = list(MODELS)
    for index, (mode, tied, padding) in enumerate(itertools.product(MODES, (True, False), (0, 40))):
        case = folder / f"{mode}-{tied}-{padding}"
        base = save_base(case / "base", families[(index + index // 4) % 4], tied=tied, padding=padding)
        model, tokenizer = adapted(base, mode, lora_targets="all")
        as_if_trained(model)
        save_adapter(model, tokenizer, case / "adapter")
        ids = some_ids(tokenizer)
        torch.save(ids, case / "ids.pt")
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        rows = max(len(byte_level()) + padding, len(tokenizer))
        cases[mode, tied, padding] = (case, logits, rows, tokenizer.memory_token_id)
    folders = [str(case) for case, *_ in cases.values()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", READER, *folders], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return cases


@pytest.mark.parametrize("padding", [0, 40])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_new_process_computes_the_same_logits(read_elsewhere, mode, tied, padding):
    case, logits, rows, memory = read_elsewhere[mode, tied, padding]
    found = torch.load(case / "read.pt", weights_only=True)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    assert torch.equal(found["ours"], logits), "our loader"
    assert torch.equal(found["peft"], logits), "AutoPeftModelForCausalLM"
    # A padded matrix is never made smaller.
    assert found["rows"] == [rows, rows] and found["memory"] == memory


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", MODELS)
def test_rows_that_the_padding_holds_in_part(family, tied, tmp_path):
    """With less padding than new tokens some of their rows exist before, and some are added."""
    base = save_base(tmp_path / "base", family, tied=tied, padding=5)
    for mode in MODES:
        model, tokenizer = adapted(base, mode)
        save_adapter(as_if_trained(model), tokenizer, tmp_path / mode)
        ids = some_ids(tokenizer)
        expected = model(input_ids=ids).logits
        assert torch.equal(load_adapter(tmp_path / mode)[0](input_ids=ids).logits, expected)
        assert torch.equal(
            AutoPeftModelForCausalLM.from_pretrained(tmp_path / mode).eval()(input_ids=ids).logits, expected
        )


# ---- What is in the folder ----


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_but_the_adapter_and_the_new_rows_is_stored(mode, tied, tmp_path):
    base = save_base(tmp_path / "base", tied=tied, hidden_size=64, intermediate_size=96)
    model, tokenizer = adapted(base, mode)
    save_adapter(as_if_trained(model), tokenizer, tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names >= FILES and names - FILES <= {"README.md", "special_tokens_map.json", "local_base.json"}
    rows = len(SCHEME.tokens) * 64 * (1 if tied else 2)
    low_rank = 3 * 16 * (64 + 96)
    values = rows * ("tokens" in mode or mode == "lora") + low_rank * ("lora" in mode)
    stored = load_file(tmp_path / "adapter" / WEIGHTS)
    assert sum(tensor.numel() for tensor in stored.values()) == values
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    size = (tmp_path / "adapter" / WEIGHTS).stat().st_size
    assert 4 * values < size <= 4 * values * 1.05
    # The note on the base is small, whatever the size of the base.
    assert (tmp_path / "adapter" / "memreason_adapter.json").stat().st_size < 40_000


@pytest.mark.parametrize("mode", MODES)
def test_the_scheme_travels_with_the_adapter(mode, tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base", "qwen2"), mode, StepScheme(1, 2))
    save_adapter(model, tokenizer, tmp_path / "adapter")
    # With a Qwen2 config in the folder, the library would load any tokenizer as Qwen2's. An adapter has no config.
    for read in (AutoTokenizer.from_pretrained(tmp_path / "adapter"), load_adapter(tmp_path / "adapter")[1]):
        assert read_scheme(read) == StepScheme(1, 2)
        assert read.get_vocab() == tokenizer.get_vocab() and type(read) is type(tokenizer)
        assert read.reason_token == "<reason_0>"
    assert is_adapter_folder(tmp_path / "adapter") and not is_adapter_folder(tmp_path / "base")


def test_rows_of_tokens_that_were_added_elsewhere_are_stored_too(tmp_path):
    """PEFT alone would give them random rows."""
    base = save_base(tmp_path / "base")
    tokenizer = byte_level()
    tokenizer.add_tokens(["<extra>"])
    model = AutoModelForCausalLM.from_pretrained(base)
    extend_tokenizer(tokenizer, SCHEME, model)
    extra = tokenizer.convert_tokens_to_ids("<extra>")
    for mode in MODES:
        adapter = tmp_path / f"adapter_{mode}"
        made = AutoModelForCausalLM.from_pretrained(base)
        extend_tokenizer(tokenizer, SCHEME, made)
        made = as_if_trained(add_adapter(made, tokenizer, AdapterArguments(mode)))
        save_adapter(made, tokenizer, adapter)
        ids = torch.tensor([[extra, 7, 9, extra]])
        with torch.no_grad():
            expected = made(input_ids=ids).logits
            assert torch.equal(load_adapter(adapter)[0](input_ids=ids).logits, expected)
            assert torch.equal(
                AutoPeftModelForCausalLM.from_pretrained(adapter).eval()(input_ids=ids).logits, expected
            )


def test_full_models_are_saved_whole(tmp_path):
    model, tokenizer, _ = extended(save_base(tmp_path / "base", tied=True, padding=40))
    assert add_adapter(model, tokenizer, AdapterArguments("full")) is model
    as_if_trained(model)
    save_adapter(model, tokenizer, tmp_path / "full")
    assert not is_adapter_folder(tmp_path / "full")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    ids = some_ids(tokenizer)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert read_scheme(AutoTokenizer.from_pretrained(tmp_path / "full")) == SCHEME


def test_an_adapter_on_a_fully_trained_model(tmp_path):
    """Its base contains trained rows."""
    model, tokenizer, _ = extended(save_base(tmp_path / "base"))
    save_adapter(as_if_trained(model), tokenizer, tmp_path / "full")
    for mode in MODES:
        model, tokenizer = adapted(tmp_path / "full", mode)
        save_adapter(as_if_trained(model), tokenizer, tmp_path / mode)
        ids = some_ids(tokenizer)
        with torch.no_grad():
            expected = model(input_ids=ids).logits
            assert torch.equal(load_adapter(tmp_path / mode)[0](input_ids=ids).logits, expected)
            peft = AutoPeftModelForCausalLM.from_pretrained(tmp_path / mode).eval()
            assert torch.equal(peft(input_ids=ids).logits, expected)


class Unwritable:
    """A tokenizer that does not fit on the disk."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def save_pretrained(self, folder):
        self.tokenizer.save_pretrained(folder)
        raise OSError(28, "No space left on device")


def test_a_save_that_fails_leaves_what_was_there(tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base"), "lora+tokens")
    with pytest.raises(OSError, match="No space left"):
        save_adapter(model, Unwritable(tokenizer), tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]

    save_adapter(as_if_trained(model), tokenizer, tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    as_if_trained(model)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(model, Unwritable(tokenizer), tmp_path / "adapter")
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before

    save_adapter(model, tokenizer, tmp_path / "adapter")
    after = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    assert set(after) == set(before) and after[WEIGHTS] != before[WEIGHTS]
    ids = some_ids(tokenizer)
    with torch.no_grad():
        assert torch.equal(load_adapter(tmp_path / "adapter")[0](input_ids=ids).logits, model(input_ids=ids).logits)

    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file, not a folder"):
        save_adapter(model, tokenizer, tmp_path / "file")


# ---- Loading ----


@pytest.mark.parametrize("mode", MODES)
def test_training_goes_on(mode, tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base"), mode)
    save_adapter(as_if_trained(model), tokenizer, tmp_path / "adapter")
    loaded, _ = load_adapter(tmp_path / "adapter", is_trainable=True)
    assert isinstance(loaded, AdapterModel) and loaded.training
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }
    save_adapter(as_if_trained(loaded), tokenizer, tmp_path / "again")
    ids = some_ids(tokenizer)
    with torch.no_grad():
        assert torch.equal(load_adapter(tmp_path / "again")[0](input_ids=ids).logits, loaded(input_ids=ids).logits)
    frozen, _ = load_adapter(tmp_path / "adapter")
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())


def test_an_adapter_on_the_hub(on_a_base, tmp_path, monkeypatch):
    """PEFT reads it from its download."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository, commit = tmp_path / "hub" / "models--owner--adapter", "d" * 40
    shutil.copytree(on_a_base / "adapter", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model, _ = adapted(on_a_base / "base", "lora")
    as_if_trained(model)
    result = model.load_adapter("owner/adapter", "default", torch_device="cpu")
    assert result.unexpected_keys == []
    stored = load_file(on_a_base / "adapter" / WEIGHTS)
    assert all(torch.equal(value, stored[name]) for name, value in model.stored_weights().items())


@pytest.mark.parametrize("mode", MODES)
def test_the_base_can_be_given(mode, tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base"), mode)
    save_adapter(as_if_trained(model), tokenizer, tmp_path / "adapter")
    ids = some_ids(tokenizer)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        shutil.move(tmp_path / "base", tmp_path / "moved")
        with pytest.raises(OSError, match=re.escape(f"The base model '{tmp_path / 'base'}' of the adapter")):
            load_adapter(tmp_path / "adapter")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
        for base in (tmp_path / "moved", str(tmp_path / "moved"), plain, extended(tmp_path / "moved")[0]):
            loaded, _ = load_adapter(tmp_path / "adapter", base=base)
            assert torch.equal(loaded(input_ids=ids).logits, expected)
    with pytest.raises(ValueError, match="dtype: only used if the base is loaded here"):
        load_adapter(tmp_path / "adapter", base=plain, dtype="bfloat16")


@pytest.mark.parametrize("trained", ["float32", "bfloat16", "float16"])
def test_the_base_in_another_dtype_is_the_same_base(trained, tmp_path):
    base = save_base(tmp_path / "base")
    model, tokenizer, _ = extended(base, dtype=trained)
    model = as_if_trained(add_adapter(model, tokenizer, AdapterArguments("lora+tokens")))
    save_adapter(model, tokenizer, tmp_path / "adapter")
    for used in ("float32", "bfloat16", "float16"):
        assert str(load_adapter(tmp_path / "adapter", dtype=used)[0].dtype) == f"torch.{used}"
    # The base was saved in float32, but the adapter was trained on what it became.
    ids = some_ids(tokenizer)
    for dtype in (None, "auto"):
        as_trained, _ = load_adapter(tmp_path / "adapter", dtype=dtype)
        assert str(as_trained.dtype) == f"torch.{trained}"
        with torch.no_grad():
            assert torch.equal(as_trained(input_ids=ids).logits, model(input_ids=ids).logits)
    # Adapters are float32 in any case.
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter" / WEIGHTS).values()} == {torch.float32}


# ---- Damaged and foreign folders ----


def test_damaged_and_foreign_folders(tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base"), "lora+tokens")
    whole = tmp_path / "adapter"
    save_adapter(model, tokenizer, whole)

    def damaged():
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        return shutil.copytree(whole, tmp_path / "damaged")

    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json, so it is not an adapter"):
        load_adapter(tmp_path / "base")
    with pytest.raises(FileNotFoundError, match="so it is not an adapter"):
        load_adapter(tmp_path / "nowhere")
    (damaged() / "memreason_adapter.json").unlink()
    with pytest.raises(ValueError, match="another program wrote it"):
        load_adapter(tmp_path / "damaged")
    for content in ("", "{}", "[]", '{"mode": "lora"}', '{"mode": "lora", "base": {"rows": 3}}'):
        (damaged() / "memreason_adapter.json").write_text(content)
        with pytest.raises(ValueError, match="cannot be read: the adapter is damaged, or an earlier version"):
            load_adapter(tmp_path / "damaged")
    (damaged() / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors"):
        load_adapter(tmp_path / "damaged")
    content = (whole / WEIGHTS).read_bytes()
    (damaged() / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot be read\. The file may be truncated"):
        load_adapter(tmp_path / "damaged")
    stored = load_file(whole / WEIGHTS)
    first = next(iter(stored))
    for changed, said in (
        ({name: value for name, value in stored.items() if name != first}, f"{first} is missing"),
        ({**stored, "more": torch.zeros(2)}, "more is unknown"),
        ({**stored, first: torch.zeros(3, 4)}, f"{first} has the shape (3, 4) instead of"),
    ):
        save_file(changed, damaged() / WEIGHTS)
        with pytest.raises(ValueError, match=re.escape(said)):
            load_adapter(tmp_path / "damaged")


def test_an_adapter_and_a_whole_model_are_not_saved_into_one_folder(tmp_path):
    base = save_base(tmp_path / "base")
    model, tokenizer = adapted(base, "lora+tokens")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    with pytest.raises(FileExistsError, match="base holds a whole model, so an adapter cannot be saved there"):
        save_adapter(model, tokenizer, base)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    save_adapter(model, tokenizer, tmp_path / "adapter")
    whole, tokenizer = adapted(base, "full")
    with pytest.raises(FileExistsError, match="adapter holds an adapter, so a whole model cannot be saved there"):
        save_adapter(whole, tokenizer, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()


def test_saving_again_removes_the_attention_of_the_previous_adapter(tmp_path):
    base, folder = save_base(tmp_path / "base"), tmp_path / "adapter"
    model, tokenizer = adapted(base, "tokens")
    set_step_attention(model, tokenizer, "own")
    save_adapter(model, tokenizer, folder)
    assert get_step_attention(load_adapter(folder)[0]) == "own"
    model, tokenizer = adapted(base, "tokens")
    save_adapter(model, tokenizer, folder)
    assert get_step_attention(load_adapter(folder)[0]) is None
