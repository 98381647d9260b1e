"""Accuracy, overall and by group: how many of the predictions of each group equal their references."""

import re

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """\
Accuracy by group: the share of predictions that equal their references, over all rows and within each group of rows
(chains of one hop count, questions of one type, ...). An average over groups of very different difficulty says little;
this shows every group, with its size, and refuses groups that were expected and have no rows.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): the predicted label of every row, for example the id of the answer token.
    references (`list` of `int`): the correct label of every row.
    groups (`list` of `str`): the name of the group of every row; a number as its name, `"2"`.
    expected_groups (`list`, *optional*): groups that must have at least one row each; one without rows is an error.

Returns:
    accuracy (`float`): the share of correct rows, between 0 and 1.
    accuracy_by_group (`dict` from `str` to `float`): the same within each group. Groups are in natural order:
        "2" before "12", "2hop_test" before "12hop_test".
    count_by_group (`dict` from `str` to `int`): the rows of each group, in the same order.

Raises:
    ValueError: without any row, when the three columns differ in length, when an expected group has no rows.

Examples:

    Two chains of 2 hops, both right, and two of 12 hops, one of them right.

        >>> import evaluate
        >>> from memreason_hf.metrics import metric_path
        >>> metric = evaluate.load(metric_path("grouped_accuracy"), keep_in_memory=True)
        >>> results = metric.compute(predictions=[7, 3, 5, 5], references=[7, 3, 5, 6], groups=["2", "2", "12", "12"])
        >>> results["accuracy"]
        0.75
        >>> results["accuracy_by_group"]
        {'2': 1.0, '12': 0.5}
        >>> results["count_by_group"]
        {'2': 2, '12': 2}

    A group that should be there and is not:

        >>> metric.compute(predictions=[7], references=[7], groups=["2"], expected_groups=["2", "3"])
        Traceback (most recent call last):
        ...
        ValueError: expected_groups: a group without items: ['3']. Groups with items: ['2'].
"""

_CITATION = """\
@software{memreason_hf,
  title = {memreason-hf: language models that think in depth},
  note = {evaluate module grouped_accuracy},
}
"""


def _natural_key(name):
    """Sorts "2hop" before "12hop": runs of digits compare as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class GroupedAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                    "groups": datasets.Value("string"),
                }
            ),
        )

    def _compute(self, predictions, references, groups, expected_groups=None):
        if len(predictions) == 0:
            raise ValueError(
                "predictions, references and groups are empty: an accuracy needs at least one row. "
                "Check the split and the filters that chose the rows."
            )
        names, codes = np.unique(np.asarray(groups), return_inverse=True)
        names = [str(name) for name in names]
        if expected_groups is not None:
            missing = sorted({str(group) for group in expected_groups} - set(names), key=_natural_key)
            if missing:
                raise ValueError(
                    f"expected_groups: a group without items: {missing}. "
                    f"Groups with items: {sorted(names, key=_natural_key)}."
                )

        correct = np.asarray(predictions) == np.asarray(references)
        counts = np.bincount(codes, minlength=len(names))
        hits = np.bincount(codes, weights=correct, minlength=len(names))
        order = sorted(range(len(names)), key=lambda index: _natural_key(names[index]))
        return {
            "accuracy": float(correct.mean()),
            "accuracy_by_group": {names[index]: float(hits[index] / counts[index]) for index in order},
            "count_by_group": {names[index]: int(counts[index]) for index in order},
        }
