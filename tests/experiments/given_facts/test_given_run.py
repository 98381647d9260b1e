"""The whole command, with models that learn nothing in a few steps."""

import json

import pytest
from refusals import refused
from result_schemas import assert_schema_describes_itself

from memreason_hf.commands import reproduce
from memreason_hf.evaluation import read_results
from memreason_hf.experiments.given_facts.models import MODELS
from memreason_hf.experiments.given_facts.run import GivenFactsArguments


FEW = ["--max_steps", "2", "--batch_size", "4", "--num_questions", "12", "--at_once", "1"]


@pytest.mark.slow
def test_all_of_it_and_the_same_again(tmp_path, capsys):
    arguments = ["given_facts", "--output_dir", str(tmp_path), "--models", "answer_fixed,steps_recurrent", *FEW]
    assert reproduce.main(arguments) == 0
    text = capsys.readouterr().out
    assert "Right answers in %, by hops" in text and "Told one false memory" in text
    results = read_results(tmp_path / "given_facts.json")
    entry = results["models"]["steps_recurrent"]
    assert entry["training"]["steps"] == 2
    assert set(entry) >= {"fresh", "learned", "depth_by_kind"}
    assert list(entry["fresh"]["hops"]) == [str(hops) for hops in range(1, 13)]
    assert sum(entry["learned"]["false_memories"]["longer"].values()) == 6
    assert (tmp_path / "given_facts.png").stat().st_size > 10_000
    # What is finished is kept; what is missing is made again, to the same numbers.
    path = tmp_path / "steps_recurrent" / "results.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    assert reproduce.main(arguments) == 0
    after = json.loads(path.read_text(encoding="utf-8"))
    assert "answer_fixed: kept the results" in capsys.readouterr().out
    assert before.pop("seconds") and after.pop("seconds") and before == after
    assert "max_steps=2 there, now 3" in refused(capsys, reproduce.main, [*arguments, "--max_steps", "3"])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["given_facts", "--help"])
    assert stopped.value.code == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  memreason reproduce")]
    assert len(lines) == 3
    for line in lines:
        (arguments,) = reproduce.make_given_facts_parser().parse_sections(line.split("#")[0].split()[3:])
        assert arguments.model_names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": "steps_fixed,none"}, "must name some of"),
        ({"models": "steps_fixed,steps_fixed"}, "each once"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"num_questions": 11}, "num_questions=11 must be at least 12"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        GivenFactsArguments(**changes)


def test_models_differ_where_the_table_compares_them():
    assert {(model.writes_steps, model.model["num_recurrences"]) for model in MODELS.values()} == {
        (False, 1),
        (False, 3),
        (True, 1),
        (True, 3),
    }


def test_the_schema_describes_itself():
    assert_schema_describes_itself("given_facts")
