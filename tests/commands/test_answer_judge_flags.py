"""--answer_judge of memreason score and memreason evaluate-steps, against a scripted endpoint."""

import json

import evaluate
import pytest
import torch
from chat_servers import HTML, Fault, chat_server
from refusals import refused
from small_tokenizers import byte_level, llama

from memreason_hf.commands import evaluate_steps, score
from memreason_hf.evaluation.solutions.chat_answer_judges import KNOWN_ANSWERS


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """evaluate copies the metrics it loads into a cache."""
    load = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda *a, **k: load(*a, cache_dir=str(tmp_path / "cache"), **k))


def run_score(*arguments):
    return score.main([*map(str, arguments), "--judge", "none", "--marks", "none", "--no_progress"])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def given_answer(call):
    return call.messages[0]["content"].split("Given answer: ")[1].split("\n")[0]


KNOWN = {case.answer: is_right for case, is_right in KNOWN_ANSWERS}


def knowing(call):
    """An endpoint that knows the known answers and the capital of France, and does not always make sense."""
    answer = given_answer(call)
    if answer in KNOWN:
        return "yes" if KNOWN[answer] else "No."
    return {"the capital of France": "**Yes**", "Rome": "no", "a city": "It depends: yes and no."}[answer]


@pytest.fixture
def texts(tmp_path):
    said = ["Paris", "the capital of France", "Rome", "a city", "the capital of France", ""]
    path = tmp_path / "texts.jsonl"
    rows = [{"question": "Where is the Louvre?", "text": f"The answer is: {a}", "reference": "Paris"} for a in said]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(server, *more):
    return ["--answer_judge", "llm", "--llm", "scripted", "--endpoint", server.url, "--concurrency", 4, *more]


def test_score_keeps_what_the_judge_said_of_each_answer(texts, tmp_path, capsys):
    out = tmp_path / "s.jsonl"
    with chat_server(knowing) as server:
        assert run_score(texts, *flags(server), "--output_file", out) == 0
        shown = capsys.readouterr().out
        # Three distinct answers, one of them asked about twice because its reply made no sense.
        assert len(server.calls) == len(KNOWN_ANSWERS) + 4
        assert "free-text answers in other words, judged by scripted: 2 right, 1 wrong; 1 without a readable" in shown
        assert "on 8 known answers in other words: accepts 4 of 4 right and 0 of 4 wrong ones" in shown
        assert "scripted was asked about answers 12 times" in shown and "accuracy 50.0% (3 right" in shown
        lines = lines_of(out)
        assert [line["verdict"] for line in lines] == ["correct", "correct", "wrong", "wrong", "correct", "wrong"]
        said = [line.get("answer_judge") for line in lines]
        expected = [None, "right", "wrong", "undecided", "right", None]
        assert said == [None if v is None else {"name": "scripted", "verdict": v} for v in expected]
        summary = json.loads((tmp_path / "s.jsonl.summary.json").read_text())
        assert summary["answer_judge"]["name"] == "scripted"
        (part,) = summary["files"].values()
        assert (part["num_judged_answers"], part["num_right_by_judge"], part["num_undecided_answers"]) == (3, 2, 1)
        # The same again: only the answer without a readable reply is asked about.
        asked, before = len(server.calls), out.read_bytes()
        assert run_score(texts, *flags(server), "--output_file", out, "--overwrite") == 0
        assert [given_answer(call) for call in server.calls[asked:]] == ["a city"] * 2 and out.read_bytes() == before
        # A prompt of one's own asks anew, and 0 leaves the known answers out.
        prompt = tmp_path / "prompt.txt"
        prompt.write_text("{question}|{right_answers}\nGiven answer: {answer}\nSame?")
        more = ["--answer_judge_prompt", prompt, "--agreement", 0]
        asked = len(server.calls)
        assert run_score(texts, *flags(server, *more), "--output_file", out, "--overwrite") == 0
        assert len(server.calls) == asked + 4
        assert server.calls[-1].prompt.startswith("Where is the Louvre?|Paris\n")
    # A control: without the flag the exact rule alone.
    capsys.readouterr()
    assert run_score(texts, "--output_file", out, "--overwrite") == 0
    assert [line["verdict"] for line in lines_of(out)] == ["correct", *["wrong"] * 5]
    assert "answer_judge" not in out.read_text() and "other words" not in capsys.readouterr().out


