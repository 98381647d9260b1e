"""`memreason annotate` and data_scripts/annotate_steps.py: from questions to a file that can be trained on."""

import json
import re
import sys

import pytest
import torch
from annotation_answers import Annotated, question_rows
from chat_servers import HTML, Fault, chat_server, mixed_faults
from demo_models import looped
from refusals import refused
from text_models import text_tokenizer

from data_scripts import annotate_steps
from memreason_hf.commands import annotate, evaluate_steps, finetune
from memreason_hf.data.questions.own_data import load_questions
from memreason_hf.data.questions.schema import write_questions


@pytest.fixture
def questions(tmp_path):
    rows = question_rows(12)
    write_questions(tmp_path / "questions.jsonl", rows)
    return rows


def arguments(tmp_path, server, *more, data="questions.jsonl"):
    where = ["--endpoint", server.url] if server is not None else []
    fixed = ["--llm", "m", *where, "--data", str(tmp_path / data), "--no_progress"]
    return [*fixed, "--output_file", str(tmp_path / "own" / "train.jsonl"), *more]


@pytest.mark.parametrize("command", [annotate, annotate_steps])
def test_annotates_a_file_of_questions(questions, tmp_path, capsys, command):
    with chat_server(Annotated(bad=0.2), fault=mixed_faults(0.1, ("dropped", "503", "not JSON"))) as server:
        assert command.main(arguments(tmp_path, server, "--concurrency", "3")) == 0
        assert server.most_at_once() <= 3
    out = capsys.readouterr().out
    assert "12 of 12 items annotated" in out and "own/train.jsonl" in out
    rows = load_questions(tmp_path / "own")["train"].to_list()
    assert [row["question"] for row in rows] == [row["question"] for row in questions]
    assert all({step["kind"] for step in row["steps"]} == {"memory", "reason"} for row in rows)
    settings = json.loads((tmp_path / "own" / "train.annotation" / "settings.json").read_text())
    assert settings["model"] == "m" and settings["temperature"] == 0.7
    # Another port, more tries at once: what the answers depend on has not changed.
    with chat_server() as server:
        assert command.main(arguments(tmp_path, server, "--concurrency", "1")) == 0
        assert server.calls == []


