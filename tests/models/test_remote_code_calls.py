"""Every call that could run Python code of a model's folder says whether it may, and no verb runs such code."""

import ast
import json
import sys
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest
from paths import ROOT
from small_tokenizers import byte_level
from text_models import save_text_model


PACKAGES = ("memreason_hf", "modeling_recurrent", "data_scripts")
# Functions that pass on `trust_remote_code` in their `**kwargs`, which their callers fill.
PASSED_ON = {
    ("memreason_hf/models/pretrained.py", "AutoModelForCausalLM.from_pretrained"),
    ("memreason_hf/adapters/saving.py", "AutoModelForCausalLM.from_pretrained"),
}
ANSWERS = "y\ny\nyes\n1\n"


def loads_foreign_code(call: ast.Call) -> bool:
    """Whether a call can run Python code that a folder or a repository brings."""
    name = ast.unparse(call.func)
    owner, _, method = name.rpartition(".")
    if method in ("from_pretrained", "from_config"):
        # Classes of a fixed name run their own code only.
        return owner.rpartition(".")[2].startswith("Auto")
    return name in ("pipeline", "transformers.pipeline")


def calls_of(source: str) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


def unsafe_calls(source: str, path: str) -> list[str]:
    """The calls that could run foreign code and do not say whether they may."""
    found = []
    for call in calls_of(source):
        named = {keyword.arg for keyword in call.keywords}
        passes_on = None in named and (path, ast.unparse(call.func)) in PASSED_ON
        if loads_foreign_code(call) and "trust_remote_code" not in named and not passes_on:
            found.append(f"{path}, line {call.lineno}: {ast.unparse(call)[:90]}")
        # `evaluate.load` runs the code of a metric: only that of the package's own folders.
        if ast.unparse(call.func) in ("evaluate.load", "load_metric"):
            inner = call.args[0] if call.args else None
            if not isinstance(inner, ast.Call) or ast.unparse(inner.func) != "metric_path":
                found.append(f"{path}, line {call.lineno}: {ast.unparse(call)[:90]}")
    return found


def test_every_call_says_whether_code_may_run():
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found += unsafe_calls(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    assert not found, "Pass trust_remote_code=False, or the user's flag:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("AutoConfig.from_pretrained(name)", 1),
        ("transformers.AutoTokenizer.from_pretrained(name, revision=None)", 1),
        ("AutoModelForCausalLM.from_pretrained(name, **kwargs)", 1),
        ("AutoModelForCausalLM.from_config(config)", 1),
        ("AutoPeftModelForCausalLM.from_pretrained(name)", 1),
        ("pipeline('text-generation', name)", 1),
        ("evaluate.load('accuracy')", 1),
        ("AutoConfig.from_pretrained(name, trust_remote_code=False)", 0),
        ("LlamaForCausalLM.from_pretrained(name)", 0),
        ("evaluate.load(metric_path('grouped_accuracy'))", 0),
    ],
)
def test_control_of_the_search(source, count):
    assert len(unsafe_calls(source, "example.py")) == count


def test_nobody_else_decides_for_the_user():
    """`trust_remote_code=True` is written nowhere: it is a flag."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for call in calls_of(path.read_text(encoding="utf-8")):
                for keyword in call.keywords:
                    if keyword.arg == "trust_remote_code" and isinstance(keyword.value, ast.Constant):
                        assert keyword.value.value is False, f"{path}, line {call.lineno}"


CODE = """\
from pathlib import Path

