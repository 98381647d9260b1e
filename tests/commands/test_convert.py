import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_models import tiny_source
from paths import ROOT
from refusals import refused
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_tokenizers import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel, T5Config
from transformers.generation import GenerationConfig

from memreason_hf import cli
from memreason_hf.commands.convert import main
from memreason_hf.models.conversion import exactness, readers
from memreason_hf.models.conversion.record import read_record
from modeling_recurrent import RecurrentDepthForCausalLM


CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
LAYERS = ["--prelude", "1", "--loop", "2", "--coda", "1"]
ZERO = dict.fromkeys(exactness.CASES, 0.0)


def save_source(folder, name="llama", dtype=torch.float32, **overrides):
    tokenizer = byte_level()
    tokenizer.chat_template = CHAT
    model = tiny_source(name, vocab_size=len(tokenizer), **overrides).to(dtype)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, eos_token_id=[2, 5], pad_token_id=0)
    model.save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def _saved_source(tmp_path_factory):
    return save_source(tmp_path_factory.mktemp("saved") / "llama")


@pytest.fixture
def source(_saved_source, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(_saved_source, tmp_path / "llama")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results" / "looped"


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rewrite_tensor(folder, name, tensor):
    """Replaces a tensor of a sharded checkpoint, or removes it."""
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    path = folder / weight_map[name]
    tensors = load_file(path)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    else:
        edit_json(index, weight_map={key: file for key, file in weight_map.items() if key != name})
    save_file(tensors, path, metadata={"format": "pt"})


def test_writes_a_whole_folder_and_measures_it(source, out, capsys):
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    assert main([str(source), str(out), *LAYERS]) == 0
    captured = capsys.readouterr()
    assert "6 layers: prelude 0, loop 3-4, coda 5, dropped 1-2" in captured.out
    assert "Exact: every difference is 0.0." in captured.out and "without the dropped layers" in captured.out
    assert "Loading the result" in captured.err
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert os.listdir(out.parent) == [out.name]

    record = read_record(out)
    assert record["exactness"]["differences"] == ZERO and record["exactness"]["is_exact"]
    assert record["layers"] == {"prelude": [0], "loop": [3, 4], "coda": [5], "dropped": [1, 2]}
    plain, looped = (AutoModelForCausalLM.from_pretrained(folder) for folder in (source, out))
    counts = [sum(p.numel() for p in model.parameters()) for model in (plain, looped)]
    assert [record["source"]["num_parameters"], record["result"]["num_parameters"]] == counts
    assert (record["source"]["num_layers"], record["result"]["num_layers"]) == (6, 4)
    assert record["source"]["name_or_path"] == source.name and record["source"]["commit"] is None
    assert record["recurrence"]["input_injection"] == "gate" and record["recurrence"]["num_recurrences"] == 1
    assert all(record["versions"].values())

    assert isinstance(looped, RecurrentDepthForCausalLM)
    # By hand: the source without two of its layers.
    plain.model.layers = torch.nn.ModuleList(plain.model.layers[index] for index in (0, 3, 4, 5))
    plain.config.num_hidden_layers = 4
    ids = torch.randint(3, 99, (2, 9))
    with torch.no_grad():
        assert torch.equal(plain(ids, use_cache=False).logits, looped(ids, num_recurrences=1).logits)
    for name in ("modeling_recurrent.py", "families_recurrent.py", "chat_template.jinja", "tokenizer.json"):
        assert (out / name).is_file()
    settings = looped.generation_config
    assert (settings.do_sample, settings.temperature, settings.eos_token_id) == (True, 0.7, [2, 5])
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (source, out)]
    messages = [{"role": "user", "content": "Is the memory a reason?"}]
    rendered = [tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"] for tokenizer in tokenizers]
    assert rendered[0] == rendered[1] and tokenizers[0].get_vocab() == tokenizers[1].get_vocab()


def test_the_command_line_finds_it(source, out):
    assert cli.main(["convert", str(source), str(out)]) == 0
    assert read_record(out)["layers"] == {"prelude": [0], "loop": [1, 2, 3, 4], "coda": [5], "dropped": []}
    assert read_record(out)["exactness"]["reference"] == "source"


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_dtypes_are_kept_or_chosen(name, tmp_path, out):
    source = save_source(tmp_path / name, name, torch.bfloat16)
    assert main([str(source), str(out), *LAYERS]) == 0
    assert read_record(out)["result"]["dtype"] == "bfloat16" and read_record(out)["exactness"]["is_exact"]
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(out).parameters()} == {torch.bfloat16}
    assert main([str(source), str(out), *LAYERS, "--dtype", "float32", "--overwrite"]) == 0
    assert read_record(out)["result"]["dtype"] == "float32" and read_record(out)["exactness"]["is_exact"]


