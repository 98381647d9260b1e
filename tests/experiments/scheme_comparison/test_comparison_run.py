"""The whole comparison with processes that do not train; those of `tests/commands/test_reproduce.py` do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from result_schemas import assert_schema_describes_itself, assert_written_and_read

from memreason_hf.analysis.comparison_tables import read_rows
from memreason_hf.evaluation import read_results
from memreason_hf.experiments.scheme_comparison import run
from memreason_hf.experiments.scheme_comparison.figures import token_counts_figure
from memreason_hf.experiments.scheme_comparison.report import report
from memreason_hf.experiments.scheme_comparison.run import ComparisonArguments, run_comparison
from memreason_hf.experiments.scheme_comparison.schemes import SCHEMES


ACCURACY = {"plain": 0.5, "memory_reason": 0.75, "memory_reason_1": 0.25, "prefix_only": 0.6, "answer_only": 0.0}
SECTIONS = {"new_model": {"architecture": "llama"}, "steps": {"num_prefix_tokens": 1, "num_step_tokens": 2}}
SECTIONS |= {"adapter": {"mode": "full"}, "training": {"max_steps": 3, "seed": 5, "use_cpu": True}}
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'results.json').write_text(sys.argv[2])"
FAIL = "import sys; sys.exit('first line\\nthe reason')"


def scheme_results(name):
    accuracy = ACCURACY.get(name, 0.5)
    kinds = {"memory": 4, "reason": 2, "answer": 4, "step": 0}
    return {
        "training": {"steps": 3, "seconds": 1.5, "num_parameters": 7, "num_trained": 7, "log": []},
        "measures": {
            "accuracy": accuracy,
            "accuracy_interval": [max(0.0, accuracy - 0.1), min(1.0, accuracy + 0.1)],
            "num_items": 4,
            "num_invalid_answers": int(name == "answer_only"),
            "steps_by_kind": kinds,
        },
        "num_tokens": 48,
        "num_cut": 0,
        "seconds": 0.5,
    }


@pytest.fixture
def started(monkeypatch):
    """Replaces the processes of the schemes; the list holds the tasks in the order of their start."""
    tasks = []

    def start(module, path, *, log, threads):
        task = json.loads(Path(path).read_text())
        name = Path(task["folder"]).name
        tasks.append(task)
        command = [sys.executable, "-c", FAIL if name == "words" else WRITE, task["folder"]]
        with open(log, "w") as output:
            return subprocess.Popen([*command, json.dumps(scheme_results(name))], stderr=output)

    monkeypatch.setattr(run, "start_child", start)
    return tasks


def small(folder, **changes):
    values = {"schemes": "plain,memory_reason", "token_counts": "1", "num_items": 4, "num_world_items": 20}
    return ComparisonArguments(output_dir=str(folder), **{**values, **changes})


def test_what_a_run_writes_and_prints(started, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = run_comparison(small("out"), SECTIONS)
    assert read_results("out/comparison.json") == results
    assert Path("out/token_counts.png").read_bytes()[:4] == b"\x89PNG"
    assert list(results["schemes"]) == ["plain", "memory_reason", "memory_reason_1"]
    assert results["token_counts"] == [1, 2] and results["seed"] == 5 and results["num_items"] == 4
    assert results["schemes"]["memory_reason_1"]["scheme"]["num_step_tokens"] == 1
    assert "| memory and reason |" in Path("out/table.md").read_text()
    assert r"\begin{tabular}" in Path("out/table.tex").read_text()
    rows = read_rows(report(results, "json"))
    assert [(row.name, row.accuracy, row.num_tokens, row.steps_by_kind["reason"]) for row in rows] == [
        ("plain: steps without marks", 0.5, 12.0, 0.5),
        ("memory and reason", 0.75, 12.0, 0.5),
        ("memory and reason, 1 step token", 0.25, 12.0, 0.5),
    ]
    text = capsys.readouterr().out
    assert "memory_reason: 75.0% right; trained in 2 s, evaluated in 0 s" in text and "(3 of 3 schemes)" in text
    assert str(tmp_path) not in Path("out/comparison.json").read_text() + Path("out/plain/settings.json").read_text()

    # All sections but the scheme are the same for all.
    for task in started:
        assert task["threads"] == 1 and task["sections"]["training"] == SECTIONS["training"]
        assert task["sections"]["data"] == {"path": "out/data"}
    assert {json.dumps(task["sections"]["steps"]) for task in started} == {
        json.dumps(entry["scheme"]) for entry in results["schemes"].values()
    }


def test_the_same_again_keeps_what_is_finished(started, tmp_path, capsys):
    run_comparison(small(tmp_path), SECTIONS)
    rows = (tmp_path / "data" / "train" / "dataset_info.json").stat().st_mtime_ns
    (tmp_path / "plain" / "results.json").unlink()
    run_comparison(small(tmp_path, schemes="plain,front,memory_reason"), SECTIONS)
    assert sorted(Path(task["folder"]).name for task in started[3:]) == ["front", "plain"]
    assert f"memory_reason: kept the results in {tmp_path / 'memory_reason'}." in capsys.readouterr().out
    assert (tmp_path / "data" / "train" / "dataset_info.json").stat().st_mtime_ns == rows
    other = {**SECTIONS, "training": {**SECTIONS["training"], "max_steps": 4}}
    with pytest.raises(ValueError, match=r"plain holds another run .*training=.*'max_steps': 3"):
        run_comparison(small(tmp_path), other)
    with pytest.raises(ValueError, match=r"holds another run \(num_items=4 there, now 5"):
        run_comparison(small(tmp_path, num_items=5), SECTIONS)
    run_comparison(small(tmp_path, num_items=5, restart=True), other)
    assert len(started) == 8 and started[-1]["num_items"] == 5


def test_restart_deletes_nothing_of_a_user(started, tmp_path):
    run_comparison(small(tmp_path), SECTIONS)
    mine = tmp_path / "memory_reason" / "notes.md"
    mine.write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.md was not written by an experiment"):
        run_comparison(small(tmp_path, restart=True), SECTIONS)
    mine.rename(tmp_path / "data" / "notes.md")
    with pytest.raises(FileExistsError):
        run_comparison(small(tmp_path, restart=True), SECTIONS)
    assert (tmp_path / "plain" / "results.json").is_file() and len(started) == 3


def test_questions_of_ones_own(started, tmp_path):
    sections = {**SECTIONS, "data": {"path": "my/questions", "num_train_items": 7}}
    results = run_comparison(small(tmp_path), sections)
    assert not (tmp_path / "data").exists()
    assert (
        started[0]["sections"]["data"] == results["recipe"]["data"] == {"path": "my/questions", "num_train_items": 7}
    )


def test_a_process_that_fails_is_named_with_its_log(started, tmp_path):
    with pytest.raises(ValueError, match=r"words ended with code 1: first line the reason .*log\.txt"):
        run_comparison(small(tmp_path, schemes="plain,words", token_counts=""), SECTIONS)
    assert not (tmp_path / "comparison.json").exists()


def test_nothing_starts_where_a_scheme_is_impossible(started, tmp_path):
    sections = {**SECTIONS, "adapter": {"mode": "tokens"}}
    with pytest.raises(ValueError, match="scheme plain has no tokens"):
        run_comparison(small(tmp_path), sections)
    assert not started and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_items": 0}, "num_items=0 must be at least 1"),
        ({"num_world_items": 0}, "num_world_items=0 must be at least 1"),
        ({"at_once": 0}, "at_once=0 must be at least 1"),
        ({"token_counts": "1,1"}, "token_counts='1,1' must be different whole numbers"),
        ({"token_counts": "0"}, "must be different whole numbers from 1"),
        ({"token_counts": "a"}, "must be different whole numbers"),
    ],
)
def test_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        ComparisonArguments(**fields)


def test_at_least_eight_schemes_by_default():
    assert ComparisonArguments().scheme_names == list(SCHEMES) and len(SCHEMES) >= 8
    assert ComparisonArguments(token_counts=" ").counts == []


def test_the_schema(started, tmp_path):
    results = run_comparison(small(tmp_path), SECTIONS)
    assert_schema_describes_itself("scheme_comparison")
    assert_written_and_read(results, tmp_path / "again.json")


def test_the_figure_shows_every_point():
    points = {4: (0.5, 0.4, 0.7), 0: (0.2, 0.1, 0.3), 1: (0.9, 0.8, 0.95)}
    figure = token_counts_figure(points, {"plain": 0.3, "random tokens": 0.1}, num_prefix_tokens=2)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "4"]
    (line, *_) = axes.containers[0].lines
    assert list(line.get_ydata()) == [0.2, 0.9, 0.5]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "plain",
        "random tokens",
        "memory and reason",
    ]
    with pytest.raises(ValueError, match="at least one"):
        token_counts_figure({}, {}, num_prefix_tokens=1)
    with pytest.raises(ValueError, match="at most 3"):
        token_counts_figure(points, dict.fromkeys("abcd", 0.5), num_prefix_tokens=1)
