"""Questions of one's own from a file to the numbers: trained on, evaluated and judged, or refused before training."""

import json
import random

import pytest
from datasets import Dataset
from question_rows import TYPES, random_row
from refusals import refused
from small_finetunes import ITEMS, small_finetune

from data_scripts import build_memory_reason
from memreason_hf.commands import evaluate_steps, finetune
from memreason_hf.data.questions.own_data import load_questions
from memreason_hf.data.questions.schema import write_questions
from memreason_hf.evaluation.solutions.answers import judge_row


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """evaluate copies the metrics it loads into a cache."""
    import evaluate

    load = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda *a, **k: load(*a, cache_dir=str(tmp_path / "cache"), **k))


@pytest.fixture
def rows():
    rng = random.Random()
    return [random_row(rng, kind, index) for index, kind in enumerate(TYPES * 4)]


@pytest.fixture
def recipe(tmp_path):
    """A recipe for a new model so small that it trains in seconds."""
    sizes = {"architecture": "llama", "vocab_size": 300, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    training = {
        "output_dir": str(tmp_path / "run"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "max_new_tokens": 8,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    content = {
        "data": {"name": "strategy_qa"},
        "new_model": sizes,
        "steps": {"num_prefix_tokens": 1, "num_step_tokens": 1},
        "adapter": {"mode": "full"},
        "training": training,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    return str(tmp_path / "recipe.yaml")


def test_from_a_file_to_the_numbers(rows, recipe, tmp_path, capsys):
    renamed = [{{"question": "query", "answer": "target"}.get(k, k): v for k, v in row.items()} for row in rows]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    data = ["--data", str(tmp_path / "mine.jsonl"), "--columns", "question=query,answer=target"]
    assert finetune.main([recipe, *data, "--test_fraction", "0.5", "--answer_rule", "lenient"]) == 0
    said = capsys.readouterr().out
    assert "10 of 10 training items" in said and "Its eval_acc is" in said

    file = tmp_path / "texts.jsonl"
    arguments = [str(tmp_path / "run"), *data, "--split", "train", "--max_new_tokens", "8", "--no_progress"]
    assert evaluate_steps.main([*arguments, "--output_file", str(file)]) == 0
    assert "20 items, 20 questions" in capsys.readouterr().out
    lines = sorted(map(json.loads, file.read_text().splitlines()), key=lambda line: line["index"])
    summary = json.loads((tmp_path / "texts.jsonl.summary.json").read_text())
    verdicts = [judge_row(line["text"], row, question=row["question"]) for line, row in zip(lines, rows)]
    assert [line["verdict"] for line in lines] == [("wrong", "correct")[v.is_correct] for v in verdicts]
    assert summary["num_items"] == 20 and summary["accuracy"] == sum(v.is_correct for v in verdicts) / 20
    assert summary["num_invalid_answers"] == sum(not v.is_valid for v in verdicts)
    assert [line["reference"] for line in lines] == [row["answer"] for row in rows]
    # Another rule is another run.
    lenient = ["--output_file", str(file), "--answer_rule", "lenient"]
    message = refused(capsys, evaluate_steps.main, [*arguments, *lenient])
    assert "answer_rule" in message


def test_a_test_file_of_its_own(rows, recipe, tmp_path, caplog, capsys):
    write_questions(tmp_path / "a.jsonl", rows[:10])
    write_questions(tmp_path / "b.jsonl", [*rows[10:], rows[2]])
    data = ["--data", str(tmp_path / "a.jsonl"), "--eval_data", str(tmp_path / "b.jsonl")]
    assert finetune.main([recipe, *data, "--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"]) == 0
    assert "9 of 9 training items" in capsys.readouterr().out
    assert "1 training items are left out because their question is also in another split (items 2)" in caplog.text


def test_bad_rows_are_refused_before_anything_is_trained(rows, recipe, tmp_path, capsys):
    write_questions(tmp_path / "test.jsonl", rows)
    bad = {**rows[0], "options": [], "answer_type": "yes_no", "answer": "perhaps"}
    good = (tmp_path / "test.jsonl").read_text().splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join([*good[:3], json.dumps(bad), *good[3:]]))
    (tmp_path / "train.jsonl").write_text("\n".join(good[:5]))
    data = ["--data", str(tmp_path / "train.jsonl"), "--eval_data", str(tmp_path / "test.jsonl")]
    for command in (
        lambda: finetune.main([recipe, *data]),
        lambda: evaluate_steps.main(["nowhere", "--data", str(tmp_path / "test.jsonl")]),
    ):
        message = refused(capsys, command)
        assert message == "  line 4: answer='perhaps' must be one of the options Yes, No."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "eval_split='test': the data have no such split. Choose one of train; or pass eval_path"),
        (["--test_fraction", "0.5", "--eval_data", "x"], "data.eval_path='x' and data.test_fraction=0.5 contradict"),
        (["--test_fraction", "0.5", "--eval_split", "train"], "data.test_fraction=0.5 needs another eval_split"),
        (["--columns", "question"], "columns='question' must be COLUMN=NAME"),
        (["--answer_type", "letters"], "answer_type='letters' contradicts the options Yes, No"),
        (["--data_name", "mine"], "name='mine' must be one of the study's data sets"),
    ],
)
def test_flags_that_do_not_fit(recipe, tmp_path, capsys, flags, message):
    write_questions(tmp_path / "mine.jsonl", [{"question": f"Is it {i}?", "answer": "yes"} for i in range(4)])
    told = refused(capsys, lambda: finetune.main([recipe, "--data", str(tmp_path / "mine.jsonl"), *flags]))
    assert message in told and not (tmp_path / "run").exists()


