"""Reading the files of published loops: shards, files of `torch.save` without pickle, and what is refused by name."""

import json
import re

import pytest
import torch
from published_loops import HEADS, WIDTH, published, save_any, save_published, save_study, stored_tensors
from recurrent_models import random_ids, relative_error
from safetensors.torch import load_file, save_file

from memreason_hf.models.published import convert_published
from memreason_hf.models.published.tensors import TensorFiles


def folder_of(tmp_path, kind, **kwargs):
    config, module = published(kind)
    save_published(tmp_path, config, module, **kwargs)
    return tmp_path


def edit_config(folder, **changes):
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    fields = {name: value for name, value in fields.items() if value != "missing"}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("kind", ["huginn", "ouro"])
def test_shards_and_files_of_torch_save(kind, pickled, tmp_path):
    config, module = published(kind)
    save_published(tmp_path / "whole", config, module)
    save_published(tmp_path / "shards", config, module, shards=3, pickled=pickled)
    save_published(tmp_path / "one", config, module, pickled=pickled)
    whole = convert_published(tmp_path / "whole")[0].state_dict()
    for name in ("shards", "one"):
        other = convert_published(tmp_path / name)[0].state_dict()
        assert other.keys() == whole.keys()
        assert all(torch.equal(other[key], whole[key]) for key in whole)


