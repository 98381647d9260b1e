"""Runs of annotation against a server: the right rows, nothing lost, doubled or paid for twice."""

import json
import shutil
import threading
from collections import Counter

import pytest
from annotation_answers import Annotated, call_of, question_rows, right_steps
from chat_servers import FAULTS, HTML, Fault, chat_server, mixed_faults

from memreason_hf.annotation import Corpus, PromptTexts, StepRules, annotate_questions, run
from memreason_hf.annotation.annotator import call_seed
from memreason_hf.annotation.run import WorkFiles
from memreason_hf.chat import ChatError, EndpointChat
from memreason_hf.data.questions.own_data import load_questions
from memreason_hf.locks import InUseError, locked


def endpoint(server, **options):
    return EndpointChat("m", server.url, **{"first_wait": 0.005, "timeout": 20, "concurrency": 8, **options})


def annotate(server, rows, path, *, chat=None, **options):
    return annotate_questions(rows, chat or endpoint(server), path, **{"model_name": "m", **options})


def name_of(row):
    return row["question"].split()[-1].rstrip("?")


def is_right(row, tries):
    """Whether the steps of a row are those of one try for its own question, whatever the try."""
    found = [(step["kind"], step["text"]) for step in row["steps"]]
    return found in [[(kind, text) for kind, _, text in steps] for steps in tries]


def possible(rows, index, most=20):
    """The right steps of every try of an item. A step is drawn by the seed of the plan's call."""
    name = name_of(rows[index])
    return [right_steps(name, call_seed(0, index, number, "plan")) for number in range(1, most + 1)]


def test_rows_in_their_order_with_the_steps_of_their_own_question(tmp_path):
    rows = question_rows(30)
    with chat_server(Annotated()) as server:
        report = annotate(server, rows, tmp_path / "train.jsonl")
    found = load_questions(tmp_path)["train"].to_list()
    assert [row["question"] for row in found] == [row["question"] for row in rows]
    assert [row["answer"] for row in found] == [row["answer"] for row in rows]
    for index, row in enumerate(found):
        assert is_right(row, possible(rows, index, 1))
    assert len(server.calls) == report.num_calls == 60 and report.num_annotated == 30 and report.tries == {1: 30}
    assert report.num_new_tokens == sum(len(call.text.split()) for call in server.calls)
    assert report.steps == Counter(step["kind"] for row in found for step in row["steps"])


def test_wrong_answers_and_faults_of_the_network_lose_nothing(tmp_path):
    rows = question_rows(40)
    with chat_server(Annotated(bad=0.4), fault=mixed_faults(0.3)) as server:
        report = annotate(server, rows, tmp_path / "train.jsonl", chat=endpoint(server, max_tries=40))
        answered = Counter(map(call_of, server.answered))
    found = load_questions(tmp_path)["train"].to_list()
    assert [row["question"] for row in found] == [row["question"] for row in rows]
    for index, row in enumerate(found):
        assert is_right(row, possible(rows, index))
    # What was answered is never asked again, though many tries were wrong.
    assert set(answered.values()) == {1} and report.num_calls == len(answered) > 100
    assert max(report.tries) > 2 and sum(report.problems.values()) > 20
    assert len(report.problems) > 5, report.problems


def test_an_interrupted_run_goes_on_and_ends_as_an_undisturbed_one(tmp_path):
    rows, answer = question_rows(25), Annotated(bad=0.3)
    with chat_server(answer) as server:
        annotate(server, rows, tmp_path / "whole" / "train.jsonl")
        expected = Counter(map(call_of, server.answered))
    path, chat = tmp_path / "parts" / "train.jsonl", None
    seen = Counter()
    for limit in (7, 13, 30, 10_000):
        # After so many answers nothing is answered any more.
        def fault(call, number, limit=limit):
            return FAULTS["500"] if number >= limit else None

        with chat_server(answer, fault=fault) as server:
            chat = endpoint(server, max_tries=1, concurrency=3)
            if limit < 1000:
                with pytest.raises(ChatError):
                    annotate(server, rows, path, chat=chat)
                assert not WorkFiles(path).summary.exists()
            else:
                annotate(server, rows, path, chat=chat)
            seen += Counter(map(call_of, server.answered))
    assert seen == expected
    assert path.read_text() == (tmp_path / "whole" / "train.jsonl").read_text()
    assert json.loads(WorkFiles(path).summary.read_text())["num_annotated"] == 25


