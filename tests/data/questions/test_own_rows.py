"""The forms of a row, and bad rows, all of which are listed with their lines."""

import json
import random
import re

import pytest
from question_rows import TYPES, random_row

from memreason_hf.data.questions.own_data import QuestionDataError, load_questions, read_questions


AB = [{"label": "A", "text": "bank"}, {"label": "B", "text": "mall"}]
LISTED = "Where? Options: A. bank B. mall"


def read(row, **kwargs):
    return read_questions([row], **kwargs)[0]


@pytest.mark.parametrize(
    "options",
    [
        ["bank", "mall"],
        ["A) bank", "B) mall"],
        ["(A) bank", "(B) mall"],
        {"A": "bank", "B": "mall"},
        {"a": "bank", "b": "mall"},
        {"label": ["A", "B"], "text": ["bank", "mall"]},
        {"label": ["1", "2"], "text": ["bank", "mall"]},
        AB,
    ],
    ids=str,
)
@pytest.mark.parametrize("answer", ["B", "b", "(B)", "B.", "mall", "MALL", 1])
def test_options_and_their_answers(options, answer):
    row = read({"question": "Where?", "options": options, "answer": answer})
    assert (row["question"], row["options"], row["answer"], row["answer_type"]) == (LISTED, AB, "B", "letters")


def test_numbers_as_labels():
    row = read({"question": "Where?", "options": {"label": ["1", "2"], "text": ["bank", "mall"]}, "answer": "1"})
    assert row["answer"] == "A"


@pytest.mark.parametrize(
    "question", [LISTED, "Where? (A) bank (B) mall", "Where? A: bank, B: mall", "Where?\nA) bank\nB) mall"]
)
def test_listed_options_are_not_listed_again(question):
    assert read({"question": question, "options": AB, "answer": "A"})["question"] == " ".join(question.split("\n"))


def test_options_are_read_from_the_question():
    for answer in ("B", "(b)", "mall"):
        assert read({"question": "Where? A. bank B. mall", "answer": answer})["options"] == AB


@pytest.mark.parametrize(
    "answers, types, stored",
    [
        (["yes", "No", "NO"], "yes_no", ["Yes", "No", "No"]),
        ([True, "false"], "true_false", ["True", "False"]),
        ([12, 0.5, "1,200", "3/4", 3.0], "number", ["12", "0.5", "1,200", "3/4", "3"]),
        (["yes", 12, "Paris"], "text", ["yes", "12", "Paris"]),
        (["B", "vitamin D"], "text", ["B", "vitamin D"]),
    ],
)
def test_the_type_follows_from_all_answers(answers, types, stored):
    rows = read_questions([{"question": f"Is it {i}?", "answer": answer} for i, answer in enumerate(answers)])
    assert rows["answer"][:] == stored and set(rows["answer_type"][:]) == {types}


def test_a_type_can_be_given():
    assert read({"question": "How far?", "answer": "12 km"})["answer_type"] == "text"
    assert read({"question": "How far?", "answer": "12 km"}, answer_type="number")["answer"] == "12 km"
    assert read({"question": "Which vitamin?", "answer": "B", "answer_type": "text"})["answer_type"] == "text"
    mixed = read_questions([{"question": "a?", "answer": "yes"}, {"question": "b?", "answer": True}])
    assert mixed["answer_type"][:] == ["yes_no", "true_false"]


def test_several_accepted_answers():
    row = read(
        {"question": "Which river?", "answer": ["Nile", "the River Nile", "Nile"], "accepted_answers": ["Abay"]}
    )
    assert (row["answer"], row["accepted_answers"]) == ("Nile", ["the River Nile", "Abay"])
    row = read(
        {"q": "Which?", "answers": {"text": ["Nile", "Abay"]}}, columns={"question": "q", "answer": "answers.text"}
    )
    assert (row["answer"], row["accepted_answers"]) == ("Nile", ["Abay"])


