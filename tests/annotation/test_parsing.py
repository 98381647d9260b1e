"""Plans and answers as models write them, in many forms, and what is no plan."""

import random

import pytest

from memreason_hf.annotation import AnnotationProblem, parse_knowledge, parse_plan
from memreason_hf.steps import Step


MARKS = {
    "memory": [
        "[memory]",
        "[Memory]:",
        "**[memory]**",
        "[rag]",
        "**Memory:**",
        "Knowledge:",
        "<memory>",
        "`[memory]`",
    ],
    "reason": ["[reason]", "[REASON]", "**[Reason]:**", "Reasoning:", "**Reason**:", "(reason)", "[reasoning]:"],
}
BULLETS = ["", "- ", "* ", "{n}. ", "{n}) ", "({n}) ", "Step {n}: ", "Step {n}. ", "  ", "\u2022 "]
WORDS = "ice 3.5 floats [on] water: 1,000 m (deep) in 1990-1995 — *so* it's 20 - 5 = 15; step 2 and".split()  # noqa: SIM905


def some_steps(chance):
    count = chance.randint(1, 6)
    return [
        # A text of symbols alone is no step.
        Step(
            chance.choice(["memory", "reason"]),
            " ".join(["It", *chance.choices(WORDS, k=chance.randint(1, 8)), "is."]),
        )
        for _ in range(count)
    ]


def test_any_usual_form_of_a_plan_is_read():
    chance = random.Random()
    for _ in range(400):
        steps = some_steps(chance)
        bullet, lines = chance.choice(BULLETS), []
        marks = {kind: chance.choice(marks) for kind, marks in MARKS.items()}
        gap = chance.choice(["\n", "\n\n", "\r\n"])
        for number, step in enumerate(steps, start=1):
            words = step.text.split()
            cut = chance.randint(1, len(words))
            # A long step goes on in the next line.
            first, rest = " ".join(words[:cut]), " ".join(words[cut:])
            if rest[:1].isdigit() or rest[:1] in "*-[(":
                first, rest = step.text, ""
            lines.append(bullet.format(n=number) + f"{marks[step.kind]} {first}" + (f"\n   {rest}" if rest else ""))
        text = gap.join(lines)
        text = chance.choice(
            [text, f"```\n{text}\n```", f"<think>\n[memory] not this\n</think>\n{text}", f"Plan:\n\n{text}\n"]
        )
        assert parse_plan(text) == steps, text


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no steps"),
        ("I would rather not.", "no steps"),
        ("[memory] a\n\nHope this helps!", "has no label: 'Hope this helps!'"),
        ("[memory] a\n2. b is c", "has no label: '2. b is c'"),
        ("[memory] a\n- b", "has no label"),
        ("[memory]\n[reason] b", r"step 1 of the plan \(memory\) has no text"),
        ("[memory] a\n[reason] ...", r"step 2 of the plan \(reason\) has no text"),
        ("[reason] and [rag]: both", "has two labels"),
        ("[reason][memory] both", "has two labels"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_reason(text, words):
    with pytest.raises(AnnotationProblem, match=words) as caught:
        parse_plan(text)
    assert "\n" not in str(caught.value)


def test_emphasis_around_a_step_or_a_label_goes_and_that_inside_stays():
    text = "**[memory] What is *ice*?**\n`[reason]` It is *so*\n[reason] **All of it.**\n[reason] _A_ and _B_"
    assert [step.text for step in parse_plan(text)] == ["What is *ice*?", "It is *so*", "All of it.", "_A_ and _B_"]


def test_an_answer_is_a_step_of_its_own():
    assert parse_plan("[reason] so\n[answer] The answer is: B")[-1] == Step("answer", "The answer is: B")


def test_answers_are_read_in_any_usual_form():
    chance = random.Random()
    for _ in range(200):
        count = chance.randint(1, 12)
        facts = [" ".join(["Fact", *chance.choices(WORDS, k=chance.randint(1, 6))]) for _ in range(count)]
        form = chance.choice(["{n}. {t}", "{n}) {t}", "({n}) {t}", "**{n}.** {t}", "{n}: {t}", "{n}.\n{t}"])
        order = chance.sample(range(count), count) if chance.random() < 0.2 else range(count)
        text = chance.choice(["\n", "\n\n"]).join(form.format(n=index + 1, t=facts[index]) for index in order)
        text = chance.choice([text, f"Sure:\n\n{text}", f"<think>1. no</think>{text}", f"{text}\n\nAsk for more."])
        assert parse_knowledge(text, count) == facts, text


def test_a_single_answer_needs_no_number():
    assert parse_knowledge("Ice is frozen\nwater.", 1) == ["Ice is frozen water."]


@pytest.mark.parametrize(
    "text, count, words",
    [
        ("1. a\n3. c", 3, "question 2 of 3 is not answered"),
        ("", 1, "question 1 is empty"),
        ("", 2, "question 1 of 2 is not answered"),
        ("1. a\n2.", 2, "question 2 is empty"),
        ("1. a\n1. b", 1, "question 1 is answered twice"),
        ("1. Unknown.", 1, "question 1 is unknown"),
        ("1. I don't know.\n2. b", 2, "question 1 is unknown"),
        ("1. N/A", 1, "question 1 is unknown"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_reason(text, count, words):
    with pytest.raises(AnnotationProblem, match=words):
        parse_knowledge(text, count)


def test_numbers_beyond_the_questions_are_text():
    assert parse_knowledge("1. In the year\n1990. It rained.\n2. b", 2) == ["In the year 1990. It rained.", "b"]
