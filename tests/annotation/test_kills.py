"""
Kills at random moments: the same command then goes on, ends with the file of an undisturbed run, and repeats no call
whose answer had arrived.

    MOMENTS=30 python -m pytest -m slow tests/annotation/test_kills.py
"""

import json
import os
import random
import signal
import time
from collections import Counter

import pytest
from annotation_answers import Annotated, call_of, question_rows
from chat_servers import chat_server, mixed_faults
from processes import child_process, preload

from memreason_hf.annotation import annotate_questions
from memreason_hf.annotation.annotator import call_seed
from memreason_hf.annotation.run import WorkFiles
from memreason_hf.chat import EndpointChat
from memreason_hf.command_line.errors import user_errors
from memreason_hf.data.questions.own_data import load_questions
from memreason_hf.data.questions.schema import write_questions


preload("test_kills")
MOMENTS = int(os.environ.get("MOMENTS") or 10)


def annotate(url, questions, output):
    rows = load_questions(questions)["train"]
    chat = EndpointChat("m", url, concurrency=8, max_tries=40, first_wait=0.01, timeout=20)
    with user_errors("annotate"):
        annotate_questions(rows, chat, output, max_tries=20)


def answers_on_disk(output):
    """The seeds of the calls whose replies are on disk as whole lines. Each call has its own."""
    path = WorkFiles(output).calls
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    values = [json.loads(line) for line in lines]
    return {call_seed(0, line["item"], line["try"], line["call"]) for line in values}


def finished_on_disk(output):
    lines = output.read_bytes().split(b"\n")[:-1] if output.exists() else []
    return {json.loads(line)["question"] for line in lines}


def run_with_kills(tmp_path, count, moments, kinds):
    """Kills a run at random moments, then lets it end; returns how many kills hit it at work."""
    rows = question_rows(count)
    questions = tmp_path / "questions.jsonl"
    write_questions(questions, rows)
    answer = Annotated(bad=0.3)
    with chat_server(answer, seconds=0.02) as server:
        annotate(server.url, questions, tmp_path / "whole" / "train.jsonl")
        expected, seconds = Counter(map(call_of, server.calls)), len(server.calls) * 0.02 / 8
    output, hits, kept = tmp_path / "killed" / "train.jsonl", 0, []
    with chat_server(answer, fault=mixed_faults(0.1), seconds=0.02) as server:
        for _ in range(moments):
            before = len(server.calls)
            with child_process(annotate, server.url, questions, output) as process:
                while len(server.calls) == before and process.is_alive():
                    time.sleep(0.002)
                process.join(random.uniform(0, 1.5 * seconds / moments))
                at_work = process.is_alive()
                if at_work:
                    os.kill(process.pid, random.choice(kinds))
                process.join(30)
                assert process.exitcode in (0, -signal.SIGKILL, 143, 130)
            hits += at_work
            kept.append((len(server.calls), answers_on_disk(output), finished_on_disk(output)))
        with child_process(annotate, server.url, questions, output) as process:
            process.join(60)
            assert process.exitcode == 0
        answered = Counter(map(call_of, server.answered))
    for begun, seeds, finished in kept:
        later = server.calls[begun:]
        assert not [call for call in later if call.body["seed"] in seeds]
        assert not [question for question in finished if any(question in call.prompt for call in later)]
    assert hits == 0 or max(len(seeds) for _, seeds, _ in kept) > 0
    whole = (tmp_path / "whole" / "train.jsonl").read_bytes()
    assert output.read_bytes() == whole and load_questions(output)["train"].num_rows == count
    for name in ("calls", "settings"):
        # Replies in another order, but the same.
        one, two = (getattr(WorkFiles(tmp_path / part / "train.jsonl"), name) for part in ("whole", "killed"))
        assert sorted(one.read_bytes().splitlines()) == sorted(two.read_bytes().splitlines())
    assert set(answered) == set(expected)
    # At most the calls that were under way at a kill are made again.
    assert sum(answered.values()) <= sum(expected.values()) + 8 * hits
    return hits


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGINT]], ids=["kill", "stop"])
def test_killed_at_many_moments(tmp_path, kinds):
    hits = run_with_kills(tmp_path, 40 * MOMENTS, MOMENTS, kinds)
    assert hits >= 0.7 * MOMENTS
