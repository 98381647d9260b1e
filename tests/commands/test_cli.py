import gc
import subprocess
import sys
from types import SimpleNamespace

import pytest

from memreason_hf import cli


def test_help_names_every_verb_and_what_it_does(capsys):
    for argv in (["--help"], ["-h"], ["help"], []):
        assert cli.main(argv) == 0
        text = capsys.readouterr().out
        for verb, help_line in cli.VERBS.items():
            assert f"{verb} " in text and help_line in text
    before = [
        "quickstart",
        "convert",
        "unroll",
        "train",
        "finetune",
        "merge",
        "evaluate",
        "sweep",
        "calibrate",
        "fit-gate",
        "perplexity",
        "lm-eval",
        "generate",
        "demo",
        "serve",
        "annotate",
        "evaluate-steps",
        "score",
        "attention",
        "lens",
        "trajectories",
        "patch",
    ]
    assert list(cli.VERBS) == [*before, "testbed", "publish", "reproduce"]


def test_help_does_not_wait_for_torch():
    code = "import sys; from memreason_hf.cli import main; main(['--help']); print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = result.stdout.splitlines()[-1]
    for slow in ("torch", "transformers", "datasets", "numpy", "matplotlib"):
        assert f"'{slow}'" not in loaded


def test_unknown_verb_suggests_one(capsys):
    assert cli.main(["evalute", "model"]) == 2
    assert "unknown verb 'evalute'" in (error := capsys.readouterr().err)
    assert error.rstrip().endswith("Did you mean evaluate?")
    assert cli.main(["frobnicate"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("memreason ")


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_the_rest_goes_to_the_verb(monkeypatch, returned, code):
    calls = []
    module = SimpleNamespace(main=lambda argv: calls.append(argv) or calls.append(gc.isenabled()) or returned)
    monkeypatch.setattr(cli, "import_module", lambda name: calls.append(name) or module)
    assert cli.main(["sweep", "model", "--data", "world"]) == code
    # The verb runs with the garbage collector, whatever the imports do.
    assert calls == ["memreason_hf.commands.sweep", ["model", "--data", "world"], True]


@pytest.mark.parametrize("verb", ["evaluate", "sweep"])
def test_help_of_a_verb_teaches(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: memreason {verb} [RECIPE.yaml] [MODEL]")
    assert "examples:" in text
    for flag in ("--data", "--split", "--hops", "--output_dir", "--overwrite", "--max_recurrences"):
        assert flag in text
    assert "default: None" not in text
    # Every line of the examples is a command that the parser reads.
    examples = [line.split() for line in text.splitlines() if line.startswith(f"  memreason {verb} ")]
    assert len(examples) >= 3
    module = cli.import_module(f"memreason_hf.commands.{verb}")
    for example in examples:
        model, data, *_ = module.make_parser().parse_sections(example[2:])
        assert model.model and data.data
