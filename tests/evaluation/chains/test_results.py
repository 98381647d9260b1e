import copy
import json

import pytest

from memreason_hf.evaluation import (
    ResultsHeader,
    depth_sweep_results,
    describe_data,
    describe_environment,
    describe_model,
    evaluation_results,
    halting_statistics,
    predict_answers,
    read_results,
    results_table,
    sweep_depth,
    validate_results,
    write_results,
)
from memreason_hf.evaluation.chains.results import statistics_from_results
from memreason_hf.tables import format_table


SETTINGS = {
    "num_recurrences": None,
    "halting_criterion": "kl",
    "halting_granularity": "sequence",
    "min_recurrences": 1,
    "max_recurrences": 9,
    "parameters": {"kl_threshold": 0.01},
    "batch_size": 4,
}


@pytest.fixture
def header(real_model):
    return ResultsHeader(
        model=describe_model(real_model, "runs/model", trained_hops=3),
        data=describe_data("data/world", "test", 19),
        environment=describe_environment("cpu"),
    )


@pytest.fixture
def sweep(scripted_model, scripted_rows, collator):
    return sweep_depth(scripted_model, scripted_rows, collator, max_recurrences=9, batch_size=4)


@pytest.fixture
def statistics(scripted_model, scripted_rows, collator):
    return halting_statistics(
        predict_answers(scripted_model, scripted_rows, collator, batch_size=4, max_recurrences=9)
    )


@pytest.fixture
def sweep_results(sweep, header):
    return depth_sweep_results(sweep, header, batch_size=4)


@pytest.fixture
def halting_results(statistics, header, sweep):
    return evaluation_results(statistics, header, dict(SETTINGS), 1.5, baseline=sweep)


@pytest.fixture(params=["sweep_results", "halting_results"])
def results(request):
    return request.getfixturevalue(request.param)


def test_a_file_gives_back_what_was_written(results, tmp_path):
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_lists_of_numbers_take_one_line(sweep_results, tmp_path):
    write_results(tmp_path / "results.json", sweep_results)
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if '"accuracy"' in line]
    assert len(lines) == 1 + len(sweep_results["groups"])
    assert all(line.rstrip(",").endswith("]") for line in lines)


def test_a_sweep_is_in_its_results(sweep, sweep_results):
    assert [group["group"] for group in sweep_results["groups"]] == sweep.groups == [2, 3, 5, 12]
    for index, group in enumerate(sweep_results["groups"]):
        assert group["count"] == sweep.counts[index]
        assert group["accuracy"] == sweep.accuracy[index].tolist()
        assert group["margin"] == sweep.margins[index].tolist()
        assert group["best_accuracy"] == group["accuracy"][group["best_recurrence"] - 1] == max(group["accuracy"])
        assert max(group["accuracy"][: group["best_recurrence"] - 1], default=0.0) < 1.0
        assert group["ever_correct"] == sweep.ever_correct[index]
    # 9 recurrences do not reach 12 hops, so there is no first recurrence; it is null in JSON.
    assert [group["first_correct"] for group in sweep_results["groups"]] == [2.0, 3.0, 5.0, None]
    overall = sweep_results["overall"]
    assert overall["count"] == 19 and overall["accuracy"] == sweep.overall_accuracy.tolist()
    assert overall["best_recurrence"] == 3 and overall["best_accuracy"] == 10 / 19
    assert overall["ever_correct"] == pytest.approx(15 / 19)
    assert overall["first_correct"] == pytest.approx((7 * 2 + 3 * 3 + 5 * 5) / 15)


def test_statistics_survive_the_file(statistics, halting_results, tmp_path):
    write_results(tmp_path / "evaluation.json", halting_results)
    assert statistics_from_results(read_results(tmp_path / "evaluation.json")) == statistics


def test_the_other_kind_is_refused(sweep_results):
    with pytest.raises(ValueError, match=r"kind='depth_sweep'.*'evaluation'"):
        statistics_from_results(sweep_results)


def test_baseline_is_compared_group_by_group(halting_results, statistics, header):
    fixed = {group["group"]: group["fixed"] for group in halting_results["groups"]}
    assert fixed[3] == {"best_recurrence": 3, "best_accuracy": 1.0}
    assert fixed[12] == {"best_recurrence": 1, "best_accuracy": 0.0}
    assert halting_results["overall"]["fixed"] == {"best_recurrence": 3, "best_accuracy": 10 / 19}
    without = evaluation_results(statistics, header, dict(SETTINGS), 1.5)
    assert without["overall"]["fixed"] is None
    assert all(group["fixed"] is None for group in without["groups"])


def test_a_baseline_over_other_rows_is_refused(statistics, header, scripted_model, scripted_rows, collator):
    other = sweep_depth(scripted_model, scripted_rows.select(range(9)), collator, max_recurrences=2, batch_size=4)
    with pytest.raises(ValueError, match="other rows"):
        evaluation_results(statistics, header, dict(SETTINGS), 1.5, baseline=other)


def test_existing_results_are_kept(results, tmp_path):
    path = tmp_path / "results.json"
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"results\.json"):
        write_results(path, results)
    assert path.read_text(encoding="utf-8") == "precious"
    write_results(path, results, overwrite=True)
    assert read_results(path) == results


