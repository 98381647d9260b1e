"""The lenient answer rule, and answers of every type by both rules."""

import random

import pytest
from paths import PUBLISHED
from published_texts import VERDICTS, judge_published
from question_rows import TYPES, random_row

from memreason_hf.data.questions.options import TRUE_FALSE, YES_NO, options_by_label
from memreason_hf.evaluation.solutions.answers import check_answers, extract_answer, judge_answer, judge_row
from memreason_hf.steps import StepScheme


AB = {"A": "a bank", "B": "the mall", "C": "I have no comment."}


@pytest.mark.parametrize(
    "text, value",
    [
        ("The answer is: (B)", "B"),
        ("The answer is: **B**", "B"),
        ("The answer is **(B)**.", "B"),
        ("The answer is\n\n**B) the mall**", "B"),
        ("**Answer:** B", "B"),
        ("Final answer: [b]", "B"),
        ("The correct answer would be option B.", "B"),
        ("The answer to the question is: `B`", "B"),
        (r"So it is $\boxed{B}$.", "B"),
        (r"\boxed{\text{(B) the mall}}", "B"),
        (r"Answer: \boxed{\textbf{B}}", "B"),
        ("#### B", "B"),
        ("Answer: B the mall", "B"),
        ("Answer: the mall", "B"),
        ("Answer: “the mall”", None),
        ("The answer is: the second one, (B)", "B"),
        ("The answer is: A bank", "A"),
        ("The answer is: A mall", None),
        ("The answer is: A a bank", "A"),
        ("The answer is: I think so", None),
        ("The answer is: (A) or (B)", "A"),
        ("The answer is not known.", None),
        ("B", None),
        ("It may be (B).", None),
        ("The answer is: (D)", None),
        ("Answer: A\nWait.\nAnswer: B", "B"),
        ("The answer is: (B)<prefix_0><reason_0> Answer: A", "A"),
        ("The answer is: <answer_0> (B)", None),
        ("The answer is: ", None),
        (r"\boxed{B", "B"),
    ],
)
def test_letters(text, value):
    assert extract_answer(text, AB, rule="lenient").value == value


def test_several_letters_are_noticed():
    assert extract_answer("The answer is: (A) or (B)", AB, rule="lenient").several
    assert not extract_answer("The answer is: (A) a bank", AB, rule="lenient").several


@pytest.mark.parametrize(
    "text, value",
    [
        ("Answer: **12**", "12"),
        (r"$\boxed{\frac{3}{4}}$", "3/4"),
        (r"\boxed{1{,}200}", "1200"),
        (r"The answer is $x = 12$ apples.", "12"),
        ("The answer is: about 12 apples", "12"),
        ("The answer is: 2 + 3 = 5", "5"),
        ("The answer is: 3 of 12", "3"),
        ("The answer is: between 3 and 12", None),
        ("#### -1,200.50", "-1200.50"),
        (r"The answer is: \$18", "18"),
        ("The answer is: **-$5**", "-5"),
        ("The answer is: twelve", None),
    ],
)
def test_numbers(text, value):
    assert extract_answer(text, {}, rule="lenient").value == value


@pytest.mark.parametrize(
    "text, options, value",
    [
        ("Answer: Yes.", TRUE_FALSE, "True"),
        ("Answer: **no**", TRUE_FALSE, "False"),
        ("The answer is: True", YES_NO, "Yes"),
        ("The answer is: it is false", YES_NO, "No"),
        ("The answer is: it is not true", TRUE_FALSE, None),
        ("The answer is: true or false", TRUE_FALSE, "True"),
        ("The answer is: there is no way", TRUE_FALSE, None),
        ("The answer is: (True)", TRUE_FALSE, "True"),
    ],
)
def test_two_labels(text, options, value):
    assert extract_answer(text, options, rule="lenient").value == value


@pytest.mark.parametrize("text", ["**The Nile**.", "“the Nile”", r"\boxed{\text{Nile}}", "$Nile$", "`Nile`", "(Nile)"])
def test_texts_in_markup(text):
    for said in (f"The answer is: {text}", f"Final answer: {text}"):
        assert judge_answer(said, "Nile", {}, answer_type="text", rule="lenient").is_correct, said


def test_control_the_published_rule_reads_none_of_these():
    for text in ("The answer is: (B)", "The answer is: **B**.x", "Answer: B", r"\boxed{B}", "The answer is B"):
        assert extract_answer(text, AB).value is None, text
        assert extract_answer(text, AB, rule="lenient").value == "B", text
    with pytest.raises(ValueError, match="rule='strict' must be one of published, lenient"):
        extract_answer("A", AB, rule="strict")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the authors' files in ../shared/data")
@pytest.mark.parametrize("name", VERDICTS)
def test_the_lenient_rule_agrees_wherever_the_published_one_reads_an_answer(name):
    _, published, _ = judge_published(name)
    _, lenient, _ = judge_published(name, rule="lenient")
    for strict, loose in zip(published, lenient):
        assert not strict.is_valid or (loose.answer, loose.several) == (strict.answer, strict.several)


def test_rendered_references_are_right_by_both_rules_and_wrong_ones_are_wrong():
    """Random rows of every type in random schemes: the row's own answers are right, those of other rows are not."""
    rng = random.Random()
    for index in range(150):
        row = random_row(rng, rng.choice(TYPES), index)
        scheme = rng.choice([StepScheme(), StepScheme(1, 1), StepScheme(marks="none"), StepScheme(marks="words")])
        for right in (row["answer"], *row["accepted_answers"]):
            text = scheme.render([*row["steps"], {"kind": "answer", "text": f"The answer is: {right}"}])
            for rule in ("published", "lenient"):
                verdict = judge_row(text, row, rule=rule, question=row["question"])
                assert verdict.is_correct and verdict.is_valid, (rule, text, row)
        options = options_by_label(row["options"])
        wrong = {
            "letters": [*(label for label in options if label not in (row["answer"], *row["accepted_answers"])), "Z"],
            "number": ["314159265", "x"],
            "text": [row["answer"] + " not", ""],
        }.get(row["answer_type"], [label for label in options if label != row["answer"]])
        for said in wrong:
            for rule in ("published", "lenient"):
                assert not judge_row(f"a\nThe answer is: {said}", row, rule=rule).is_correct, (said, row)


def test_rows_that_cannot_be_judged_are_refused_before():
    rows = [random_row(random.Random(), kind, index) for index, kind in enumerate(TYPES)]
    check_answers(rows)
    bad = {**rows[TYPES.index("letters")], "answer": "Z"}
    with pytest.raises(ValueError, match=r"1 rows have answers .*: rows\[5\]: answer='Z' must be one"):
        check_answers([*rows, bad])
    for row in ({"options": [], "answer": "Paris"}, {"options": [{"label": "x", "text": ""}], "answer": "x"}):
        with pytest.raises(ValueError, match="cannot be judged"):
            check_answers([row])
