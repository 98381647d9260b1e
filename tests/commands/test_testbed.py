"""memreason testbed from end to end, with models that learn nothing in a few steps."""

import json

import pytest
from refusals import refused

from memreason_hf.commands import testbed
from memreason_hf.experiments.folders import claim_folder
from memreason_hf.experiments.testbed.models import MODELS


FEW = ["--max_steps", "2", "--batch_size", "4", "--num_test_chains", "2", "--num_judged", "5", "--num_rows", "60"]


def refusal(capsys, *arguments):
    return refused(capsys, testbed.main, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "steps_fixed,steps"], "models='steps_fixed,steps' must name some of answer_fixed"),
        (["--models", ""], "models='' must name some of"),
        (["--max_steps", "0"], "max_steps=0 must be at least 1"),
        (["--num_judged", "0"], "num_judged=0 must be at least 1"),
        (["--disorder", "-1"], "disorder=-1.0 must be at least 0"),
        (["--fixed_seconds", "0"], "fixed_seconds=0.0 must be above 0"),
        (["--steps", "3"], "unknown flag '--steps 3'"),
    ],
)
def test_wrong_flags(arguments, message, capsys, tmp_path):
    assert message in refusal(capsys, *arguments, "--output_dir", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        testbed.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "<reason> <e_3> <x_5> <r_1> <e_7>" in text and "default: None" not in text
    examples = [line.split("#")[0].split()[2:] for line in text.splitlines() if line.startswith("  memreason testbed")]
    assert len(examples) == 5
    for example in examples:
        arguments, *_ = testbed.make_parser().parse_sections(example)
        assert arguments.model_names


def test_a_folder_of_another_run(tmp_path):
    claim_folder(tmp_path, {"seed": 1, "model": "x"}, restart=False)
    claim_folder(tmp_path, {"seed": 1, "model": "x"}, restart=False)
    with pytest.raises(ValueError, match="seed=1 there, now 2"):
        claim_folder(tmp_path, {"seed": 2, "model": "x"}, restart=False)
    for name in ("results.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    claim_folder(tmp_path, {"seed": 1, "model": "x"}, restart=False)
    assert len(list(tmp_path.iterdir())) == 3
    claim_folder(tmp_path, {"seed": 2, "model": "x"}, restart=True)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    # What another program left is not removed.
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "model.safetensors").write_text("{}")
    claim_folder(stranger, {"seed": 2, "model": "x"}, restart=True)
    assert (stranger / "model.safetensors").exists()
    (stranger / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings.json is damaged .* Pass --restart"):
        claim_folder(stranger, {"seed": 2, "model": "x"}, restart=False)


@pytest.mark.slow
def test_all_of_it_and_the_same_again(tmp_path, capsys):
    arguments = ["--output_dir", str(tmp_path), *FEW]
    assert testbed.main(arguments) == 0
    text = capsys.readouterr().out
    for name, model in MODELS.items():
        assert f"{name}: 2 of 2 steps" in text and model.title in text
    assert "false alarms, %" in text and "Mean recurrences by kind of step" in text
    results = json.loads((tmp_path / "testbed.json").read_text())
    assert results["judges"]["known truth"]["hit_rate"] == 1.0
    assert results["judges"]["known truth"]["false_alarm_rate"] == 0.0
    for name, model in results["models"].items():
        assert set(model["hops"]) == {str(hops) for hops in range(1, 13)}
        assert model["training"]["steps"] == 2 and (tmp_path / name / "model.safetensors").is_file()
        assert ("false_memories" in model) == MODELS[name].writes_steps
        count = sum(group["count"] for group in model["hops"].values())
        if MODELS[name].writes_steps:
            assert len((tmp_path / name / "solutions.jsonl").read_text().splitlines()) == count
            found = [group["attribution"] for group in model["hops"].values()]
            judged = [sum(part[key].values()) for part in found for key in ("right_answers", "wrong_answers")]
            assert sum(judged) == count
    assert (tmp_path / "testbed.png").read_bytes()[:4] == b"\x89PNG"

    assert testbed.main(arguments) == 0
    again = capsys.readouterr().out
    assert "kept" in again and "training" not in again.split("Right answers")[0]
    tables = [out.split("Right answers")[1].split("The test bed took")[0] for out in (text, again)]
    assert tables[0] == tables[1]
    assert "seed=42 there, now 1" in refusal(capsys, *arguments, "--seed", "1")
