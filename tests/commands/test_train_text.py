"""`memreason train` with `data.kind: text`: from files to a saved model, and what it refuses."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from family_models import tiny_source
from paths import ROOT
from refusals import refused
from safetensors.torch import load_file
from small_texts import small_text_tokenizer, small_texts, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from memreason_hf.commands import train
from memreason_hf.recipes import load_recipe, recipe_names
from memreason_hf.training.text.arguments import TextTrainingArguments
from memreason_hf.training.text.parts import PartArguments


RECIPE = {
    "model": {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_prelude_layers": 1,
        "num_recurrent_layers": 1,
        "num_coda_layers": 1,
        "num_recurrences": 2,
        "input_injection": "add",
    },
    "data": {"kind": "text", "sequence_length": 24},
    "training": {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "save_steps": 3,
        "logging_steps": 3,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe with changed sections; returns its path."""
    write_jsonl(tmp_path / "texts.jsonl", small_texts(30))

    def write(**changes):
        content = {name: {**values, **changes.pop(name, {})} for name, values in RECIPE.items()} | changes
        if "dataset" not in content["data"]:
            content["data"].setdefault("files", str(tmp_path / "texts.jsonl"))
        content["training"].setdefault("output_dir", str(tmp_path / "run"))
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(content))
        return str(path)

    return write


def refusal(capsys, *argv):
    message = refused(capsys, train.main, list(argv))
    assert message.startswith("memreason train: error: ")
    return message


def test_trains_saves_and_returns_at_once_the_second_time(recipe, tmp_path, capsys):
    argv = [recipe(data={"eval_documents": 5}, training={"eval_strategy": "steps", "eval_steps": 3})]
    assert train.main(argv) == 0
    output = capsys.readouterr().out
    assert "25 documents in " in output and "Trained for 6 steps. The model is in" in output
    assert "tokens were seen." in output
    run = tmp_path / "run"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert len(tokenizer) <= model.config.vocab_size == 300
    assert model.config.eos_token_id == tokenizer.eos_token_id
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    for name in ("num_input_tokens_seen", "tokens_per_second", "eval_perplexity", "eval_num_recurrences"):
        assert any(name in entry for entry in history), name
    written = (run / "checkpoint-6" / "model.safetensors").stat().st_mtime_ns
    assert train.main(argv) == 0
    assert "The run was finished already, after 6 steps." in capsys.readouterr().out
    assert (run / "checkpoint-6" / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("streaming", [False, True])
def test_resumes_to_the_same_weights(recipe, tmp_path, streaming):
    data = {"streaming": streaming, "shuffle_buffer": 4}
    path, parts = recipe(data=data, training={"lr_scheduler_type": "constant"}), str(tmp_path / "parts")
    assert train.main([path]) == 0
    assert train.main([path, "--output_dir", parts, "--max_steps", "3"]) == 0
    assert train.main([path, "--output_dir", parts]) == 0
    whole, resumed = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (tmp_path / "run", parts)
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_report_of_a_stream(recipe, capsys):
    assert train.main([recipe(data={"streaming": True, "shuffle_buffer": 4, "sequence_length": 10})]) == 0
    output = capsys.readouterr().out
    assert "Streaming 1 shard in 1 shares." in output
    assert "Of the stream: " in output and "are longer than a row and were split (data.too_long=split)" in output


def test_the_report_of_a_stream_that_ends_in_its_first_block(recipe, capsys):
    """No block was used up, so there are no counts yet: not "0 documents in 0 rows"."""
    assert train.main([recipe(data={"streaming": True, "shuffle_buffer": 30}, training={"max_steps": 2})]) == 0
    output = capsys.readouterr().out
    assert "The stream was stopped within its first block of documents" in output and "0 documents" not in output


def test_a_data_set_by_its_folder(recipe, tmp_path, capsys):
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    Dataset.from_dict({"body": small_texts(30)}).to_parquet(folder / "train-00000-of-00001.parquet")
    Dataset.from_dict({"body": small_texts(5, seed=1)}).to_parquet(folder / "test-00000-of-00001.parquet")
    data = {"dataset": str(tmp_path / "hub"), "column": "body", "eval_split": "test"}
    for streaming in ([], ["--streaming"]):
        argv = [recipe(data=data), *streaming, "--output_dir", str(tmp_path / f"run{len(streaming)}")]
        assert train.main([*argv, "--eval_strategy", "steps", "--eval_steps", "3"]) == 0
    assert "has the columns body. Pass one of them with --column" in refusal(
        capsys, recipe(data=data), "--column", "text"
    )


@pytest.mark.parametrize("part", ["all", "loop", "lora"])
def test_goes_on_from_a_trained_model(recipe, tmp_path, part):
    assert train.main([recipe()]) == 0
    flags = ["--model_path", str(tmp_path / "run"), "--train", part, "--output_dir", str(tmp_path / part)]
    content = json.loads((tmp_path / "recipe.yaml").read_text())
    content["model"] = {"num_recurrences": 3}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    assert train.main([str(tmp_path / "recipe.yaml"), *flags]) == 0
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "run").state_dict()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / part)
    assert model.config.num_recurrences == 3
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    if part == "all":
        assert moved == set(before)
    else:
        assert moved and "lm_head.weight" not in moved and not any("embed" in name for name in moved)
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("run", part)]
    assert tokenizers[0] == tokenizers[1]


