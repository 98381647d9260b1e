"""The published sets of questions, from rows in the form in which they are on the Hub."""

import json
import random

import pytest
from datasets import Dataset

from memreason_hf.annotation.sources import SOURCES, load_source


LETTERS = "ABCDEFGHIJ"


def words(chance, count):
    return [
        f"{chance.choice(['red', 'old', 'big', 'wet'])} {chance.choice(['stone', 'river', 'bank'])} {n}"
        for n in range(count)
    ]


def rows_of(name, chance):
    """Rows of a set, and for each the question, the right answer's text and all options."""
    rows, truth = [], []
    for index in range(6):
        question = f"Question {chance.randrange(10**6)} of {index}?"
        if name == "strategy_qa":
            answer = chance.random() < 0.5
            rows.append({"qid": f"q{index}", "question": question, "answer": answer, "facts": "none"})
            truth.append((question, str(answer), ["True", "False"]))
            continue
        options = words(chance, 5 if name == "commonsense_qa" else chance.randint(2, 10))
        right = chance.randrange(len(options))
        letters = list(LETTERS[: len(options)])
        if name == "commonsense_qa":
            choices = {"label": letters, "text": options}
            rows.append({"id": str(index), "question": question, "choices": choices, "answerKey": letters[right]})
        elif name == "mmlu_pro":
            values = {"question_id": index, "question": question, "options": options, "cot_content": "", "src": "x"}
            rows.append({**values, "answer": letters[right], "answer_index": right, "category": "math"})
        else:
            right = 0
            targets = {"choices": options, "labels": [1] + [0] * (len(options) - 1)}
            rows.append({"question": question, "mc1_targets": targets, "mc2_targets": targets})
        truth.append((question, options[right], options))
    return rows, truth


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", SOURCES)
def test_rows_keep_their_question_options_and_answer(tmp_path, name, form):
    rows, truth = rows_of(name, random.Random())
    path = tmp_path / f"validation-00000-of-00001.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        Dataset.from_list(rows).to_parquet(path)
    dataset = load_source(name, str(path))
    assert list(dataset) == ["validation"]
    assert len(dataset["validation"]) == 6
    for row, (question, right, options) in zip(dataset["validation"], truth, strict=True):
        found = {option["label"]: option["text"] for option in row["options"]}
        assert row["question"].startswith(question) and sorted(found.values()) == sorted(options)
        assert found[row["answer"]] == right and row["steps"] == []
        assert row["answer_type"] == SOURCES[name].answer_type
        # The model sees the options in the question.
        assert name == "strategy_qa" or all(f"{label}. {text}" in row["question"] for label, text in found.items())


def test_the_right_answer_of_truthful_qa_is_not_always_the_first(tmp_path):
    chance = random.Random()
    rows = [row for _ in range(8) for row in rows_of("truthful_qa", chance)[0]]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = load_source("truthful_qa", str(path))["train"]["answer"][:]
    assert len(set(answers)) > 2
    # The order is the question's own: another reading gives the same.
    assert load_source("truthful_qa", str(path))["train"]["answer"][:] == answers


@pytest.mark.parametrize(
    "name, row, reason",
    [
        (
            "commonsense_qa",
            {"question": "a?", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": ""},
            "answer",
        ),
        ("commonsense_qa", {"question": "a?"}, "lacks 'choices'; it has question"),
        ("mmlu_pro", {"question": "a?", "options": ["x", "y"], "answer": "F"}, "must be one of the options"),
        (
            "truthful_qa",
            {"question": "a?", "mc1_targets": {"choices": ["x", "y"], "labels": [1, 1]}},
            "2 right answers",
        ),
        ("strategy_qa", {"question": "a?", "answer": "perhaps"}, "must be one of the options"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, name, row, reason):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(
        ValueError, match=rf"source='{name}': 1 of 1 rows of split test cannot be used: .*line 1: .*{reason}"
    ):
        load_source(name, str(path))


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="source='squad' must be one of strategy_qa"):
        load_source("squad")
