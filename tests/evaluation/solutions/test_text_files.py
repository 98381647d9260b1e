"""Files of generated texts of any origin."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published_texts import match_items

from memreason_hf.evaluation.solutions import text_files
from memreason_hf.evaluation.solutions.generation_files import FIELDS
from memreason_hf.evaluation.solutions.text_files import (
    TextRow,
    complete_rows,
    join_questions,
    match_questions,
    read_texts,
)
from memreason_hf.steps import Step, StepScheme


def our_line(index, question="Is it?", **changes):
    line = {
        "index": index,
        "question": question,
        "text": f"Question: {question}\n<answer> The answer is: True",
        "steps": [{"kind": "answer", "text": "The answer is: True"}],
        "verdict": "correct",
        "answer": "True",
        "reference": "True",
        "is_truncated": False,
        "is_cut": False,
        "num_tokens": 3,
    }
    assert set(line) == set(FIELDS)
    return {**line, **changes}


def item(question="Is it?", answer="True", options=("True", "False"), steps=()):
    column = [{"label": label, "text": label} for label in options]
    return {"question": question, "answer": answer, "options": column, "steps": list(steps)}


def write_lines(path, items):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in items))
    return path


def test_our_own_files(tmp_path):
    lines = [our_line(3, text="old"), our_line(1, "Was it?", verdict="wrong"), our_line(3)]
    path = write_lines(tmp_path / "t.jsonl", lines)
    texts = read_texts(path)
    assert texts.is_indexed and texts.scheme is None
    # As in a resumed run, the last line of an item counts.
    assert [(row.index, row.question, row.verdict, row.reference) for row in texts.rows] == [
        (1, "Was it?", False, "True"),
        (3, "Is it?", True, "True"),
    ]
    assert texts.rows[1].text == lines[2]["text"] and texts.rows[1].steps == ()
    # Several solutions of an item are no repetitions.
    samples = write_lines(tmp_path / "s.jsonl", [our_line(0, sample=n, text=f"{n}") for n in (0, 1, 0)])
    assert sorted(row.text for row in read_texts(samples).rows) == ["0", "1"]
    settings = {"scheme": StepScheme(marks="words").to_dict()}
    (tmp_path / "t.jsonl.settings.json").write_text(json.dumps(settings))
    assert read_texts(path).scheme == StepScheme(marks="words")


def test_files_of_the_study(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps([{"generated_text": "a", "result": "wrong"}]))
    texts = read_texts(tmp_path / "p.json")
    assert texts.rows == [TextRow(0, "a", verdict=False)] and not texts.is_indexed


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "bom", "crlf"])
def test_named_columns_in_every_form(tmp_path, form):
    rng = random.Random(form)
    items = [
        {
            "out put": f"text {rng.random()}",
            "gold": rng.choice([f"{rng.randint(0, 99)}", "B"]),
            "choices": ["bank", "mall"] if form == "parquet" else rng.choice([["bank", "mall"], {"A": "x", "B": "y"}]),
            "ok": rng.choice([True, False]),
            "q": "Which?",
        }
        for _ in range(5)
    ]
    path = tmp_path / "texts.any"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(items), path)
    elif form == "json":
        path.write_text(json.dumps(items, indent=1))
    else:
        end = "\r\n" if form == "crlf" else "\n"
        path.write_text(("\ufeff" if form == "bom" else "") + "".join(json.dumps(i) + end for i in items), newline="")
    columns = {"text": "out put", "reference": "gold", "options": "choices", "verdict": "ok", "question": "q"}
    rows = read_texts(path, columns).rows
    assert [(row.index, row.text, row.reference, row.verdict) for row in rows] == [
        (index, entry["out put"], entry["gold"], entry["ok"]) for index, entry in enumerate(items)
    ]
    for row, entry in zip(rows, items):
        choices = entry["choices"]
        assert row.options == (choices if isinstance(choices, dict) else {"A": "bank", "B": "mall"})


@pytest.mark.parametrize(
    ("references", "answer_type", "labels"),
    [
        (["True", "false"], "true_false", "True False"),
        (["yes", "No"], "yes_no", "Yes No"),
        (["12", "3/4", "$1,200"], "number", ""),
        (["A", "C"], "letters", "A B C D"),
        (["12", "the Nile"], "text", ""),
        (["Yes", "12"], "text", ""),
        (["A", "type O"], "text", ""),
    ],
)
def test_types_of_answers_follow_from_all_of_them(references, answer_type, labels):
    rows = complete_rows([TextRow(i, "x", reference=reference) for i, reference in enumerate(references)])
    assert {row.answer_type for row in rows} == {answer_type}
    assert [label for label in labels.split() if label not in rows[0].options] == []
    assert bool(rows[0].options) == bool(labels)
    assert [row.reference.casefold() for row in rows] == [reference.casefold() for reference in references]


def test_options_that_the_question_lists_or_the_file_gives():
    rows = complete_rows(
        [
            TextRow(0, "Who? A. Ann. B. Bob.\nx", reference="B"),
            TextRow(1, "x", "Who? A. Ann. B. Bob.", reference="(b)"),
            TextRow(2, "x", reference="a", options={"A": "a", "B": "b"}),
            TextRow(3, "x", reference="the Nile", accepted_answers=("Nile",)),
            TextRow(4, "x", reference="12", answer_type="text"),
        ]
    )
    assert [row.reference for row in rows] == ["B", "B", "A", "the Nile", "12"]
    assert [row.answer_type for row in rows] == ["letters", "letters", "letters", "text", "text"]
    assert rows[1].options == {"A": "Ann.", "B": "Bob."}
    with pytest.raises(ValueError, match=r"text 7: the right answer is not known. Name its column \(--columns"):
        complete_rows([TextRow(7, "x")])
    with pytest.raises(ValueError, match="text 3: answer='C' must be one of the options A, B"):
        complete_rows([TextRow(3, "x", reference="C", options={"A": "a", "B": "b"})])


def test_references_that_are_no_texts(tmp_path):
    items = [{"text": "a", "reference": value} for value in (True, 7, 2.5, " B ", None)]
    rows = read_texts(write_lines(tmp_path / "t.jsonl", items)).rows
    assert [row.reference for row in rows] == ["True", "7", "2.5", "B", None]


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("", None, "holds no texts"),
        ("[]", None, "holds no texts"),
        ("[1]", None, "item 0: must be an object, got 1"),
        ('{"text": "a"}\n{"text": \n{"text": "b"}\n', None, "line 2: not JSON"),
        ('{"text": "a"}\n\n{"txt": "a"}\n', None, "line 3: lacks the column of the text. It has txt. Name it"),
        ('{"output": null}\n', {"text": "output"}, "line 1: output=null must be a text"),
        ('{"text": 5}\n', None, "line 1: text=5 must be a text"),
        ('{"text": "a"}\n', {"text": "output"}, "lacks the column 'output'. It has text"),
        ('{"text": "a"}\n', {"words": "text"}, "columns: 'words' must be one of text, question"),
        ('{"text": "a", "verdict": "perhaps"}\n', None, "verdict='perhaps' must be true or false"),
        ('{"text": "a", "options": "A"}\n', None, "options='A' must be a list of texts"),
        ('{"text": "a", "options": [1]}\n', None, "must hold texts"),
        ('{"text": "a", "reference": {}}\n', None, "reference={} must be a text, a number"),
        ('{"a": ' * 100_000, None, "nested too deeply"),
        (json.dumps(our_line(-1)) + "\n", None, "index=-1 must be at least 0"),
        ("PAR1 and more", None, "cannot be read as parquet"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path, content, columns, message):
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_texts(path, columns)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_texts(tmp_path / "nowhere")


def test_an_unfinished_last_line_is_left_out(tmp_path):
    path = write_lines(tmp_path / "t.jsonl", [our_line(0), our_line(1)])
    path.write_bytes(path.read_bytes()[:-5])
    assert [row.index for row in read_texts(path).rows] == [0]


def test_texts_are_joined_with_their_questions(tmp_path):
    items = [item("Is it?"), item("Which? A. a B. b", "B", ("A", "B"), [{"kind": "memory", "text": "b it is."}])]
    texts = ["Question: Which?  A. a B. b\n<answer> The answer is: B", "Is it? no", "Question:Which? A. a B. b"]
    path = write_lines(tmp_path / "t.jsonl", [{"text": text} for text in texts])
    rows = join_questions(read_texts(path), items)
    assert [row.reference for row in rows] == ["B", "True", "B"]
    assert rows[0].steps == (Step("memory", "b it is."),) and rows[0].options == {"A": "A", "B": "B"}
    named = write_lines(tmp_path / "n.jsonl", [{"text": "yes", "question": "Is it?"}])
    assert join_questions(read_texts(named), items)[0].question == "Is it?"
    with pytest.raises(ValueError, match=r"s\.jsonl: Text 1, 'Will', begins with no question of the 2 items"):
        join_questions(read_texts(write_lines(tmp_path / "s.jsonl", [{"text": "Is it?"}, {"text": "Will"}])), items)


def test_our_texts_are_joined_by_their_index(tmp_path):
    # The same question twice, with other answers: only the index tells them apart.
    items = [item("Is it?", "True"), item("Is it?", "False")]
    path = write_lines(tmp_path / "t.jsonl", [our_line(1, reference="False"), our_line(0)])
    assert [row.reference for row in join_questions(read_texts(path), items)] == ["True", "False"]
    for line, message in (
        (our_line(2), "item 2 is 'Is it[?]' in the file, but does not exist in the data"),
        (our_line(0, "Was it?"), "item 0 is 'Was it[?]' in the file, but is 'Is it[?]' in the data"),
        (our_line(0, reference="False"), "the right answer of item 0 is 'False' in the file, but 'True' in the data"),
    ):
        with pytest.raises(ValueError, match=message):
            join_questions(read_texts(write_lines(tmp_path / "bad.jsonl", [line])), items)


def test_items_that_are_the_same_count_as_one():
    same, other = item("Is it?"), item("Is it?", "False")
    assert match_questions(["Is it? yes", "Is it?"], [same, dict(same)]) == [0, 0]
    with pytest.raises(ValueError, match="the questions of the items 0, 1"):
        match_questions(["Is it? yes"], [same, other])
    # A text that is exactly one question has no other.
    assert match_items(["Is it? Or", "Is it?"], ["Is it?", "Is it? Or"]) == [1, 0]


def test_a_unit_that_makes_numbers_texts_is_named(monkeypatch):
    said = []
    monkeypatch.setattr(text_files.logger, "warning", said.append)
    rows = [TextRow(index, "x", reference=answer) for index, answer in enumerate(["12", "13 km", "14"], start=3)]
    assert {row.answer_type for row in complete_rows(rows)} == {"text"}
    assert len(said) == 1 and "'13 km' of text 4" in said[0] and "--answer_type number" in said[0]
    assert {row.answer_type for row in complete_rows([rows[0], rows[2]])} == {"number"} and len(said) == 1
