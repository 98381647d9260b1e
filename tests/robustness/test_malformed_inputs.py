"""
Malformed inputs of every public entrance end in a message that names the field, its value and what to do, or are
rightly accepted.

    python -m pytest -m slow tests/robustness                       # fresh inputs; the seed is printed
    MALFORMED_SEED=7 python -m pytest -m slow tests/robustness -s   # those of seed 7, with the table
"""

import os
import random
import secrets

import pytest
from malformed_judgement import CLASSES, GOOD, NEVER
from malformed_runner import AREAS, cases_of, run_area, run_case, table
from malformed_world import build_world


# The most inputs of an area in one run, drawn anew with each seed.
MOST_OF_AN_AREA = 280
LEAST_INPUTS = 1500
LEAST_GOOD = 0.99


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("malformed") / "world")


def draw(area, seed, world, count):
    """The indices of `count` cases of an area."""
    indices = range(len(cases_of(area, seed, world)))
    return sorted(random.Random(f"{seed} {area}").sample(indices, min(count, len(indices))))


@pytest.mark.slow
def test_malformed_inputs_are_refused_clearly(world, tmp_path):
    seed = int(os.environ.get("MALFORMED_SEED") or secrets.randbelow(10**6))
    endings = []
    for area in AREAS:
        endings += run_area(area, seed, world, tmp_path, draw(area, seed, world, MOST_OF_AN_AREA))
    report = f"seed {seed}\n{table(endings, CLASSES)}"
    print(report)
    assert len(endings) >= LEAST_INPUTS, report
    assert [ending for ending in endings if ending.outcome in NEVER] == [], report
    assert sum(ending.outcome in GOOD for ending in endings) >= LEAST_GOOD * len(endings), report


def test_a_few_malformed_inputs(world, tmp_path):
    """A sample that is the same in every run, in this process."""
    bad = []
    for area, count in (("configs", 80), ("calls", 50), ("functions", 50), ("flags", 25), ("metrics", 15)):
        cases = cases_of(area, 0, world)
        for index in draw(area, 0, world, count):
            outcome, message = run_case(cases[index], tmp_path / f"{area}-{index}")
            if outcome not in GOOD:
                bad.append(f"{outcome}: {area} {index}: {cases[index]}: {message}")
    assert len(bad) <= 2, "\n".join(bad)
    assert not [line for line in bad if line.startswith(NEVER)], "\n".join(bad)


@pytest.mark.parametrize("area", AREAS)
def test_a_seed_gives_the_same_inputs(area, world):
    first, again, other = ([str(case) for case in cases_of(area, seed, world)] for seed in (1, 1, 2))
    assert first == again
    assert first != other
