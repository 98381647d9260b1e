"""The answer rule, against the published verdicts."""

import json
import random

import pytest
from paths import PUBLISHED
from published_texts import VERDICTS, judge_published, match_items

from memreason_hf.data.questions.options import TRUE_FALSE
from memreason_hf.evaluation.solutions.answers import (
    end_of_question,
    extract_answer,
    judge_answer,
    read_published,
)


LETTERS = {"A": "bank", "B": "I have no comment.", "C": "Mall", "D": "mall.", "F": "e"}


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (" True", "True"),
        (" true.", "True"),
        (" FALSE\nTrue", "False"),
        ("True", "True"),
        (" True, because it is false.", "True"),
        (' **"True"**', "True"),
        (" Truely", None),
        (" It is true", None),
        (" not false", None),
        (" Spain", None),
        ("", None),
        ("\nTrue", None),
        (" 1", None),
        (" True<prefix_0><prefix_1><answer_0> x", "True"),
        (" <reason> True", None),
    ],
)
def test_true_and_false(said, value):
    assert extract_answer(f"a\nThe answer is:{said}", TRUE_FALSE).value == value


@pytest.mark.parametrize(
    ("said", "value", "several"),
    [
        (" A", "A", False),
        (" a \t", "A", False),
        (" A.", "A", False),
        (" B. I have no comment.", "B", False),
        (" c) mall", "C", False),
        (" D: mall", "D", False),
        (" F, G", "F", False),
        (" A, B", "A", True),
        (" A. B.", "A", True),
        (" A, or C", "A", True),
        (" A, A", "A", False),
        (" A bank", None, False),
        (" A and B", None, False),
        (" I have no comment", None, False),
        (" The bank", None, False),
        (" bank", None, False),
        (" E", None, False),
        (" G.", None, False),
        (" (A)", None, False),
        (" AB", None, False),
        ("", None, False),
    ],
)
def test_letters(said, value, several):
    answer = extract_answer(f"a\nThe answer is:{said}\n", LETTERS)
    assert (answer.value, answer.several) == (value, several)


@pytest.mark.parametrize(
    ("said", "reference", "right"),
    [
        (" 72", "72", True),
        (" 72.", "72", True),
        (" 72.00", "72", True),
        (" $1,072.50 in all", "1072.5", True),
        (" -5", "-5", True),
        (" -$5", "-5", True),
        (" 5", "-5", False),
        (" .5", "0.5", True),
        (" 72 clips", "72", True),
        (" 720", "72", False),
        (" $18/day", "18", True),
        (" 10000000000000001", "10000000000000002", False),
    ],
)
def test_numbers(said, reference, right):
    verdict = judge_answer(f"The answer is:{said}", reference, {})
    assert verdict.is_valid and verdict.is_correct == right


@pytest.mark.parametrize("said", [" about 5", "", " x", " ,", " 5/0", " 5,2", " 5:30", " 5^2", " 5/2/2024"])
def test_what_is_no_number(said):
    assert not judge_answer(f"The answer is:{said}", "5", {}).is_valid


def test_the_last_marker_counts_in_any_case_and_needs_its_colon():
    text = "So the answer is: A.\nThe ANSWER is: C\nthe answer is D\n"
    answer = extract_answer(text, LETTERS)
    assert (answer.value, answer.text) == ("C", "C")
    assert extract_answer("The answer is C", LETTERS).text is None
    assert extract_answer("The answer is: C\nThe answer is: perhaps A", LETTERS).value is None


@pytest.mark.parametrize("mark", ["<reason_0>", " <memory>", "<rag_0><rag_1>", " <prefix_0>"])
def test_an_answer_ends_where_another_step_begins(mark):
    for text, options, value in (("B", LETTERS, "B"), ("12", {}, "12"), ("false", TRUE_FALSE, "False")):
        answer = extract_answer(f"The answer is: {text}{mark} A reason, 7.", options)
        assert (answer.value, answer.text) == (value, text)
    assert extract_answer(f"The answer is: Mall.{mark} x", {"A": "mall"}, match_option_text=True).value == "A"


def test_a_marker_in_the_question_does_not_count():
    question = "Which?  The answer is: A or B? A. bank B. mall"
    text = "Question: Which? The answer is: A\nor B? A. bank B. mall\n <reason> Nothing."
    assert extract_answer(text, LETTERS, question=question).text is None
    assert extract_answer(text, LETTERS).text is not None
    assert extract_answer(text + "\nThe answer is: B", LETTERS, question=question).value == "B"
    assert extract_answer("The answer is: B", LETTERS, question=question).value == "B"