def test_answers_under_way_at_an_interruption_are_kept(tmp_path, monkeypatch, capsys):
    """They are paid for. A control: those of a run that is not given the time are lost."""
    rows = question_rows(20)

    def interrupt(self, annotation):
        raise KeyboardInterrupt

    monkeypatch.setattr(run._Run, "_append", interrupt)
    for grace in (5.0, 0.0):
        monkeypatch.setattr(run, "_GRACE", grace)
        path = tmp_path / f"{grace}" / "train.jsonl"
        with chat_server(Annotated(), seconds=0.1) as server:
            with pytest.raises(KeyboardInterrupt):
                annotate(server, rows, path, chat=endpoint(server, concurrency=4))
            num_calls, num_kept = len(server.calls), WorkFiles(path).calls.read_bytes().count(b"\n")
        assert num_calls < 16
        assert (num_kept == num_calls) == (grace > 0)
    assert "Stopping: up to 5 seconds" in capsys.readouterr().err


def test_finished_rows_are_on_disk_while_others_are_under_way(tmp_path):
    rows, path = question_rows(6), tmp_path / "train.jsonl"
    inner, gate, found = Annotated(), threading.Event(), []

    def answer(request):
        if f"stone {name_of(rows[5])}" in request.prompt:
            assert gate.wait(20)
        return inner(request)

    def look():
        deadline = 200
        while deadline and (not path.exists() or path.read_text().count("\n") < 5):
            threading.Event().wait(0.05)
            deadline -= 1
        found.extend(json.loads(line)["question"] for line in path.read_text().splitlines())
        gate.set()

    thread = threading.Thread(target=look)
    with chat_server(answer) as server:
        thread.start()
        annotate(server, rows, path)
        thread.join()
    assert sorted(found) == sorted(row["question"] for row in rows[:5])


def test_items_that_fail_are_listed_with_their_reasons(tmp_path):
    rows, path = question_rows(8), tmp_path / "train.jsonl"
    answer = Annotated(never={name_of(rows[2])})

    def refuse(call, number):
        refused = name_of(rows[5]) in call.prompt
        return Fault(400, body={"error": {"message": "maximum context length"}}) if refused else None

    with chat_server(answer, fault=refuse) as server:
        report = annotate(server, rows, path, chat=endpoint(server, concurrency=1), max_tries=3)
    lines = [json.loads(line) for line in WorkFiles(path).failed.read_text().splitlines()]
    assert [line["item"] for line in lines] == [2, 5] == [annotation.item for annotation in report.failed]
    assert len(lines[0]["reasons"]) == 3 and "plan" in lines[0]["reasons"][0]
    assert "maximum context length" in lines[1]["reasons"][0]
    assert [row["question"] for row in load_questions(path)["train"]] == [
        row["question"] for index, row in enumerate(rows) if index not in (2, 5)
    ]
    assert "2 items could not be annotated" in report.describe()
    # The same command again asks for what the network refused, and not for what broke the rules at every try.
    with chat_server(Annotated()) as server:
        report = annotate(server, rows, path, max_tries=3)
    assert {call.prompt.count(name_of(rows[5])) > 0 for call in server.calls} == {True} and len(server.calls) == 2
    assert [annotation.item for annotation in report.failed] == [2]
    # With more tries it goes on where it was.
    with chat_server(Annotated()) as server:
        report = annotate(server, rows, path, max_tries=4)
    assert len(server.calls) == 2 and report.failed == [] and not WorkFiles(path).failed.exists()
    assert load_questions(path)["train"].num_rows == 8