@pytest.mark.parametrize(
    "steps",
    [
        [{"kind": "memory", "text": "Iron is heavy."}, {"kind": "reason", "text": " So it\nsinks."}],
        ["[rag]: Iron is heavy.", "[reason]: So it sinks."],
        "<memory_0><memory_1> Iron is heavy.\n<reason_0><reason_1> So it sinks.\n",
        "<rag>Iron is heavy. <reason>So it sinks.",
        ["[memory]: Iron is heavy.", "[reason]: So it sinks.", "The answer is: False"],
        "[rag]: Iron is heavy.\n[reason]: So it sinks.\nthe answer is : false",
    ],
    ids=str,
)
def test_steps(steps):
    row = read({"question": "Does iron float?", "answer": False, "steps": steps})
    assert row["steps"] == [{"kind": "memory", "text": "Iron is heavy."}, {"kind": "reason", "text": "So it sinks."}]


def test_brackets_in_a_text_are_a_part_of_it():
    steps = read({"question": "Is it?", "answer": "yes", "steps": "[1] says so.\nSo it is."})["steps"]
    assert [step["text"] for step in steps] == ["[1] says so.", "So it is."]


BAD_ROWS = {
    r"answer is missing": {"question": "x?", "answer": None},
    r"answer=' ' is blank": {"question": "x?", "answer": " "},
    r"answer=nan must be a finite": {"question": "x?", "answer": float("nan")},
    r"answer=\{.*\} must be a text or a number": {"question": "x?", "answer": {"a": 1}},
    r"holds a solution and, after ####, its answer": {"question": "x?", "answer": "He has 2.\nSo 4.\n#### 4"},
    r"after ####": {"prompt": "x?", "completion": "So 4. #### 4"},
    r"answer is an empty list": {"question": "x?", "answer": []},
    r"question=None must be a text": {"question": None, "answer": "yes"},
    r"question='Question: ' has no words": {"question": "Question: ", "answer": "yes"},
    r"answer='C' must be one of the options A, B": {"question": "x?", "options": ["a", "b"], "answer": "C"},
    r"answer=2 must be the index of an option": {"question": "x?", "options": ["a", "b"], "answer": 2},
    r"answer='D' must be one of the options A, B": {"question": "x? A. a B. b", "answer": "D"},
    r"at least two texts": {"question": "x?", "options": ["a"], "answer": "A"},
    r"none of them blank": {"question": "x?", "options": ["a", " "], "answer": "A"},
    r"labels C, A, but they must be A, B": {"question": "x?", "options": {"C": "a", "A": "b"}, "answer": "A"},
    r"a label twice": {"question": "x?", "options": {"a": "a", "A": "b"}, "answer": "A"},
    r"options='ab' must be a list": {"question": "x?", "options": "ab", "answer": "A"},
    r"options has 27 entries": {"question": "x?", "options": [f"o{i}" for i in range(27)], "answer": "A"},
    r"unknown label \[raeson\]": {"question": "x?", "answer": "yes", "steps": ["[raeson]: a"]},
    r"steps\[1\], a reason step, has no text": {
        "question": "x?",
        "answer": "yes",
        "steps": [{"kind": "memory", "text": "a"}, {"kind": "reason", "text": " "}],
    },
    r"steps\[0\] has note beside kind": {
        "question": "x?",
        "answer": "yes",
        "steps": [{"kind": "memory", "text": "a", "note": "b"}],
    },
    r"steps\[0\]=5 must be a text": {"question": "x?", "answer": "yes", "steps": [5]},
    r"the last step answers 'no', but answer='yes'": {
        "question": "x?",
        "answer": "yes",
        "steps": ["a", "The answer is: no"],
    },
    r"answer_type='word' must be one of": {"question": "x?", "answer": "yes", "answer_type": "word"},
    r"answer='maybe' must be one of the options Yes, No": {
        "question": "x?",
        "answer": "maybe",
        "answer_type": "yes_no",
    },
    r"answer_type='text' contradicts the options": {
        "question": "x?",
        "options": ["a", "b"],
        "answer": "A",
        "answer_type": "text",
    },
    r"answer_type='letters' needs options": {"question": "x?", "answer": "A", "answer_type": "letters"},
    r"half of a character": {"question": "x\ud800?", "answer": "yes"},
    r"accepted_answers=\[5\] must be a list of texts": {"question": "x?", "answer": "yes", "accepted_answers": [5]},
}


