"""Deleting the folder of an experiment and its command deletes the experiment."""

import re

import pytest
from paths import ROOT


PACKAGE = ROOT / "memreason_hf"
# The agreement of a judge is measured with the known truth of the test bed, whose folder holds it.
AGREEMENT = {
    "testbed": {"command_line/judge_flags.py", "commands/score.py", "commands/evaluate_steps.py"},
}
EXPERIMENTS = [path.name for path in (PACKAGE / "experiments").iterdir() if (path / "__init__.py").is_file()]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_nothing_else_in_the_packages_mentions_an_experiment(name):
    own = [PACKAGE / "experiments" / name, PACKAGE / "commands" / f"{name}.py"]
    # The list of verbs, and the list of experiments that one verb runs.
    own += [PACKAGE / "cli.py", PACKAGE / "commands" / "reproduce.py"]
    files = [path for package in ("memreason_hf", "modeling_recurrent") for path in (ROOT / package).rglob("*.py")]
    others = [path for path in files if not any(path == known or known in path.parents for known in own)]
    assert len(others) > 50
    pattern = re.compile(rf"\b{name}\b")
    found = {path for path in others if pattern.search(path.read_text(encoding="utf-8"))}
    assert found == {PACKAGE / path for path in AGREEMENT.get(name, ())}
