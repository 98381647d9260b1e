"""Question data of one's own: the same rows from every source, and what is refused."""

import io
import json
import random
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from local_hub import hub_fixture  # noqa: F401  (a fixture)
from paths import QUESTIONS, ROOT
from question_rows import TYPES, random_row, random_rows

from memreason_hf.data.questions import own_data
from memreason_hf.data.questions.memory_reason import (
    MemoryReasonData,
    MemoryReasonReport,
    SplitReport,
    build_memory_reason,
    load_memory_reason,
    save_memory_reason,
)
from memreason_hf.data.questions.own_data import QuestionDataError, load_questions, read_columns, read_questions
from memreason_hf.data.questions.schema import FEATURES, question_line, write_questions
from memreason_hf.evaluation.solutions.answers import judge_row


FROM_THE_HUB = """
import sys

from memreason_hf.data.questions.own_data import load_questions
from memreason_hf.data.questions.schema import write_questions

loaded = load_questions("user/questions")
assert list(loaded) == ["test"]
write_questions(sys.argv[1], loaded["test"])
try:
    load_questions("user/missing")
except OSError as error:
    assert "user/missing is no file or folder here, and cannot be loaded from the Hub: " in str(error), error
else:
    raise AssertionError
"""


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rows():
    """Random rows of all types. Number and text answers without a type would be texts together."""
    rng = random.Random()
    return [random_row(rng, kind, index) for index, kind in enumerate(TYPES * 3)]


def test_every_source_gives_the_same_rows(rows, tmp_path):
    dataset = Dataset.from_list(rows, features=FEATURES)
    write_lines(tmp_path / "lines.jsonl", rows)
    write_lines(tmp_path / "lines_called.json", rows)
    (tmp_path / "marked.ndjson").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "lines.jsonl").read_bytes() + b"\n \n")
    (tmp_path / "list.json").write_text(json.dumps(rows))
    dataset.to_parquet(tmp_path / "table.parquet")
    dataset.save_to_disk(tmp_path / "one_split")
    DatasetDict({"train": dataset}).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    half = len(rows) // 2
    write_lines(tmp_path / "folder" / "train-00000-of-00002.jsonl", rows[:half])
    write_lines(tmp_path / "folder" / "train-00001-of-00002.jsonl", rows[half:])
    write_questions(tmp_path / "written.jsonl", rows)
    sources = ["lines.jsonl", "lines_called.json", "marked.ndjson", "list.json", "table.parquet", "one_split"]
    for name in (*sources, "splits", "folder", "written.jsonl"):
        loaded = load_questions(tmp_path / name)
        assert list(loaded) == ["train"] and loaded["train"].features == FEATURES, name
        assert loaded["train"].to_list() == rows, name
    assert load_questions(f"file://{tmp_path / 'lines.jsonl'}")["train"].to_list() == rows
    # A control: another row is noticed.
    write_lines(tmp_path / "lines.jsonl", [{**rows[0], "question": "Other?"}, *rows[1:]])
    assert load_questions(tmp_path / "lines.jsonl")["train"].to_list() != rows


def test_lines_can_be_appended_one_by_one(rows, tmp_path):
    path = tmp_path / "answers.jsonl"
    for row in rows:
        with open(path, "a", encoding="utf-8") as file:
            file.write(question_line(row))
    write_questions(tmp_path / "whole.jsonl", rows)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=r"whole\.jsonl already exists"):
        write_questions(tmp_path / "whole.jsonl", rows)
    with pytest.raises(ValueError, match=r"rows\[1\]: answer='x' must be a number"):
        write_questions(
            tmp_path / "new.jsonl", [rows[0], {**rows[0], "options": [], "answer_type": "number", "answer": "x"}]
        )
    assert not (tmp_path / "new.jsonl").exists()


