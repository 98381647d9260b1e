"""The examples in docstrings of data, evaluation, analysis, experiments, and the modules at the top."""

import doctest
import importlib

import pytest
from paths import ROOT

from memreason_hf.evaluation import results


ROOMS = ("data", "evaluation", "analysis", "experiments")
PACKAGE = ROOT / "memreason_hf"
FILES = [path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")] + list(PACKAGE.glob("*.py"))
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted(FILES)
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_there_are_examples():
    assert len(MODULES) >= 8


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_right(name, monkeypatch):
    module = importlib.import_module(name)
    # An example registers a kind of document, which must not stay.
    monkeypatch.setattr(results, "_KINDS", dict(results._KINDS))
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0 and outcome.failed == 0
