"""Verdicts, tables and the whole run, with processes that do not train; `tests/commands/test_reproduce.py` does."""

import copy
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from paths import ROOT
from result_schemas import assert_schema_describes_itself, assert_written_and_read

from memreason_hf.evaluation import read_results
from memreason_hf.evaluation.results import validate_results
from memreason_hf.experiments.retrofit import run
from memreason_hf.experiments.retrofit.figures import depth_figure
from memreason_hf.experiments.retrofit.report import report
from memreason_hf.experiments.retrofit.results import judge_seed
from memreason_hf.experiments.retrofit.run import RetrofitArguments, run_retrofit


SHOWN = (1, 2, 4, 8, 16, 32)
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'results.json').write_text(sys.argv[2])"
FAIL = "import sys; sys.exit('first line\\nthe reason')"


def measures(losses, accuracies, solved=(6,)):
    """Of a model; `solved` hops are right after each of the first shown recurrences."""
    by_hop = {str(r): [1.0] * hops + [0.5] * (16 - hops) for r, hops in zip(SHOWN, solved)}
    return {"losses": list(losses), "accuracies": list(accuracies), "accuracies_by_hop": by_hop}


def looped(**changes):
    """128 recurrences: the first is the static model, the sixth the best; `changes` are losses by recurrence."""
    losses = [1.0, 0.9, 0.8, 0.5, 0.4, 0.3, *[0.305] * 122]
    for name, loss in changes.items():
        losses[int(name[1:]) - 1] = loss
    return measures(losses, [0.6, *[0.9] * 127], solved=(6, 7, 12, 16, 16, 16))


STATIC = measures([1.0], [0.6])


def seed_results(looped_measures):
    training = {"steps": 4, "tokens": 1088, "num_parameters": 7, "seconds": 1.5, "log": []}
    return {
        "conversion_difference": 0.0,
        "weight_difference": 0.0,
        "training": dict.fromkeys(("source", "static", "looped"), training),
        "source": measures([1.2], [0.5], solved=(4,)),
        "static": STATIC,
        "looped": looped_measures,
        "verdict": judge_seed(STATIC, looped_measures),
        "seconds": 0.5,
    }


def test_all_three_demands_hold():
    verdict = judge_seed(STATIC, looped())
    assert verdict["keeps_first"] and verdict["is_better"] and verdict["is_stable"]
    assert verdict["best_recurrence"] == 6
    assert verdict["lost_perplexity"] == pytest.approx(0.00501, abs=1e-5) and verdict["lost_accuracy"] == 0


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"r1": 1.001}, "keeps_first"),
        ({"r4": 1.0}, "is_better"),
        ({"r8": 1.1}, "is_better"),
        ({"r24": 0.311}, "is_stable"),
        # The best depth is sought among those that training draws, wherever it is.
        ({"r32": 0.2}, "is_stable"),
    ],
)
def test_each_demand_can_fail_alone(changes, name):
    verdict = judge_seed(STATIC, looped(**changes))
    assert [key for key in ("keeps_first", "is_better", "is_stable") if not verdict[key]] == [name]


@pytest.mark.parametrize(("recurrence", "name"), [(1, "keeps_first"), (4, "is_better"), (24, "is_stable")])
def test_accuracy_counts_as_well(recurrence, name):
    changed = looped()
    changed["accuracies"][recurrence - 1] = 0.59
    verdict = judge_seed(STATIC, changed)
    assert [key for key in ("keeps_first", "is_better", "is_stable") if not verdict[key]] == [name]


def test_too_few_recurrences():
    with pytest.raises(ValueError, match="31 recurrences were measured, but 32 are needed"):
        judge_seed(STATIC, measures([1.0] * 31, [0.5] * 31))


@pytest.fixture
def started(monkeypatch):
    """Replaces the processes of the seeds; the list holds the tasks in the order of their start."""
    tasks = []

    def start(task):
        folder, seed = Path(task["folder"]), task["seed"]
        tasks.append(task)
        results = json.dumps(seed_results(looped(r1=1.001) if seed == 1 else looped()))
        command = [sys.executable, "-c", FAIL if seed == 7 else WRITE, str(folder), results]
        with open(folder / run.LOG_FILE, "w") as log:
            return subprocess.Popen(command, stderr=log)

    monkeypatch.setattr(run, "_start", start)
    return tasks