def test_splits_follow_from_names(rows, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, part in (("train.jsonl", rows[:3]), ("dev.json", rows[3:5]), ("test_small.jsonl", rows[5:])):
        write_lines(folder / name, part)
    loaded = load_questions(folder)
    assert {split: part.to_list() for split, part in loaded.items()} == {
        "validation": rows[3:5],
        "test": rows[5:],
        "train": rows[:3],
    }
    assert list(load_questions(folder, split="test")) == ["test"]
    assert list(load_questions(folder / "test_small.jsonl")) == ["test"]
    with pytest.raises(ValueError, match=r"split='dev' is not in .*Its splits are"):
        load_questions(folder, split="dev")
    write_lines(folder / "more.jsonl", rows)
    with pytest.raises(ValueError, match=r"the names of more\.jsonl do not begin with a split"):
        load_questions(folder)


def test_data_sets_of_the_hub(hub, rows, tmp_path):
    parquet = io.BytesIO()
    Dataset.from_list(rows, features=FEATURES).to_parquet(parquet)
    repository = hub.repositories.create("user/questions", "dataset")
    hub.repositories.put_files(repository, {"data/test-00000-of-00001.parquet": parquet.getvalue()})
    # The library reads the address of the Hub when it is imported.
    environment = {**hub.environment(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FROM_THE_HUB, str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_questions(tmp_path / "rows.jsonl")["train"].to_list() == rows


def test_folders_saved_without_the_newer_columns(tmp_path):
    rng = random.Random()
    rows = random_rows(rng, 12, ("letters", "true_false", "number"))
    old = [{name: row[name] for name in ("question", "options", "answer", "steps")} for row in rows]
    features = type(FEATURES)({name: FEATURES[name] for name in old[0]})
    DatasetDict({"test": Dataset.from_list(old, features=features)}).save_to_disk(tmp_path / "old")
    (tmp_path / "old" / "report.json").write_text(json.dumps({"name": "x", "source": "y", "splits": {}}))
    for load in (load_memory_reason, load_questions):
        loaded = load(tmp_path / "old")["test"]
        assert loaded.to_list() == [{**row, "accepted_answers": []} for row in rows]
        assert list(loaded.features) == list(FEATURES)


@pytest.mark.skipif(not QUESTIONS.is_dir(), reason="needs the authors' files in ../shared/data")
@pytest.mark.parametrize("name", ["strategy_qa", "truthful_qa", "commonsense_qa"])
def test_the_studys_rows_stay_as_they_are(name, tmp_path):
    """Read as data of one's own, not one of the study's rows changes."""
    dataset = build_memory_reason(name, str(QUESTIONS)).dataset
    for split, part in dataset.items():
        loaded = read_questions(part)
        assert loaded.to_list() == part.to_list(), split
        write_questions(tmp_path / f"{split}.jsonl", part)
    again = load_questions(tmp_path)
    assert {split: part.to_list() for split, part in again.items()} == {s: p.to_list() for s, p in dataset.items()}
    # The same call with a name that a recipe gives, and the JSON files by their name.
    assert load_questions(tmp_path, name)["test"].to_list() == dataset["test"].to_list()
    assert load_questions(QUESTIONS, name)["test"].to_list() == dataset["test"].to_list()


def test_a_name_gives_way_to_a_file_but_is_not_ignored_elsewhere(rows, tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", rows)
    assert load_questions(path, "strategy_qa")["train"].to_list() == rows
    with pytest.raises(ValueError, match="name='strategyqa' must be one of strategy_qa"):
        load_questions(path, "strategyqa")
    with pytest.raises(ValueError, match="revision='main' is for data sets on the Hub"):
        load_questions(path, revision="main")
    (tmp_path / "json").mkdir()
    item = {"question": "Is it?", "answer": "True", "cot_steps": ["[rag]: a"]}
    (tmp_path / "json" / "StrategyQA_test_clean.json").write_text(json.dumps([item]))
    with pytest.raises(ValueError, match=r"holds the study's JSON files\. With --name .* name the data set"):
        load_questions(tmp_path / "json")
    assert load_questions(tmp_path / "json", "strategy_qa")["test"]["answer"][:] == ["True"]
    with pytest.raises(ValueError, match=r"columns=.* is for other data than the study's"):
        load_questions(tmp_path / "json", "strategy_qa", columns={"question": "q"})


def test_built_folders_load_as_they_were_built(tmp_path, rows):
    data = MemoryReasonData(
        DatasetDict({"train": Dataset.from_list(rows, features=FEATURES)}),
        MemoryReasonReport("mine", "mine", {"train": SplitReport(num_items=len(rows))}),
    )
    save_memory_reason(data, tmp_path / "built")
    assert load_questions(tmp_path / "built")["train"].to_list() == rows
    assert load_from_disk(tmp_path / "built")["train"].to_list() == rows


@pytest.mark.parametrize(
    "name, content, error, message",
    [
        ("missing.jsonl", None, FileNotFoundError, "no such file or folder, and not the name of a data set"),
        ("empty.jsonl", b"\n\n", ValueError, "holds no rows"),
        ("rows.csv", b"question,answer\n", ValueError, r"rows\.csv must be a file with the suffix \.jsonl"),
        ("bad.parquet", b"PAR1 cut", ValueError, r"bad\.parquet is not a parquet file"),
        ("bad.json", b"[{", ValueError, r"bad\.json is not a JSON file"),
        ("object.json", b'{"a": 1}', ValueError, "must hold a list of objects, and holds"),
        ("latin.jsonl", b'{"question": "\xe4"}', ValueError, "is not a text in UTF-8"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        load_questions(tmp_path / name)


def test_folders_without_questions(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no question data"):
        load_questions(tmp_path)
    DatasetDict({"train": Dataset.from_dict({"text": ["a", "b"]})}).save_to_disk(tmp_path / "texts")
    with pytest.raises(
        QuestionDataError, match=r"2 of 2 rows cannot be used.\n  rows 0, 1: lacks question; it has text"
    ):
        load_questions(tmp_path / "texts")


def test_files_that_a_killed_writer_left_are_not_read(rows, tmp_path):
    write_lines(tmp_path / "train.jsonl", rows)
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "test.jsonl", rows[:2])
    expected = {split: part[:] for split, part in load_questions(tmp_path).items()}
    for name in (".train.123-0123456789ab.jsonl", "data/.test.7-0123456789ab.jsonl", ".notes.json"):
        (tmp_path / name).write_text('{"question": "Is it cut o')
    assert {split: part[:] for split, part in load_questions(tmp_path).items()} == expected
    # A control: under another name the same file is read, and refused.
    (tmp_path / ".notes.json").rename(tmp_path / "test_notes.json")
    with pytest.raises(ValueError, match=r"test_notes\.json"):
        load_questions(tmp_path)


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(own_data.logger, "warning", said.append)
    return said


def test_a_unit_that_makes_numbers_texts_is_named(tmp_path, warnings):
    answers = ["12", "1,300", "14 km", "15"]
    path = write_lines(tmp_path / "test.jsonl", [{"question": f"How far is {a}?", "answer": a} for a in answers])
    assert set(load_questions(path)["test"]["answer_type"]) == {"text"}
    (said,) = warnings
    assert "'14 km'" in said and "test.jsonl, line 3)" in said and "--answer_type number" in said
    # What the note says to do leaves the units off.
    typed = load_questions(path, answer_type="number")["test"]
    assert len(warnings) == 1 and judge_row("The answer is: 14 miles", typed[2]).is_correct
    assert not judge_row("The answer is: 15 km", typed[2]).is_correct
    # Controls: numbers alone, and texts among which there are numbers.
    for others in (["12", "3/4", "50%"], ["66", "the Nile", "Rome"], ["Rome", "12 km"]):
        write_lines(path, [{"question": f"What is {a}?", "answer": a} for a in others])
        load_questions(path)
    assert len(warnings) == 1


def test_columns_as_a_flag_spells_them():
    assert read_columns("question=query, answer = answers.text") == {"question": "query", "answer": "answers.text"}
    assert read_columns({"question": "query"}) == {"question": "query"}
    assert read_columns(None) == read_columns("") == {}
    for wrong, message in (("question", "must be COLUMN=NAME"), ("query=question", "columns='query' must be one of")):
        with pytest.raises(ValueError, match=message):
            read_columns(wrong)
