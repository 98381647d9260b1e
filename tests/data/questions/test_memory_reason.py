"""Annotated questions: the rules, refusals, and sources."""

import json
import random
import threading
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from paths import QUESTIONS

from memreason_hf.data.questions.demonstrations import Demonstrations
from memreason_hf.data.questions.memory_reason import (
    FEATURES,
    MemoryReasonData,
    build_memory_reason,
    load_memory_reason,
    reference_solution,
    save_memory_reason,
)
from memreason_hf.steps import Step, StepScheme


real_data = pytest.mark.skipif(not QUESTIONS.is_dir(), reason="needs the study's files in ../shared/data")


def item(question="Is it?", answer="True", steps=("[rag]: a", "[reason]: b"), **kwargs):
    return {"question": question, "answer": answer, "cot_steps": list(steps), **kwargs}


@pytest.fixture
def folder(tmp_path):
    """A StrategyQA of a few items, each with one special case."""
    folder = tmp_path / "json"
    folder.mkdir()
    train = [
        item("Is Ötzi “old”?", "True", ["[rag]: 日本 was.", "[reason]:  It follows. "], split="train"),
        item("Question: Is it in both? ", "False"),
        item("Is nothing left?", "False", ["[rag]: ", "[reason]:", "[reason]: \n"]),
        item("Was nothing there?", True, []),
        item("Is  some left?", "True", ["[reason] and [rag]: both", "[rag]:", "[reason]: so the answer is: False."]),
        item("Is it new?", "True", ["[memory]: m\nn", "[step]: s"]),
    ]
    test = [
        item("Is it\nin both?", "False", ["[rag]:"], split="test"),
        item("Never had steps?", False, []),
        item("Is it a test?", "True", ["[reason]: The answer is hidden"]),
    ]
    # A byte order mark in one file, escapes in the other: both are valid.
    (folder / "StrategyQA_train_clean.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(train, ensure_ascii=False).encode()
    )
    (folder / "StrategyQA_test_clean.json").write_text(json.dumps(test))
    return folder


def test_the_rules(folder):
    data = build_memory_reason("strategy_qa", str(folder))
    train, test = data.dataset["train"], data.dataset["test"]
    assert train.features == test.features == FEATURES
    assert train["question"][:] == ["Is Ötzi “old”?", "Is  some left?", "Is it new?"]
    assert test["question"][:] == ["Is it in both?", "Never had steps?", "Is it a test?"]
    assert test["answer"][:] == ["False", "False", "True"]
    assert train[0]["options"] == [{"label": "True", "text": "True"}, {"label": "False", "text": "False"}]
    assert reference_solution(train[0]) == [
        Step("memory", "日本 was."),
        Step("reason", "It follows."),
        Step("answer", "The answer is: True"),
    ]
    assert reference_solution(train[1])[:2] == [Step("step", "both"), Step("reason", "so the answer is: False.")]
    assert reference_solution(train[2])[:2] == [Step("memory", "m n"), Step("step", "s")]
    assert test["steps"][:] == [[], [], [{"kind": "reason", "text": "The answer is hidden"}]]


def test_a_training_split_of_which_nothing_is_left(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"StrategyQA_{split}_clean.json").write_text(json.dumps([item("Is it?", "True")]))
    dataset = build_memory_reason("strategy_qa", str(tmp_path)).dataset
    assert len(dataset["train"]) == 0 and dataset["train"].features == dataset["test"].features == FEATURES


def test_the_report(folder):
    report = build_memory_reason("strategy_qa", str(folder)).report
    assert asdict(report.splits["train"]) == {
        "num_items": 6,
        "num_rows": 3,
        "num_steps": 6,
        "num_empty_steps": 4,
        "num_items_with_empty_steps": 2,
        "emptied_items": [2],
        "items_without_steps": [3],
        "dropped_without_steps": [2, 3],
        "dropped_in_other_split": [1],
        "num_both_kinds": 1,
        "num_inner_answers": 1,
    }
    test = report.splits["test"]
    assert (test.num_items, test.num_rows, test.emptied_items, test.items_without_steps) == (3, 3, [0], [1])
    text = report.describe()
    assert "train: 3 of 6 items, 6 steps" in text and "4 empty steps dropped, in 2 items" in text
    assert "1 items dropped: their question is also in another split" in text


@pytest.fixture
def served(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if self.path.startswith("/broken/"):
                return self.send_error(503)
            return super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder.parent)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_folder_a_file_url_and_a_server_give_the_same(folder, served):
    expected = build_memory_reason("strategy_qa", str(folder)).dataset
    for source in (folder.as_uri(), f"{served}/json", f"{served}/json/"):
        dataset = build_memory_reason("strategy_qa", source).dataset
        assert {k: v.to_dict() for k, v in dataset.items()} == {k: v.to_dict() for k, v in expected.items()}


def test_a_source_with_one_split_only(folder, served):
    (folder / "StrategyQA_train_clean.json").unlink()
    for source in (str(folder), folder.as_uri(), f"{served}/json"):
        assert list(build_memory_reason("strategy_qa", source).dataset) == ["test"]