def test_retrofit_is_measured_but_not_expected_to_be_exact(source, out, capsys):
    flags = ["--input_injection", "concat", "--state_init", "normal", "--num_recurrences", "4"]
    assert main([str(source), str(out), *LAYERS, *flags]) == 0
    assert "NOT exact, as expected" in capsys.readouterr().out
    record = read_record(out)
    assert not record["exactness"]["is_exact"] and not record["exactness"]["is_expected"]
    assert min(record["exactness"]["differences"].values()) > 0.01
    config = RecurrentDepthForCausalLM.from_pretrained(out).config
    assert (config.input_injection, config.state_init, config.num_recurrences) == ("concat", "normal", 4)


@pytest.mark.parametrize(
    "flags", [["--injection_gate_init", "1"], ["--input_injection", "none"], ["--recurrence_lora_rank", "2"]]
)
def test_other_ways_back_into_the_loop_are_exact_at_one_recurrence(flags, source, out):
    assert main([str(source), str(out), *LAYERS, *flags]) == 0
    assert read_record(out)["exactness"]["is_exact"]


def test_a_wrong_result_is_not_left_as_if_it_were_good(source, out, capsys, monkeypatch):
    compute, calls = exactness.compute_logits, []

    def shifted(*args, **kwargs):
        logits = compute(*args, **kwargs)
        calls.append(logits)
        return logits if len(calls) == 1 else {**logits, "cached": logits["cached"] + shift * logits["cached"].max()}

    monkeypatch.setattr("memreason_hf.models.conversion.folders.compute_logits", shifted)
    shift = 0.01
    line = refused(capsys, main, [str(source), str(out), *LAYERS])
    assert "(cached; the largest logit is" in line and "more than rounding. Nothing was written" in line
    assert not out.exists() and not list(out.parent.iterdir())
    # What is within rounding is written, and said.
    calls.clear()
    shift = 1e-6
    assert main([str(source), str(out), *LAYERS]) == 0
    assert "NOT exact, but within rounding" in capsys.readouterr().out
    record = read_record(out)
    assert not record["exactness"]["is_exact"] and record["exactness"]["differences"]["cached"] > 0


def test_generation_flags_that_contradict_each_other_are_kept(source, out, capsys):
    """Published generation configs have them, and the library refuses to save them."""
    edit_json(source / "generation_config.json", do_sample=False, temperature=0.7)
    assert main([str(source), str(out), *LAYERS]) == 0
    assert "The generation config was kept as it is" in capsys.readouterr().out
    written = json.loads((out / "generation_config.json").read_text())
    assert (written["do_sample"], written["temperature"], written["eos_token_id"]) == (False, 0.7, [2, 5])
    RecurrentDepthForCausalLM.from_pretrained(out)


def test_a_source_without_a_tokenizer(source, out, capsys):
    for path in [*source.glob("token*"), source / "chat_template.jinja"]:
        path.unlink()
    assert main([str(source), str(out), *LAYERS]) == 0
    assert "has no tokenizer, so the result has none" in capsys.readouterr().out
    assert not list(out.glob("token*"))


