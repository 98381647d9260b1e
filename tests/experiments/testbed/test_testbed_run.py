"""The whole run, with processes that do not train; those of `tests/commands/test_testbed.py` do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from chat_servers import chat_server

from memreason_hf.chat import EndpointChat
from memreason_hf.evaluation import read_results
from memreason_hf.evaluation.known_truth.agreement import NUM_CHANGES
from memreason_hf.evaluation.solutions.chat_judges import ChatJudge
from memreason_hf.experiments.testbed import run
from memreason_hf.experiments.testbed.models import MODELS
from memreason_hf.experiments.testbed.report import report
from memreason_hf.experiments.testbed.run import TestbedArguments, run_testbed


RESULTS = {
    "title": "a model",
    "training": {
        "steps": 2,
        "max_steps": 4,
        "seconds": 1.5,
        "most_seconds": 1.0,
        "ended_by": "time",
        "num_parameters": 7,
        "log": [],
    },
    "hops": {str(h): {"count": 2, "accuracy": h / 12, "tokens": 1.0, "recurrences": 2.0} for h in range(1, 13)},
    "recurrences_by_kind": {"answer": 2.0},
    "seconds": 0.5,
}
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'results.json').write_text(sys.argv[2])"
FAIL = "import sys; sys.exit('first line\\nthe reason')"


@pytest.fixture
def started(monkeypatch):
    """Replaces the processes of the models; the list holds the tasks in the order of their start."""
    tasks = []

    def start(name, task):
        folder = Path(task["folder"])
        tasks.append(task)
        results = json.dumps({**RESULTS, "title": MODELS[name].title})
        command = [sys.executable, "-c", FAIL if name == "steps_fixed" else WRITE, str(folder), results]
        with open(folder / run.LOG_FILE, "w") as log:
            return subprocess.Popen(command, stderr=log)

    monkeypatch.setattr(run, "_start", start)
    return tasks


def small(folder, **changes):
    values = {"models": "answer_fixed,answer_recurrent", "num_test_chains": 2, "num_judged": 3, "num_rows": 20}
    return TestbedArguments(output_dir=str(folder), **{**values, **changes})


def test_what_a_run_writes_and_prints(started, tmp_path, capsys):
    results = run_testbed(small(tmp_path))
    assert read_results(tmp_path / "testbed.json") == results
    assert (tmp_path / "testbed.png").read_bytes()[:4] == b"\x89PNG"
    assert results["settings"] == {"seed": 42, "num_judged": 3, "at_once": 2}
    assert results["data"]["num_test_chains"] == 2 and results["data"]["seed"] == 42
    assert list(results["models"]) == ["answer_fixed", "answer_recurrent"]
    assert results["judges"]["known truth"]["hit_rate"] == 1.0
    assert set(results["judges"]["exact comparison"]["errors"]) == set(results["judges"]["known truth"]["errors"])
    # The model with the longest time limit starts first.
    assert [Path(task["folder"]).name for task in started] == ["answer_recurrent", "answer_fixed"]
    assert [task["settings"]["seconds"] for task in started] == [240.0, 90.0]
    text = capsys.readouterr().out
    assert "answer_fixed: training, at most 90 s …" in text
    assert "answer_fixed: 2 of 4 steps in 2 s (time limit), evaluated in 0 s." in text

    # The second run starts no process.
    run_testbed(small(tmp_path))
    assert len(started) == 2
    assert f"answer_fixed: kept the results in {tmp_path / 'answer_fixed'}." in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds another run \(seed=42 there, now 1\)"):
        run_testbed(small(tmp_path, seed=1))
    run_testbed(small(tmp_path, seed=1, restart=True))
    assert len(started) == 4 and started[-1]["settings"]["seed"] == 1
    assert read_results(tmp_path / "testbed.json")["data"]["seed"] == 1


def test_one_process_at_a_time(started, tmp_path, monkeypatch):
    end, running = run._end, []
    monkeypatch.setattr(run, "_end", lambda *args: (running.append(len(started)), end(*args)))
    run_testbed(small(tmp_path, at_once=1))
    assert running == [1, 2]


def test_a_process_that_fails_is_named_with_its_log(started, tmp_path):
    with pytest.raises(ValueError, match=r"steps_fixed ended with code 1: first line the reason .*log\.txt"):
        run_testbed(small(tmp_path, models="steps_fixed"))
    assert not (tmp_path / "testbed.json").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": "steps"}, "models='steps' must name some of answer_fixed, answer_recurrent, steps_fixed"),
        ({"models": " , "}, "models=' , ' must name some of"),
        ({"num_test_chains": 0}, "num_test_chains=0 must be at least 1"),
        ({"at_once": 0}, "at_once=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"disorder": -0.5}, "disorder=-0.5 must be at least 0"),
        ({"fixed_seconds": 0}, "fixed_seconds=0 must be above 0"),
        ({"recurrent_seconds": -1}, "recurrent_seconds=-1 must be above 0"),
    ],
)
def test_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        TestbedArguments(**fields)


def test_blanks_between_names_do_not_matter():
    assert TestbedArguments(models="steps_fixed, answer_fixed").model_names == ["steps_fixed", "answer_fixed"]
    assert TestbedArguments().model_names == list(MODELS)


def test_a_language_model_is_measured_next_to_the_other_judges(started, tmp_path):
    """An endpoint that says every step is right, through the whole run; a second run asks for nothing again."""

    def agrees(call):
        return json.dumps(dict.fromkeys(re.findall(r"^(\d+)\. \[", call.prompt, re.MULTILINE), "agrees"))

    with chat_server(agrees) as server:
        judge = ChatJudge(EndpointChat("yes-man", server.url), name="yes-man")
        results = run_testbed(small(tmp_path, num_judged=12, num_asked=2), judge)
        num_calls = len(server.calls)
        assert 0 < num_calls <= 2 * NUM_CHANGES
        run_testbed(small(tmp_path, num_judged=12, num_asked=2), judge)
        assert len(server.calls) == num_calls
    assert "These are all its facts" in server.calls[0].prompt
    assert results["judges"]["yes-man"]["hit_rate"] == 0.0 and results["judges"]["yes-man"]["num_right"] == 10
    assert read_results(tmp_path / "testbed.json")["judges"].keys() == results["judges"].keys()
    text = report(results)
    assert re.search(r"error: memory +12 +100\.0 +100\.0 +0\.0\n", text)
    assert "judge yes-man, against the known truth of the test bed (2 solutions, 14 changes each):" in text
    assert "judge known truth, against the known truth of the test bed (12 solutions, 14 changes each):" in text
