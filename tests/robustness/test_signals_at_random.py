"""
Ctrl-C and SIGTERM at random moments: one line, the exit code of the signal, nothing left behind, and the same command
then ends as an undisturbed one.

    python -m pytest -m slow tests/robustness/test_signals_at_random.py
    MOMENTS=30 python -m pytest -m slow tests/robustness/test_signals_at_random.py -k generate
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_points import contents
from local_hub import local_hub
from malformed_world import build_world
from paths import ROOT


MOMENTS = int(os.environ.get("MOMENTS") or 10)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
TIMEOUT = 180
QUESTIONS = ["--data", "questions", "--max_new_tokens", "4", "--no_progress"]
COMMANDS = {
    "finetune": ["recipes/finetune.yaml", "--output_dir", "out/run", "--max_steps", "12", "--save_steps", "4"],
    "generate": ["text_model", "--prompt", "the cat", "a dog", "--max_new_tokens", "40", "--json", "out/texts.json"],
    "evaluate-steps": ["steps_model", *QUESTIONS, "--output_file", "out/texts.jsonl", "--batch_size", "1"],
    "evaluate": ["chain_model", "--data", "chains", "--output_dir", "out/results", "--fixed_baseline"],
    "publish": ["text_model", "user/model", "--no_progress"],
    "testbed": [
        *("--output_dir", "out/testbed", "--models", "answer_fixed,steps_fixed", "--num_test_chains", "2"),
        *("--num_judged", "3", "--max_steps", "2", "--batch_size", "4", "--num_rows", "20"),
    ],
}
# What a signal during the training of a run prints.
TRAINING_LINE = "Interrupted: finishing the step and saving."


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return build_world(tmp_path_factory.mktemp("inputs") / "world")


@pytest.fixture
def world(inputs, tmp_path):
    folder = shutil.copytree(inputs, tmp_path / "world")
    # Recipes name their files by their folder.
    for path in (folder / "recipes").glob("*.yaml"):
        path.write_text(path.read_text().replace(str(inputs), str(folder)))
    (folder / "out").mkdir()
    return folder


def start(name, world, environment):
    command = [sys.executable, "-m", "memreason_hf.cli", name, *COMMANDS[name]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=world, env=environment, start_new_session=True, **pipes)


def run(name, world, environment):
    """Runs a command to its end; returns its output and the seconds that it took."""
    started = time.monotonic()
    with start(name, world, environment) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    return output, time.monotonic() - started


def disturb(name, world, environment, seconds, numbers):
    """Sends signals to a command, the first after some seconds; returns the exit code and both outputs."""
    with start(name, world, environment) as process:
        for number, wait in zip(numbers, (seconds, random.random()), strict=False):
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
        output, errors = process.communicate(timeout=TIMEOUT)
    return process.returncode, output, errors


def processes_in(folder):
    """The command lines of processes that name a folder, or work in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if int(path.name) != os.getpid() and (str(folder) in line or os.readlink(path / "cwd") == str(folder)):
                found.append(line)
        except OSError:
            continue
    return found


def leftovers(folder):
    """Hidden files and folders, which no command leaves."""
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_moment(name, world, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    random.seed(seed)
    with local_hub(tmp_path / "hub") as hub:
        environment = {**hub.environment(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if name != "publish":
            environment["HF_HUB_OFFLINE"] = "1"
        _, seconds = run(name, world, environment)
        expected = state(name, world, hub)
        assert expected
        for moment in range(MOMENTS):
            clear(name, world, hub)
            count = 2 if moment % 3 == 2 else 1
            numbers = [random.choice(list(CODES)) for _ in range(count)]
            after = random.random() * seconds
            code, output, errors = disturb(name, world, environment, after, numbers)
            where = f"seed {seed}, {name}, {numbers} after {after:.2f} of {seconds:.2f} s: {code}\n{output}\n{errors}"
            assert "Traceback" not in errors and "Error" not in errors, where
            # A command that had ended already took no signal. Python gives the handlers of signals back when its
            # interpreter shuts down, after all work.
            has_ended = "stopped by" in errors or same(state(name, world, hub), expected)
            ended = [-number for number in numbers] if has_ended else []
            assert code in [0, *ended, *(CODES[number] for number in numbers)], where
            if code > 0:
                assert "stopped by" in errors or TRAINING_LINE in output, where
            wait_for_end(world, where)
            if count == 1:
                assert leftovers(world / "out") == [], where
            # A signal at the very end finds the files of `generate` and `evaluate` whole, which stay as they are.
            if not (name in ("generate", "evaluate") and same(state(name, world, hub), expected)):
                run(name, world, environment)
            found = state(name, world, hub)
            assert same(found, expected), f"{where}\n{found}\n{expected}"
            assert leftovers(world / "out") == [], where


def same(found, expected):
    return dict(found) == dict(expected)


def wait_for_end(world, where):
    """Children of a test bed end with it."""
    deadline = time.monotonic() + 30
    while processes_in(world) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_in(world) == [], where


def state(name, world, hub):
    if name == "publish":
        return {repo.name: repo.files() for repo in hub.repositories.all()}
    return contents(world / "out")


def clear(name, world, hub):
    if name == "publish":
        for repo in hub.repositories.all():
            hub.repositories.delete(repo)
    shutil.rmtree(world / "out")
    (world / "out").mkdir()