def test_more_items_may_follow(tmp_path):
    rows, path = question_rows(9), tmp_path / "train.jsonl"
    with chat_server(Annotated()) as server:
        annotate(server, rows[:4], path)
        first = len(server.calls)
        annotate(server, rows, path)
        assert first == 8 and len(server.calls) == 18
        annotate(server, rows, path)
        assert len(server.calls) == 18
    assert load_questions(path)["train"]["question"][:] == [row["question"] for row in rows]


def test_a_lost_output_is_made_again_without_a_call(tmp_path):
    rows, path = question_rows(5), tmp_path / "train.jsonl"
    with chat_server(Annotated(bad=0.5)) as server:
        annotate(server, rows, path)
        whole, count = path.read_text(), len(server.calls)
        path.unlink()
        annotate(server, rows, path)
        assert path.read_text() == whole and len(server.calls) == count
        # As does a file with an unfinished line, and one without its last reply.
        path.write_text(whole[: len(whole) // 2])
        calls = WorkFiles(path).calls
        lines = calls.read_bytes().splitlines(keepends=True)
        calls.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
        annotate(server, rows, path)
        assert path.read_text() == whole and len(server.calls) == count + 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_name": "other"}, r"model='other': .*train\.annotation was written with model='m'"),
        ({"temperature": 0.3}, "temperature=0.3"),
        ({"max_tokens": 5}, "max_tokens=5"),
        ({"seed": 4}, "seed=4"),
        ({"prompts": PromptTexts("Plan {question} now", "Say {questions}")}, "plan_prompt='Plan {question} now'"),
    ],
)
def test_answers_of_other_settings_are_not_mixed(tmp_path, change, words):
    rows, path = question_rows(2), tmp_path / "train.jsonl"
    with chat_server(Annotated()) as server:
        annotate(server, rows, path)
        with pytest.raises(ValueError, match=words):
            annotate(server, rows, path, **change)
        assert len(server.calls) == 4


def test_answers_to_other_questions_are_not_used(tmp_path):
    rows, path = question_rows(3), tmp_path / "train.jsonl"
    with chat_server(Annotated()) as server:
        annotate(server, rows, path)
        for other in (question_rows(3), [rows[0], {**rows[1], "answer": "17"}, rows[2]]):
            with pytest.raises(ValueError, match=r"line \d: the reply belongs to another question"):
                annotate(server, other, path)


def test_what_is_not_a_run_of_annotation_is_kept(tmp_path):
    rows, path = question_rows(2), tmp_path / "train.jsonl"
    path.write_text("mine\n")
    with chat_server(Annotated()) as server:
        with pytest.raises(FileExistsError, match="was not written by a run of annotation"):
            annotate(server, rows, path)
        assert path.read_text() == "mine\n" and server.calls == []
        annotate(server, rows, path, overwrite=True)
    assert load_questions(path)["train"].num_rows == 2


def test_a_run_that_starts_again_deletes_answers_only_when_it_has_others(tmp_path):
    rows, path = question_rows(2), tmp_path / "train.jsonl"
    with chat_server(Annotated()) as server:
        annotate(server, rows, path)
        before = path.read_text(), WorkFiles(path).calls.read_text()
    with pytest.raises(ChatError):
        annotate(server, rows * 5, path, overwrite=True, chat=endpoint(server, max_tries=1))
    assert (path.read_text(), WorkFiles(path).calls.read_text()) == before
    with chat_server(Annotated()) as server:
        annotate(server, rows, path, overwrite=True, seed=3)
        assert len(server.calls) == 4 and path.read_text() != before[0]


