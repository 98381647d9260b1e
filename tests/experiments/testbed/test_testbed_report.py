"""The tables of a saved run, whose numbers are in the README."""

import copy

import pytest
from paths import ROOT
from result_schemas import assert_schema_describes_itself, assert_written_and_read

import memreason_hf.experiments.testbed.results  # noqa: F401 - registers the kind of document
from memreason_hf.evaluation import read_results
from memreason_hf.evaluation.results import validate_results
from memreason_hf.experiments.testbed.report import report


@pytest.fixture
def results():
    return read_results(ROOT / "tests" / "benchmarks" / "results" / "testbed.json")


def cells(text, title, row):
    """The entries of the row `row` of the table under `title`."""
    table = text.split(f"\n{title}")[1].split("\n\n")[1]
    return next(line for line in table.splitlines() if line.startswith(row))[len(row) :].split()


def test_the_tables_of_a_saved_run(results):
    text = report(results)
    steps = "memory and reason steps, recurrent depth"
    accuracy = cells(text, "Right answers in %, by hops (6 is the most in training", "answer only, fixed depth")
    assert accuracy[:8] == ["100.0", "100.0", "100.0", "100.0", "99.0", "65.0", "11.0", "3.0"] and len(accuracy) == 12
    assert cells(text, "Right answers", "model ") == [str(hops) for hops in range(1, 13)]
    assert cells(text, "Tokens generated", f"{steps}: tokens")[0] == "16.7"
    assert cells(text, "Mean recurrences by kind", steps) == ["3.42", "4.15", "3.71"]
    assert cells(text, "Mean recurrences by kind", "answer only, recurrent depth") == ["-", "-", "7.74"]
    assert f"{steps}, by word: memory: mark 3.88, " in text and "fixed depth, by word" not in text
    kinds = "The kind of the first wrong step"
    assert cells(text, kinds, f"{steps}, more than 6 hops: wrong answers") == ["571", "0", "386", "185", "0", "0", "0"]
    assert cells(text, kinds, f"{steps}, 1-6 hops: right answers") == ["541", "0", "0", "0", "0", "0", "541"]
    assert (
        f"{steps}, more than 6 hops: 10.8 % of the solutions recall every needed fact. 386 wrong answers first go "
        "wrong at a reason step: 80 had recalled the fact of that hop, 304 had not, and 2 are about no hop" in text
    )
    assert f"{steps}: after a false memory of a needed fact, 0.0 % of 544 solutions reason from it, 99.8 %" in text
    judges = "Judges on errors"
    assert cells(text, judges, "error: memory, carried on") == ["300", "100.0", "48.3"]
    assert cells(text, judges, "all errors found, %") == ["100.0", "92.6"]
    assert cells(text, judges, "no error: one more true fact") == ["300", "0.0", "99.3"]
    assert cells(text, judges, "false alarms, %") == ["0.0", "19.9"]


def test_a_saved_run_is_still_read(results, tmp_path):
    assert_schema_describes_itself("testbed")
    assert_written_and_read(results, tmp_path / "again.json")


def test_models_that_answer_at_once_have_no_steps_to_attribute(results):
    for name in ("steps_fixed", "steps_recurrent"):
        del results["models"][name]
    text = report(results)
    assert "the models' own solutions" not in text and "false memory" not in text and "false alarms, %" in text


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r: r["models"]["steps_fixed"]["hops"]["3"].pop("accuracy"), r"hops\.3: missing keys \['accuracy'\]"),
        (lambda r: r["models"]["steps_fixed"]["training"].update(ended_by="luck"), "must be 'steps' or 'time'"),
        (lambda r: r["data"].pop("seed"), r"data: missing keys \['seed'\]"),
        (lambda r: r["data"].update(out_degree=1.5), r"data\.out_degree=1\.5 must be an integer or null"),
    ],
)
def test_what_breaks_the_schema_is_refused(results, break_it, message):
    broken = copy.deepcopy(results)
    break_it(broken)
    with pytest.raises(ValueError, match=message):
        validate_results(broken)
