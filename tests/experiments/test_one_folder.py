"""Deleting the folder of an experiment and its command deletes the experiment."""

import re

import pytest
from paths import ROOT


PACKAGE = ROOT / "memreason_hf"
EXPERIMENTS = [path.name for path in (PACKAGE / "experiments").iterdir() if (path / "__init__.py").is_file()]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nothing_else_in_the_packages_mentions_an_experiment(name):
    own = [PACKAGE / "experiments" / name, PACKAGE / "commands" / f"{name}.py"]
    # The list of verbs, and the list of experiments that one verb runs.
    own += [PACKAGE / "cli.py", PACKAGE / "commands" / "reproduce.py"]
    files = [path for package in ("memreason_hf", "modeling_recurrent") for path in (ROOT / package).rglob("*.py")]
    others = [path for path in files if not any(path == known or known in path.parents for known in own)]
    assert len(others) > 50
    # A recipe of `memreason train` may have the name of an experiment.
    pattern = re.compile(rf"(?<!memreason train )\b{name}\b")
    assert [str(path) for path in others if pattern.search(path.read_text(encoding="utf-8"))] == []
