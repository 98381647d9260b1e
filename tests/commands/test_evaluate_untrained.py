"""memreason evaluate-steps: models that were not trained on steps, samples, several models, and saved prompts."""

import json
import shutil

import pytest
import torch
from refusals import refused
from small_tokenizers import byte_level, llama

from memreason_hf.analysis.comparison_tables import ComparisonRow, comparison_table, read_rows
from memreason_hf.commands.evaluate_steps import main
from memreason_hf.data.questions.prompts import Prompter, PromptFormat, read_prompt_format, record_prompt_format
from memreason_hf.models.configs_and_tokenizers import read_tokenizer
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """evaluate copies the metrics it loads into a cache."""
    import evaluate

    load = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda *a, **k: load(*a, cache_dir=str(tmp_path / "cache"), **k))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models without a scheme, one with, and data; none of them is changed."""
    root = tmp_path_factory.mktemp("untrained")
    for seed, name in enumerate(("plain", "other", "steps")):
        tokenizer = byte_level()
        tokenizer.chat_template = CHAT
        torch.manual_seed(seed)
        model = llama(len(tokenizer), initializer_range=0.3)
        if name == "steps":
            extend_tokenizer(tokenizer, StepScheme(1, 1), model)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    data = root / "json"
    data.mkdir()
    for split in ("test", "train"):
        rows = [
            {
                "question": f"Is the step {i} of {split} a reason?",
                "answer": ["True", "False"][i % 2],
                "cot_steps": [f"[rag]: the {i}", "[reason]: so"],
            }
            for i in range(4)
        ]
        (data / f"StrategyQA_{split}_clean.json").write_text(json.dumps(rows))
    return root


@pytest.fixture
def run(folders):
    named = ["--data", folders / "json", "--name", "strategy_qa", "--max_new_tokens", 8, "--no_progress"]
    return lambda name, *arguments: main([*map(str, [folders / name, *named, *arguments])])


def lines_of(path):
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda line: line["index"])


def test_an_untrained_model_needs_a_way_to_be_asked(run, capsys):
    message = refused(capsys, run, "plain")
    assert "has no scheme of steps" in message and "--style direct" in message and "--marks words" in message
    assert "was saved with a scheme of its own" in refused(capsys, run, "steps", "--marks", "words")
    assert "marks='words' marks the steps of --style steps" in refused(
        capsys, run, "plain", "--style", "direct", "--marks", "words"
    )
    assert "style='poem' must be one of" in refused(capsys, run, "plain", "--style", "poem")
    assert "top_p=0.5 has no effect on greedy solutions" in refused(
        capsys, run, "plain", "--style", "direct", "--top_p", 0.5
    )


def test_the_answer_alone(run, tmp_path, capsys):
    file = tmp_path / "direct.jsonl"
    assert run("plain", "--style", "direct", "--output_file", file, "--show_prompt") == 0
    text = capsys.readouterr().out
    assert "\n\nQuestion: Is the step 0 of test a reason?\nThe answer is:\n\n" in text
    assert "4 items" in text and "prompt: the answer alone, an instruction" in text
    for line in lines_of(file):
        assert line["text"].startswith(f"{'Question: ' + line['question']}\nThe answer is:")
    settings = json.loads((tmp_path / "direct.jsonl.settings.json").read_text())
    # The form of the answers comes from the data.
    assert "with True or False" in settings["prompt"]["instruction"] and settings["scheme"]["marks"] == "none"
    message = refused(capsys, run, "plain", "--style", "direct", "--output_file", file, "--instruction", "Say it.")
    assert "was written with prompt={" in message


@pytest.mark.parametrize("marks", ["words", "tokens", "none"])
def test_steps_of_an_untrained_model_in_marks(marks, run, tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    assert run("plain", "--marks", marks, "--num_demonstrations", 2, "--output_file", file) == 0
    assert "2 demonstrations (drawn at random)" in capsys.readouterr().out
    settings = json.loads((tmp_path / "texts.jsonl.settings.json").read_text())
    assert settings["scheme"]["marks"] == marks and settings["num_demonstrations"] == 2
    asked = settings["prompt"]["instruction"]
    assert {"words": "'Memory:'", "tokens": "'<prefix><memory>'", "none": "one short step on each line"}[
        marks
    ] in asked


def test_kinds_of_steps_that_the_data_name(run, tmp_path, capsys):
    row = {"question": "Is it?", "answer": "yes", "steps": [{"kind": "search", "text": "it"}]}
    data, file = tmp_path / "test.jsonl", tmp_path / "texts.jsonl"
    data.write_text(json.dumps(row) + "\n")
    own = ["--data", data, "--name", "strategy_qa", "--output_file", file]
    for arguments in (["steps"], ["plain", "--marks", "words"], ["steps", "--style", "direct"]):
        message = refused(capsys, run, *arguments, *own)
        assert "of the kinds search, but the scheme of model=" in message and "--kinds search" in message
        assert not file.exists()  # nothing was generated
    assert "kinds='search' are those of --marks" in refused(
        capsys, run, "plain", "--kinds", "search", "--style", "direct"
    )
    assert run("plain", "--marks", "words", "--kinds", "search,compute", *own) == 0
    text = capsys.readouterr().out
    assert "search  compute" in text and "  search     not measured: the test bed has no steps of this kind" in text
    settings = json.loads((tmp_path / "texts.jsonl.settings.json").read_text())
    assert "'Search:' for a step of the kind search" in settings["prompt"]["instruction"]
    assert "kind_words='search=x' are those of --marks" in refused(capsys, run, "steps", "--kind_words", "search=x")
    named = ["--kinds", "search", "--kind_words", "search=look up"]
    for marks, mark in (("words", "'Look up:'"), ("tokens", "'<prefix><search>'")):
        assert run("plain", "--marks", marks, *named, *own, "--overwrite") == 0
        settings = json.loads((tmp_path / "texts.jsonl.settings.json").read_text())
        assert mark in settings["prompt"]["instruction"] and settings["scheme"]["kind_words"] == {"search": "look up"}


def test_random_demonstrations_of_other_questions_are_another_run(run, folders, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(folders / "json", data)
    arguments = ["--data", data, "--marks", "words", "--num_demonstrations", 2]
    arguments += ["--output_file", tmp_path / "texts.jsonl"]
    assert run("plain", *arguments) == 0 and run("plain", *arguments) == 0  # the same run goes on
    train = data / "StrategyQA_train_clean.json"
    train.write_text(train.read_text().replace("the 3", "the third"))
    assert "was written with demonstrations_digest=" in refused(capsys, run, "plain", *arguments)


def test_demonstrations_of_a_file(run, tmp_path, capsys):
    file = tmp_path / "shown.jsonl"
    rows = [
        {"question": f"Q{i}?", "answer": "True", "steps": ["words", {"kind": "memory", "text": "it"}]}
        for i in range(2)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--marks", "words", "--demonstrations_file", file]
    texts = ["--output_file", tmp_path / "texts.jsonl"]
    assert run("plain", *arguments, *texts, "--num_items", 1) == 0
    assert "2 demonstrations (given ones)" in capsys.readouterr().out
    # Other demonstrations make other prompts. U+2028 is a letter of a JSON line, and not its end.
    file.write_text(file.read_text().replace('"it"', '"it\u2028is"'))
    message = refused(capsys, run, "plain", *arguments, *texts)
    assert "was written with demonstrations_digest=" in message
    file.write_text(json.dumps([{"question": "Q?", "answer": "True", "steps": [5]}]))
    assert "shown.jsonl, row 1: the step 5 must be a text" in refused(capsys, run, "plain", *arguments)
    file.write_text(json.dumps({"question": "Q?", "steps": []}) + "\n")
    assert "row 1: row=" in (message := refused(capsys, run, "plain", *arguments)) and "lacks answer" in message
    file.write_text("no")
    assert "must hold JSON lines or a JSON list" in refused(capsys, run, "plain", *arguments)
    assert "no such file" in refused(capsys, run, "plain", "--demonstrations_file", tmp_path / "x", "--marks", "none")


def test_several_samples_and_their_votes(run, tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    arguments = ["--style", "direct", "--num_samples", 3, "--temperature", 1.5, "--output_file", file]
    assert run("plain", *arguments) == 0
    text = capsys.readouterr().out
    assert "4 items, 4 questions, 12 texts" in text and "majority of 3 solutions" in text and "pass@3" in text
    before = file.read_text()
    assert len(lines_of(file)) == 12
    summary = json.loads((tmp_path / "texts.jsonl.summary.json").read_text())
    assert (summary["num_items"], summary["num_texts"]) == (4, 12)
    # The table counts items, and what a solution has is a mean over all texts.
    row = ComparisonRow.from_results("x", summary)
    assert (row.num_items, row.num_samples, row.num_tokens) == (4, 3, summary["num_tokens"] / 12)
    assert "items  samples" in comparison_table([row])
    del summary["num_texts"]  # as earlier releases wrote it
    assert ComparisonRow.from_results("x", summary | {"num_items": 12}).num_items == 4
    assert summary["num_samples"] == 3 and list(summary["pass_at"]) == ["1", "2", "3"]
    assert summary["pass_at"]["1"] == pytest.approx(summary["accuracy"])
    assert summary["majority_interval"][0] <= summary["majority_accuracy"] <= summary["majority_interval"][1]
    assert run("plain", *arguments) == 0 and file.read_text() == before
    message = refused(capsys, run, "plain", *arguments[:2], "--num_samples", 4, *arguments[4:])
    assert "was written with sampling={" in message


def test_models_and_styles_in_one_call(run, folders, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--compare", f"another one={folders / 'other'}", "--style", "direct", "chain_of_thought"]
    arguments += ["--output_dir", out, "--table", tmp_path / "mine.tex", tmp_path / "mine.txt"]
    assert run("plain", *arguments) == 0
    text = capsys.readouterr().out
    titles = [f"{folders.name}/plain, {style}" for style in ("direct", "chain_of_thought")]
    titles += [f"another one, {style}" for style in ("direct", "chain_of_thought")]
    assert all(title in text.split("95 % interval  ")[-1] for title in titles)
    rows = read_rows((out / "comparison.json").read_text())
    assert [row.name for row in rows] == titles and all(row.num_items == 4 for row in rows)
    assert r"\begin{tabular}" in (tmp_path / "mine.tex").read_text() and (tmp_path / "mine.txt").read_text() in text
    assert "| another one, direct | 4 |" in (out / "comparison.md").read_text().replace("\\_", "_")
    files = sorted(path.name for path in out.glob("*.jsonl"))
    assert files[:2] == ["another_one_chain_of_thought.jsonl", "another_one_direct.jsonl"] and len(files) == 4
    for row, name in zip(rows, ("plain", "plain", "another_one", "another_one")):
        (file,) = (path for path in out.glob("*.jsonl") if name in path.name and row.name.split(", ")[1] in path.name)
        lines = lines_of(file)
        assert row.accuracy == pytest.approx(sum(line["verdict"] == "correct" for line in lines) / 4)
        assert row.num_tokens == pytest.approx(sum(line["num_tokens"] for line in lines) / 4)
    # A run that was stopped goes on, and ends with the same files.
    before = {path: path.read_bytes() for path in out.iterdir()}
    stopped = out / "another_one_direct.jsonl"
    stopped.write_bytes(b"".join(before[stopped].splitlines(keepends=True)[:1]))
    assert run("plain", *arguments) == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    # Each model gives its own texts, and the same ones alone.
    texts = {path.name: [line["text"] for line in lines_of(path)] for path in out.glob("*direct.jsonl")}
    assert len(set(map(tuple, texts.values()))) == 2
    assert run("other", "--style", "direct", "--output_file", tmp_path / "alone.jsonl") == 0
    assert [line["text"] for line in lines_of(tmp_path / "alone.jsonl")] == texts["another_one_direct.jsonl"]


def test_places_that_do_not_fit_are_refused_before_models_are_read(run, folders, tmp_path, capsys):
    several = ["--style", "direct", "chain_of_thought"]
    message = refused(capsys, run, "plain", *several, "--output_file", tmp_path / "a.jsonl")
    assert "holds the texts of one model and style, but 2 are compared. Pass --output_dir" in message
    message = refused(capsys, run, "plain", "--output_file", tmp_path / "a", "--output_dir", tmp_path)
    assert "are both given" in message
    assert "must end with one of .txt, .md, .tex, .json" in refused(capsys, run, "plain", *several, "--table", "x.pdf")
    again = ["--style", "direct", "--compare", folders / "plain"]
    assert "two models are called" in refused(capsys, run, "plain", *again)
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_model_gets_the_prompt_that_it_was_trained_with(run, folders, tmp_path, capsys):
    """The prompt that is saved with the tokenizer is used, said, and recorded; flags change it."""
    trained = tmp_path / "trained"
    shutil.copytree(folders / "steps", trained)
    tokenizer = read_tokenizer(str(trained), "model")
    format = PromptFormat(chat_template=True, system="Be kind.", num_demonstrations=1, demonstrations_seed=5)
    record_prompt_format(tokenizer, format)
    tokenizer.save_pretrained(trained)
    file = tmp_path / "texts.jsonl"
    assert run(trained, "--output_file", file) == 0
    said = capsys.readouterr().out
    assert "prompt: chat template, system text, 1 demonstration (drawn at random), as the model was trained" in said
    settings = json.loads((tmp_path / "texts.jsonl.settings.json").read_text())
    assert settings["prompt"] == {"chat_template": True, "system": "Be kind."}
    assert (settings["num_demonstrations"], settings["seed"]) == (1, 5)
    assert "was written with prompt=" in refused(
        capsys, run, trained, "--output_file", file, "--chat_template", "false"
    )
    changed = ["--chat_template", "false", "--num_demonstrations", 0, "--output_file", tmp_path / "plain.jsonl"]
    assert run(trained, *changed) == 0 and "prompt:" not in capsys.readouterr().out
    # The control: without the saved prompt the texts are others.
    assert run("steps", "--output_file", tmp_path / "steps.jsonl") == 0
    plain, steps, own = (
        [line["text"] for line in lines_of(tmp_path / name)] for name in ("plain.jsonl", "steps.jsonl", "texts.jsonl")
    )
    assert plain == steps != own
    loaded = read_tokenizer(str(trained), "model")
    assert read_prompt_format(loaded) == format
    with pytest.raises(ValueError, match="nothing to take them from"):
        Prompter(loaded)


def test_a_chat_is_one_word(run, capsys):
    """The flag without a value, and the prompt as it reads."""
    arguments = ["--style", "direct", "--chat_template", "--system", "Be kind.", "--instruction", "", "--show_prompt"]
    assert run("plain", *arguments, "--num_items", 1) == 0
    text = capsys.readouterr().out
    assert "<system>Be kind.\n<user>Is the step 0 of test a reason?\n<bot>The answer is:\n" in text
    assert "prompt: the answer alone, chat template, system text\n" in text


def test_a_template_that_swallows_the_question_is_refused(run, tmp_path, capsys):
    template = tmp_path / "template.txt"
    template.write_text("Answer this.")
    message = refused(capsys, run, "plain", "--style", "direct", "--template", template)
    assert "swallows the question: it must have {question} exactly once" in message
    assert "Traceback" not in message and message.count("\n") <= 1