def test_a_source_with_nothing_says_what_was_looked_for(folder, served):
    for source in (str(folder), folder.as_uri(), f"{served}/json", str(folder / "absent")):
        with pytest.raises(FileNotFoundError, match="neither truthful_qa_train_clean_CC"):
            build_memory_reason("truthful_qa", source)


def test_a_server_that_fails_is_no_missing_file(served):
    with pytest.raises(OSError, match=r"StrategyQA_train_clean.json cannot be fetched: .*503"):
        build_memory_reason("strategy_qa", f"{served}/broken")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not a JSON file"),
        ("\x1f\x8b", "is not a JSON file"),
        ("{}", "must hold a list of items"),
        ("[]", "must hold a list of items, and holds an empty list"),
        (
            json.dumps([item(), {"question": "a?", "answer": "True"}]),
            r"item 1: lacks cot_steps; it has question, answer",
        ),
        (json.dumps([item(), ["a"]]), "item 1: must be an object with question, answer, cot_steps, got a list"),
        (json.dumps([item(question=" ")]), "item 0: question=' ' must be a text"),
        (json.dumps([item(question=None)]), "item 0: question=None must be a text"),
        (json.dumps([item(answer="Maybe")]), r"item 0: answer='Maybe' must be one of the options True, False"),
        (json.dumps([item(answer=1)]), "item 0: answer=1 must be one of the options True, False"),
        (json.dumps([item(answer=["True"])]), r"item 0: answer=\['True'\] must be one of the options True"),
        (json.dumps([item(question="Is \ud83d it?")]), r"item 0: 'Is \\ud83d it\?' holds '\\ud83d', which is half"),
        (json.dumps([item(), item(steps=["[rag]: a\udc00"])]), r"item 1: .* holds '\\udc00', which is half"),
        (json.dumps([{**item(), "cot_steps": "[rag]: a"}]), "item 0: cot_steps='.*' must be a list"),
        (json.dumps([item(steps=[3])]), "item 0: the step 3 must be a text"),
        (json.dumps([item(steps=["[fact]: a"])]), r"has the unknown label \[fact\]. Labels are \[rag\], \[memory\]"),
        (json.dumps([item(steps=["[rag] and [fact]: a"])]), r"unknown label \[fact\]"),
        (json.dumps([item(steps=["[rag]: a", "b"])]), "the step 'b' has no label"),
        (json.dumps([item(split="test")]), "split='test', but the file is for the split 'train'"),
    ],
)
def test_bad_files_are_refused_with_file_and_item(folder, content, message):
    (folder / "StrategyQA_train_clean.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"StrategyQA_train_clean\.json.*" + message):
        build_memory_reason("strategy_qa", str(folder))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (item("Who? A. he. B. she.", "C"), "answer='C' must be one of the options A, B"),
        (item("Who?", "A"), "lists no options"),
        (item("Who? A. he. B. she.", "True"), "answer='True' must be one of the options A, B"),
    ],
)
def test_an_answer_outside_the_options_is_refused(tmp_path, row, message):
    (tmp_path / "truthful_qa_train_clean_CC.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=f"item 0: .*{message}"):
        build_memory_reason("truthful_qa", str(tmp_path))


def test_options_are_read(tmp_path):
    rows = [item("Question: Who? Options: A.he B.she ", "B", [], split="test")]
    (tmp_path / "commonsense_qa_test_clean_CC.json").write_text(json.dumps(rows))
    row = build_memory_reason("commonsense_qa", str(tmp_path)).dataset["test"][0]
    assert row["question"] == "Who? Options: A.he B.she"
    assert row["options"] == [{"label": "A", "text": "he"}, {"label": "B", "text": "she"}]


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"name='strategyqa' must be one of strategy_qa, .*aqua_rat"):
        build_memory_reason("strategyqa")