def test_code_beside_a_known_model_is_not_run(source, out):
    (source / "evil.py").write_text("raise SystemExit('this code ran')")
    edit_json(source / "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"})
    assert main([str(source), str(out), *LAYERS]) == 0
    assert read_record(out)["exactness"]["is_exact"] and not (out / "evil.py").exists()


def test_overwrite(source, out, capsys):
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    assert "is not empty" in refused(capsys, main, [str(source), str(out), *LAYERS])
    assert (out / "notes.txt").read_text() == "mine"
    assert main([str(source), str(out), *LAYERS, "--overwrite"]) == 0
    assert not (out / "notes.txt").exists() and (out / "conversion.json").is_file()


LAYER_ERRORS = {
    "overlap": (["--prelude", "0-3", "--loop", "3-4"], "overlap in layer 3"),
    "no loop": (["--prelude", "3", "--loop", "0", "--coda", "3"], "no layer is left"),
    "order": (["--prelude", "3-4", "--loop", "0-2", "--coda", "1"], "must keep the order"),
    "beyond": (["--loop", "4-6"], "names layer 6, but the source has the layers 0-5"),
    "too many": (["--prelude", "3", "--loop", "3", "--coda", "3"], "9 layers, but the source has 6"),
    "gate without gates": (
        ["--input_injection", "none", "--injection_gate_init", "1"],
        "injection_gate_init=1.0 is for input_injection='gate'",
    ),
    "state that never sees its input": (
        ["--input_injection", "none", "--state_init", "zeros"],
        "never reach the state",
    ),
    "a range far beyond": (["--loop", "1-99999999999999"], "names layer 6, but the source has the layers 0-5"),
    "count of updates without updates": (["--recurrence_lora_count", "2"], "no effect without recurrence_lora_rank"),
    "no recurrences": (["--num_recurrences", "0"], "num_recurrences"),
    "revision of a folder": (["--revision", "main"], "revision='main' is for a model on the Hub"),
    "flag of a published loop": (["--num_attention_heads", "12"], "num_attention_heads=12 is for published loops"),
    "unknown flag": (["--preludes", "3"], "Did you mean --prelude"),
}


@pytest.mark.parametrize(("flags", "message"), LAYER_ERRORS.values(), ids=LAYER_ERRORS)
def test_wrong_flags(flags, message, source, out, capsys, monkeypatch):
    # No weights are read before.
    monkeypatch.setattr("memreason_hf.models.conversion.source.Source.load", lambda *args: pytest.fail("was loaded"))
    line = refused(capsys, main, [str(source), str(out), *flags])
    assert message in line and not out.exists()


def remote_code(folder):
    edit_json(folder / "config.json", model_type="raven_of_mine", auto_map={"AutoConfig": "evil.Evil"})
    (folder / "evil.py").write_text("raise SystemExit('this code ran')")


def encoder_decoder(folder):
    shutil.rmtree(folder)
    T5Config(num_layers=2, d_model=16).save_pretrained(folder)


def another_architecture(folder):
    shutil.rmtree(folder)
    BertLMHeadModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    ).save_pretrained(folder)


def weights_of_another(folder):
    config = (folder / "config.json").read_text()
    shutil.rmtree(folder)
    tiny_source("gpt2").save_pretrained(folder)
    (folder / "config.json").write_text(config)


def missing_shards(folder):
    for path in sorted(folder.glob("model-*.safetensors"))[1:3]:
        path.unlink()


def tokenizer_with_code(folder):
    edit_json(
        folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}
    )
    (folder / "evil.py").write_text("raise SystemExit('this code ran')")


