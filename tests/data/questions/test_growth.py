"""The time that texts take grows with their length, not with its square."""

import time
from contextlib import suppress

import pytest

from memreason_hf.data.questions.answer_types import normalized_text
from memreason_hf.data.questions.options import TRUE_FALSE, find_options
from memreason_hf.data.questions.own_data import QuestionDataError, read_questions
from memreason_hf.data.questions.text import one_line
from memreason_hf.evaluation.solutions.answers import end_of_question, extract_answer
from memreason_hf.metrics.step_inputs import read_reference, read_solution
from memreason_hf.steps import StepScheme


def read_row_of(row):
    """Reads a row, whether it can be used or not."""
    with suppress(QuestionDataError):
        read_questions([row])


SCHEME = StepScheme()
TIMES = 8
READERS = {
    "one_line": one_line,
    "find_options": find_options,
    "letters": lambda text: extract_answer(text, {"A": "x", "B": "y"}),
    "numbers": lambda text: extract_answer(text, {}),
    "true or false": lambda text: extract_answer(text, TRUE_FALSE),
    "lenient letters": lambda text: extract_answer(text, {"A": "x", "B": "y"}, rule="lenient"),
    "lenient numbers": lambda text: extract_answer(text, {}, rule="lenient"),
    "lenient true or false": lambda text: extract_answer(text, TRUE_FALSE, rule="lenient"),
    "lenient text": lambda text: extract_answer(text, {}, answer_type="text", rule="lenient"),
    "normalized": normalized_text,
    "row": lambda text: read_row_of({"question": text, "answer": "Paris", "steps": text}),
    "options": lambda text: read_row_of({"question": text, "options": ["x", text], "answer": "A"}),
    "conversation": lambda text: read_row_of({"prompt": "Is it?", "completion": f"{text}\nThe answer is: 5"}),
    "question": lambda text: end_of_question(text, text[:100]),
    "steps": SCHEME.parse,
    "solution": lambda text: read_solution(text, SCHEME, None),
    "reference": lambda text: read_reference(text, SCHEME),
}
SHAPES = {
    "blanks": lambda n: "a" + " " * n + "b",
    "blank lines": lambda n: "a" + "\n " * (n // 2) + "b",
    "labels": lambda n: "A. x " * (n // 5),
    "alphabet": lambda n: " ".join(f"{chr(65 + i % 26)}. x" for i in range(n // 5)),
    "digits": lambda n: "1," * (n // 2),
    "signs": lambda n: "the answer is: " + "- $" * (n // 3),
    "answers": lambda n: "The answer is: " * (n // 15),
    "marks": lambda n: "<memory_0>" * (n // 10),
    "open marks": lambda n: "<memory_0" * (n // 9),
    "markers": lambda n: "Options: Question: " * (n // 19),
    "brackets": lambda n: "[rag] (" * (n // 7),
    "boxes": lambda n: r"\boxed{" * (n // 7),
    "one box": lambda n: r"\boxed{" + "{" * n,
    "stars": lambda n: "Answer: " + "*" * n + "B" + "*" * n,
    "parentheses": lambda n: "answer is " + "(" * (n // 2) + ")" * (n // 2),
    "fractions": lambda n: "answer is: " + r"\frac{1}{" * (n // 9),
    "slashes": lambda n: "answer is: " + "1/" * (n // 2),
    "equals": lambda n: "answer is: " + "x = " * (n // 4),
}


def seconds(read, text):
    """The shortest of several runs, in the processor's time, which other programs hardly change."""
    shortest = float("inf")
    for _ in range(3):
        start = time.process_time()
        read(text)
        shortest = min(shortest, time.process_time() - start)
    return shortest


def growth(read, shape, length=4000):
    """How many times longer a text of `TIMES` times the length takes: 8 if linear, 64 if quadratic."""
    return seconds(read, shape(TIMES * length)) / max(seconds(read, shape(length)), 1e-4)


@pytest.mark.parametrize("reader", READERS)
def test_reading_grows_with_the_length(reader):
    ratios = {name: growth(READERS[reader], shape) for name, shape in SHAPES.items()}
    slow = {name for name, ratio in ratios.items() if ratio > 3 * TIMES}
    # Once more, because a machine may have been busy.
    slow = {name: growth(READERS[reader], SHAPES[name]) for name in slow}
    assert all(ratio <= 3 * TIMES for ratio in slow.values()), slow


def test_control_a_quadratic_reader_is_noticed():
    def quadratic(text):
        return sum(text.find("never", place) < 0 for place in range(0, len(text), 2))

    assert growth(quadratic, lambda n: "a" * n) > 3 * TIMES
