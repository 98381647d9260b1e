"""--answer_judge llm: a language model decides about free-text answers, in score and in evaluate-steps."""

import json

import evaluate
import pytest
from chat_servers import Fault, chat_server
from demo_models import SCHEME, save, scripted_model
from refusals import refused

from memreason_hf.analysis.solution_report import with_judged_answers
from memreason_hf.commands.evaluate_steps import main as evaluate_steps
from memreason_hf.commands.score import main as score
from memreason_hf.evaluation.solutions.answer_judges import AnswerJudge
from memreason_hf.evaluation.solutions.generation import GeneratedSolution
from memreason_hf.evaluation.solutions.votes import measure_votes
from memreason_hf.metrics import metric_path
from memreason_hf.steps import Step


QUESTION = "Where is the Louvre?"
ASK = ["--answer_judge", "llm", "--llm", "x"]
SAID = {"Paris.": "equal", "the French capital": "yes", "in Rome": "no", "a museum": "It depends.", "lost": Fault(400)}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """evaluate copies the metrics it loads into a cache."""
    load = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda *a, **k: load(*a, cache_dir=str(tmp_path / "cache"), **k))


def said(call):
    """An endpoint that knows what means Paris."""
    assert "Right answers: Paris; Lutetia\n" in call.prompt and f"Question: {QUESTION}\n" in call.prompt
    return next(reply for answer, reply in SAID.items() if f"Given answer: {answer}\n" in call.prompt)


def at(server):
    return ["--answer_judge", "llm", "--llm", "scripted", "--endpoint", server.url, "--no_progress"]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = [
        {"question": QUESTION, "text": f"{SCHEME.mark('answer')} The answer is: {answer}", "reference": "Paris"}
        for answer in SAID
    ]
    path.write_text("".join(json.dumps({**line, "accepted_answers": ["Lutetia"]}) + "\n" for line in lines))
    return str(path)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_answer_in_other_words_is_judged_once(texts, tmp_path, capsys):
    out, flags = tmp_path / "scores.jsonl", ["--answer_type", "text", "--judge", "none"]
    with chat_server(said) as server:
        assert score([texts, *flags, *at(server), "--output_file", str(out)]) == 0
        text = capsys.readouterr().out
        assert "free-text answers in other words, judged by scripted: 4, of which 2 got no verdict" in text
        assert "count as wrong" in text and "accuracy 40.0% (2 right" in text
        # Equal texts are not asked about; what cannot be read is asked once more.
        assert sorted(call.prompt.count("Paris.") for call in server.calls) == [0] * 6
        kept = lines_of(out)
        assert [line["verdict"] for line in kept] == ["correct", "correct", "wrong", "wrong", "wrong"]
        assert [line["by_judge"] for line in kept] == [False, True, True, False, False]
        summary = json.loads((tmp_path / "scores.jsonl.summary.json").read_text())
        (part,) = summary["files"].values()
        assert (summary["answer_judge"], part["num_judged_answers"], part["num_unjudged_answers"]) == (
            "scripted",
            2,
            2,
        )
        # The same command: the readable replies are in the file next to the scores.
        asked = len(server.calls)
        assert score([texts, *flags, *at(server), "--output_file", str(out), "--overwrite"]) == 0
        assert not any("the French capital" in call.prompt for call in server.calls[asked:])
        assert len(server.calls) == asked + 4 and lines_of(out) == kept
    # Another endpoint may serve another model under the same name.
    with chat_server(lambda call: "no") as server:
        assert score([texts, *flags, *at(server), "--output_file", str(out), "--overwrite"]) == 0
        assert len(server.calls) == 4
        assert [line["verdict"] for line in lines_of(out)] == ["correct", *["wrong"] * 4]
    # A control: the rule alone.
    assert score([texts, *flags, "--output_file", str(out), "--overwrite"]) == 0
    assert [line["verdict"] for line in lines_of(out)] == ["correct", *["wrong"] * 4]


