"""The judgement of malformed inputs itself: made-up entrances that fail in each way are seen to."""

import os
import time

import malformed_runner
import pytest
import torch
from malformed_cases import NO_VALUE, Case, RefusedByCommand, command, misspelt
from malformed_judgement import fault_of_message, shows
from malformed_runner import run_case


def outcome_of(run, tmp_path, **values):
    case = Case("made up", "a control", lambda scratch: run(), ("size",), **{"value": -1, **values})
    return run_case(case, tmp_path / "scratch")[0]


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("size=-1 must be at least 1."), "clear"),
        (TypeError("size=-1 must be a text, got int."), "clear"),
        (RefusedByCommand("memreason x: error: size=-1 must be at least 1."), "clear"),
        (ValueError("must be at least 1, got -1."), "vague"),
        (ValueError("size must be at least 1."), "vague"),
        (ValueError("size=-1 is odd."), "vague"),
        (ValueError("size=-1 must be\nat least 1."), "vague"),
        (RefusedByCommand("memreason x: error: size -1: Expecting value"), "vague"),
        (TypeError("'<' not supported between instances of 'str' and 'int'"), "traceback"),
        (KeyError("size=-1 must be at least 1."), "traceback"),
        (AttributeError("'str' object has no attribute 'size'"), "traceback"),
        (RuntimeError("size=-1 must be at least 1."), "traceback"),
        (RecursionError("maximum recursion depth exceeded"), "traceback"),
        (AssertionError("size=-1 must be at least 1."), "traceback"),
    ],
)
def test_errors(error, outcome, tmp_path):
    assert outcome_of(lambda: fail(error), tmp_path) == outcome


def test_what_is_accepted(tmp_path):
    assert outcome_of(lambda: 5, tmp_path) == "silent"
    assert outcome_of(lambda: 5, tmp_path, is_wrong=False) == "accepted"
    assert outcome_of(lambda: 5, tmp_path, is_wrong=False, fault=lambda result: "not finite") == "silent"


def test_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(malformed_runner, "TIMEOUT", 0.2)

    def loop():
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    assert outcome_of(loop, tmp_path) == "hang"


def test_a_case_runs_in_an_empty_folder_that_is_removed(tmp_path):
    seen = []
    before = os.getcwd()
    outcome_of(lambda: seen.append(os.listdir()) or open("left", "w").close(), tmp_path, is_wrong=False)
    assert seen == [[]] and os.listdir(tmp_path) == [] and os.getcwd() == before


@pytest.mark.parametrize(
    ("message", "value", "is_shown"),
    [
        ("x='a'", "a", True),
        ("x=[1, 2]", [1, 2], True),
        ("x holds 2", [1, 2], True),
        ("x has shape (2, 3)", torch.zeros(2, 3), True),
        ("x has dtype torch.float32", torch.zeros(2, 3), True),
        ("x is 1,000", 1000, True),
        ("x is nan", float("nan"), True),
        ("x is wrong", "a text", False),
        ("x is wrong", 1000, False),
        ("x has shape (3, 2)", torch.zeros(2, 3), False),
        ("x is wrong", NO_VALUE, True),
    ],
)
def test_whether_a_value_is_shown(message, value, is_shown):
    assert shows(message, value) == is_shown


def test_the_message_of_a_command():
    def main(code, text):
        import sys

        print("a warning of a library", file=sys.stderr)
        print(text, file=sys.stderr)
        raise SystemExit(code)

    with pytest.raises(RefusedByCommand, match=r"^memreason train: error: size=-1 must be at least 1\.$"):
        command(lambda argv: main(2, "memreason train: error: size=-1 must be at least 1."))
    with pytest.raises(AssertionError, match="exit code 1"):
        command(lambda argv: main(1, "Traceback"))
    case = Case("made up", "", lambda scratch: None, ("size",))
    with pytest.raises(RefusedByCommand) as refused:
        command(lambda argv: main(2, "memreason x: error: size must be 1.\nAnd more."))
    assert fault_of_message(str(refused.value), case) == "several lines"


def test_misspelt_names_differ():
    import random

    rng = random.Random(0)
    assert all(misspelt("num_recurrences", rng) != "num_recurrences" for _ in range(200))
