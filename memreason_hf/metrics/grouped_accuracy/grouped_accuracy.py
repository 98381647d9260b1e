"""Accuracy, overall and by group: how many of the predictions of each group equal their references."""

import datasets
import evaluate
import numpy as np

from memreason_hf.checks import check_sequence
from memreason_hf.evaluation.chains.predictions import sorted_groups


_DESCRIPTION = """\
Accuracy by group: the share of predictions that equal their references, over all rows and within each group of rows
(chains of one hop count, questions of one type, ...). An average over groups of very different difficulty says little;
this shows every group, with its size, and refuses groups that were expected and have no rows.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `int`): the predicted label of every row, for example the id of the answer token.
    references (`list` of `int`): the correct label of every row.
    groups (`list` of `str`): the name of the group of every row; a number is written as its name, `"2"`.
    expected_groups (`list`, *optional*): groups that must have at least one row each.

Returns:
    accuracy (`float`): the share of correct rows, between 0 and 1, higher is better.
    accuracy_by_group (`dict` from `str` to `float`): the same within each group. Groups are in natural order:
        "2" before "12", "2hop_test" before "12hop_test".
    count_by_group (`dict` from `str` to `int`): the rows of each group, in the same order.

Raises:
    ValueError: there are no rows, the three columns differ in length, a label is not a whole number, or an expected
        group has no rows.

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

    An expected group without rows is an error:

        >>> metric.compute(predictions=[7], references=[7], groups=["2"], expected_groups=["2", "3"])
        Traceback (most recent call last):
        ...
        ValueError: expected_groups: no rows are in the groups ['3']. Groups with rows: ['2'].
"""

_CITATION = """\
@software{memreason_hf,
  title = {memreason-hf: language models that think in depth},
  note = {evaluate module grouped_accuracy},
}
"""


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

    # evaluate appends the description of the inputs to the docstrings of `add` and `add_batch`.
    def add(self, *, prediction=None, reference=None, groups=None):
        """Adds one row; `groups` is the name of its group."""
        _check_labels("prediction", [prediction])
        _check_labels("reference", [reference])
        _check_groups([groups])
        super().add(prediction=prediction, reference=reference, groups=groups)

    def add_batch(self, *, predictions=None, references=None, groups=None):
        """Adds rows."""
        _check_labels("predictions", predictions)
        _check_labels("references", references)
        _check_list("groups", groups)
        _check_groups(groups)
        for name, values in (("references", references), ("groups", groups)):
            if predictions is not None and values is not None and len(predictions) != len(values):
                raise ValueError(
                    f"predictions ({len(predictions)}) and {name} ({len(values)}) must have one length. Pass one "
                    "entry for each row."
                )
        for name, values in (("predictions", predictions), ("references", references)):
            if values is None:
                raise ValueError(f"{name} is not given. Pass one entry for each row.")
        super().add_batch(predictions=predictions, references=references, groups=groups)

    def _compute(self, predictions, references, groups, expected_groups=None):
        if len(predictions) == 0:
            raise ValueError(
                "predictions, references and groups are empty: an accuracy needs at least one row. "
                "Check the split and the filters that chose the rows."
            )
        _check_list("expected_groups", expected_groups)
        names = sorted_groups(groups)
        missing = sorted_groups({str(group) for group in expected_groups or ()} - set(names))
        if missing:
            raise ValueError(f"expected_groups: no rows are in the groups {missing}. Groups with rows: {names}.")
        correct = np.asarray(predictions) == np.asarray(references)
        position = {name: index for index, name in enumerate(names)}
        codes = np.array([position[group] for group in groups])
        counts = np.bincount(codes)
        hits = np.bincount(codes, weights=correct)
        return {
            "accuracy": float(correct.mean()),
            "accuracy_by_group": {name: float(hits[index] / counts[index]) for name, index in position.items()},
            "count_by_group": {name: int(counts[index]) for name, index in position.items()},
        }


def _check_list(name, values):
    if isinstance(values, str):
        raise ValueError(f"{name}={values!r} must be a list, got one text. Write {[values]}.")
    if values is not None:
        check_sequence(name, values, "a list")


def _check_groups(groups):
    for index, group in enumerate(groups if groups is not None else ()):
        if not isinstance(group, str | int | np.integer) or isinstance(group, bool):
            raise ValueError(f"groups[{index}]={group!r} must be the name of a group, a text or a whole number.")


def _check_labels(name, labels):
    """Raises ValueError for a label that is not a whole number: `evaluate` would drop its fraction."""
    _check_list(name, labels)
    for index, label in enumerate(labels if labels is not None else ()):
        try:
            is_whole = bool(label == int(label)) and -(2**63) <= int(label) < 2**63
        except (TypeError, ValueError, OverflowError):
            is_whole = False
        if not is_whole:
            raise ValueError(f"{name}[{index}]={label!r} must be a whole number, such as the id of a token.")
