import json

import pytest
from datasets import Dataset, DatasetDict

from memreason_hf.data.questions.memory_reason import build_memory_reason
from memreason_hf.data.questions.rationales import aqua_rat_item, gsm8k_item


GSM8K = {
    "question": "Natalia sold 48 clips\nin April. How many in all?",
    "answer": "She sold 48/2 = <<48/2=24>>24 clips in May.\n\nIn all she sold 48+24 = <<48+24=72>>1,072.\n#### 1,072",
}
AQUA = {
    "question": "How old?",
    "options": ["A)21", "B)21.5", "C)None of these", "D)22 (about)", "E) 4/5"],
    "rationale": "Explanation: x = 4 hours.\nSo A. is not it\n\nANSWER: B",
    "correct": "B",
}


def test_gsm8k():
    item = gsm8k_item(GSM8K)
    assert item.question == "Natalia sold 48 clips in April. How many in all?"
    assert (item.options, item.answer) == ({}, "1072")
    texts = ["She sold 48/2 = 24 clips in May.", "In all she sold 48+24 = 1,072."]
    assert [(step.kind, step.text) for step in item.steps] == [("step", text) for text in texts]


@pytest.mark.parametrize(
    ("end", "answer"), [("#### -5", "-5"), ("#### 3.5", "3.5"), ("#### $4", "4"), ("#### 1,234,567", "1234567")]
)
def test_gsm8k_answers(end, answer):
    assert gsm8k_item({"question": "q", "answer": f"a #### b\n{end}"}).answer == answer


def test_aqua_rat():
    item = aqua_rat_item(AQUA)
    assert item.question == "How old? Options: A. 21 B. 21.5 C. None of these D. 22 (about) E. 4/5"
    assert item.options == {"A": "21", "B": "21.5", "C": "None of these", "D": "22 (about)", "E": "4/5"}
    assert item.answer == "B"
    assert [(step.kind, step.text) for step in item.steps] == [("step", "x = 4 hours."), ("step", "So A. is not it")]


@pytest.mark.parametrize(
    "line",
    ["B", "(B)", "B.", "Answer: B", "Ans: (B)", "answer is B.", "The correct option is (C).", "So the answer is D",
     "Hence, option E", "Correct answer: A", "ANSWER:E", "Option B is correct"[:8]],
)  # fmt: skip
def test_lines_that_only_name_the_option_are_no_steps(line):
    assert aqua_rat_item({**AQUA, "rationale": f"x\n{line}"}).steps[1:] == []


@pytest.mark.parametrize(
    "line", ["A train is late.", "Answer choice B is 21.5", "B = 4", "E + D = 3", "Option A fails"]
)
def test_lines_that_say_something_are_kept(line):
    assert aqua_rat_item({**AQUA, "rationale": f"x\n{line}"}).steps[1].text == line


@pytest.mark.parametrize(
    ("make", "row", "message"),
    [
        (gsm8k_item, {"question": "q"}, "lacks answer"),
        (gsm8k_item, {"question": "q", "answer": "no end"}, "must end with '####' and a number"),
        (gsm8k_item, {"question": "q", "answer": "a\n#### many"}, "'####' and a number"),
        (aqua_rat_item, {**AQUA, "correct": "F"}, "correct='F' must be one of the options A, B, C, D, E"),
        (aqua_rat_item, {**AQUA, "options": ["21", "22"]}, "must all begin with a letter"),
        (aqua_rat_item, {"question": "q", "options": ["A)1"]}, "lacks rationale, correct"),
        (gsm8k_item, {"question": "q", "answer": 72}, "answer=72 must be a text"),
        (aqua_rat_item, {**AQUA, "options": "A)1"}, r"options='A\)1' must be a list of texts"),
        (aqua_rat_item, {**AQUA, "options": [1, 2]}, r"options=\[1, 2\] must be a list of texts"),
        (aqua_rat_item, {**AQUA, "correct": ["A"]}, r"correct=\['A'\] must be a text"),
    ],
)
def test_bad_rows_are_refused(make, row, message):
    with pytest.raises(ValueError, match=message):
        make(row)


def test_a_saved_data_set_and_json_lines(tmp_path):
    rows = [GSM8K, {"question": "1?", "answer": "#### 1"}, {"question": "2?", "answer": "b\n#### 2"}]
    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[1:2])}).save_to_disk(
        tmp_path / "arrow"
    )
    (tmp_path / "lines").mkdir()
    for split, part in {"train": rows, "test": rows[1:2]}.items():
        (tmp_path / "lines" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for source in (tmp_path / "arrow", tmp_path / "lines"):
        data = build_memory_reason("gsm8k", str(source), cache_dir=str(tmp_path / "cache"))
        assert data.dataset["train"]["answer"][:] == ["1072", "2"]
        # Without steps and in both splits: dropped from training, but not from the test.
        assert data.report.splits["train"].dropped_without_steps == [1]
        assert data.dataset["test"]["question"][:] == ["1?"]
        assert data.dataset["test"]["options"][:] == [[]]


def test_bad_rows_are_named(tmp_path):
    DatasetDict({"train": Dataset.from_list([AQUA, {**AQUA, "correct": "Z"}])}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=r"train, item 1: correct='Z'"):
        build_memory_reason("aqua_rat", str(tmp_path))


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(OSError, match="cannot be loaded"):
        build_memory_reason("gsm8k", str(tmp_path / "absent"), cache_dir=str(tmp_path))
