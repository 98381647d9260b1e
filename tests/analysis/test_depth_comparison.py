"""Documents, tables and figures of several depth sweeps."""

import copy

import pytest
from result_schemas import assert_schema_describes_itself, assert_written_and_read

from memreason_hf.analysis import save_figure
from memreason_hf.analysis.depth_comparison import comparison_figure, comparison_table, depth_comparison
from memreason_hf.evaluation import describe_environment


def sweep(name, margins, first=2.0, groups=(2, 3)):
    """A document as `memreason sweep` writes it, with these mean margins."""
    numbers = {
        "count": 5 * len(groups),
        "accuracy": [float(margin is not None and margin > 0) for margin in margins],
        "margin": margins,
        "best_recurrence": 1,
        "best_accuracy": 1.0,
        "first_correct": first,
        "ever_correct": 0.0 if first is None else 1.0,
    }
    return {
        "schema_version": 1,
        "kind": "depth_sweep",
        "created": "2026-01-01T00:00:00+00:00",
        "environment": describe_environment("cpu"),
        "model": {
            "name_or_path": name,
            "model_type": "recurrent_depth",
            "num_parameters": 10,
            "dtype": "float32",
            "trained_hops": None,
        },
        "data": {"path": "world", "split": "test", "kind": "test", "group_column": "hops", "num_rows": 10},
        "settings": {"max_recurrences": len(margins), "batch_size": 4},
        "overall": {**numbers, "best_accuracy": max(numbers["accuracy"])},
        "groups": [{"group": group, **numbers, "count": 5} for group in groups],
        "seconds": 0.1,
    }


SWEEPS = {"deep": sweep("a", [-1.0, 2.5, 1.5]), "$x": sweep("b", [-3.0, -0.5, None, -2.0], first=None)}


def test_documents_tables_and_files(tmp_path):
    assert_schema_describes_itself("depth_comparison")
    document = depth_comparison(SWEEPS)
    assert_written_and_read(document, tmp_path / "depth_comparison.json")
    deep, other = comparison_table(document).splitlines()[2:]
    # best %, at, last %, best margin, at, last margin, first correct, ever %
    assert deep.split() == ["deep", "100.0", "1", "100.0", "2.50", "2", "1.50", "2.0", "100.0"]
    assert other.split()[-6:] == ["0.0", "-0.50", "2", "-2.00", "-", "0.0"]
    figure = comparison_figure(document, title="two models")
    save_figure(figure, [tmp_path / "a.png", tmp_path / "a.pdf"])
    margins, accuracy, first = figure.axes
    assert margins.lines[0].get_ydata().tolist() == [-1.0, 2.5, 1.5]
    # The ring is on the curve.
    assert margins.lines[1].get_xydata().tolist() == [[2.0, 2.5]]
    assert accuracy.lines[0].get_ydata().tolist() == [0.0, 100.0, 100.0]
    assert first.lines[0].get_xdata().tolist() == [2, 3]


def test_groups_that_are_no_numbers():
    document = depth_comparison({"a": sweep("a", [1.0], groups=("2hop_test", "atomic_facts"))})
    axes = comparison_figure(document).axes[2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2hop_test", "atomic_facts"]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="sweeps is empty"):
        depth_comparison({})
    with pytest.raises(ValueError, match=r"'b' was swept over 10 rows .* hops 2, 4.*cannot be compared"):
        depth_comparison({"a": SWEEPS["deep"], "b": sweep("b", [1.0], groups=(2, 4))})
    for field, value in (("split", "train"), ("kind", "all")):
        other = copy.deepcopy(SWEEPS["deep"])
        other["data"][field] = value
        with pytest.raises(ValueError, match="cannot be compared"):
            depth_comparison({"a": SWEEPS["deep"], "b": other})
    broken = {**SWEEPS["deep"], "seconds": "long"}
    with pytest.raises(ValueError, match=r"sweeps\['a'\]: seconds"):
        depth_comparison({"a": broken})