def test_matching_the_text_of_an_option_is_a_switch():
    text = "The answer is:  i have no  COMMENT"
    assert extract_answer(text, LETTERS).value is None
    assert extract_answer(text, LETTERS, match_option_text=True).value == "B"
    # Two options with the same text, or none: no answer.
    for said in ("mall", "shop", ""):
        assert extract_answer(f"The answer is: {said}", LETTERS, match_option_text=True).value is None


def test_a_verdict_is_about_the_text_after_the_question():
    text = "Is it so that the answer is: True? Who knows."
    assert judge_answer(text, "True", TRUE_FALSE).is_correct
    assert not judge_answer(text, "True", TRUE_FALSE, question="Is it so that the answer is: True?").is_valid


def test_verdicts():
    verdict = judge_answer("The answer is: B, C", "B", LETTERS)
    assert (verdict.answer, verdict.is_correct, verdict.several, verdict.is_valid) == ("B", True, True, True)
    verdict = judge_answer("The answer is: none", "B", LETTERS)
    assert (verdict.answer, verdict.is_correct, verdict.is_valid) == (None, False, False)


@pytest.mark.parametrize(
    ("reference", "options", "message"),
    [
        ("E", LETTERS, "reference='E' must be one of the options A, B, C, D, F"),
        ("yes", TRUE_FALSE, "reference='yes' must be one of the options True, False"),
        ("many", {}, "reference='many' must be a number"),
        ("1", {"1": "a"}, "must have the labels True and False, Yes and No, or capital letters"),
    ],
)
def test_bad_references_are_refused(reference, options, message):
    with pytest.raises(ValueError, match=message):
        judge_answer("The answer is: A", reference, options)


def test_the_end_of_a_question():
    assert end_of_question("Question: a  b?\n c", "a b?") == 15
    assert end_of_question("a b? c", "Question: a\nb?") == 4
    assert end_of_question("a b", "a b?") is None
    assert end_of_question("", "a") is None


def test_matching_texts_to_items():
    questions = ["Is it?", "Question: Was it so? ", "Is   that\nall?"]
    texts = ["Question: Is that all?\n <memory> a", "Was it so? yes", "Question:Is it?"]
    assert match_items(texts, questions) == [2, 1, 0]
    with pytest.raises(ValueError, match="Text 1, 'Will it', begins with no question of the 3 items"):
        match_items(["Is it?", "Will it"], questions)
    with pytest.raises(ValueError, match=r"Text 0.*begins with the questions of the items 0, 3"):
        match_items(["Is it?"], [*questions, "Is it?"])
    with pytest.raises(ValueError, match="the questions of the items 0, 1"):
        match_items(["Is it? Or not?"], ["Is it?", "Is it? Or"])


def test_matching_shuffled_texts():
    rng = random.Random(2)
    questions = [f"What is {a} and {b}?" for a in range(20) for b in range(20)]
    order = rng.sample(range(400), 300)
    texts = [f"Question:  {questions[i].replace(' ', '  ')}\n <step> x" for i in order]
    assert match_items(texts, questions) == order


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON file"),
        ("{}", "holds a dict"),
        ('[{"result": "wrong"}]', "item 0: lacks generated_text"),
        ('[{"generated_text": "a", "result": "right"}]', "item 0: result='right' must be 'correct' or 'wrong'"),
    ],
)
def test_bad_files_of_published_texts(tmp_path, content, message):
    (tmp_path / "texts.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_published(tmp_path / "texts.json")
    (tmp_path / "texts.json").write_text(json.dumps([{"generated_text": "a", "result": "wrong"}]))
    assert read_published(tmp_path / "texts.json") == (["a"], [False])


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the authors' files in ../shared/data")
@pytest.mark.parametrize("name", VERDICTS)
def test_published_verdicts_item_by_item(name):
    rows, verdicts, published = judge_published(name)
    _, num_items, num_right, num_invalid = VERDICTS[name]
    assert [verdict.is_correct for verdict in verdicts] == published
    assert (len(verdicts), sum(published)) == (num_items, num_right)
    assert sum(not verdict.is_valid for verdict in verdicts) == num_invalid
    if name.startswith("commonsense"):
        assert len({row["question"] for row in rows}) == 781


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the authors' files in ../shared/data")
def test_matching_option_texts_changes_a_published_verdict():
    _, verdicts, published = judge_published("truthfulqa_agent_llama-2-7b-chat.json", match_option_text=True)
    assert [i for i, verdict in enumerate(verdicts) if verdict.is_correct != published[i]] == [107]