def test_invalid_results_are_not_written(results, tmp_path):
    with pytest.raises(ValueError, match="missing keys"):
        write_results(tmp_path / "results.json", {key: results[key] for key in results if key != "groups"})
    results["seconds"] = float("nan")
    with pytest.raises(ValueError, match="seconds=nan must be a finite number"):
        write_results(tmp_path / "results.json", results)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r: r.pop("environment"), r"results: missing keys \['environment'\]"),
        (lambda r: r.update(extra=1), r"unknown keys \['extra'\]"),
        (lambda r: r.update(schema_version=2), "schema_version=2.*reads 1"),
        (lambda r: r.update(kind="sweep"), "kind='sweep' must be one of .*depth_sweep, .*evaluation"),
        (lambda r: r.update(kind=["evaluation"]), "kind="),
        (lambda r: r.update(groups=[]), r"groups=\[\] is empty"),
        (lambda r: r.update(groups={}), "groups={} must be a list"),
        (lambda r: r["groups"][1].update(count="7"), r"groups\[1\]\.count='7' must be an integer"),
        (lambda r: r["groups"][1].update(count=True), r"groups\[1\]\.count=True must be an integer"),
        (lambda r: r["groups"][1].pop("group"), r"groups\[1\]: missing keys \['group'\]"),
        (lambda r: r["model"].update(trained_hops=1.5), r"model\.trained_hops=1.5 must be an integer or null"),
        (lambda r: r["settings"].update(max_recurrences=None), r"settings\.max_recurrences=None must be an integer"),
        (lambda r: r["groups"][1].update(group=1.5), r"groups\[1\]\.group=1.5 must be an integer or a string"),
        (lambda r: r["groups"][1].pop("count"), r"groups\[1\]: missing keys \['count'\], unknown keys \[\]"),
        (lambda r: r["environment"]["libraries"].update(torch=2), r"libraries\.torch=2 must be a string or null"),
        (lambda r: r["environment"].update(host="x"), r"environment: missing keys \[\], unknown keys \['host'\]"),
        (lambda r: r.update(created="x" * 500, seconds="y" * 500), f"seconds='{'y' * 79}… must be a number"),
        (lambda r: r.update(data=3), "data=3 must be an object"),
    ],
)
def test_broken_results_are_refused(results, break_it, message, tmp_path):
    broken = copy.deepcopy(results)
    break_it(broken)
    with pytest.raises(ValueError, match=message) as refusal:
        validate_results(broken)
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"broken\.json is not a results file: .*{message}"):
        read_results(path)


def test_broken_entries_of_one_kind_are_refused(sweep_results, halting_results):
    sweep_results["groups"][2]["margin"].pop()
    with pytest.raises(ValueError, match=r"groups\[2\]\.margin has 8 entries, but settings\.max_recurrences is 9"):
        validate_results(sweep_results)
    halting_results["groups"][0]["fixed"] = {"best_recurrence": 1}
    with pytest.raises(ValueError, match=r"groups\[0\]\.fixed: missing keys \['best_accuracy'\]"):
        validate_results(halting_results)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.json is not a results file"):
        read_results(tmp_path / "other.json")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_results(tmp_path / "none.json")


def test_descriptions(real_model, header):
    assert header.model["num_parameters"] == real_model.num_parameters()
    assert header.model["dtype"] == "float32"
    assert header.environment["libraries"]["torch"]
    assert header.environment["device"] == "cpu"


def _fields(text):
    return [line.split() for line in text.splitlines()]


def test_evaluation_table(halting_results):
    text = results_table(halting_results)
    assert len({len(line) for line in text.splitlines()}) == 1
    header, _, two, three, five, twelve, everything = _fields(text)
    assert " ".join(header) == "hops rows accuracy mean median std min max best fixed at difference"
    assert " ".join(two) == "2 7 100.0 3.00 3 0.00 3 3 100.0 2 +0.0"
    assert " ".join(three) == "3 3 100.0 4.00 4 0.00 4 4 100.0 3 +0.0"
    assert " ".join(five) == "5 5 100.0 6.00 6 0.00 6 6 100.0 5 +0.0"
    assert " ".join(twelve) == "12 4 0.0 9.00 9 0.00 9 9 0.0 1 +0.0"
    assert " ".join(everything) == "all 19 78.9 5.21 4 2.28 3 9 52.6 3 +26.3"


def test_sweep_table(sweep_results):
    header, _, two, _, five, twelve, everything = _fields(results_table(sweep_results))
    assert " ".join(header) == "hops rows best at first correct ever r=1 r=2 r=4 r=8 r=9"
    assert " ".join(two) == "2 7 100.0 2 2.0 100.0 0.0 100.0 100.0 0.0 0.0"
    assert " ".join(five) == "5 5 100.0 5 5.0 100.0 0.0 0.0 0.0 100.0 100.0"
    assert " ".join(twelve) == "12 4 0.0 1 - 0.0 0.0 0.0 0.0 0.0 0.0"
    assert " ".join(everything[:6]) == "all 19 52.6 3 3.2 78.9"


def test_tables_are_rectangular():
    with pytest.raises(ValueError, match="has 1 entries, its header has 2"):
        format_table(["a", "b"], [["1"]])
    assert format_table(["group", "n"], [["x", 10]]) == "group   n\n-----  --\nx      10"
