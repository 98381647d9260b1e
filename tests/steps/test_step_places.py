"""The places of steps in a text, compared with places that are counted while the text is written."""

import random

import pytest

from memreason_hf.steps import KINDS, NO_KIND, Step, StepScheme, StepSpan


MARKED = [StepScheme(), StepScheme(0, 1), StepScheme(3, 2), StepScheme(marks="words")]


def random_steps(rng, num_steps):
    return [Step(rng.choice(KINDS), "ab <b> c."[: rng.randint(1, 9)]) for _ in range(num_steps)]


@pytest.mark.parametrize("scheme", MARKED, ids=str)
def test_places_of_marked_and_other_lines(scheme):
    rng = random.Random(f"places {scheme}")
    for _ in range(100):
        text, expected = "", []
        for step in [*random_steps(rng, rng.randint(1, 5)), Step("answer", "so")]:
            text += rng.choice(["", "\n", " \n"])
            start = len(text)
            if rng.random() < 0.3:
                text += step.text
                expected.append(StepSpan(NO_KIND, start, start, start, len(text)))
            else:
                mark = scheme.mark(step.kind)
                text += f"{mark} {step.text}"
                expected.append(StepSpan(step.kind, start, start + len(mark), start + len(mark) + 1, len(text)))
            text += "\n"
        assert scheme.locate(text) == (expected, len(text)), text
        assert scheme.parse(text) == [Step(span.kind, text[span.text_start : span.end]) for span in expected]


@pytest.mark.parametrize("scheme", [StepScheme(layout="plan_first"), StepScheme(marks="words", layout="plan_first")])
def test_a_plan_comes_first(scheme):
    steps = [Step("memory", "a"), Step("reason", "b")]
    spans, _ = scheme.locate(scheme.render(steps))
    assert [(span.kind, span.is_plan) for span in spans] == [
        ("memory", True),
        ("reason", True),
        ("memory", False),
        ("reason", False),
    ]


def test_schemes_without_kinds():
    front = StepScheme(2, 0, layout="front")
    assert front.locate("<prefix_0><prefix_1> a\nb\n") == (
        [StepSpan(NO_KIND, 0, 20, 21, 22), StepSpan(NO_KIND, 23, 23, 23, 24)],
        25,
    )
    assert front.locate(" <prefix_0>\n") == ([], 0)
    none = StepScheme(marks="none")
    assert none.locate("a\n\n b") == ([StepSpan(NO_KIND, 0, 0, 0, 1), StepSpan(NO_KIND, 3, 3, 3, 5)], 5)


def test_where_a_cut_text_stops():
    text = "<memory_0><memory_1> a\n<reason_0>"
    assert StepScheme(0, 2).locate(text) == ([StepSpan("memory", 0, 20, 21, 22)], text.index("<reason_0>"))


def test_a_text_on_one_line():
    text = "<memory> one  <reason> two "
    spans, stop = StepScheme(0, 1).locate(text)
    assert spans == [StepSpan("memory", 0, 8, 9, 12), StepSpan("reason", 14, 22, 23, 26)]
    assert stop == len(text)