def test_files_before_torch_1_6(tmp_path):
    config, module = published("ouro")
    save_published(tmp_path, config, module)
    (tmp_path / "model.safetensors").unlink()
    torch.save(stored_tensors(module), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    model, ids = convert_published(tmp_path)[0], random_ids(2, 5)
    with torch.no_grad():
        assert relative_error(model(ids, num_recurrences=2).logits, module(ids, 2)[0]) < 1e-5


class RunsCode:
    """An object whose unpickling leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


@pytest.mark.parametrize("kind", ["ouro", "study"])
def test_code_in_a_checkpoint_does_not_run(kind, tmp_path):
    trace = tmp_path / "trace"
    config, module = published(kind)
    folder = tmp_path / "source"
    given = save_any(folder, kind, config, module)
    path = folder / "checkpoint_epoch_4.pt"
    if kind == "ouro":
        (folder / "model.safetensors").unlink()
        path = folder / "pytorch_model.bin"
    torch.save({"model_state_dict": {"x": RunsCode(trace)}}, path)
    with pytest.raises(ValueError, match=f"{path.name} holds Python objects other than tensors"):
        convert_published(folder, **given)
    assert not trace.exists()
    # The control: reading the file in the ordinary way runs it.
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_python_files_beside_the_weights_are_not_imported(tmp_path):
    folder = folder_of(tmp_path, "huginn")
    (folder / "raven_modeling_minimal.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    edit_config(folder, auto_map={"AutoConfig": "raven_modeling_minimal.RavenConfig"})
    convert_published(folder)


# The kind, what is changed in the file of weights, what the message names.
TENSORS = [
    (
        "huginn",
        lambda t: t.pop("transformer.core_block.1.attn.qk_bias"),
        "lacks the tensor 'transformer.core_block.1.attn.qk_bias'",
    ),
    ("huginn", lambda t: t.pop("transformer.adapter.weight"), "lacks the tensor 'transformer.adapter.weight'"),
    (
        "huginn",
        lambda t: t.update({"transformer.coda.0.mlp.fc.weight": torch.zeros(90, WIDTH)}),
        r"'transformer.coda.0.mlp.fc.weight' has shape \(90, 32\), but its config asks for \(96, 32\)",
    ),
    ("huginn", lambda t: t.update({"transformer.extra": torch.zeros(1)}), "no place for: transformer.extra"),
    (
        "huginn",
        lambda t: t.update(freqs_cis=torch.zeros(1, 64, 1, WIDTH // HEADS // 2, 2)),
        "'freqs_cis' does not hold the rotations of rope_base=50000",
    ),
    (
        "retrofit_olmo",
        lambda t: t.pop("transformer.coda.0.attn.k_norm.weight"),
        "transformer.coda.0.attn.k_norm.weight",
    ),
    ("ouro", lambda t: t.pop("model.early_exit_gate.bias"), "lacks the tensor 'model.early_exit_gate.bias'"),
    (
        "ouro",
        lambda t: t.update({"model.layers.2.self_attn.k_proj.weight": torch.zeros(WIDTH, WIDTH)}),
        r"'model.layers.2.self_attn.k_proj.weight' has shape \(32, 32\), but its config asks for \(16, 32\)",
    ),
    ("ouro", lambda t: t.update({"model.layers.3.mlp.up_proj.weight": torch.zeros(1)}), "model.layers.3.mlp.up_proj"),
]


@pytest.mark.parametrize(("kind", "edit", "message"), TENSORS, ids=[message[:40] for _, _, message in TENSORS])
def test_tensors_that_do_not_fit_are_named(kind, edit, message, tmp_path):
    folder = folder_of(tmp_path, kind)
    edit_tensors(folder, edit)
    with pytest.raises(ValueError, match=message):
        convert_published(folder)


FIELDS = [
    ("huginn", {"injection_type": "add"}, "injection_type='add' of a Huginn model cannot be expressed"),
    ("huginn", {"bias": True}, "bias=True of a Huginn model"),
    ("huginn", {"test_time_noise": 0.1}, "test_time_noise=0.1"),
    ("huginn", {"mlp_class_name": "BaseMLP"}, "mlp_class_name='BaseMLP'"),
    ("huginn", {"n_embd": "missing"}, "lacks 'n_embd'"),
    ("huginn", {"rope_base": "missing"}, "lacks 'rope_base'"),
    ("huginn", {"n_layers_in_coda": 0}, "coda_norm=True needs coda layers|no place for"),
    ("retrofit_llama", {"qk_bias": True}, "qk_bias=True"),
    ("retrofit_llama", {"rope_theta": "missing"}, "lacks 'rope_theta'"),
    ("retrofit_llama", {"initial_state_mode": "embed-init"}, "initial_state_mode='embed-init'"),
    ("retrofit_olmo", {"initial_state_mode": "embed-init"}, "initial_state_mode='embed-init'"),
    ("ouro", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("ouro", {"total_ut_steps": "missing"}, "lacks 'total_ut_steps'"),
    ("ouro", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types of an Ouro"),
    ("ouro", {"quantization_config": {"quant_method": "gptq"}}, "is quantised: its config.json has"),
    ("huginn", {"quantization_config": {"quant_method": "fp8"}}, "is quantised: its config.json has"),
    ("huginn", {"n_heads": 0}, r"a value in config.json cannot be used \(ZeroDivisionError"),
    ("huginn", {"n_embd": "wide"}, r"a value in config.json cannot be used \(TypeError"),
    ("ouro", {"vocab_size": 60}, r"'model.embed_tokens.weight' has shape \(61, 32\)"),
]


@pytest.mark.parametrize(("kind", "change", "message"), FIELDS, ids=[f"{k}-{next(iter(c))}" for k, c, _ in FIELDS])
def test_fields_that_cannot_be_expressed_are_named(kind, change, message, tmp_path):
    folder = folder_of(tmp_path, kind)
    edit_config(folder, **change)
    with pytest.raises(Exception, match=message):
        convert_published(folder)


def test_a_rotation_rounded_to_bfloat16_is_accepted(tmp_path):
    folder = folder_of(tmp_path, "huginn")
    angles = torch.arange(64)[:, None] * 50000.0 ** (-torch.arange(0, WIDTH // HEADS, 2) / (WIDTH // HEADS))
    table = torch.stack((angles.cos(), angles.sin()), dim=-1)[None, :, None]
    for stored in (table, table.bfloat16()):
        edit_tensors(folder, lambda tensors, stored=stored: tensors.update(freqs_cis=stored.contiguous()))
        convert_published(folder)


def test_a_missing_shard_is_named_with_a_tensor(tmp_path):
    folder = folder_of(tmp_path, "ouro", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00003.safetensors, which holds 'model\.\w+"):
        convert_published(folder)


def test_damaged_files(tmp_path):
    folder = folder_of(tmp_path, "ouro")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        convert_published(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        convert_published(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../elsewhere.safetensors"}}')
    with pytest.raises(FileNotFoundError, match=r"elsewhere.safetensors"):
        convert_published(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a weight_map"):
        convert_published(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not a JSON file"):
        convert_published(folder)


STUDY = [
    (lambda w: w.pop("blocks.1.attn.c_attn.bias"), {}, "lacks the tensor 'blocks.1.attn.c_attn.bias'"),
    (lambda w: w.pop("token_embedding.weight"), {}, "lacks the tensor 'token_embedding.weight'"),
    (
        lambda w: w.update({"blocks.0.mlp.c_proj.weight": torch.zeros(5, WIDTH)}),
        {},
        r"c_proj.weight' has shape \(5, 32",
    ),
    (lambda w: w.update({"halting.weight": torch.zeros(1)}), {}, "tensors without a place: halting.weight"),
    (lambda w: None, {"num_attention_heads": 5}, "num_attention_heads=5 does not divide the width 32"),
    (lambda w: None, {"num_attention_heads": 0}, "num_attention_heads=0 does not divide the width 32"),
    (lambda w: w.clear(), {}, "lacks the tensor 'token_embedding.weight'"),
]


@pytest.mark.parametrize(("edit", "change", "message"), STUDY, ids=[message[:40] for _, _, message in STUDY])
def test_study_checkpoints_that_do_not_fit(edit, change, message, tmp_path):
    _, module = published("study")
    path = tmp_path / "checkpoint.pt"
    save_study(path, module)
    content = torch.load(path, weights_only=True)
    edit(content["model_state_dict"])
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        convert_published(path, **{"num_attention_heads": HEADS, **change})


def test_other_files_of_torch_save(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 1}, path)
    with pytest.raises(ValueError, match="has no model_state_dict"):
        convert_published(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint.pt cannot be read|holds Python objects"):
        convert_published(path)
    for name in ("a.pt", "b.pt"):
        torch.save({}, tmp_path / name)
    with pytest.raises(ValueError, match=r"holds 3 checkpoints. Pass one of them"):
        convert_published(tmp_path)


def test_masks_of_old_releases_are_left_out(tmp_path):
    config, module = published("study")
    path = tmp_path / "checkpoint.pt"
    save_study(path, module)
    content = torch.load(path, weights_only=True)
    content["model_state_dict"]["blocks.0.attn.bias"] = torch.ones(1, 1, 8, 8).tril().bool()
    content["model_state_dict"]["blocks.0.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(content, path)
    convert_published(path, **config)


def test_a_vocabulary_of_another_size(tmp_path):
    config, module = published("study")
    save_study(tmp_path / "checkpoint.pt", module)
    (tmp_path / "vocab.json").write_text('["<e_0>", "<r_0>", "</a>"]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds 4 tokens .* but the checkpoint has 61 embeddings"):
        convert_published(tmp_path, **config)
    (tmp_path / "vocab.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape("vocab.json holds a dict")):
        convert_published(tmp_path, **config)


def test_arguments_of_the_study_are_for_the_study(tmp_path):
    folder = folder_of(tmp_path, "ouro")
    with pytest.raises(TypeError, match="num_attention_heads=4 is for checkpoints of the study"):
        convert_published(folder, num_attention_heads=4)
    convert_published(folder, num_attention_heads=None)


def test_tensors_are_read_one_by_one(tmp_path):
    """Only the file of the last tensor stays open."""
    files = TensorFiles(folder_of(tmp_path, "ouro", shards=3, pickled=True))
    opened = set()
    for name in sorted(files.names):
        files.take(name, *stored_tensors(published("ouro")[1])[name].shape)
        opened.add(files._open[0].name)
    assert len(opened) == 3
    files.refuse_rest()
