import json
import os
import sys

import pytest

from memreason_hf.command_line.errors import user_errors
from modeling_recurrent import RecurrentDepthConfig


def fail(error, capsys, *expected):
    with pytest.raises(SystemExit) as stop, user_errors("memreason test", *expected):
        raise error
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_an_expected_error_is_one_message(capsys):
    assert fail(ValueError("rate=3 is too high."), capsys) == "memreason test: error: rate=3 is too high.\n"
    assert fail(KeyError("x"), capsys, KeyError) == "memreason test: error: 'x'\n"
    missing = FileNotFoundError(2, "No such file or directory", "recipe.yaml")
    assert fail(missing, capsys) == "memreason test: error: recipe.yaml: No such file or directory.\n"


def test_json_that_is_nested_too_deeply(capsys):
    with pytest.raises(SystemExit), user_errors("memreason test"):
        json.loads("[" * 100_000)
    error = (
        "memreason test: error: A file or value is nested too deeply to be read. MEMREASON_TRACEBACK=1 shows which."
    )
    assert capsys.readouterr().err == f"{error}\n"


def test_of_a_config_the_broken_rule(capsys):
    with pytest.raises(SystemExit), user_errors("memreason test"):
        RecurrentDepthConfig(hidden_size=65, num_attention_heads=4)
    assert capsys.readouterr().err.startswith("memreason test: error: hidden_size=65")


def test_anything_else_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), user_errors("memreason test"):
        raise ZeroDivisionError
    with pytest.raises(ValueError), user_errors("memreason test", OSError):
        raise ValueError


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("MEMREASON_TRACEBACK", "1")
    with pytest.raises(ValueError), user_errors("memreason test"):
        raise ValueError


def test_the_process_is_named(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert fail(ValueError("no."), capsys) == "memreason test: error (process 1): no.\n"


@pytest.mark.parametrize("lines", [1, 20_000])
def test_a_reader_that_has_seen_enough_ends_nothing(lines, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    reached = []
    with open(writing, "w", encoding="utf-8") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        with user_errors("memreason test"):
            for line in range(lines):
                print("a line of the table", line)
            reached.append("the files")
        # Nor does what is printed behind, or the end of the program.
        print("behind", flush=True)
    assert reached == ["the files"]


def test_another_broken_pipe_is_an_error(capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(SystemExit), user_errors("memreason test"), open(writing, "wb", buffering=0) as pipe:
        pipe.write(b"to a process that has gone")
    assert "Broken pipe" in capsys.readouterr().err