def test_judges_that_cannot_be_used(texts, tmp_path, capsys):
    out = tmp_path / "s.jsonl"
    for answer, message in (
        (lambda call: "I could not say.", "answer_judge 'scripted': none of its replies to 8 requests can be read"),
        (lambda call: Fault(200, {"Content-Type": "text/html"}, HTML), "answers with a web page"),
    ):
        with chat_server(answer) as server:
            assert message in refused(capsys, run_score, texts, *flags(server), "--output_file", out)
            assert message.replace("8 req", "6 req") in refused(
                capsys, run_score, texts, *flags(server, "--agreement", 0), "--output_file", out
            )
        assert not out.exists()
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{question} {answer}")
    where = ["--llm", "x", "--endpoint", "http://127.0.0.1:9/v1"]
    for arguments, message in (
        (["--answer_judge", "llm"], "llm is not given. Pass --llm MODEL"),
        (where, "llm='x' is for a language model as judge"),
        (["--answer_judge_prompt", prompt], "Add --answer_judge llm, or leave it out"),
        (["--answer_judge", "llm", *where, "--answer_judge_prompt", prompt], "lacks {right_answers}"),
        (["--answer_judge", "llm", *where, "--answer_judge_prompt", "none.txt"], "none.txt"),
    ):
        assert message in refused(capsys, run_score, texts, *arguments)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose texts are random, and free-text questions."""
    folder = tmp_path_factory.mktemp("answers")
    tokenizer = byte_level()
    torch.manual_seed(0)
    llama(len(tokenizer), initializer_range=0.3).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"question": f"Where is {name}?", "answer": f"in {name} town"} for name in "abcd"]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_evaluate_steps_asks_after_generating_and_resumes_for_nothing(model, tmp_path, capsys):
    out = tmp_path / "texts.jsonl"
    arguments = [model / "model", "--data", model / "test.jsonl", "--style", "direct", "--max_new_tokens", 6]
    arguments += ["--judge", "exact", "--agreement", 1, "--no_progress", "--output_file", out]

    def run(*more):
        return evaluate_steps.main([*map(str, [*arguments, *more])])

    said = {f"Where is {name}?": reply for name, reply in zip("abcd", ("yes", "no", "Yes.", "perhaps"))}

    def answer(call):
        question = call.messages[0]["content"].removeprefix("Question: ").split("\n")[0]
        return said[question] if question in said else knowing(call)

    with chat_server(answer) as server:
        assert run(*flags(server)) == 0
        shown = capsys.readouterr().out
        assert "accuracy 50.0%" in shown and "judged by scripted: 2 right, 1 wrong; 1 without a readable" in shown
        last = {line["index"]: line for line in lines_of(out)}
        assert [last[index]["verdict"] for index in range(4)] == ["correct", "wrong", "correct", "wrong"]
        verdicts = ["right", "wrong", "right", "undecided"]
        assert [last[index]["answer_judge"] for index in range(4)] == [
            {"name": "scripted", "verdict": verdict} for verdict in verdicts
        ]
        settings = json.loads((tmp_path / "texts.jsonl.settings.json").read_text())
        summary = json.loads((tmp_path / "texts.jsonl.summary.json").read_text())
        assert settings["answer_judge"] == {"name": "scripted"} and summary["answer_judge"]["name"] == "scripted"
        assert (summary["num_judged_answers"], summary["num_undecided_answers"]) == (3, 1)
        # Right answers are those that the judge calls right, also where departures are reported by answer.
        assert sum(summary["outcomes_by_answer"]["right"].values()) == 2
        before, asked = out.read_bytes(), len(server.calls)
        assert run(*flags(server)) == 0 and out.read_bytes() == before
        assert len(server.calls) == asked + 2  # the one without a readable reply, twice
    assert "was written with answer_judge={" in refused(capsys, run)
    assert run("--overwrite") == 0
    assert all(line["verdict"] == "wrong" and "answer_judge" not in line for line in lines_of(out))
