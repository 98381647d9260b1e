"""The rules of steps."""

import pytest

from memreason_hf.annotation import AnnotationProblem, StepRules
from memreason_hf.data.questions.schema import question_row
from memreason_hf.steps import Step


LETTERS = question_row("Where is money kept? Options: A. bank B. river", "A", options={"A": "bank", "B": "river"})
TRUE = question_row("Is ice lighter than water?", "True")
NUMBER = question_row("How many days has a leap year?", "366", accepted_answers=["366 days"])
TEXT = question_row("Who wrote Faust?", "Goethe", accepted_answers=["Johann Wolfgang von Goethe"])


def memory(text):
    return [Step("memory", text), Step("reason", "So it is.")]


def problem(check, *values):
    with pytest.raises(AnnotationProblem) as caught:
        check(*values)
    return str(caught.value)


def test_both_kinds_are_needed():
    rules = StepRules()
    assert problem(rules.check, [Step("memory", "a")], TRUE) == "the plan has no reason step"
    assert problem(rules.check, [Step("reason", "a")], TRUE) == "the plan has no memory step"
    rules.check(memory("a"), TRUE)


def test_the_number_of_steps_is_limited():
    steps = [Step("memory", "a")] * 3 + [Step("reason", "b")]
    StepRules(most_steps=4).check(steps, TRUE)
    assert problem(StepRules(most_steps=3).check, steps, TRUE) == "the plan has 4 steps, at most 3 are allowed"


def test_memory_first():
    mixed = [Step("memory", "a"), Step("reason", "b"), Step("memory", "c")]
    StepRules().check(mixed, TRUE)
    assert "after a reason step" in problem(StepRules(order="memory_first").check, mixed, TRUE)
    StepRules(order="memory_first").check([mixed[0], mixed[2], mixed[1]], TRUE)


@pytest.mark.parametrize(
    "row, right, wrong",
    [
        (
            LETTERS,
            ["The answer is: A", "A", "(A)", "A. bank", "bank", "**A**"],
            ["The answer is: B", "river", "C", ""],
        ),
        (TRUE, ["The answer is: True", "true.", "Answer: True"], ["The answer is: False", "no"]),
        (NUMBER, ["The answer is: 366", "366.0", "366 days"], ["The answer is: 365", "many"]),
        (TEXT, ["The answer is: Goethe", "goethe.", "Johann Wolfgang von Goethe"], ["Schiller"]),
    ],
)
def test_an_answer_of_the_plan_must_be_the_right_one(row, right, wrong):
    for text in right:
        assert StepRules().check_plan([*memory("a"), Step("answer", text)], row) == memory("a"), text
    for text in wrong:
        said = problem(StepRules().check_plan, [*memory("a"), Step("answer", text)], row)
        assert said.endswith(f"but the answer is {row['answer']!r}"), text


def test_an_answer_stands_at_the_end():
    plan = [Step("memory", "a"), Step("answer", "True"), Step("reason", "b")]
    assert problem(StepRules().check_plan, plan, TRUE) == "the plan answers before its end"


@pytest.mark.parametrize(
    "row, leaks, fine",
    [
        # The text of an option is in the question, and knowledge about it must name it.
        (
            LETTERS,
            ["The answer is A.", "The correct option is (A)", "So the answer is bank"],
            ["A bank keeps money.", "B"],
        ),
        (TRUE, ["The answer is True.", "Answer: true"], ["It is true that ice floats.", "The answer was long."]),
        (
            NUMBER,
            ["A leap year has 366 days.", "It has 366.0 days; the answer is 366"],
            ["A year has 365 days.", "3660"],
        ),
        (TEXT, ["Faust is by Goethe.", "goethe's Faust"], ["Faust is a tragedy.", "Goetheanum"]),
    ],
)
def test_memory_steps_may_be_kept_from_giving_the_answer_away(row, leaks, fine):
    rules = StepRules(keep_answer_out=True)
    for text in leaks:
        assert "gives the answer" in problem(rules.check, memory(text), row), text
        # A control: only this rule forbids it, and only for memory steps.
        StepRules().check(memory(text), row)
        rules.check([Step("memory", "a"), Step("reason", text)], row)
    for text in fine:
        rules.check(memory(text), row)


def test_an_answer_may_end_with_a_sign():
    row = question_row("Which language has classes and headers?", "C++")
    assert "gives" in problem(StepRules(keep_answer_out=True).check, memory("The answer is C++."), row)
    StepRules(keep_answer_out=True).check(memory("C has headers."), row)


def test_what_the_question_says_is_not_given_away():
    row = question_row("Which is longer, 366 days or 365 days?", "366 days", answer_type="text")
    StepRules(keep_answer_out=True).check(memory("A leap year has 366 days."), row)


def test_numbers_are_compared_without_their_commas():
    row = question_row("How many people live there?", "1,200")
    assert "gives" in problem(StepRules(keep_answer_out=True).check, memory("It has 1200 people."), row)


def test_wrong_rules_are_refused():
    for change, words in (({"order": "any"}, "order='any'"), ({"most_steps": 1}, "most_steps=1")):
        with pytest.raises(ValueError, match=words):
            StepRules(**change)
    with pytest.raises(TypeError, match="keep_answer_out"):
        StepRules(keep_answer_out="yes")
