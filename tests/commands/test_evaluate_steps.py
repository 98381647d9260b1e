"""memreason evaluate-steps as a user runs it, on a small model made on the spot."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from chat_servers import chat_server
from paths import QUESTIONS, ROOT
from refusals import refused
from safetensors.torch import load_file, save_file
from small_adapters import adapted, as_if_trained, save_base
from small_tokenizers import byte_level, llama, recurrent

from memreason_hf.adapters.modes import save_adapter
from memreason_hf.commands.evaluate_steps import main, make_parser
from memreason_hf.data.questions.memory_reason import load_memory_reason
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.locks import locked
from memreason_hf.steps import StepScheme
from memreason_hf.steps.attention import set_step_attention
from memreason_hf.steps.tokenization import extend_tokenizer
from modeling_recurrent import RecurrentDepthForCausalLM


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """evaluate copies the metrics it loads into a cache."""
    import evaluate

    load = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda *a, **k: load(*a, cache_dir=str(tmp_path / "cache"), **k))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "json"
    folder.mkdir()
    rows = [
        {
            "question": f"Is the step {i} a reason?",
            "answer": ["True", "False"][i % 2],
            "cot_steps": [f"[rag]: the {i}"],
        }
        for i in range(5)
    ]
    (folder / "StrategyQA_test_clean.json").write_text(json.dumps(rows))
    train = [{**row, "question": f"{row['question']} Or not?"} for row in rows]
    (folder / "StrategyQA_train_clean.json").write_text(json.dumps(train))
    return folder


def save_model(folder, make=llama, scheme=None):
    tokenizer = byte_level()
    torch.manual_seed(0)
    model = make(len(tokenizer))
    extend_tokenizer(tokenizer, scheme or StepScheme(1, 2), model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "model")


def run(*arguments):
    return main([*map(str, arguments), "--no_progress"])


def refusal(capsys, *arguments):
    return refused(capsys, run, *arguments)


def test_one_process_at_a_time_adds_to_a_file(model, data, tmp_path, capsys):
    file = tmp_path / "out" / "texts.jsonl"
    arguments = [model, "--data", data, "--name", "strategy_qa", "--output_file", file, "--max_new_tokens", 6]
    taken, done = threading.Event(), threading.Event()

    def hold():
        with locked(file):
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        assert "texts.jsonl is in use by" in refusal(capsys, *arguments)
    finally:
        done.set()
        thread.join()
    assert run(*arguments) == 0
    assert len(file.read_text().splitlines()) == 5
    assert not list(file.parent.glob(".*"))


def test_a_run_and_the_same_again(model, data, tmp_path, capsys):
    file = tmp_path / "out" / "texts.jsonl"
    arguments = [model, "--data", data, "--name", "strategy_qa", "--output_file", file, "--max_new_tokens", 6]
    assert run(*arguments, "--batch_size", 2) == 0
    text = capsys.readouterr().out
    assert f"{model} on {data}, test: 5 items, 5 questions" in text
    assert "accuracy 0.0% (95 % interval 0.0% to 0.0%)" in text and "no valid answer 5" in text
    assert "cut off before their end 5 (at most 6 tokens" in text
    assert "reference" in text and "first departures (overlap)" in text
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == [0, 1, 2, 3, 4]
    assert {line["verdict"] for line in lines} == {"wrong"} and {line["reference"] for line in lines} == {
        "True",
        "False",
    }
    summary = json.loads((tmp_path / "out" / "texts.jsonl.summary.json").read_text())
    assert summary["num_items"] == 5 and summary["reference_steps_by_kind"]["memory"] == 5
    assert "attributions" not in summary
    settings = json.loads((tmp_path / "out" / "texts.jsonl.settings.json").read_text())
    assert settings["max_new_tokens"] == 6 and settings["scheme"]["num_step_tokens"] == 2

    before = file.read_bytes()
    assert run(*arguments) == 0
    assert file.read_bytes() == before
    message = refusal(capsys, *arguments, "--max_new_tokens", 7)
    assert "was written with max_new_tokens=6, now it is 7" in message
    assert "no such folder" in refusal(capsys, *arguments, "--overwrite", "--model", tmp_path / "nowhere")
    for flags in (["--batch_size", 0], ["--max_new_tokens", 0], ["--depth_by_kind", "memory=2"]):
        refusal(capsys, *arguments, *flags, "--overwrite")
    assert file.read_bytes() == before and (tmp_path / "out" / "texts.jsonl.summary.json").is_file()
    assert run(*arguments, "--max_new_tokens", 7, "--overwrite") == 0
    assert json.loads(file.read_text().splitlines()[0])["num_tokens"] <= 7


def test_demonstrations_and_depth(data, tmp_path, capsys):
    model = save_model(tmp_path / "deep", recurrent)
    arguments = [model, "--data", data, "--name", "strategy_qa", "--max_new_tokens", 2, "--num_items", 2]
    assert run(*arguments, "--num_recurrences", 3, "--num_demonstrations", 1, "--judge", "exact") == 0
    text = capsys.readouterr().out
    assert "2 items" in text and "first departures (exact)" in text


def test_a_language_model_as_judge(model, data, tmp_path, capsys):
    """The judge is found to be unusable before anything is generated, and its agreement stands next to its name."""
    file = tmp_path / "texts.jsonl"
    arguments = [model, "--data", data, "--name", "strategy_qa", "--max_new_tokens", 6, "--output_file", file]

    def judge(call):
        return json.dumps(dict.fromkeys(re.findall(r"^(\d+)\. \[", call.prompt, re.MULTILINE), "agrees"))

    assert "llm is not given" in refusal(capsys, *arguments, "--judge", "llm")
    with chat_server(lambda call: "What?") as server:
        llm = ["--judge", "llm", "--llm", "scripted", "--agreement", 1, "--endpoint"]
        assert "none of its replies about" in refusal(capsys, *arguments, *llm, server.url)
    assert not file.exists()
    with chat_server(judge) as server:
        assert run(*arguments, *llm, server.url) == 0
        num_calls = len(server.calls)
        text = capsys.readouterr().out
        assert run(*arguments, *llm, server.url) == 0
        assert len(server.calls) == num_calls
    assert "first departures (scripted)" in text and "  right answers" in text and "  wrong answers" in text
    assert "judge scripted, against the known truth of the test bed (1 solution, 14 changes each):" in text
    # None of these solutions gives an answer, which is not "no departure".
    assert "no answer 5; no departure 0; undecided 0; no reference steps 0; not judged 0" in text
    summary = json.loads((tmp_path / "texts.jsonl.summary.json").read_text())
    assert summary["judge"]["name"] == "scripted" and summary["judge"]["agreement"]["memory"]["recall"] == 0.0
    capsys.readouterr()
    assert run(*arguments, "--judge", "none") == 0
    assert "first departures" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "validation"], "split='validation' is not in the data. Its splits are train, test"),
        (["--num_items", "0"], "num_items=0 must be at least 1"),
        (["--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--num_demonstrations", "9"], "num_demonstrations=9 must be between 0 and 4"),
        (["--num_recurrences", "3"], "num_recurrences=3: model="),
        (["--name", "truthful_qa"], "holds neither truthful_qa_train_clean_CC.json nor"),
        (["--name", "squad"], "name='squad' must be one of strategy_qa"),
        (["--output_fil", "x"], "unknown flag '--output_fil x'. Did you mean --output_file?"),
        (["--judge", "me"], "invalid choice: 'me'"),
        (["--device", "foo"], "device='foo' is not a device"),
        (["--output_file", "."], "is a folder. Pass the name of a file"),
    ],
)
def test_bad_requests_end_with_one_line(model, data, capsys, arguments, message):
    assert message in refusal(capsys, model, "--data", data, "--name", "strategy_qa", *arguments)


def test_missing_and_foreign_inputs(model, data, tmp_path, capsys):
    assert "model is not given" in refusal(capsys, "--data", data)
    assert "data is not given" in refusal(capsys, model)
    assert "name the data set: " in refusal(capsys, model, "--data", data)
    plain = tmp_path / "plain"
    tokenizer = byte_level()
    llama(len(tokenizer)).save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    named = ["--data", data, "--name", "strategy_qa"]
    assert "has no scheme of steps" in refusal(capsys, plain, *named)
    assert "The vocabulary does not match" in refusal(capsys, plain, *named, "--tokenizer", model)
    (data / "StrategyQA_test_clean.json").write_text("[")
    assert "is not a JSON file" in refusal(capsys, model, *named)


def test_damaged_models(model, data, tmp_path, capsys):
    named = ["--data", data, "--name", "strategy_qa", "--max_new_tokens", 2]
    assert "no such folder" in refusal(capsys, tmp_path / "nowhere", *named)
    # Before anything is loaded, and a bound that ends.
    for value, message in ((0, "must be at least 1"), (2**20 + 1, "must be at most 1,048,576: tokens are generated")):
        message = f"max_new_tokens={value} {message}"
        assert message in refusal(capsys, tmp_path / "nowhere", "--data", data, "--max_new_tokens", value)
    weights = load_file(f"{model}/model.safetensors")
    (name,) = (name for name in weights if name.endswith("layers.0.mlp.down_proj.weight"))
    rest = {other: value for other, value in weights.items() if other != name}
    save_file(rest, f"{model}/model.safetensors", metadata={"format": "pt"})
    # The library would go on with random ones.
    assert f"do not belong to the config (missing_keys: {name})" in refusal(capsys, model, *named)
    (Path(model) / "model.safetensors").write_bytes(b"\0" * 100)
    assert "the weights cannot be read" in refusal(capsys, model, *named)


@pytest.mark.parametrize("mode", ["full", "tokens"])
def test_texts_of_a_model_that_was_trained_further_are_not_taken_for_its_own(mode, data, tmp_path, capsys):
    folder, file = tmp_path / "model", tmp_path / "texts.jsonl"
    save_base(tmp_path / "base")
    model, tokenizer = adapted(tmp_path / "base", mode, StepScheme(1, 2))
    arguments = [folder, "--data", data, "--name", "strategy_qa", "--max_new_tokens", 2, "--output_file", file]
    save_adapter(model, tokenizer, folder)
    assert run(*arguments) == 0
    before = file.read_bytes()
    assert run(*arguments, "--batch_size", 3) == 0
    assert file.read_bytes() == before
    save_adapter(as_if_trained(model), tokenizer, folder)
    assert "was written with weights=" in refusal(capsys, *arguments)
    assert run(*arguments, "--overwrite") == 0


def save_adapted(folder, base, mode, make=llama):
    """An adapter in `folder` on the model saved in `base`."""
    save_base(base, make)
    model, tokenizer = adapted(base, mode, StepScheme(1, 2))
    save_adapter(as_if_trained(model), tokenizer, folder)
    return model, tokenizer


@pytest.mark.parametrize("mode", ["lora", "tokens", "lora+tokens"])
def test_an_adapter_is_evaluated_on_its_base(mode, data, tmp_path, capsys):
    model, tokenizer = save_adapted(tmp_path / "adapter", tmp_path / "base", mode)
    file = tmp_path / "texts.jsonl"
    named = ["--data", data, "--name", "strategy_qa", "--max_new_tokens", 6]
    assert run(tmp_path / "adapter", *named, "--output_file", file) == 0
    rows = list(load_memory_reason(str(data), "strategy_qa")["test"])
    # Row by row, without the rows of new tokens put in place.
    expected = [generate_solutions(model, tokenizer, [row], max_new_tokens=6)[0].text for row in rows]

    def comparable(texts):
        # LoRA leaves the new rows as they start: <step_1> as the word " step". Rounding chooses between the two.
        return [text.replace("<step_1>", " step") if mode == "lora" else text for text in texts]

    written = [json.loads(line)["text"] for line in sorted(file.read_text().splitlines(), key=index_of)]
    assert comparable(written) == comparable(expected)

    shutil.move(tmp_path / "base", tmp_path / "moved")
    adapter = tmp_path / "adapter"
    assert "cannot be read" in refusal(capsys, adapter, *named)
    assert run(adapter, *named, "--base", tmp_path / "moved", "--output_file", tmp_path / "again.jsonl") == 0
    texts = [json.loads(line)["text"] for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert sorted(comparable(texts)) == sorted(comparable(expected))
    assert json.loads((tmp_path / "again.jsonl.settings.json").read_text())["base"] == "moved"


def index_of(line):
    return json.loads(line)["index"]


def test_adapters_that_cannot_be_evaluated(model, data, tmp_path, capsys):
    named = ["--data", data, "--name", "strategy_qa", "--max_new_tokens", 2]
    adapter = tmp_path / "adapter"
    save_adapted(adapter, tmp_path / "base", "lora+tokens")
    assert "is an adapter, which is saved with its tokenizer" in refusal(capsys, adapter, *named, "--tokenizer", model)
    assert "is not an adapter" in refusal(capsys, model, *named, "--base", tmp_path / "base")
    other = save_base(tmp_path / "other", hidden_size=32)
    assert "width (hidden_size) is 32" in refusal(capsys, adapter, *named, "--base", other)
    other = save_base(tmp_path / "same_shape")
    assert "its weight files differ" in refusal(capsys, adapter, *named, "--base", other)
    assert "num_recurrences=3: model=" in refusal(capsys, adapter, *named, "--num_recurrences", 3)
    byte_level().save_pretrained(adapter)
    assert "has no scheme of steps" in refusal(capsys, adapter, *named)
    (adapter / "memreason_adapter.json").unlink()
    assert "another program wrote it" in refusal(capsys, adapter, *named)


def test_the_depth_of_an_adapted_model(data, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    save_adapted(adapter, tmp_path / "base", "lora+tokens", recurrent)
    named = ["--data", data, "--name", "strategy_qa", "--max_new_tokens", 2, "--num_items", 2]
    assert run(adapter, *named, "--num_recurrences", 3) == 0
    assert "2 items" in capsys.readouterr().out


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "usage: memreason evaluate-steps [RECIPE.yaml] [MODEL]",
        "default: 16",
        "--num_demonstrations",
        "--kl_threshold",
        "--depth_by_kind",
        "examples:",
    ):
        assert words in text
    assert make_parser().prog == "memreason evaluate-steps"


@pytest.mark.skipif(not QUESTIONS.is_dir(), reason="needs the study's files in ../shared/data/memory_reason")
def test_as_a_process_on_real_questions(model, tmp_path):
    command = [sys.executable, "-m", "memreason_hf.commands.evaluate_steps", model, "--data", str(QUESTIONS)]
    command += [
        "--name",
        "commonsense_qa",
        "--num_items",
        "6",
        "--max_new_tokens",
        "4",
        "--output_file",
        "texts.jsonl",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6 items, 6 questions" in done.stdout and "no reference steps 6" in done.stdout
    assert len((tmp_path / "texts.jsonl").read_text().splitlines()) == 6


def test_depth_by_kind_is_reported(data, tmp_path, capsys):
    model = save_model(tmp_path / "deep", recurrent)
    file = tmp_path / "texts.jsonl"
    arguments = [model, "--data", data, "--name", "strategy_qa", "--max_new_tokens", 6, "--output_file", file]
    assert run(*arguments, "--depth_by_kind", "memory=3,reason=5", "--num_recurrences", 4) == 0
    assert "mean recurrences of a token" in capsys.readouterr().out
    means = json.loads((tmp_path / "texts.jsonl.summary.json").read_text())["mean_recurrences_by_kind"]
    expected = {"none": 4, "memory": 3, "reason": 5, "answer": 4, "step": 4}
    assert means and all(mean == expected[kind] for kind, mean in means.items())
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(sum(tokens for tokens, _ in line["recurrences"].values()) == line["num_tokens"] for line in lines)
    settings = json.loads((tmp_path / "texts.jsonl.settings.json").read_text())
    assert settings["depth_by_kind"] == {"memory": 3, "reason": 5} and settings["num_recurrences"] == 4
    # Gone on with from the file alone.
    assert run(*arguments, "--depth_by_kind", "memory=3,reason=5", "--num_recurrences", 4) == 0
    again = json.loads((tmp_path / "texts.jsonl.summary.json").read_text())["mean_recurrences_by_kind"]
    assert again == means
    halting = ["--halting_criterion", "state_difference", "--overwrite"]
    assert run(*arguments, "--depth_by_kind", "memory=2", "--max_recurrences", 3, *halting) == 0
    means = json.loads((tmp_path / "texts.jsonl.summary.json").read_text())["mean_recurrences_by_kind"]
    assert means and all(1 <= mean <= 3 for mean in means.values())
    message = refusal(capsys, *arguments, "--depth_by_kind", "memory=2", "--num_recurrences", 3, *halting)
    assert "num_recurrences=3 fixes the depth, but halting_criterion='state_difference' decides it" in message
    message = refusal(capsys, *arguments, "--depth_by_kind", "memory=2", "--max_recurrences", 3, "--overwrite")
    assert "max_recurrences=3 has no effect with depth_by_kind='memory=2', because no criterion halts" in message
    assert "is not the depth of a kind" in refusal(capsys, *arguments, "--depth_by_kind", "memory", "--overwrite")


def test_every_depth_flag_reaches_generate(data, tmp_path, monkeypatch):
    model = save_model(tmp_path / "deep", recurrent)
    calls = []
    plain = RecurrentDepthForCausalLM.generate

    def spy(self, *args, **kwargs):
        calls.append(kwargs)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(RecurrentDepthForCausalLM, "generate", spy)
    arguments = [model, "--data", data, "--name", "strategy_qa", "--max_new_tokens", 2, "--num_items", 1]
    assert run(*arguments) == 0
    assert not {"halting_criterion", "num_recurrences", "kl_threshold"} & set(calls[-1])
    depth = ["--halting_criterion", "kl", "--kl_threshold", 0.5, "--min_recurrences", 2, "--max_recurrences", 4]
    assert run(*arguments, *depth, "--halting_granularity", "sequence") == 0
    expected = {
        "halting_criterion": "kl",
        "kl_threshold": 0.5,
        "min_recurrences": 2,
        "max_recurrences": 4,
        "halting_granularity": "sequence",
    }
    assert expected.items() <= calls[-1].items()
    assert run(*arguments, *depth, "--depth_by_kind", "memory=3") == 0
    del expected["halting_granularity"], expected["max_recurrences"]
    assert expected.items() <= calls[-1].items() and "max_recurrences" not in calls[-1]
    assert calls[-1]["depth_schedule"].depths[0] == 4


def test_a_recipe(data, tmp_path, capsys):
    model, recipe, file = save_model(tmp_path / "deep", recurrent), tmp_path / "recipe.yaml", tmp_path / "texts.jsonl"
    recipe.write_text(
        f"inputs: {{model: {model}, data: {data}, name: strategy_qa, num_items: 2}}\n"
        f"solutions: {{max_new_tokens: 3}}\nhalting: {{num_recurrences: 3, depth_by_kind: memory=2}}\n"
        f"output: {{output_file: {file}}}\n"
    )
    assert run(recipe, "--max_new_tokens", 2) == 0
    settings = json.loads(file.with_name("texts.jsonl.settings.json").read_text())
    assert (settings["max_new_tokens"], settings["num_recurrences"]) == (2, 3)
    assert settings["depth_by_kind"] == {"memory": 2} and len(file.read_text().splitlines()) == 2
    recipe.write_text("solutions: {max_new_token: 3}")
    assert "unknown key 'max_new_token'. Did you mean 'max_new_tokens'?" in refusal(capsys, recipe)


def test_depth_by_kind_needs_recurrences(model, data, capsys):
    named = ["--data", data, "--name", "strategy_qa"]
    assert "depth_by_kind='memory=2': model=" in refusal(capsys, model, *named, "--depth_by_kind", "memory=2")


def test_attention_between_steps_is_restored(data, tmp_path, capsys):
    tokenizer = byte_level()
    torch.manual_seed(0)
    sparse = llama(len(tokenizer))
    extend_tokenizer(tokenizer, StepScheme(1, 2), sparse)
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    folder = tmp_path / "sparse"
    tokenizer.save_pretrained(folder)
    texts = {}
    for variant in (None, "own", "tokens"):
        set_step_attention(sparse, tokenizer, variant)
        sparse.save_pretrained(folder)
        file = tmp_path / f"{variant}.jsonl"
        arguments = ["--data", data, "--name", "strategy_qa", "--max_new_tokens", 20, "--output_file", file]
        assert run(folder, *arguments) == 0
        texts[variant] = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        generated = generate_solutions(sparse.eval(), tokenizer, load_rows(data), max_new_tokens=20)
        assert sorted(generation.text for generation in generated) == sorted(texts[variant])
    assert texts["own"] != texts[None]
    message = refusal(capsys, folder, *arguments, "--num_demonstrations", 1, "--overwrite")
    assert "demonstrations cannot be combined with step attention 'tokens'" in message


def load_rows(data):
    return list(load_memory_reason(data, "strategy_qa")["test"])