def test_saving_and_loading(folder, tmp_path):
    data = build_memory_reason("strategy_qa", str(folder))
    target = save_memory_reason(data, tmp_path / "new" / "data")
    assert not list((tmp_path / "new").glob(".*"))
    for dataset in (load_from_disk(target), load_memory_reason(target), load_memory_reason(folder, "strategy_qa")):
        assert {k: v.to_dict() for k, v in dataset.items()} == {k: v.to_dict() for k, v in data.dataset.items()}
        assert dataset["train"].features == FEATURES
    assert json.loads((target / "report.json").read_text())["splits"]["train"]["num_empty_steps"] == 4
    # The same command again changes nothing; another data set is refused.
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    save_memory_reason(data, target)
    assert before == {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    other = MemoryReasonData(DatasetDict({k: v.select([0]) for k, v in data.dataset.items()}), data.report)
    with pytest.raises(FileExistsError, match="already holds another data set"):
        save_memory_reason(other, target)
    save_memory_reason(data, target, overwrite=True)
    assert len(load_memory_reason(target)["train"]) == 3


def test_nothing_foreign_is_overwritten(folder, tmp_path):
    data = build_memory_reason("strategy_qa", str(folder))
    with pytest.raises(FileExistsError, match=r"holds .*\.json, which is not part of a data set of annotated"):
        save_memory_reason(data, folder, overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file"):
        save_memory_reason(data, folder / "StrategyQA_test_clean.json", overwrite=True)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("name", ["notes.txt", "validation/mine.txt", "extra/state.json"])
def test_what_stands_next_to_a_data_set_is_never_deleted(folder, tmp_path, name):
    data = build_memory_reason("strategy_qa", str(folder))
    target = save_memory_reason(data, tmp_path / "data")
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"data holds {name.partition('/')[0]}, which is not part of"):
        save_memory_reason(data, target, overwrite=True)
    assert (target / name).read_text() == "mine"


def test_folders_that_are_no_data_set(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="name the data set: strategy_qa"):
        load_memory_reason(folder)
    DatasetDict({"train": Dataset.from_dict({"question": ["a"]})}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="split train lacks the columns options, answer, steps"):
        load_memory_reason(tmp_path / "other")
    (tmp_path / "other" / "train" / "data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        load_memory_reason(tmp_path / "other")


def test_demonstrations(folder):
    train = build_memory_reason("strategy_qa", str(folder)).dataset["train"]
    draw = Demonstrations(train, 2, seed=1)
    shown = draw("Is it new?")
    assert shown == draw("Is it new?") and len(shown) == 2
    assert {question for question, _ in shown} == {"Is Ötzi “old”?", "Is  some left?"}
    assert all(solution[-1].kind == "answer" for _, solution in shown)
    assert len({str(draw(f"{i}")) for i in range(30)}) > 3
    assert len({str(Demonstrations(train, 2, seed=i)("a")) for i in range(30)}) > 3
    assert Demonstrations(train, 0)("a") == []
    for number in (3, -1):
        with pytest.raises(ValueError, match=f"num_demonstrations={number} must be between 0 and 2"):
            Demonstrations(train, number)


def test_a_question_that_is_there_twice_takes_no_place(folder):
    train = build_memory_reason("strategy_qa", str(folder)).dataset["train"]
    twice = concatenate_datasets([train, train])
    for question in twice["question"]:
        for seed in range(10):
            shown = [shown for shown, _ in Demonstrations(twice, 2, seed=seed)(question)]
            assert len(set(shown)) == len(shown) == 2 and question not in shown
    with pytest.raises(ValueError, match="must be between 0 and 2"):
        Demonstrations(twice, 3)


@real_data
def test_counts_of_the_published_strategy_qa():
    data = build_memory_reason("strategy_qa", str(QUESTIONS))
    train, test = data.report.splits["train"], data.report.splits["test"]
    assert (train.num_items, test.num_items) == (1603, 687)
    assert train.num_empty_steps + test.num_empty_steps == 101
    assert train.num_items_with_empty_steps + test.num_items_with_empty_steps == 27
    assert (len(train.emptied_items), len(test.emptied_items)) == (15, 7)
    assert test.items_without_steps == [49]
    assert train.num_both_kinds + test.num_both_kinds == 2
    assert train.dropped_in_other_split == [631]
    assert (
        (train.num_rows, test.num_rows)
        == (1603 - 15 - 1, 687)
        == (len(data.dataset["train"]), len(data.dataset["test"]))
    )
    assert all(len(steps) > 0 for steps in data.dataset["train"]["steps"])


@real_data
def test_counts_of_the_other_published_files():
    truthful = build_memory_reason("truthful_qa", str(QUESTIONS))
    commonsense = build_memory_reason("commonsense_qa", str(QUESTIONS))
    strategy = build_memory_reason("strategy_qa", str(QUESTIONS))
    assert truthful.dataset.num_rows == {"train": 632, "test": 164}
    assert commonsense.dataset.num_rows == {"test": 1221}
    reports = [split for data in (truthful, commonsense, strategy) for split in data.report.splits.values()]
    assert sum(split.num_inner_answers for split in reports) == 15
    assert {len(options) for options in commonsense.dataset["test"]["options"]} == {5}
    milne = next(row for row in truthful.dataset["train"] if "Milne" in row["question"])
    assert [option["label"] for option in milne["options"]] == ["A", "B", "C", "D"]


@real_data
def test_every_published_step_can_be_written_and_read_back():
    rng = random.Random(0)
    for name in ("strategy_qa", "truthful_qa"):
        rows = list(build_memory_reason(name, str(QUESTIONS)).dataset["train"])
        for scheme in (
            StepScheme(2, 4),
            StepScheme(0, 1),
            StepScheme(marks="words"),
            StepScheme(2, 0, layout="front"),
        ):
            for row in rng.sample(rows, 200):
                steps = reference_solution(row)
                assert scheme.parse(scheme.render(row["steps"] + [asdict(steps[-1])])) == scheme.arrange(steps)