def test_annotate_train_evaluate(tmp_path, capsys):
    """The whole way of somebody with questions and no steps, at the smallest size."""
    write_questions(tmp_path / "questions.jsonl", question_rows(16))
    with chat_server(Annotated(bad=0.2)) as server:
        assert annotate.main(arguments(tmp_path, server)) == 0
    recipe = {
        "data": {"path": str(tmp_path / "own"), "test_fraction": 0.25},
        "new_model": {
            "architecture": "llama",
            "vocab_size": 300,
            "hidden_size": 16,
            "num_layers": 1,
            "num_attention_heads": 2,
        },
        "steps": {"num_prefix_tokens": 1, "num_step_tokens": 1},
        "adapter": {"mode": "full"},
        "training": {
            **{"output_dir": str(tmp_path / "run"), "max_steps": 2, "max_new_tokens": 8, "num_test": 2},
            **{"per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True},
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert finetune.main([str(tmp_path / "recipe.yaml")]) == 0
    evaluation = ["--data", str(tmp_path / "own"), "--split", "train", "--num_items", "3", "--max_new_tokens", "8"]
    capsys.readouterr()
    assert evaluate_steps.main([str(tmp_path / "run"), *evaluation, "--no_progress"]) == 0
    out = capsys.readouterr().out
    # The references are the steps that were annotated.
    rows = load_questions(tmp_path / "own")["train"].to_list()[:3]
    counts = [sum(step["kind"] == kind for row in rows for step in row["steps"]) for kind in ("memory", "reason")]
    assert re.search(rf"reference\s+{counts[0]}\s+{counts[1]}\b", out), out


def test_columns_splits_and_a_part_of_the_items(tmp_path):
    rows = [{"query": row["question"], "target": int(row["answer"])} for row in question_rows(6)]
    for split in ("train", "test"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--columns", "question=query,answer=target", "--split", "test", "--num_items", "4"]
    with chat_server(Annotated()) as server:
        assert annotate.main(arguments(tmp_path, server, *flags, data="mine")) == 0
    found = load_questions(tmp_path / "own")["train"].to_list()
    assert [row["question"] for row in found] == [row["query"] for row in rows[:4]]
    assert found[0]["answer"] == str(rows[0]["target"])


def test_a_published_set_from_a_copy_of_its_rows(tmp_path):
    options = ["red stone", "wet bank"]
    row = {"question": "What is stone 77?", "options": options, "answer": "B", "answer_index": 1, "src": "x"}
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(row) + "\n")
    with chat_server(Annotated()) as server:
        assert annotate.main(arguments(tmp_path, server, "--source", "mmlu_pro", data="mmlu.jsonl")) == 0
        assert "The right answer is: B. wet bank" in server.calls[0].prompt
    (found,) = load_questions(tmp_path / "own")["train"]
    assert found["question"] == "What is stone 77? Options: A. red stone B. wet bank" and found["answer"] == "B"


def test_prompts_of_ones_own(questions, tmp_path, capsys):
    mine = tmp_path / "mine"
    assert annotate.main(["--write_prompts", str(mine)]) == 0
    assert "plan_memory_first.txt" in capsys.readouterr().out
    (mine / "plan.txt").write_text("Denke nach! {question}")
    with chat_server(Annotated()) as server:
        flags = ["--prompts", str(mine), "--num_items", "1"]
        assert annotate.main(arguments(tmp_path, server, *flags)) == 0
    assert server.calls[0].prompt == f"Denke nach! {questions[0]['question']}"


def test_a_model_on_this_machine(questions, tmp_path, capsys):
    """A model with random weights writes no plan: the items are listed with the reasons, and the exit code says it."""
    tokenizer = text_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with torch.random.fork_rng():
        model = looped(tokenizer, 0, max_position_embeddings=2048, num_recurrences=1)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    flags = ["--num_items", "3", "--max_tries", "2", "--llm_max_tokens", "4", "--llm_device", "cpu"]
    base = [*arguments(tmp_path, None, *flags), "--llm", str(tmp_path / "model")]
    assert annotate.main(base) == 1
    assert "0 of 3 items annotated" in capsys.readouterr().out
    failed = (tmp_path / "own" / "train.annotation" / "failed.jsonl").read_text().splitlines()
    assert len(failed) == 3 and all(len(json.loads(line)["reasons"]) == 2 for line in failed)
    calls = (tmp_path / "own" / "train.annotation" / "calls.jsonl").read_text().splitlines()
    assert len({json.loads(line)["text"] for line in calls}) > 2
    # No path of this machine is in the files.
    settings = (tmp_path / "own" / "train.annotation" / "settings.json").read_text()
    assert str(tmp_path) not in settings and '"model": "model"' in settings


def test_an_endpoint_that_answers_with_a_page_is_one_line(questions, tmp_path, capsys):
    page = Fault(200, {"Content-Type": "text/html"}, HTML)
    with chat_server(lambda _: page) as server:
        line = refused(capsys, annotate.main, arguments(tmp_path, server))
    assert line.startswith(f"memreason annotate: error: llm='m' at {server.url}: the endpoint answers with a web page")
    assert "it usually ends with /v1" in line
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--llm", ""], "llm is not given. Pass --llm MODEL"),
        (["--provider", "together"], "provider='together': the endpoint"),
        (["--endpoint", "localhost:8000"], "endpoint='localhost:8000' must be an address"),
        (["--key_variable", "NO_SUCH_KEY"], "key_variable='NO_SUCH_KEY': this environment variable is not set"),
        (["--key_variable", "a b"], "key_variable='a b' must be the name of an environment variable"),
        (["--llm_device", "cpu"], "llm_device='cpu' is for a model on this machine"),
        (["--corpus_column", "body"], "corpus_column='body' is for --corpus"),
        (["--max_tries", "0"], "max_tries=0 must be at least 1"),
        (["--llm_temperature", "0"], "max_tries=20: at temperature 0"),
        (["--concurrency", "0"], "concurrency=0"),
        (["--timeout", "-1"], "timeout=-1.0"),
        (["--output_file", "rows.json"], "output_file='rows.json' must end with .jsonl"),
        (["--prompts", "nowhere"], "prompts='nowhere' must be a folder"),
        (["--num_items", "0"], "num_items=0"),
        (["--source", "mmlu_pro", "--answer_type", "text"], "answer_type='text': source='mmlu_pro' has its own"),
        (["--columns", "question"], "columns='question' must be COLUMN=NAME"),
        (["--split", "dev"], "split='dev' is not in"),
        (["--order", "reason_first"], "invalid choice: 'reason_first'"),
        (["--corpus", "nowhere"], "nowhere"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_asked(questions, tmp_path, capsys, monkeypatch, flags, words):
    if flags[0] == "--corpus":
        pytest.importorskip("bm25s", reason='needs pip install "memreason-hf[retrieval]"')
    monkeypatch.chdir(tmp_path)
    with chat_server() as server:
        line = refused(capsys, annotate.main, arguments(tmp_path, server, *flags))
    assert words in line and server.calls == []
    assert not (tmp_path / "own").exists()


def test_an_endpoint_that_is_not_there_is_one_line_also_for_few_items(questions, tmp_path, capsys):
    with chat_server() as server:
        pass
    flags = ["--num_items", "2", "--request_tries", "1"]
    line = refused(capsys, annotate.main, arguments(tmp_path, server, *flags))
    assert "nothing was answered: the connection failed" in line
    assert not (tmp_path / "own").exists()


def test_flags_of_an_endpoint_say_nothing_about_a_model_on_this_machine(questions, tmp_path, capsys):
    line = refused(capsys, annotate.main, arguments(tmp_path, None, "--concurrency", "3"))
    assert "concurrency=3 is for a model that is asked over HTTP. Pass --endpoint or --provider." in line


def test_rows_without_answers_are_refused_with_their_lines(tmp_path, capsys):
    (tmp_path / "questions.jsonl").write_text('{"question": "a?", "answer": "1"}\n{"question": "b?", "answer": ""}\n')
    with chat_server() as server:
        line = refused(capsys, annotate.main, arguments(tmp_path, server))
    assert "line 2: answer is missing" in line and server.calls == []


def test_a_missing_library_for_the_corpus_is_one_line(questions, tmp_path, capsys, monkeypatch):
    (tmp_path / "texts.txt").write_text("Ice is light.")
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with chat_server() as server:
        line = refused(capsys, annotate.main, arguments(tmp_path, server, "--corpus", str(tmp_path / "texts.txt")))
    assert 'A corpus needs bm25s. Run pip install "memreason-hf[retrieval]".' in line


def test_the_progress_bar_shows_items_tokens_and_their_rate(questions, tmp_path, capsys):
    with chat_server(Annotated()) as server:
        assert annotate.main([part for part in arguments(tmp_path, server) if part != "--no_progress"]) == 0
        tokens = sum(len(call.prompt.split()) + len(call.text.split()) for call in server.calls)
    last = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert "annotate: 100%" in last and "12/12" in last and "tokens/s=" in last and "failed=0" in last
    assert f"tokens={tokens:,}" in last
