import evaluate
import numpy as np
import pytest
import torch

from memreason_hf.metrics import metric_path


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(metric_path("grouped_accuracy"), keep_in_memory=True, cache_dir=str(tmp_path))


def test_agrees_with_counting_by_hand(metric):
    rng = np.random.default_rng(3)
    predictions, references = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    groups = rng.choice(["2", "3", "12", "40"], 500)
    results = metric.compute(predictions=predictions, references=references, groups=groups)

    hits, counts = {}, {}
    for prediction, reference, group in zip(predictions.tolist(), references.tolist(), groups.tolist()):
        counts[group] = counts.get(group, 0) + 1
        hits[group] = hits.get(group, 0) + (prediction == reference)
    assert results["count_by_group"] == counts
    assert results["accuracy_by_group"] == {group: hits[group] / counts[group] for group in counts}
    assert results["accuracy"] == pytest.approx(sum(hits.values()) / 500, abs=1e-12)


def test_groups_are_in_natural_order(metric):
    groups = ["12hop_test", "2hop_test", "atomic", "100hop_test", "2hop_train"]
    results = metric.compute(predictions=[0] * 5, references=[0] * 5, groups=groups)
    expected = ["2hop_test", "2hop_train", "12hop_test", "100hop_test", "atomic"]
    assert list(results["accuracy_by_group"]) == list(results["count_by_group"]) == expected


@pytest.mark.parametrize("labels", [[1, 2], np.array([1, 2]), torch.tensor([1, 2]), [1.0, 2.0], [True, 2], (1, 2)])
def test_whole_numbers_of_any_type(metric, labels):
    results = metric.compute(predictions=labels, references=[1, 1], groups=["2", "2"])
    assert results["accuracy"] == 0.5


def test_one_row_after_the_other(metric):
    metric.add(prediction=1, reference=1, groups="2")
    metric.add(prediction=2, reference=1, groups="12")
    assert metric.compute()["accuracy_by_group"] == {"2": 1.0, "12": 0.0}
    for row in ({"prediction": 1.5, "reference": 1}, {"prediction": 1, "reference": None}):
        with pytest.raises(ValueError, match="must be a whole number"):
            metric.add(**row, groups="2")


def test_batches_add_up(metric):
    metric.add_batch(predictions=[1, 2], references=[1, 1], groups=["2", "3"])
    metric.add_batch(predictions=[1], references=[1], groups=["3"])
    results = metric.compute()
    assert results["accuracy_by_group"] == {"2": 1.0, "3": 0.5}


def test_results_are_plain_numbers(metric):
    results = metric.compute(predictions=np.array([1]), references=np.array([1]), groups=np.array(["2"]))
    assert type(results["accuracy"]) is float
    assert type(results["accuracy_by_group"]["2"]) is float
    assert type(results["count_by_group"]["2"]) is int


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"predictions": [], "references": [], "groups": []}, "at least one row"),
        ({"predictions": [1], "references": [1, 2], "groups": ["2", "3"]}, r"predictions \(1\) and references \(2\)"),
        ({"predictions": [1, 2], "references": [1, 2], "groups": ["2"]}, r"predictions \(2\) and groups \(1\)"),
        ({"predictions": [1], "references": [1]}, "missing.*groups"),
        (
            {"predictions": [1, 1], "references": [1, 1], "groups": ["2", "12"], "expected_groups": [3, "12", "40"]},
            r"expected_groups: no rows are in the groups \['3', '40'\]. Groups with rows: \['2', '12'\]",
        ),
        (
            {"predictions": [1, 1.5], "references": [1, 1], "groups": ["2", "2"]},
            r"predictions\[1\]=1.5 must be a",
        ),
        ({"predictions": [1], "references": [None], "groups": ["2"]}, r"references\[0\]=None must be a whole number"),
        ({"predictions": [float("nan")], "references": [1], "groups": ["2"]}, r"predictions\[0\]=nan must be a whole"),
        ({"predictions": [float("inf")], "references": [1], "groups": ["2"]}, r"predictions\[0\]=inf must be a whole"),
        ({"predictions": ["1"], "references": [1], "groups": ["2"]}, r"predictions\[0\]='1' must be a whole number"),
        ({"predictions": "12", "references": [1, 2], "groups": ["2", "2"]}, r"predictions='12' must be a list"),
        ({"predictions": [1, 2], "references": [1, 2], "groups": "23"}, r"groups='23' must be a list"),
        (
            {"predictions": [1], "references": [1], "groups": ["2"], "expected_groups": "2"},
            r"expected_groups='2' must be a list, got one text. Write \['2'\]",
        ),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing_behind(metric, columns, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**columns)
    results = metric.compute(predictions=[1], references=[1], groups=["7"], expected_groups=[7])
    assert results["count_by_group"] == {"7": 1}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"predictions": [1.5]}, r"predictions\[0\]=1.5 must be a whole number"),
        ({"predictions": [None], "references": [None]}, r"predictions\[0\]=None must be a whole number"),
        ({"predictions": [10**30]}, r"predictions\[0\]=1000\d+ must be a whole number"),
        ({"predictions": 1}, "predictions=1 must be a list, got int"),
        ({"groups": [None]}, r"groups\[0\]=None must be the name of a group"),
        ({"groups": [1.5]}, r"groups\[0\]=1.5 must be the name of a group"),
    ],
)
def test_columns_that_evaluate_would_change_or_misread(columns, message):
    metric = evaluate.load(metric_path("grouped_accuracy"), keep_in_memory=True)
    sound = {"predictions": [1], "references": [1], "groups": ["2"]}
    assert metric.compute(**sound)["accuracy"] == 1
    with pytest.raises((TypeError, ValueError), match=message):
        metric.compute(**{**sound, **columns})