def test_fields_that_the_model_of_a_path_cannot_have(recipe, tmp_path, capsys):
    """They would give random layers in place of trained ones, or a traceback."""
    assert train.main([recipe(model={"input_injection": "gate"})]) == 0
    content = json.loads((tmp_path / "recipe.yaml").read_text())
    content["model"] = {"path": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    argv = [str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "other")]
    for name, value, own in (("num_recurrent_layers", 2, 1), ("hidden_size", 32, 16), ("vocab_size", 400, 300)):
        message = refusal(capsys, *argv, f"--{name}", str(value))
        assert f"model.{name}={value}: the model at {tmp_path / 'run'} has {name}={own}" in message
    message = refusal(capsys, *argv, "--input_injection", "concat")
    assert "its weights do not have the shapes that these fields of section model need: input_injection" in message
    message = refusal(capsys, *argv, "--model_style", "gpt2")
    assert "model.style='gpt2' describes a new model, but model.path=" in message
    # The control: the model's own values, and fields that change no shape.
    assert train.main([*argv, "--num_recurrent_layers", "1", "--recurrence_max", "5"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "other").config.recurrence_max == 5


def test_a_decoder_that_was_not_converted(recipe, tmp_path, capsys):
    tiny_source("llama", vocab_size=300).save_pretrained(tmp_path / "llama")
    small_text_tokenizer().save_pretrained(tmp_path / "llama")
    recipe()
    content = json.loads((tmp_path / "recipe.yaml").read_text())
    content["model"] = {"path": str(tmp_path / "llama")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    message = refusal(capsys, str(tmp_path / "recipe.yaml"))
    assert "holds a LlamaForCausalLM, not a RecurrentDepthForCausalLM. Convert it with memreason convert" in message


def test_a_tokenizer_of_its_own(recipe, tmp_path, capsys):
    assert train.main([recipe()]) == 0
    run = str(tmp_path / "run")
    other = str(tmp_path / "other")
    assert train.main([recipe(), "--tokenizer", run, "--output_dir", other]) == 0
    small = recipe(model={"vocab_size": 270})
    assert "model.vocab_size=270 is below the" in refusal(
        capsys, small, "--tokenizer", run, "--output_dir", other + "2"
    )
    # The model of the folder has other tokens under the same ids.
    shutil.copytree(run, tmp_path / "swapped")
    content = json.loads((tmp_path / "swapped" / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(content))
    path = recipe(model={"path": run}, data={"tokenizer": str(tmp_path / "swapped")})
    content = json.loads((tmp_path / "recipe.yaml").read_text())
    content["model"] = {"path": run}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    assert "The vocabulary does not match: " in refusal(capsys, path, "--output_dir", other + "3")


BAD = [
    ({"data": {"sequence_lenght": 3}}, [], "unknown key 'sequence_lenght'. Did you mean 'sequence_length'?"),
    ({"data": {"num_entities": 3}}, [], "unknown key 'num_entities'"),
    ({"data": {"kind": "texts"}}, [], "data.kind='texts' must be one of 'chains', 'text'. Did you mean 'text'?"),
    ({"data": {"files": "no*.txt"}}, [], "data.files='no*.txt' matches no file"),
    ({"data": {"too_long": "error"}}, [], "documents have more than data.sequence_length=24 tokens; the longest"),
    ({"data": {"streaming": True, "too_long": "error"}}, [], "Raise sequence_length, or use too_long=split"),
    (
        {"data": {"streaming": True}, "training": {"max_steps": -1}},
        [],
        "Set training.max_tokens or training.max_steps",
    ),
    ({"data": {"num_streams": 3, "streaming": True}}, [], "data.num_streams=3 gives each process 3 shares"),
    ({"data": {"sequence_length": 65}, "model": {"max_position_embeddings": 64}}, [], "max_position_embeddings=64"),
    ({"data": {"tokenizer": ""}}, [], "data.tokenizer='' must be a path, but it is empty"),
    ({"model": {"path": ""}}, [], "model.path='' must be a path, but it is empty"),
    ({"data": {"tokenizer": "no/such/one"}}, [], "data.tokenizer='no/such/one' holds no tokenizer that can be read"),
    ({"model": {"vocab_size": 100}}, [], "model.vocab_size=100 must be at least 258"),
    ({"model": {"train": "loop"}}, [], "model.train='loop' keeps other weights as they are, but those of a new model"),
    ({"model": {"lora_r": 4}}, [], "model.lora_r=4 has no effect with model.train='all'. Use train=lora, or leave"),
    (
        {"training": {"recurrence_growth": "linear", "recurrence_growth_start": 9}},
        [],
        "recurrence_growth_start=9.0 is above the mean depth 2",
    ),
    ({}, ["--learning_rate", "nan"], "learning_rate=nan must be a number"),
    ({"model": {"path": "no/such/model"}}, [], "model.path='no/such/model': no such folder. Pass a folder"),
    (
        {"training": {"max_tokens": 95}},
        [],
        "training.max_tokens=95 is less than one batch: 4 rows of 24 tokens are 96",
    ),
    ({"training": {"max_tokens": 1e9}}, [], "training.max_tokens=1000000000.0 must be a whole number"),
    ({"training": {"eval_strategy": "steps"}}, [], "training.eval_strategy='steps' needs held-out texts"),
    ({"training": {"supervision": "answer"}}, [], "unknown key 'supervision'"),
    ({"curriculum": {"threshold": 1}}, [], "unknown section 'curriculum'"),
    ({}, ["--column", "body"], "data.column='body': "),
    ({}, ["--dataset", "a/b"], "leave one of them out"),
]


@pytest.mark.parametrize("changes, flags, message", BAD, ids=[str(case[:2]) for case in BAD])
def test_bad_input_is_one_message_and_leaves_nothing(recipe, tmp_path, capsys, changes, flags, message):
    assert message in refusal(capsys, recipe(**changes), *flags)
    run = tmp_path / "run"
    assert not run.exists() or not list(run.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("depth", "warns"),
    [
        ({"num_recurrences": 1}, True),
        ({"num_recurrences": 1, "recurrence_sampling": "uniform", "recurrence_min": 1, "recurrence_max": 1}, True),
        ({"num_recurrences": 1, "recurrence_sampling": "uniform", "recurrence_min": 1, "recurrence_max": 2}, False),
        ({"num_recurrences": 2}, False),
    ],
)
def test_a_run_that_trains_no_depth_warns(recipe, depth, warns, caplog):
    assert train.main([recipe(model=depth, training={"max_steps": 1})]) == 0
    assert ("--recurrence_sampling uniform" in caplog.text) == warns


def test_flags_alone(recipe, tmp_path, capsys):
    assert train.main([recipe()]) == 0
    flags = ["--kind", "text", "--model_path", str(tmp_path / "run"), "--files", str(tmp_path / "texts.jsonl")]
    flags += ["--sequence_length", "24", "--max_tokens", "300", "--per_device_train_batch_size", "2", "--use_cpu"]
    assert train.main([*flags, "--output_dir", str(tmp_path / "further")]) == 0
    assert "The model is in" in capsys.readouterr().out
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "further"))
    assert before.keys() == after.keys() and not any(torch.equal(before[name], after[name]) for name in after)
    assert "training.output_dir is not given" in refusal(capsys, *flags)


def test_a_text_that_is_not_utf8(recipe, tmp_path, capsys):
    (tmp_path / "latin1.txt").write_bytes("caf\u00e9\n".encode("latin1"))
    message = refusal(capsys, recipe(data={"files": str(tmp_path / "latin1.txt")}))
    assert "latin1.txt is not UTF-8: byte 0xe9 at offset 3 (line 1)" in message


def test_rows_longer_than_the_context_of_the_model(recipe, tmp_path, capsys):
    assert train.main([recipe(model={"max_position_embeddings": 32})]) == 0
    content = json.loads((tmp_path / "recipe.yaml").read_text())
    content["model"] = {"path": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    message = refusal(capsys, str(tmp_path / "recipe.yaml"), "--sequence_length", "33", "--restart")
    assert "data.sequence_length=33 is above the model's max_position_embeddings=32. Use at most 32" in message


def test_the_kind_decides_the_flags(recipe):
    assert train.kind_of([recipe()]) == "text"
    assert train.kind_of(["--max_steps", "3", recipe()]) == "text"
    assert train.kind_of(["quickstart"]) == train.kind_of([]) == train.kind_of(["no.yaml"]) == "chains"
    assert train.kind_of(["quickstart", "--kind", "text"]) == train.kind_of(["--kind=text", "--help"]) == "text"
    assert train.kind_of([recipe(), "--kind", "chains"]) == "chains"


def test_help_teaches(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--kind", "text", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in ("examples:", "a recipe:", "--files", "--max_tokens", "--train {all,loop,lora}", "--too_long"):
        assert part in text
    (tmp_path / "example.yaml").write_text(text[text.index("a recipe:") + len("a recipe:") :])
    assert train.kind_of([str(tmp_path / "example.yaml")]) == "text"
    _, values = train.make_parser("text").parse_recipe([str(tmp_path / "example.yaml")])
    assert all(values[section] for section in ("model", "data", "training"))
    assert values["training"]["max_tokens"] == 10**9
    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert "memreason train --kind\ntext --help" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in recipe_names() if train.kind_of([name]) == "text"])
def test_recipes_of_the_package_are_valid(name, tmp_path):
    _, values = train.make_parser("text").parse_recipe([name])
    assert {section: keys for section, keys in values.items() if keys} == load_recipe(name)
    TextTrainingArguments(**{**values["training"], "output_dir": str(tmp_path), "use_cpu": True})
    PartArguments(train=values["model"].get("train", "all"))


def test_ctrl_c_in_a_stream(recipe, tmp_path):
    """As a user would: the command is interrupted, and the same command goes on."""
    path = recipe(data={"streaming": True, "shuffle_buffer": 5}, training={"max_steps": 60, "save_steps": 1000})
    command = [sys.executable, "-m", "memreason_hf.commands.train", path]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "'loss'" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait() == 130
    assert "Stopped after step " in rest and "The same command resumes from there" in rest
    assert train.main([path]) == 0
    assert train.main([path, "--output_dir", str(tmp_path / "whole")]) == 0
    whole, resumed = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "run"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
