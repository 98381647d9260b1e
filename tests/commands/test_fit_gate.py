"""memreason fit-gate as a user runs it: chains and text, and the model with the gate."""

import pytest
import torch
from refusals import refused
from text_models import TEXT, save_text_model
from transformers import AutoModelForCausalLM

from memreason_hf.commands.calibrate import main as calibrate
from memreason_hf.commands.fit_gate import main
from memreason_hf.evaluation import read_results
from memreason_hf.hub.cards import make_card


@pytest.fixture
def flags(model_folder, world_folder, tmp_path):
    return [str(model_folder), str(tmp_path / "gated"), "--data", str(world_folder), "--no_progress"]


def test_only_the_gate_is_new(flags, model_folder, world_folder, tmp_path, capsys):
    assert main([*flags, "--num_recurrences", "6", "--max_labels", "40"]) == 0
    assert "on 40 labels of chains and 6 recurrences" in capsys.readouterr().out
    before = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gated")
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert set(after) - set(before) == {"model.exit_gate.weight", "model.exit_gate.bias"}
    assert after["model.exit_gate.weight"].any() and model.config.exit_gate
    results = read_results(tmp_path / "gated" / "exit_gate.json")
    assert results["loss"] < results["first_loss"] and results["data"]["num_labels"] == 40
    card = str(make_card(tmp_path / "gated", "user/gated"))
    assert "### Exit gate" in card and "on 40 labels of chains and 6 recurrences, to leave where the answer" in card
    # The gate is one more criterion to calibrate; the card then has both sections.
    line = [str(tmp_path / "gated"), "--data", str(world_folder), "--risk", "0.3", "--no_progress", "--in_place"]
    assert calibrate([*line, "--halting_criterion", "exit_gate", "--max_recurrences", "6"]) == 0
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "gated").config
    assert config.halting_criterion == "exit_gate" and config.halting_calibration["num_rows"] == 48
    card = str(make_card(tmp_path / "gated", "user/gated"))
    assert "### Exit gate" in card and "### Calibrated halting" in card
    # Another gate: the promise was about this one.
    again = [str(tmp_path / "gated"), str(tmp_path / "other"), *flags[2:], "--objective", "improvement"]
    assert main(again) == 0
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "other").config
    assert config.halting_criterion is None and not hasattr(config, "halting_calibration")
    assert not (tmp_path / "other" / "calibration.json").exists()


def test_text_and_a_prior(tmp_path):
    save_text_model(tmp_path / "model")
    (tmp_path / "text.txt").write_text(f"{TEXT} {TEXT}")
    line = [str(tmp_path / "model"), str(tmp_path / "gated"), "--data", str(tmp_path / "text.txt"), "--no_progress"]
    line += ["--objective", "expected_loss", "--num_recurrences", "3", "--max_length", "16", "--max_labels", "50"]
    assert main([*line, "--exit_prior_stop", "0.4"]) == 0
    results = read_results(tmp_path / "gated" / "exit_gate.json")
    assert results["objective"] == {
        "name": "expected_loss",
        "prior": "geometric",
        "prior_stop": 0.4,
        "prior_weight": 0.05,
    }
    assert results["data"] == {"task": "text", "paths": ["text.txt"], "split": None, "num_labels": 50}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num_recurrences", "1"], "num_recurrences=1 must be at least 2"),
        (["--max_labels", "0"], "max_labels=0 must be at least 1"),
        (["--exit_prior", "uniform"], "exit_prior='uniform' is for objective='expected_loss', not 'settled'"),
        (["--objective", "expected_loss", "--exit_prior_stop", "1"], "exit_prior_stop=1.0 must be below 1"),
        (["--objective", "luck"], "argument --objective: invalid choice: 'luck'"),
        (["--hops", "99"], "no row has 99 hops"),
        (["--seed", "-1"], "seed=-1 must be at least 0"),
    ],
)
def test_wrong_flags_are_refused(more, message, flags, capsys, tmp_path):
    assert message in refused(capsys, main, [*flags, *more])
    assert not (tmp_path / "gated").exists()


def test_the_model_itself_is_not_replaced(flags, model_folder, capsys):
    line = [str(model_folder), str(model_folder), *flags[2:], "--overwrite"]
    assert "is or holds the model's own folder" in refused(capsys, main, line)
    holder = [str(model_folder), str(model_folder.parent), *flags[2:], "--overwrite"]
    assert "is or holds the model's own folder" in refused(capsys, main, holder)