Path({marker!r}).write_text("the code ran")
"""


@pytest.fixture
def marker(tmp_path, own_modules):
    return tmp_path / "marker"


def add_code(folder: Path, marker: Path, kinds=("config", "tokenizer", "generate")):
    """Code in every place of a folder from which the library would run it."""
    code = CODE.format(marker=str(marker))
    for name in ("configuration_foreign", "modeling_foreign", "tokenization_foreign"):
        (folder / f"{name}.py").write_text(code)
    if "config" in kinds:
        config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
        auto_map = {"AutoConfig": "configuration_foreign.X", "AutoModelForCausalLM": "modeling_foreign.X"}
        config |= {"model_type": "memreason_unheard_of", "auto_map": auto_map}
        (folder / "config.json").write_text(json.dumps(config))
    if "tokenizer" in kinds:
        path = folder / "tokenizer_config.json"
        known = json.loads(path.read_text())
        known |= {"tokenizer_class": "Foreign", "auto_map": {"AutoTokenizer": [None, "tokenization_foreign.X"]}}
        path.write_text(json.dumps(known))
    if "generate" in kinds:
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(code)


@pytest.fixture
def foreign(tmp_path, marker):
    folder = tmp_path / "foreign"
    byte_level().save_pretrained(folder)
    add_code(folder, marker)
    return folder


@pytest.fixture
def answers(monkeypatch):
    stdin = StringIO(ANSWERS)
    monkeypatch.setattr(sys, "stdin", stdin)
    return stdin


def recipe_for(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    return str(path)


def text_recipe(tmp_path, model):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"the text {index}"}) + "\n" for index in range(20)))
    training = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True}
    data = {"kind": "text", "files": str(texts), "sequence_length": 8}
    return {"data": data, "model": {"path": str(model)}, "training": training}


VERBS = {
    "perplexity": lambda tmp_path, model: [str(model), "--data", str(tmp_path / "texts.jsonl")],
    "lm_eval": lambda tmp_path, model: [str(model), "--tasks", "arc_easy", "--num_recurrences", "2"],
    "convert": lambda tmp_path, model: [str(model), str(tmp_path / "looped"), "--prelude", "0-0", "--coda", "1-1"],
    "train": lambda tmp_path, model: [recipe_for(tmp_path, text_recipe(tmp_path, model))],
    "finetune": lambda tmp_path, model: [
        recipe_for(
            tmp_path,
            {
                "model": {"path": str(model)},
                "data": {"path": str(tmp_path), "name": "strategy_qa"},
                "training": {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True},
            },
        )
    ],
    "generate": lambda tmp_path, model: [str(model)],
    "serve": lambda tmp_path, model: [str(model)],
    "annotate": lambda tmp_path, model: [
        *("--data", str(tmp_path), "--name", "strategy_qa", "--llm", str(model)),
        *("--output_file", str(tmp_path / "annotated.jsonl")),
    ],
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_runs_code_or_reads_an_answer(verb, foreign, marker, answers, tmp_path, capsys, monkeypatch):
    # The model is read before lm-eval is needed.
    monkeypatch.setattr("memreason_hf.commands.lm_eval.check_lm_eval", lambda: None)
    monkeypatch.setattr("memreason_hf.commands.serve._server_module", lambda: None)
    (tmp_path / "texts.jsonl").write_text('{"text": "the text"}\n')
    for split in ("train", "test"):
        rows = [{"question": f"Is {split}?", "answer": "True", "cot_steps": ["[rag]: It is."]}]
        (tmp_path / f"StrategyQA_{split}_clean.json").write_text(json.dumps(rows))
    arguments = VERBS[verb](tmp_path, foreign)
    try:
        import_module(f"memreason_hf.commands.{verb}").main(arguments)
        ended = 0
    except SystemExit as stopped:
        ended = stopped.code
    message = capsys.readouterr().err
    assert ended == 2, message
    # The last line says why, so that no verb ends for another reason before it reads the model.
    line = message.strip().splitlines()[-1]
    assert line.startswith(f"memreason {verb.replace('_', '-')}: error:") and "needs Python code" in line
    assert not marker.exists() and answers.read() == ANSWERS


@pytest.mark.parametrize("kind", ["tokenizer", "generate"])
def test_a_model_of_ours_with_foreign_code_beside_it(kind, marker, answers, tmp_path, capsys):
    """A custom `generate` would replace ours as soon as the model is loaded."""
    folder = tmp_path / "model"
    save_text_model(folder)
    add_code(folder, marker, (kind,))
    try:
        import_module("memreason_hf.commands.generate").main(
            [str(folder), "--device", "cpu", "--prompt", "the", "--max_new_tokens", "2"]
        )
    except SystemExit as stopped:
        assert stopped.code == 2
        assert "trust_remote_code" in capsys.readouterr().err
    assert not marker.exists() and answers.read() == ANSWERS
