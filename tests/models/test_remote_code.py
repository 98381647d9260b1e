"""Python code that comes with a model runs only with --trust_remote_code, whatever standard input says."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from io import StringIO

import pytest
from paths import ROOT
from refusals import refused
from small_adapters import adapted, save_base
from small_tokenizers import byte_level
from text_models import save_text_model
from transformers import AutoConfig, AutoTokenizer

from memreason_hf.adapters.modes import save_adapter
from memreason_hf.models.loading import load_any_config, load_model, load_tokenizer
from memreason_hf.models.pretrained import read_model
from memreason_hf.steps import StepScheme


CODE = """\
from pathlib import Path

from transformers import PreTrainedConfig

Path({marker!r}).write_text("the code ran")


class ForeignConfig(PreTrainedConfig):
    model_type = "memreason_unheard_of"
    vocab_size = 10_000
"""
TOKENIZER_CODE = """\
from pathlib import Path

from transformers import PreTrainedTokenizerFast

Path({marker!r}).write_text("the code ran")


class ForeignTokenizer(PreTrainedTokenizerFast):
    pass
"""
ANSWERS = "y\ny\nyes\n1\n"


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture
def foreign(tmp_path, marker, own_modules):
    """A folder whose model and tokenizer are its own code, which leaves a mark when it runs."""
    folder = tmp_path / "foreign"
    byte_level().save_pretrained(folder)
    (folder / "configuration_foreign.py").write_text(CODE.format(marker=str(marker)))
    (folder / "tokenization_foreign.py").write_text(TOKENIZER_CODE.format(marker=str(marker)))
    auto_map = {"AutoConfig": "configuration_foreign.ForeignConfig", "AutoModelForCausalLM": "modeling_foreign.X"}
    config = {"model_type": "memreason_unheard_of", "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": [None, "tokenization_foreign.ForeignTokenizer"]}
    tokenizer = {"tokenizer_class": "ForeignTokenizer", "auto_map": auto_map}
    path.write_text(json.dumps({**json.loads(path.read_text()), **tokenizer}))
    return folder


@pytest.fixture
def answers(monkeypatch):
    stdin = StringIO(ANSWERS)
    monkeypatch.setattr(sys, "stdin", stdin)
    return stdin


@pytest.mark.parametrize("load", [AutoConfig.from_pretrained, AutoTokenizer.from_pretrained])
def test_control_the_library_asks_on_standard_input_and_runs_the_code(load, foreign, marker, answers):
    load(foreign)
    assert marker.read_text() == "the code ran"
    assert answers.read() != ANSWERS


def flags_of(verb, foreign, world):
    return [
        str(foreign),
        *{
            "evaluate": ["--data", str(world)],
            "sweep": ["--data", str(world)],
            "attention": ["--text", "Question: Is it?\n<memory> It is."],
            "evaluate_steps": ["--data", str(world), "--name", "strategy_qa"],
            "generate": [],
        }[verb],
    ]


@pytest.fixture
def questions(tmp_path):
    folder = tmp_path / "questions"
    folder.mkdir()
    rows = [{"question": "Is it?", "answer": "True", "cot_steps": ["[rag]: It is."]}]
    (folder / "StrategyQA_test_clean.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("verb", ["evaluate", "sweep", "generate", "evaluate_steps", "attention"])
def test_every_verb_refuses_code_in_one_line_and_asks_nobody(verb, foreign, questions, marker, answers, capsys):
    main = import_module(f"memreason_hf.commands.{verb}").main
    line = refused(capsys, main, flags_of(verb, foreign, questions))
    name = verb.replace("_", "-")
    assert line.startswith(f"memreason {name}: error: model='{foreign}' needs Python code that comes with it.")
    assert "--trust_remote_code" in line
    assert not marker.exists() and answers.read() == ANSWERS


@pytest.mark.parametrize("verb", ["evaluate", "sweep", "generate", "evaluate_steps", "attention"])
def test_the_flag_lets_the_code_run(verb, foreign, questions, marker, answers, capsys):
    main = import_module(f"memreason_hf.commands.{verb}").main
    line = refused(capsys, main, [*flags_of(verb, foreign, questions), "--trust_remote_code"])
    # There are no weights, so that the command ends all the same.
    assert "needs Python code" not in line
    assert marker.exists() and answers.read() == ANSWERS


def test_nor_does_a_tokenizer_run_code(foreign, marker, answers, tmp_path, capsys):
    save_text_model(tmp_path / "model")
    main = import_module("memreason_hf.commands.generate").main
    argv = [str(tmp_path / "model"), "--tokenizer", str(foreign), "--device", "cpu", "--prompt", "the"]
    line = refused(capsys, main, argv)
    assert line.startswith(f"memreason generate: error: tokenizer='{foreign}' needs Python code")
    assert not marker.exists() and answers.read() == ANSWERS


def test_nor_does_the_base_of_an_adapter(foreign, marker, answers, tmp_path):
    save_base(tmp_path / "base")
    save_adapter(*adapted(tmp_path / "base", "lora+tokens", StepScheme(1, 2)), tmp_path / "adapter")
    load_any_config(str(tmp_path / "adapter"))
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(foreign, tmp_path / "base")
    for base in (None, str(foreign)):
        with pytest.raises(ValueError, match=r"base='.*' needs Python code that comes with it"):
            load_any_config(str(tmp_path / "adapter"), base)
    assert not marker.exists() and answers.read() == ANSWERS


def test_nor_do_the_functions_below_the_commands(foreign, marker, answers):
    name = str(foreign)
    for load in (
        lambda: load_any_config(name),
        lambda: load_tokenizer(name, None, None),
        lambda: load_model(name),
        lambda: read_model(name, "model.path"),
    ):
        with pytest.raises(ValueError, match="needs Python code that comes with it"):
            load()
    assert not marker.exists() and answers.read() == ANSWERS


def test_as_a_process_with_a_prompt_on_standard_input(foreign, marker):
    command = [sys.executable, "-m", "memreason_hf.cli", "generate", str(foreign)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, input=ANSWERS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("memreason generate: error: model=") and "--trust_remote_code" in line
    assert not marker.exists()
