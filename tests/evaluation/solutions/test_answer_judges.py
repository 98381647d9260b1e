"""A language model as judge of free-text answers: whom it is asked about, and what its replies change."""

import random

import evaluate
import pytest
from question_rows import random_row

from memreason_hf.evaluation.solutions.answer_judges import AnswerCase, AnswerJudge, judge_texts
from memreason_hf.evaluation.solutions.answers import judge_row
from memreason_hf.metrics import metric_path


class Scripted:
    """Replies by the words of the given answer, in a random order, and keeps all requests."""

    def __init__(self, replies, default="no"):
        self.replies, self.default, self.requests = replies, default, []

    def __call__(self, requests):
        self.requests += [messages[0]["content"] for messages in requests.values()]
        for key in random.sample(sorted(requests), len(requests)):
            said = self.replies.get(
                requests[key][0]["content"].split("Given answer: ")[1].split("\n")[0], self.default
            )
            yield key, said.pop(0) if isinstance(said, list) else said


def text_row(question="Where is the Louvre?", answer="Paris", accepted=("Lutetia",)):
    return {
        "question": question,
        "options": [],
        "answer": answer,
        "accepted_answers": list(accepted),
        "answer_type": "text",
    }


def test_only_other_words_are_asked_about_and_equal_ones_once():
    said = ["Paris.", "lutetia", "the French capital", "Rome", "the French capital", "", "the French capital"]
    texts = [*(f"x\nThe answer is: {answer}" for answer in said), "no marker"]
    rows = [*[text_row()] * 6, text_row("Who ruled?"), text_row()]
    ask = Scripted({"the French capital": " **Yes.** "})
    judge = AnswerJudge(ask)
    verdicts = judge_texts(texts, rows, answer_judge=judge)
    assert [v.is_correct for v in verdicts] == [True, True, True, False, True, False, True, False]
    assert [v.by_judge for v in verdicts] == [False, False, True, True, True, False, True, False]
    assert (judge.num_asked, judge.num_unreadable, len(ask.requests)) == (3, 0, 3)
    assert sum("Question: Who ruled?" in request for request in ask.requests) == 1
    assert all("Right answers: Paris; Lutetia" in request for request in ask.requests)
    # Asked again, the judge remembers.
    assert judge_texts(texts, rows, answer_judge=judge) == verdicts and len(ask.requests) == 3
    # A control: without a judge these answers are wrong.
    assert [v.is_correct for v in judge_texts(texts, rows)] == [True, True, *[False] * 6]


def test_other_types_are_never_asked_about():
    rng = random.Random()
    rows = [random_row(rng, kind, i) for i, kind in enumerate(["letters", "true_false", "yes_no", "number"] * 5)]
    ask = Scripted({}, default="yes")
    texts = ["The answer is: Z"] * len(rows)
    assert judge_texts(texts, rows, answer_judge=AnswerJudge(ask)) == [judge_row(t, r) for t, r in zip(texts, rows)]
    assert not ask.requests


def test_unreadable_replies_are_asked_for_again_and_are_no_verdict():
    ask = Scripted({"a": ["Well, yes and no", "yes"], "b": ["", "maybe"], "c": [None, "No!"], "d": ["yes no", "{}"]})
    judge = AnswerJudge(ask)
    cases = [AnswerCase("q?", ("x",), answer) for answer in "abcd"]
    assert judge(cases) == [True, None, False, None]
    assert (judge.num_asked, judge.num_unreadable, len(ask.requests)) == (4, 2, 8)
    (verdict,) = judge_texts(["The answer is: b"], [text_row("q?", "x", ())], answer_judge=judge)
    assert not verdict.is_correct and not verdict.by_judge and verdict.is_valid


def test_replies_that_never_come():
    judge = AnswerJudge(lambda requests: [])
    assert judge([AnswerCase("q?", ("x",), "y")]) == [None] and judge.num_unreadable == 1
    with pytest.raises(ValueError, match="ask gave a reply for 'other', which was not among the requests"):
        AnswerJudge(lambda requests: [("other", "yes")])([AnswerCase("q?", ("x",), "y")])


def test_a_prompt_of_ones_own():
    ask = Scripted({})
    prompt = "{question} {right_answers} Given answer: {answer}\nSame?"
    AnswerJudge(ask, prompt=prompt)([AnswerCase("Which {answer}?", ("x",), "{question}")])
    assert ask.requests[0] == "Which {answer}? x Given answer: {question}\nSame?"
    with pytest.raises(ValueError, match=r"lacks \{right_answers\}, which the judge must see"):
        AnswerJudge(ask, prompt="{question} {answer}")
    with pytest.raises(TypeError, match="ask=5 must be a function"):
        AnswerJudge(5)


def test_the_metric_asks_the_judge(tmp_path):
    metric = evaluate.load(metric_path("answer_accuracy"), keep_in_memory=True, cache_dir=str(tmp_path))
    arguments = {
        "predictions": ["The answer is: the French capital", "The answer is: Rome", "The answer is: paris"],
        "references": ["Paris"] * 3,
        "questions": ["Where is the Louvre?"] * 3,
        "answer_types": "text",
        "bootstrap_samples": 0,
    }
    judge = AnswerJudge(Scripted({"the French capital": "yes"}))
    results = metric.compute(**arguments, answer_judge=judge)
    assert (results["accuracy"], results["num_judged_answers"]) == (2 / 3, 2)
    results = metric.compute(**arguments)
    assert (results["accuracy"], results["num_judged_answers"]) == (1 / 3, 0)
    with pytest.raises(TypeError, match="answer_judge='me' must be a judge of answers"):
        metric.compute(**arguments, answer_judge="me")
