"""Held-out test splits, shared questions, and folders built of one's own data."""

import random

import pytest
from datasets import Dataset, DatasetDict
from question_rows import random_rows

from memreason_hf.data.questions.memory_reason import load_memory_reason, save_memory_reason
from memreason_hf.data.questions.own_data import load_questions
from memreason_hf.data.questions.own_splits import build_questions, describe_answers, hold_out, leave_out_shared
from memreason_hf.data.questions.schema import FEATURES, write_questions


def as_dataset(**splits):
    return DatasetDict({name: Dataset.from_list(rows, features=FEATURES) for name, rows in splits.items()})


def test_a_test_split_is_held_out_whatever_the_order():
    rng = random.Random()
    rows = random_rows(rng, 40)
    # Some questions are asked twice, with another spelling of white space.
    rows += [{**row, "question": row["question"].replace(" ", "  ")} for row in rows[:10]]
    split = hold_out(as_dataset(train=rows), 0.3, seed=5)
    assert list(split) == ["train", "test"]
    keys = {name: {"".join(q.split()) for q in part["question"]} for name, part in split.items()}
    assert not keys["train"] & keys["test"] and len(keys["test"]) == 12 and len(keys["train"]) == 28
    assert sorted(map(str, [*split["train"], *split["test"]])) == sorted(map(str, rows))
    shuffled = hold_out(as_dataset(train=rng.sample(rows, len(rows))), 0.3, seed=5)
    assert sorted(shuffled["test"]["question"]) == sorted(split["test"]["question"])
    others = [set(hold_out(as_dataset(train=rows), 0.3, seed=s)["test"]["question"]) for s in range(6, 9)]
    assert any(other != set(split["test"]["question"]) for other in others)


@pytest.mark.parametrize(
    "splits, fraction, message",
    [
        (
            ("train", "test"),
            0.5,
            "takes the test split from 'train', but the splits are train, test",
        ),
        (("validation",), 0.5, "but the splits are validation"),
        (("train",), 0.01, "test_fraction=0.01 of 4 distinct questions leaves a split empty"),
        (("train",), 1.0, "test_fraction=1.0 must be below 1"),
        (("train",), 0, "test_fraction=0 must be above 0"),
    ],
)
def test_splits_that_cannot_be_made(splits, fraction, message):
    rows = random_rows(random.Random(), 4)
    with pytest.raises(ValueError, match=message):
        hold_out(as_dataset(**dict.fromkeys(splits, rows)), fraction)


def test_training_questions_of_another_split_are_left_out():
    rows = random_rows(random.Random(), 10)
    spaced = {**rows[3], "question": rows[3]["question"].replace(" ", "\u00a0 ")}
    kept, shared = leave_out_shared(as_dataset(train=rows, validation=[spaced], test=[rows[7]]))
    assert shared == [3, 7]
    assert kept["train"].to_list() == [row for index, row in enumerate(rows) if index not in (3, 7)]
    assert leave_out_shared(as_dataset(train=rows[:3], test=rows[3:]))[1] == []
    with pytest.raises(ValueError, match="Every training question is also in another split"):
        leave_out_shared(as_dataset(train=rows[:1], test=rows))


def test_a_folder_of_ones_own_questions(tmp_path):
    rows = random_rows(random.Random(), 20)
    write_questions(tmp_path / "mine.jsonl", [*rows, rows[0]])
    data = build_questions(tmp_path / "mine.jsonl", test_fraction=0.25, seed=1)
    folder = save_memory_reason(data, tmp_path / "built")
    for load in (load_memory_reason, load_questions):
        loaded = load(folder)
        assert {name: part.to_list() for name, part in loaded.items()} == {
            name: part.to_list() for name, part in data.dataset.items()
        }
    assert data.report.describe().startswith("mine.jsonl from mine.jsonl\ntrain: ")
    assert data.report.splits["test"].num_rows == len(data.dataset["test"]) >= 5
    counts = [int(part.split()[0]) for part in describe_answers(data.dataset).removeprefix("answers: ").split(", ")]
    assert sum(counts) == 21
    # The same again changes nothing.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    save_memory_reason(build_questions(tmp_path / "mine.jsonl", test_fraction=0.25, seed=1), folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