def test_answers_that_cannot_be_judged_are_refused_by_the_trainer(tmp_path):
    """Without the reader: rows that a program made itself."""
    for row in ({**ITEMS[0], "answer": "Maybe"}, {**ITEMS[0], "options": [], "answer": "Paris"}):
        with pytest.raises(ValueError, match=r"1 rows have answers that cannot be judged: rows\[1\]: "):
            small_finetune(tmp_path, test=[ITEMS[1], row])
    # A control: the same answers are accepted where they can be judged.
    typed = {"accepted_answers": [], "answer_type": "text"}
    text = {**ITEMS[0], "options": [], "answer": "Paris", **typed}
    assert small_finetune(tmp_path, test=[text]).eval_dataset[0]["answer"] == "Paris"


def test_the_script_builds_a_folder_of_ones_own_questions(rows, tmp_path, capsys):
    nested = [{**row, "answers": {"text": [row["answer"]]}} for row in rows]
    Dataset.from_list(nested).to_parquet(tmp_path / "q.parquet")
    arguments = ["--source", str(tmp_path / "q.parquet"), "--output_dir", str(tmp_path / "out")]
    columns = ["--columns", "answer=answers.text"]
    assert build_memory_reason.main([*arguments, *columns, "--test_fraction", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "train: 16 of 16 items" in said and "test: 4 of 4 items" in said
    assert "answers: 4 letters, 4 true_false, 4 yes_no, 4 number, 4 text" in said
    built = load_questions(tmp_path / "out")
    assert sorted(map(str, [*built["train"], *built["test"]])) == sorted(map(str, rows))
    assert build_memory_reason.main([*arguments, *columns, "--test_fraction", "0.2"]) == 0
    # Other rows need --overwrite, and wrong flags write nothing.
    assert "already holds another data set" in refused(capsys, lambda: build_memory_reason.main(arguments + columns))
    assert "source is not given" in refused(capsys, lambda: build_memory_reason.main(["--output_dir", "x"]))
    study = ["--name", "strategy_qa", "--answer_type", "text", "--output_dir", str(tmp_path / "new")]
    assert "answer_type='text' is for data of your own" in refused(capsys, lambda: build_memory_reason.main(study))
    assert not (tmp_path / "new").exists()