def test_what_a_run_writes_and_prints(started, tmp_path, capsys):
    arguments = RetrofitArguments(output_dir=str(tmp_path), seeds="0, 1", further_steps=4)
    results = run_retrofit(arguments)
    assert read_results(tmp_path / "retrofit.json") == results
    assert (tmp_path / "retrofit.png").read_bytes()[:4] == b"\x89PNG"
    assert results["recipe"]["further_steps"] == 4 and results["recipe"]["gradients"] == "separate"
    assert results["verdict"] == {"keeps_first": False, "is_better": True, "is_stable": True}
    assert [task["seed"] for task in started] == [0, 1]
    assert "seed 1: trained in 2 s (source), 2 s (static), 2 s (looped)." in capsys.readouterr().out

    # What is finished is kept.
    (tmp_path / "seed_1" / "results.json").unlink()
    run_retrofit(arguments)
    assert [task["seed"] for task in started] == [0, 1, 1]
    assert f"seed 0: kept the results in {tmp_path / 'seed_0'}." in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"seed_0 holds another run \(further_steps=4 there, now 800, gate=0\.5 there, now 1\.0\)"
    ):
        run_retrofit(RetrofitArguments(output_dir=str(tmp_path), seeds="0", gate=1.0))
    run_retrofit(RetrofitArguments(output_dir=str(tmp_path), seeds="0", gate=1.0, restart=True))
    assert started[-1]["recipe"]["gate"] == 1.0


def test_a_process_that_fails_is_named_with_its_log(started, tmp_path):
    with pytest.raises(ValueError, match=r"Seed 7 ended with code 1: first line the reason .*log\.txt"):
        run_retrofit(RetrofitArguments(output_dir=str(tmp_path), seeds="7"))
    assert not (tmp_path / "retrofit.json").exists()


@pytest.fixture
def results(started, tmp_path):
    return run_retrofit(RetrofitArguments(output_dir=str(tmp_path), seeds="0,1"))


def test_tables_and_verdicts(results):
    text = report(results)
    lines = [line.split() for line in text.splitlines()]
    assert ["0", "50.0", "60.0", "60.0", *["90.0"] * 5] in lines and ["mean", "50.0", "60.0", "60.0"] in [
        line[:4] for line in lines
    ]
    assert ["0", "3.3201", "2.7183", "2.7183", "2.4596", "1.6487", "1.3566", "1.3566", "1.3566"] in lines
    assert ["1", "4", "6", "6", "7", "12", "16", "16", "16"] in lines
    assert "Seed 0: trained on for 1,088 tokens each. The best depth is 6; at 24 recurrences 0.50 % of the" in text
    assert "trained on by as much: NO, on 1 of 2 seeds." in text
    assert "(b) 4 and 8 recurrences are better: yes, on 2 of 2 seeds." in text


def test_a_line_for_every_seed_their_mean_and_the_static_models(results):
    figure = depth_figure(results)
    accuracy, perplexity = figure.axes
    for axes in (accuracy, perplexity):
        assert len(axes.lines) == 2 * 2 + 2
        assert [text.get_text() for text in axes.texts] == ["deeper than\nin training"]
    drawn = next(line for line in perplexity.lines if line.get_label() == "with a loop")
    assert drawn.get_ydata()[5] == pytest.approx(1.34986, abs=1e-5)


def test_the_document(results, tmp_path):
    assert_schema_describes_itself("retrofit")
    assert_written_and_read(results, tmp_path / "copy.json")
    changed = copy.deepcopy(results)
    changed["seeds"]["1"]["verdict"]["keeps_first"] = True
    with pytest.raises(ValueError, match=r"seeds\.1\.verdict does not follow from the measured losses"):
        validate_results(changed)
    changed = copy.deepcopy(results)
    changed["verdict"]["keeps_first"] = True
    with pytest.raises(ValueError, match="verdict does not follow from the verdicts of the seeds"):
        validate_results(changed)


def test_the_saved_run_whose_numbers_are_in_the_readme():
    results = read_results(ROOT / "tests" / "benchmarks" / "results" / "retrofit.json")
    assert list(results["seeds"]) == ["0", "1", "2"]
    assert results["verdict"] == {"keeps_first": True, "is_better": True, "is_stable": True}
    defaults = RetrofitArguments()
    assert results["recipe"] == asdict(defaults.recipe) and results["num_test_chains"] == defaults.num_test_chains
    lines = [line.split() for line in report(results).splitlines()]
    assert ["mean", "56.9", "66.7", "66.7", "81.3", "99.6", "100.0", "100.0", "100.0"] in lines


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": "a"}, "seeds='a' must be different whole numbers"),
        ({"seeds": ""}, "seeds='' must be different"),
        ({"seeds": "1,1"}, "seeds='1,1' must be different"),
        ({"seeds": "-1"}, "seeds='-1' must be different"),
        ({"further_steps": 0}, "further_steps=0 must be at least 1"),
        ({"at_once": 0}, "at_once=0 must be at least 1"),
        ({"mean_recurrences": 3}, "mean_recurrences=3 must be from 4 to most_recurrences=32"),
        ({"most_recurrences": 6}, "mean_recurrences=8 must be from 4 to most_recurrences=6"),
        ({"gradients": "both"}, "gradients='both' must be separate or shared"),
    ],
)
def test_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        RetrofitArguments(**fields)
