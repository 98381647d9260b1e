"""The first command of the README, shortened to a few steps on a few chains."""

import json

import pytest
from refusals import refused

from memreason_hf.commands import quickstart
from memreason_hf.evaluation import read_results
from modeling_recurrent import RecurrentDepthForCausalLM


SHORT = [
    *("--max_steps", "2", "--per_device_train_batch_size", "8", "--max_recurrences", "5"),
    *("--num_train_chains", "8", "--num_test_chains", "3", "--test_hops", "2-4"),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A temporary working folder, where the defaults (`runs/...`) overwrite nothing."""
    monkeypatch.chdir(tmp_path)


def test_everything_once(tmp_path, capsys):
    assert quickstart.main([*SHORT, "--output_dir", "run"]) == 0
    printed = capsys.readouterr().out
    assert [f"{step}/4" in printed for step in range(1, 5)] == [True] * 4
    assert "RecurrentDepthForCausalLM with" in printed and "A chain of 4 hops: it answers <" in printed
    results = tmp_path / "run" / "results"
    for name in ("depth_sweep", "depth_margins"):
        assert all((results / f"{name}.{suffix}").stat().st_size > 1000 for suffix in ("png", "pdf"))
    evaluation, sweep = read_results(results / "evaluation.json"), read_results(results / "depth_sweep.json")
    assert evaluation["settings"]["max_recurrences"] == 5
    assert [group["count"] for group in evaluation["groups"]] == [3, 3, 3]
    assert [len(group["accuracy"]) for group in sweep["groups"]] == [5, 5, 5]
    # One row of the closing table for each hop count; 96 recurrences were not read.
    rows = [line.split() for line in printed.split("mean recurrences\n")[-1].splitlines() if line[:1].isdigit()]
    assert [row[0] for row in rows] == ["2", "3", "4"] and all(row[3] == "-" for row in rows)
    assert RecurrentDepthForCausalLM.from_pretrained(tmp_path / "run").config.max_recurrences == 128


def test_a_flag_means_the_same_in_both_spellings(tmp_path):
    # All flags of the training are accepted, so a flag that is not must be the quickstart's own.
    short = [flag.replace("_", "-") if flag.startswith("--") else flag for flag in SHORT]
    assert quickstart.main([*short, "--output-dir=run", "--data-path", "world"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "world"]
    evaluation = read_results(tmp_path / "run" / "results" / "evaluation.json")
    assert evaluation["settings"]["max_recurrences"] == 5
    assert (evaluation["model"]["name_or_path"], evaluation["data"]["path"]) == ("run", "world")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["max_recurrences"] == 128
    assert not (tmp_path / "run" / "data").exists()


def test_what_is_wrong_is_said_before_the_training(tmp_path, capsys):
    def run(*arguments):
        return refused(capsys, quickstart.main, [*SHORT, *arguments])

    assert run("--max_recurrences", "0").endswith("error: max_recurrences=0 must be at least 1.")
    assert run("--max_step", "3").endswith("unknown flag '--max_step 3'. Did you mean --max_steps?")
    assert "unknown flag '--output" in run("--output", "run")
    assert list(tmp_path.iterdir()) == []
