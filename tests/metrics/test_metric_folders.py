"""Every metric of the package has a script that evaluate loads, a card, and examples that are right."""

import doctest
import sys
from pathlib import Path

import evaluate
import pytest

from memreason_hf.metrics import metric_names, metric_path


FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.fixture(params=metric_names())
def folder(request):
    return Path(metric_path(request.param))


def test_there_are_metrics():
    assert "grouped_accuracy" in metric_names()


def test_loads_with_a_description_and_a_citation(folder, tmp_path):
    metric = evaluate.load(str(folder), keep_in_memory=True, cache_dir=str(tmp_path))
    assert metric.module_type == "metric"
    assert metric.description and metric.citation and metric.inputs_description


def test_examples_in_the_script_are_right(folder, tmp_path):
    metric = evaluate.load(str(folder), keep_in_memory=True, cache_dir=str(tmp_path))
    results = doctest.testmod(sys.modules[type(metric).__module__], optionflags=FLAGS)
    assert results.attempted > 0
    assert results.failed == 0


def test_examples_in_the_card_are_right(folder):
    results = doctest.testfile(str(folder / "README.md"), module_relative=False, optionflags=FLAGS)
    assert results.attempted > 0
    assert results.failed == 0


def test_card_names_every_input_and_output(folder, tmp_path):
    card = (folder / "README.md").read_text(encoding="utf-8")
    metric = evaluate.load(str(folder), keep_in_memory=True, cache_dir=str(tmp_path))
    for name in metric.features:
        assert f"`{name}`" in card
    for heading in ("## Description", "## How to use", "### Inputs", "### Output values", "## Limitations"):
        assert heading in card


def test_imports_are_one_a_line(folder):
    # evaluate reads `import datasets, evaluate` as one missing dependency.
    for line in (folder / f"{folder.name}.py").read_text(encoding="utf-8").splitlines():
        assert not (line.startswith("import ") and "," in line), line


def test_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no metric 'grouped'.*grouped_accuracy"):
        metric_path("grouped")
