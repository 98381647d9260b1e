"""build_memory_reason.py as a user runs it."""

import json
import os
import subprocess
import sys

import pytest
from datasets import load_from_disk
from paths import ROOT


SCRIPT = ROOT / "data_scripts" / "build_memory_reason.py"


def run(folder, *arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def source(tmp_path):
    rows = [{"question": "Is it?", "answer": "True", "cot_steps": ["[rag]: a", "[rag]:"], "split": "train"}]
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "StrategyQA_train_clean.json").write_text(json.dumps(rows))
    return tmp_path / "json"


def test_the_command_of_the_readme_from_another_folder(source, tmp_path):
    done = run(tmp_path, "--name", "strategy_qa", "--source", source, "--output_dir", "data")
    assert done.returncode == 0, done.stderr
    assert "train: 1 of 1 items, 1 steps\n  1 empty steps dropped, in 1 items\n" in done.stdout
    assert load_from_disk(tmp_path / "data")["train"]["question"][:] == ["Is it?"]


def test_bad_requests_end_with_one_line_and_leave_nothing(source, tmp_path):
    (source / "truthful_qa_test_clean_CC.json").write_text("[")
    done = run(tmp_path, "--name", "truthful_qa", "--source", source, "--output_dir", "data")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "truthful_qa_test_clean_CC.json is not a JSON file" in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["json"]
    (source / "truthful_qa_test_clean_CC.json").write_text("[" * 100_000)
    done = run(tmp_path, "--name", "truthful_qa", "--source", source, "--output_dir", "data")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    done = run(tmp_path, "--name", "truthful", "--source", source, "--output-dir", "data")
    assert done.returncode == 2 and "name='truthful' must be one of" in done.stderr