def cut_off(folder):
    path = sorted(folder.glob("model-*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-40])


def add_tensor(folder, name, tensor):
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    save_file({name: tensor}, folder / "model-more.safetensors", metadata={"format": "pt"})
    edit_json(index, weight_map={**weight_map, name: "model-more.safetensors"})


class Caller:
    """Unpickling it without weights_only=True calls a function that fails the test."""

    def __reduce__(self):
        return pytest.fail, ("code in the weights ran",)


def pickled(folder, content, cut=0):
    """The weights as pytorch_model.bin: those of the source, with code, or another object; some bytes are cut off."""
    tensors = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    for path in folder.glob("model*"):
        path.unlink()
    path = folder / "pytorch_model.bin"
    torch.save(tensors if content is None else content, path)
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])


SOURCE_ERRORS = {
    "remote code": (remote_code, "of type 'raven_of_mine' needs Python code that comes with it"),
    "unknown type": (
        lambda f: edit_json(f / "config.json", model_type="unheard_of"),
        "is not a model of transformers",
    ),
    "no type": (lambda f: (f / "config.json").write_text("{}"), "names no model_type"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json is not a JSON file"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "encoder-decoder": (encoder_decoder, "'t5' cannot be converted: it is an encoder-decoder"),
    "another architecture": (another_architecture, "'bert' cannot be converted: its layers are not known to run"),
    "quantised": (
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "is quantised (quant_method='gptq')",
    ),
    "missing shards": (missing_shards, "shards of model.safetensors.index.json are missing: model-00002-of-"),
    "cut off": (cut_off, "the weights cannot be read"),
    "weights of another model": (weights_of_another, "of its tensors are missing: "),
    "missing tensor": (
        lambda f: rewrite_tensor(f, "model.layers.2.mlp.up_proj.weight", None),
        "1 of its tensors are missing: model.layers.2.mlp.up_proj.weight",
    ),
    "wrong shape": (
        lambda f: rewrite_tensor(f, "model.layers.2.mlp.up_proj.weight", torch.zeros(40, 32)),
        "model.layers.2.mlp.up_proj.weight (shape (40, 32), not (48, 32))",
    ),
    "tokenizer with code": (tokenizer_with_code, "its tokenizer cannot be read (The repository"),
    "type that is not a name": (
        lambda f: edit_json(f / "config.json", model_type=["llama"]),
        "model_type=['llama'] must be",
    ),
    "quantised, in a word": (
        lambda f: edit_json(f / "config.json", quantization_config="int8"),
        "is quantised (quant_method='int8')",
    ),
    "no heads": (lambda f: edit_json(f / "config.json", num_attention_heads=0), "config.json cannot be read"),
    "unknown activation": (
        lambda f: edit_json(f / "config.json", hidden_act="foo"),
        "cannot make a model of its config and weights (KeyError: 'foo')",
    ),
    "padding beyond the vocabulary": (
        lambda f: edit_json(f / "config.json", pad_token_id=10**6),
        "pad_token_id=1000000 must be None or at least 0 and below vocab_size",
    ),
    "shards without names": (
        lambda f: edit_json(f / "model.safetensors.index.json", weight_map={"lm_head.weight": 3}),
        "has no weight_map",
    ),
    "more layers than the config says": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=5),
        "9 of its tensors have no place in the model of its config.json: model.layers.5.input_layernorm.weight",
    ),
    "biases that the config does not have": (
        lambda f: add_tensor(f, "model.layers.2.self_attn.q_proj.bias", torch.ones(32)),
        "1 of its tensors have no place in the model of its config.json: model.layers.2.self_attn.q_proj.bias",
    ),
    "code in the weights": (lambda f: pickled(f, Caller()), "Python objects other than tensors"),
    "pickle that is cut off": (lambda f: pickled(f, None, cut=2000), "the weights cannot be read"),
    "empty pickle": (lambda f: pickled(f, None, cut=10**9), "the weights cannot be read"),
    "pickle of a list": (lambda f: pickled(f, [1, 2]), "cannot make a model of its config and weights (TypeError"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json is not a JSON file"),
}