def test_two_runs_do_not_write_the_same_file(tmp_path):
    path = tmp_path / "train.jsonl"
    refused = []

    def other():
        try:
            annotate(None, question_rows(1), path, chat=object())
        except InUseError as error:
            refused.append(error)

    with locked(path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_an_endpoint_that_answers_with_pages_ends_the_run_at_once(tmp_path):
    page = Fault(200, {"Content-Type": "text/html"}, HTML)
    with (
        chat_server(lambda _: page) as server,
        pytest.raises(ChatError, match="web page with the title 'Please log in'"),
    ):
        annotate(server, question_rows(50), tmp_path / "train.jsonl")
    assert len(server.calls) <= 8
    assert not (tmp_path / "train.jsonl").exists()


def test_memory_first_and_the_answer_kept_out(tmp_path):
    """A control: without the rules the first tries pass."""
    (row,) = question_rows(1)
    plans = [
        "[reason] I need facts.\n[memory] What is it?",
        f"[memory] What is it?\n[reason] So it is {row['answer']}.",
        "[memory] What is it?\n[reason] So it is heavy.",
    ]

    def answer(request):
        if request.prompt.startswith("Answer"):
            leaks = "second" in request.body["model"]
            return f"1. It weighs {row['answer']} kg." if leaks else "1. It is a stone."
        return plans[len([call for call in server.calls if not call.prompt.startswith("Answer")]) - 1]

    with chat_server(answer) as server:
        report = annotate(server, [row], tmp_path / "a.jsonl", rules=StepRules(order="memory_first"))
        assert report.tries == {2: 1}
    with chat_server(answer) as server:
        assert annotate(server, [row], tmp_path / "b.jsonl").tries == {1: 1}
    for keep_out, expected in ((True, 0), (False, 1)):
        with chat_server(answer) as server:
            chat = EndpointChat("second", server.url)
            rules = StepRules(keep_answer_out=keep_out)
            path = tmp_path / f"c{keep_out}.jsonl"
            report = annotate_questions([row], chat, path, rules=rules, max_tries=3)
            assert report.num_annotated == expected
            assert ("gives the answer" in str(report.problems)) == keep_out


def test_knowledge_of_the_user_in_place_of_the_second_call(tmp_path):
    pytest.importorskip("bm25s", reason='needs pip install "memreason-hf[retrieval]"')
    rows = question_rows(4)
    passages = [f"Stone {name_of(row)} was found in the river.\n\n" for row in rows]
    corpus = Corpus([*passages, "Nothing else is known."])

    def answer(request):
        name = request.prompt.rpartition("stone ")[2].split("?")[0]
        # The second question shares no other passage: the try fails where it is asked.
        more = "[memory] Zyx?\n" if name == name_of(rows[3]) else ""
        return f"[memory] Where was stone {name} found?\n{more}[reason] So it is wet."

    with chat_server(answer) as server:
        report = annotate(server, rows, tmp_path / "train.jsonl", corpus=corpus, max_tries=2)
    assert len(server.calls) == 3 + 2 and [one.item for one in report.failed] == [3]
    assert report.problems == {"no passage of the corpus has the words of 'Zyx?'": 2}
    for row in load_questions(tmp_path)["train"]:
        assert row["steps"][0] == {"kind": "memory", "text": f"Stone {name_of(row)} was found in the river."}


def test_wrong_values_are_refused_before_anything_is_asked(tmp_path):
    rows = question_rows(1)
    cases = [
        ({"temperature": 0.0}, "at temperature 0 each try gives the answer of the first"),
        ({"max_tries": 0}, "max_tries=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"path": tmp_path / "out.json"}, "must end with .jsonl"),
        ({"rows": []}, "no rows"),
        ({"rows": [{"question": "Why?"}]}, r"rows\[0\]=.* lacks options and answer"),
    ]
    with chat_server() as server:
        for change, words in cases:
            values = {"rows": rows, "path": tmp_path / "out.jsonl", **change}
            with pytest.raises(ValueError, match=words):
                annotate(server, values.pop("rows"), values.pop("path"), **values)
        assert annotate(server, rows, tmp_path / "x.jsonl", temperature=0.0, max_tries=1).num_annotated == 0
    assert len(server.calls) == 1
    shutil.rmtree(tmp_path / "x.annotation")