def test_a_model_is_evaluated_with_a_judge_of_its_answers(tmp_path, capsys):
    steps = [Step("memory", "It is in France."), Step("answer", "The answer is: the French capital")]
    model = save(scripted_model(QUESTION, steps), tmp_path / "model")
    rows = [{"question": QUESTION, "answer": answer, "accepted_answers": []} for answer in ("Paris", "Rome")]
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [model, "--data", str(data), "--split", "train", "--output_file", str(out), "--judge", "none"]
    with chat_server(lambda call: "Yes." if "answers: Paris" in call.prompt else "no") as server:
        assert evaluate_steps([*flags, *at(server)]) == 0
        # The metrics ask again, but the judge remembers.
        assert len(server.calls) == 2
    text = capsys.readouterr().out
    assert "accuracy 50.0%" in text and "free-text answers in other words, judged by scripted: 2\n" in text
    assert "scripted was asked 2 times" in text
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["answer_judge"] == {
        "name": "scripted",
        "verdicts": [
            {"index": 0, "sample": None, "verdict": "correct"},
            {"index": 1, "sample": None, "verdict": "wrong"},
        ],
    }
    # A control: without the judge both are wrong.
    assert evaluate_steps([*flags, "--no_progress"]) == 0
    assert "accuracy 0.0%" in capsys.readouterr().out


def test_votes_and_outcomes_follow_the_judge():
    row = {"question": QUESTION, "options": [], "answer": "Paris", "accepted_answers": [], "answer_type": "text"}
    solutions = [
        GeneratedSolution(0, QUESTION, answer, [], "wrong", answer, "Paris", False, False, 3, None, sample)
        for sample, answer in enumerate(["the French capital", "in Rome", "the French capital"])
    ]
    judge = AnswerJudge(
        lambda asked: [(key, "yes" if "French" in m[0]["content"] else "no") for key, m in asked.items()]
    )
    judged = with_judged_answers(solutions, [row], judge)
    assert measure_votes(judged)["majority_accuracy"] == measure_votes(judged)["pass_at"]["3"] == 1
    assert measure_votes(solutions)["majority_accuracy"] == measure_votes(solutions)["pass_at"]["3"] == 0


def test_attribution_counts_judged_answers_as_right():
    metric = evaluate.load(metric_path("step_attribution"), keep_in_memory=True)
    texts = ["<memory> It is in France.\n<answer> The answer is: the French capital"]
    values = {"predictions": texts, "references": ["<memory> It is in France.\n<answer> The answer is: Paris"]}
    values |= {"questions": [QUESTION], "answer_types": "text"}
    for judge, answer in ((AnswerJudge(lambda asked: [(key, "yes") for key in asked]), "right"), (None, "wrong")):
        outcomes = metric.compute(**values, answer_judge=judge)["outcomes_by_answer"]
        assert {name: sum(counts.values()) for name, counts in outcomes.items()}[answer] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--answer_judge", "llm"], "llm is not given. Pass --llm MODEL"),
        (["--answer_prompt", "x"], "answer_prompt='x' is for a language model as judge. Add --answer_judge llm"),
        (["--judge_tries", "2"], "judge_tries=2 is for a language model as judge. Add --judge llm"),
        (
            ["--answer_judge", "llm", "--llm", "x", "--endpoint", "http://h/v1?key=hush"],
            "base_url holds a query ('?')",
        ),
        (
            ["--answer_judge", "llm", "--llm", "x", "--endpoint", "http://hush@h/v1"],
            "holds a name or a password ('@')",
        ),
    ],
)
def test_wrong_flags_end_with_one_line(texts, capsys, flags, message):
    said = refused(capsys, score, [texts, *flags])
    assert message in said and "hush" not in said


def test_a_prompt_must_show_the_answer_and_a_text_its_question(texts, tmp_path, capsys):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Is {answer} right?")
    with chat_server(lambda call: "yes") as server:
        message = refused(capsys, score, [texts, *at(server), "--answer_prompt", str(prompt)])
        assert "answer_prompt=" in message and "lacks {question}, {right_answers}" in message
        path = tmp_path / "t.jsonl"
        path.write_text(json.dumps({"text": "The answer is: in Rome", "reference": "Paris", "answer_type": "text"}))
        message = refused(capsys, score, [str(path), *at(server), "--answer_type", "text", "--marks", "none"])
        assert "text 0: its question is not known, and answer_judge must see it" in message
        assert not server.calls