@pytest.mark.parametrize(("damage", "message"), SOURCE_ERRORS.values(), ids=SOURCE_ERRORS)
def test_sources_that_cannot_be_converted(damage, message, source, out, capsys, monkeypatch):
    monkeypatch.setattr("memreason_hf.models.conversion.folders.compute_logits", lambda *a: pytest.fail("computed"))
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked on standard input"))
    damage(source)
    line = refused(capsys, main, [str(source), str(out)])
    assert message in line and line.startswith("memreason convert: error: ")
    assert not out.exists()


def test_nothing_is_overwritten_by_its_own_conversion(source, tmp_path, capsys):
    line = refused(capsys, main, [str(source), f"{source}/../llama", "--overwrite"])
    assert "are the same folder" in line
    assert "the first is inside" in refused(capsys, main, [str(source), str(tmp_path), "--overwrite"])
    assert (source / "config.json").is_file()


def test_places_that_cannot_be_written_are_refused_before_anything_is_read(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("memreason_hf.commands.convert.open_source", lambda *args: pytest.fail("was read"))
    (tmp_path / "file").write_text("")
    line = refused(capsys, main, [str(source), str(tmp_path / "file" / "out")])
    assert f"{tmp_path / 'file'} is a file, not a folder" in line
    # The superuser, who may run the tests, may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path))
    line = refused(capsys, main, [str(source), str(tmp_path / "new" / "out")])
    assert f"the folder {tmp_path} is read-only" in line


def test_stopped_or_on_a_full_disk_nothing_is_written(source, out, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr("memreason_hf.models.conversion.folders._measure", stop)
        with pytest.raises(SystemExit) as stopped:
            main([str(source), str(out), *LAYERS])
    assert stopped.value.code == 130
    assert "stopped by Ctrl-C; no half-written folder was left" in capsys.readouterr().err
    monkeypatch.setattr(RecurrentDepthForCausalLM, "save_pretrained", full)
    line = refused(capsys, main, [str(source), str(out), *LAYERS])
    assert f"cannot be written to {out.parent} (I/O error: No space left on device" in line
    assert not list(out.parent.iterdir())


def test_a_pickled_source_without_code_is_converted(source, out):
    pickled(source, None)
    assert main([str(source), str(out), *LAYERS]) == 0
    assert read_record(out)["exactness"]["is_exact"] and (out / "model.safetensors").is_file()


def test_a_tokenizer_with_more_tokens_than_embeddings_is_noted(source, out, capsys):
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([f"<more_{index}>" for index in range(7)])
    tokenizer.save_pretrained(source)
    assert main([str(source), str(out), *LAYERS]) == 0
    rows = len(tokenizer) - 7
    assert f"The tokenizer has {rows + 7} tokens, but the model has {rows} embeddings" in capsys.readouterr().out


def test_a_recurrent_model_or_an_adapter_is_not_a_source(source, out, tmp_path, capsys):
    assert main([str(source), str(out)]) == 0
    capsys.readouterr()
    assert "is a recurrent-depth model already" in refused(capsys, main, [str(out), str(tmp_path / "again")])
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "is an adapter. Pass --base" in refused(capsys, main, [str(tmp_path / "adapter"), str(tmp_path / "x")])
    line = refused(capsys, main, [str(source), str(tmp_path / "x"), "--base", str(out)])
    assert "is not the folder of one" in line
    assert "no such folder" in refused(capsys, main, [str(tmp_path / "nowhere"), str(tmp_path / "x")])
    assert "SOURCE and one OUT" in refused(capsys, main, [str(source), str(out), "more"])
    assert "out is not given. Pass --out." in refused(capsys, main, [str(source)])


def test_other_readers_are_asked_first(source, out, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(readers, "_READERS", [])
    model = RecurrentDepthForCausalLM(
        RecurrentDepthForCausalLM.config_class(vocab_size=9, hidden_size=8, num_attention_heads=2)
    )

    def convert(name, *, dtype, **fields):
        calls.append((name, dtype, fields))
        return model, None

    calls = []
    detect = {str(source): "Raven"}.get
    readers.register_reader(readers.Reader(detect, convert, fields=("num_recurrences", "num_attention_heads")))
    line = refused(capsys, main, [str(source), str(out), "--loop", "2"])
    assert "loop='2' is for decoders" in line and "is Raven, which has its own layers. Leave --loop out." in line
    assert "state_norm='none' is for decoders" in refused(
        capsys, main, [str(source), str(out), "--state_norm", "none"]
    )
    assert "revision='main' is for decoders" in refused(capsys, main, [str(source), str(out), "--revision", "main"])
    flags = ["--num_recurrences", "3", "--num_attention_heads", "2"]
    assert main([str(source), str(out), *flags]) == 0
    assert calls == [(str(source), "auto", {"num_recurrences": 3, "num_attention_heads": 2})]
    assert read_record(out)["family"] == "Raven" and "exactness" not in read_record(out)
    RecurrentDepthForCausalLM.from_pretrained(out)
    # Other sources are still decoders.
    other = shutil.copytree(source, tmp_path / "other")
    assert main([str(other), str(tmp_path / "plain")]) == 0
    assert read_record(tmp_path / "plain")["kind"] == "conversion"


def test_a_damaged_record_is_refused(source, out):
    assert main([str(source), str(out)]) == 0
    edit_json(out / "conversion.json", layers={"prelude": [0]})
    with pytest.raises(ValueError, match=r"is not a record of a conversion: layers\.loop: Field required"):
        read_record(out)
    edit_json(out / "conversion.json", kind="other")
    with pytest.raises(ValueError, match='kind="other" must be one of conversion'):
        read_record(out)


def test_a_source_on_the_hub(source, out, tmp_path, capsys):
    """In the cache of the Hub, as after a download. The record names its commit."""
    assert "its config cannot be read" in refused(capsys, main, ["owner/not-downloaded", str(out)])
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "home" / "hub" / "models--owner--llama"
    shutil.copytree(source, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "memreason_hf.cli", "convert", "owner/llama", str(out), "--revision", "main"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    described = read_record(out)["source"]
    assert (described["name_or_path"], described["revision"], described["commit"]) == ("owner/llama", "main", commit)
    assert read_record(out)["exactness"]["is_exact"] and (out / "chat_template.jinja").is_file()


@pytest.mark.parametrize("verb", ["convert", "unroll"])
def test_help_teaches(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: memreason {verb} SOURCE OUT")
    assert "default: None" not in text and "conversion.json" in text
    examples = [
        line.partition("#")[0].split() for line in text.splitlines() if line.startswith(f"  memreason {verb} ")
    ]
    assert len(examples) >= 3
    module = cli._import_verb(verb)
    for example in examples:
        arguments, *_ = module.make_parser().parse_sections(example[2:])
        assert arguments.source and arguments.out


def test_the_folder_loads_where_this_package_is_not_installed(source, out, tmp_path):
    """By the code beside the weights, with trust_remote_code=True."""
    assert main([str(source), str(out), *LAYERS]) == 0
    ids = torch.randint(3, 99, (2, 9))
    with torch.no_grad():
        expected = RecurrentDepthForCausalLM.from_pretrained(out)(ids, num_recurrences=3).logits
    torch.save({"ids": ids, "expected": expected}, tmp_path / "case.pt")
    code = (
        "import sys, torch\n"
        "sys.modules.update({'modeling_recurrent': None, 'memreason_hf': None})\n"
        "from transformers import AutoModelForCausalLM\n"
        f"case = torch.load({str(tmp_path / 'case.pt')!r}, weights_only=True)\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(out)!r}, trust_remote_code=True)\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(model(case['ids'], num_recurrences=3).logits, case['expected'])\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(tmp_path), env=environment)