@pytest.mark.parametrize("reply", ["So. The answer is: 4", "So.\nThus the answer is: 5, no, the answer is : 4"])
def test_the_answer_of_a_reply_follows_its_last_marker(reply):
    row = read({"prompt": "x?", "completion": reply})
    assert row["answer"] == "4" and row["answer_type"] == "number" and row["steps"][0]["text"] == "So."
    assert all("4" not in step["text"] for step in row["steps"])


@pytest.mark.parametrize("message", BAD_ROWS)
def test_bad_rows(message):
    with pytest.raises(QuestionDataError, match=message):
        read(BAD_ROWS[message])


def test_letters_without_options_are_refused():
    with pytest.raises(QuestionDataError, match=r"rows 0, 1: .*looks like the letter of an option"):
        read_questions([{"question": "Which?", "answer": "B"}, {"question": "And?", "answer": "B"}])


def test_every_bad_row_is_listed_with_its_line(tmp_path):
    """Bad rows at random lines between good ones, among blank lines: exactly those lines are listed."""
    rng = random.Random()
    good = [random_row(rng, rng.choice(TYPES), index) for index in range(60)]
    faults = [row for row in BAD_ROWS.values() if "question" in row and "\ud800" not in str(row)]
    lines, bad = [], []
    for row in good:
        while rng.random() < 0.4:
            lines.append("")
        if rng.random() < 0.3:
            fault = rng.choice(faults)
            bad.append(len(lines) + 1)
            lines.append(json.dumps({**dict.fromkeys(row), **fault}))
        lines.append(json.dumps(row))
    bad.append(len(lines) + 1)
    lines.append('{"question": "cut o')
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(QuestionDataError) as refused:
        load_questions(tmp_path / "rows.jsonl")
    assert [place for _, place, _ in refused.value.problems] == [f"line {number}" for number in bad]
    first, *told = str(refused.value).splitlines()
    assert f"{len(bad)} of {len(good) + len(bad)} rows cannot be used." in first
    listed = [int(n) for line in told for n in re.match(r"  lines? ([\d, ]+):", line)[1].split(", ")]
    assert sorted(listed) == bad
    # A control: without them the file loads.
    (tmp_path / "rows.jsonl").write_text("\n".join(line for n, line in enumerate(lines, 1) if n not in bad))
    assert load_questions(tmp_path / "rows.jsonl")["train"].to_list() == good


def test_many_different_faults_are_all_listed(tmp_path):
    rows = [{"question": "x?", "options": ["a", "b"], "answer": f"answer {index}"} for index in range(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        QuestionDataError, match=r"(?s)100 of 100 rows .*lines 31, .* 99, 100: other faults$"
    ) as refused:
        load_questions(tmp_path / "rows.jsonl")
    assert len(refused.value.problems) == 100


@pytest.mark.parametrize(
    "other",
    [
        {"query": "q", "target": "yes"},
        {"prompt": "q", "completion": "yes"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]},
        {"question": "q?", "answer": "yes", "cot_steps": ["[rag]: a"]},
    ],
    ids=str,
)
def test_two_schemas_in_one_file(other):
    rows = [{"question": f"Is it {i}?", "answer": "yes", "steps": ["a"]} for i in range(5)]
    with pytest.raises(QuestionDataError, match="row 3: has another schema than most rows of the file") as refused:
        read_questions([*rows[:3], other, *rows[3:]])
    assert len(refused.value.problems) == 1


def test_optional_columns_may_be_missing_in_some_rows():
    rows = [{"question": "a?", "answer": "yes", "steps": ["x"]}, {"question": "b?", "answer": "no"}]
    assert [len(row["steps"]) for row in read_questions(rows)] == [1, 0]


def test_columns_that_are_not_used_are_named(caplog):
    read_questions([{"question": "a?", "answer": "yes", "cot": ["x"], "id": 1}])
    assert "rows: the columns cot, id are not used." in caplog.text
    caplog.clear()
    read_questions([{"question": "a?", "answer": "yes", "cot": ["x"]}], columns={"steps": "cot"})
    assert not caplog.text
    with pytest.raises(QuestionDataError, match="lacks query, which columns names for question; it has question"):
        read_questions([{"question": "a?", "answer": "yes"}], columns={"question": "query"})
