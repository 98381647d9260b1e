"""`memreason finetune`: recipes, what they make, and what is refused."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from paths import QUESTIONS
from refusals import refused
from small_tokenizers import byte_level, gpt2, llama
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from memreason_hf.adapters.modes import AdapterArguments, load_adapter
from memreason_hf.commands import evaluate_steps, finetune
from memreason_hf.models.new_models import NewModelArguments
from memreason_hf.recipes import FINETUNE, RECIPES_FOLDER, load_recipe, recipe_names
from memreason_hf.steps import StepScheme
from memreason_hf.steps.attention import get_step_attention, restore_step_attention
from memreason_hf.steps.tokenization import encode_prompt, extend_tokenizer, read_scheme
from memreason_hf.training.solutions.recipe import BaseModelArguments, QuestionArguments
from memreason_hf.training.solutions.trainer import FinetuneArguments, FinetuneTrainer
from modeling_recurrent import RecurrentDepthForCausalLM


TRAIN = [
    {
        "question": f"Is the step {number} of {number * 37} the answer?",
        "answer": str(number % 2 == 0),
        "cot_steps": [f"[rag]: The step {number} is a memory.", "[reason]: It follows from the memory of words."][
            : 1 + number % 2
        ],
    }
    for number in range(8)
]
TEST = [{**item, "question": f"{item['question'][:-1]} now?"} for item in TRAIN[:4]]
TRAINING = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "max_new_tokens": 8,
    "num_test": 3,
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
}


def write_questions(folder, train=TRAIN, test=TEST):
    folder.mkdir(exist_ok=True)
    for split, items in (("train", train), ("test", test)):
        (folder / f"StrategyQA_{split}_clean.json").write_text(json.dumps(items))
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_level()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llama(len(tokenizer), max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path, base_folder):
    """Writes a recipe with changed sections for some questions and a small Llama; returns its path."""

    def write(**changes):
        content = {
            "data": {"path": str(write_questions(tmp_path / "data")), "name": "strategy_qa"},
            "model": {"path": str(base_folder)},
            "steps": {"num_prefix_tokens": 1, "num_step_tokens": 2},
            "adapter": {"mode": "full"},
            "training": {**TRAINING, "output_dir": str(tmp_path / "run")},
        }
        for section, values in changes.items():
            content[section] = {**content.get(section, {}), **values}
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(content))
        return str(path)

    return write


def refusal(capsys, *argv):
    message = refused(capsys, finetune.main, list(argv))
    assert message.startswith("memreason finetune: error: ")
    return message


def test_trains_saves_and_returns_at_once_the_second_time(recipe, tmp_path, capsys):
    assert finetune.main([recipe()]) == 0
    said = capsys.readouterr().out
    assert "8 of 8 training items, at most" in said
    assert "Trained for 4 steps. The model is in" in said and "Its eval_acc is" in said
    run = tmp_path / "run"
    state = json.loads((run / "trainer_state.json").read_text())
    assert [entry["epoch"] for entry in state["log_history"] if "eval_acc" in entry] == [1, 2]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert isinstance(model, LlamaForCausalLM)
    assert read_scheme(tokenizer) == StepScheme(1, 2)
    best = AutoModelForCausalLM.from_pretrained(run / f"checkpoint-{state['best_global_step']}")
    assert all(torch.equal(value, best.state_dict()[name]) for name, value in model.state_dict().items())
    assert finetune.main([recipe()]) == 0
    assert "The run was finished already, after 4 steps." in capsys.readouterr().out
    # The next step of a user.
    assert (
        evaluate_steps.main(
            [str(run), "--data", str(tmp_path / "data"), "--name", "strategy_qa", "--max_new_tokens", "8"]
        )
        == 0
    )
    assert "4 items" in capsys.readouterr().out


def test_ctrl_c_saves_and_the_same_command_goes_on(recipe, tmp_path, capsys, monkeypatch):
    adapter = {"mode": "lora+tokens", "lora_targets": "all"}
    assert finetune.main([recipe(adapter=adapter), "--output_dir", str(tmp_path / "whole")]) == 0
    step = FinetuneTrainer.training_step

    def interrupted(trainer, *args):
        if trainer.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "training_step", interrupted)
        assert finetune.main([recipe(adapter=adapter)]) == 130
    run = tmp_path / "run"
    assert "Stopped after step 3; saved" in capsys.readouterr().out
    assert not (run / "adapter_config.json").exists()
    assert finetune.main([recipe(adapter=adapter)]) == 0
    parts, whole = (
        torch.cat([v.flatten() for v in load_adapter(f)[0].stored_weights().values()])
        for f in (run, tmp_path / "whole")
    )
    assert torch.equal(parts, whole)
    # No weight of the base, and the base is found again by its name.
    assert not (run / "model.safetensors").exists()
    model, tokenizer = load_adapter(run)
    assert model(torch.tensor([encode_prompt(tokenizer, "Is it?")])).logits.shape[-1] == len(tokenizer)


@pytest.mark.parametrize("architecture, kind", [("llama", LlamaForCausalLM), ("recurrent", RecurrentDepthForCausalLM)])
def test_a_new_model_and_a_tokenizer_learned_from_the_questions(recipe, tmp_path, architecture, kind):
    path = Path(
        recipe(
            new_model={
                "architecture": architecture,
                "vocab_size": 300,
                "hidden_size": 16,
                "num_layers": 3,
                "num_attention_heads": 2,
            }
        )
    )
    content = json.loads(path.read_text())
    del content["model"]
    path.write_text(json.dumps(content))
    assert finetune.main([str(path), "--num_train_epochs", "1"]) == 0
    model, tokenizer = (auto.from_pretrained(tmp_path / "run") for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert isinstance(model, kind)
    assert len(tokenizer) == model.config.vocab_size == 300 + 1 + 4 * 2
    text = "Is the step 3 of 111 the answer? äß"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("answer memory")["input_ids"]) < 7
    # Made again from the same texts it is the same run.
    assert finetune.main([str(path), "--num_train_epochs", "1"]) == 0


def test_demonstrations_and_dropped_items_are_counted(recipe, tmp_path, capsys):
    assert (
        finetune.main([recipe(), "--num_demonstrations", "2", "--num_train_epochs", "1", "--max_new_tokens", "4"]) == 0
    )
    longest = int(capsys.readouterr().out.split("at most ")[1].split(" tokens")[0])
    assert finetune.main([recipe(), "--output_dir", str(tmp_path / "plain"), "--num_train_epochs", "1"]) == 0
    plain = int(capsys.readouterr().out.split("at most ")[1].split(" tokens")[0])
    assert longest > 2 * plain
    flags = ["--max_length", str(plain - 1), "--too_long", "drop", "--output_dir", str(tmp_path / "dropped")]
    assert finetune.main([recipe(), *flags, "--num_train_epochs", "1"]) == 0
    said = capsys.readouterr().out
    assert "of 8 training items" in said and f"dropped, longer than {plain - 1} with their solution" in said
    assert "training items are longer than" in refusal(
        capsys, recipe(), "--max_length", str(plain - 1), "--output_dir", str(tmp_path / "c")
    )


def test_another_run_in_the_folder(recipe, tmp_path, capsys):
    assert finetune.main([recipe(), "--max_steps", "1"]) == 0
    assert "training.seed was 42, now 7" in refusal(capsys, recipe(), "--seed", "7")
    assert "adapter.mode was 'full', now 'tokens'" in refusal(capsys, recipe(), "--mode", "tokens")
    assert "model.step_scheme" in refusal(capsys, recipe(), "--layout", "plan_first")
    message = refusal(capsys, recipe(), "--dtype", "bfloat16")
    assert "model.dtype was 'float32', now 'bfloat16'" in message
    assert finetune.main([recipe(), "--seed", "7", "--restart", "--max_steps", "1"]) == 0


def broken(folder, content):
    (folder / "StrategyQA_train_clean.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    "content, message",
    [
        ("{ not json", "is not a JSON file"),
        ([{**TRAIN[0], "question": None}], "question"),
        ([{"question": "Is it?", "cot_steps": []}], "answer"),
        ([{**TRAIN[0], "answer": "Maybe"}], "Maybe"),
        ([{**TRAIN[0], "cot_steps": ["[guess]: It is."]}], "guess"),
        ([{**TRAIN[0], "cot_steps": ["[rag]: It is <memory_0> here."]}], "Training item 0: .* holds <memory_0>"),
        (
            [{**TRAIN[0], "cot_steps": ["[rag]: " + "It is long. " * 200]}],
            "1 of 1 training items are longer than 256 tokens",
        ),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value)[:20],
)
def test_bad_data_are_one_message(recipe, tmp_path, capsys, content, message):
    path = recipe()
    broken(tmp_path / "data", content)
    assert re.search(message, refusal(capsys, path))
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_question_that_leaves_no_room_is_refused_before_training(recipe, tmp_path, capsys):
    path = recipe()
    write_questions(tmp_path / "data", test=[TEST[0], {**TEST[1], "question": "Is it " + "long and " * 100 + "long?"}])
    message = refusal(capsys, path)
    assert "1 of 2 prompts have no room" in message and "context of 256 tokens; the first is that of item 1" in message
    assert finetune.main([path, "--num_test", "1", "--max_steps", "1"]) == 0


@pytest.mark.parametrize(
    "changes, flags, message",
    [
        ({"training": {"lerning_rate": 3}}, [], "unknown key 'lerning_rate'. Did you mean 'learning_rate'?"),
        ({"adapter": {"lora_rank": 3}}, [], "unknown key 'lora_rank'"),
        ({"steps": {"prefix": 3}}, [], "unknown key 'prefix'"),
        ({}, ["--mode", "lora+token"], "lora+token"),
        ({"steps": {"num_prefix_tokens": 0, "num_step_tokens": 0}}, [], "num_step_tokens=0"),
        ({"steps": {"marks": "stars"}}, [], "marks='stars'"),
        ({"adapter": {"lora_r": 0}}, [], "lora_r=0"),
        ({"data": {"path": "no/such/folder"}}, [], "no/such/folder"),
        ({"data": {"eval_split": "dev"}}, [], "eval_split='dev': the data have no such split"),
        ({"data": {"num_train_items": 0}}, [], "num_train_items=0"),
        ({"data": {"num_demonstrations": 99}}, [], "num_demonstrations=99"),
        ({"data": {"max_length": 0}}, [], "max_length=0 must be at least 1"),
        ({"data": {"num_demonstrations": 1}, "model": {"step_attention": "own"}}, [], "of the last demonstration"),
        ({"model": {"path": "./model"}}, [], "model.path='./model': no such folder"),
        ({"model": {"path": "no/such/model"}}, [], "model.path='no/such/model': no such folder"),
        ({"model": {"path": None}}, [], "model.path is not given"),
        ({"data": {"path": "", "name": "strategy_qa"}}, [], "data.path='' must be a path, but it is empty"),
        ({}, ["--architecture", "llama"], "contradict each other"),
        (
            {"model": {"path": None}, "adapter": {"mode": "lora"}},
            ["--architecture", "llama"],
            "those of a new model are random",
        ),
        ({"model": {"step_attention": "all"}}, [], "step_attention"),
        ({"model": {"step_attention": "own"}, "steps": {"marks": "words", "num_prefix_tokens": 0}}, [], "tokens"),
        ({"model": {"load_in_8bit": True}}, [], "weights in 8 bits cannot be trained"),
        ({"model": {"load_in_4bit": True}}, [], "weights in 4 bits cannot be trained"),
        ({"model": {"load_in_4bit": True, "load_in_8bit": True}}, [], "contradict each other"),
        ({"training": {"output_dir": ""}}, [], "training.output_dir is not given"),
        ({"training": {"expected_world_size": 2}}, [], "expected_world_size=2, but 1"),
        ({"training": {"recurrence_loss": "uniform"}}, [], "recurrence_loss='uniform' is for recurrent-depth models"),
        ({"new_model": {"hidden_size": 10}}, [], "new_model.hidden_size=10"),
    ],
    ids=str,
)
def test_bad_input_is_one_message_and_leaves_nothing(recipe, tmp_path, capsys, changes, flags, message):
    assert message in refusal(capsys, recipe(**changes), *flags)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_base_that_is_not_whole_is_refused(recipe, tmp_path, base_folder, capsys):
    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    LlamaForCausalLM.from_pretrained(base_folder).model.save_pretrained(folder)
    path = recipe(model={"path": str(folder)}, adapter={"mode": "lora"})
    # The library would make a random head.
    assert "lacks 1 weights of a LlamaForCausalLM: lm_head.weight" in refusal(capsys, path)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    assert "the weights cannot be read" in refusal(capsys, path)


def test_bits_without_bitsandbytes(recipe, capsys):
    if find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    path = recipe(model={"load_in_8bit": True}, adapter={"mode": "lora"})
    assert "model.load_in_8bit needs bitsandbytes, which is not installed" in refusal(capsys, path)


@pytest.mark.parametrize("bits", [8, 4])
def test_bits_with_bitsandbytes(recipe, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    tokenizer = byte_level()
    # The kernels of bitsandbytes for CPUs need multiples of 32.
    llama(len(tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = {"path": str(tmp_path / "base"), f"load_in_{bits}bit": True}
    assert finetune.main([recipe(model=model, adapter={"mode": "lora+tokens"})]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("mode", ["full", "lora+tokens"])
def test_attention_between_steps_is_trained_with_and_restored(recipe, tmp_path, mode):
    path = recipe(model={"step_attention": "tokens"}, adapter={"mode": mode})
    assert finetune.main([path]) == 0
    run = tmp_path / "run"
    if mode == "full":
        model = AutoModelForCausalLM.from_pretrained(run)
        assert restore_step_attention(model, run) == "tokens"
    else:
        model, _ = load_adapter(run)
        assert get_step_attention(model) == "tokens"
    ordinary = str(tmp_path / "ordinary")
    assert finetune.main([recipe(adapter={"mode": mode}), "--output_dir", ordinary, "--step_attention", "none"]) == 0
    losses = [
        [
            entry["loss"]
            for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]
            if "loss" in entry
        ]
        for folder in (run, tmp_path / "ordinary")
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("mode", ["full", "lora+tokens"])
def test_the_attention_of_a_base_is_that_of_its_further_training(recipe, tmp_path, mode):
    assert finetune.main([recipe(model={"step_attention": "own"}), "--max_steps", "1"]) == 0
    losses = {}
    for given in (None, "own", "none"):
        out = tmp_path / str(given)
        path = recipe(model={"path": str(tmp_path / "run"), "step_attention": given}, adapter={"mode": mode})
        assert finetune.main([path, "--max_steps", "1", "--output_dir", str(out)]) == 0
        losses[given] = json.loads((out / "trainer_state.json").read_text())["log_history"][0]["loss"]
        if mode == "full":
            model = AutoModelForCausalLM.from_pretrained(out)
            restore_step_attention(model)
        else:
            model, _ = load_adapter(out)
        assert get_step_attention(model) == (None if given == "none" else "own")
    assert losses[None] == losses["own"] != losses["none"]


def test_a_tokenizer_with_another_scheme_or_an_adapter_as_base(recipe, tmp_path, capsys):
    folder, tokenizer = tmp_path / "extended", byte_level()
    model = gpt2(len(tokenizer))
    extend_tokenizer(tokenizer, StepScheme(1, 1), model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    message = refusal(capsys, recipe(model={"path": str(folder)}))
    assert "was extended with StepScheme(num_prefix_tokens=1, num_step_tokens=1" in message
    path = recipe(
        model={"path": str(folder)}, steps={"num_prefix_tokens": 1, "num_step_tokens": 1}, adapter={"mode": "tokens"}
    )
    assert finetune.main([path, "--max_steps", "1"]) == 0
    message = refusal(capsys, recipe(model={"path": str(tmp_path / "run")}), "--output_dir", str(tmp_path / "b"))
    assert "holds an adapter, not a whole model" in message


def test_a_warmup_longer_than_the_run_is_warned_about(recipe, caplog):
    with caplog.at_level(logging.WARNING):
        assert finetune.main([recipe(), "--warmup_steps", "50", "--eval_strategy", "no"]) == 0
    assert "The warm-up of 50 steps is longer than the run of 4" in caplog.text


# ---- Recipes of the package ----


def test_names_are_short_and_kept_apart_from_those_of_training():
    assert recipe_names(FINETUNE) == [
        "finetune_commonsenseqa",
        "finetune_memory_reason_tiny",
        "finetune_strategyqa_llama2",
        "finetune_strategyqa_llama2_plain_lora",
        "finetune_strategyqa_llama2_prefix_only",
        "finetune_tiny",
        "finetune_truthfulqa_llama31",
    ]
    assert not set(recipe_names(FINETUNE)) & set(recipe_names())
    for name in ("tiny", "finetune_tiny", str(RECIPES_FOLDER / "finetune_tiny.yaml")):
        path, values = finetune.make_parser().parse_recipe([name])
        assert path == RECIPES_FOLDER / "finetune_tiny.yaml"
        assert values["new_model"]["architecture"] == "llama"


@pytest.mark.parametrize("name", recipe_names(FINETUNE))
def test_recipes_of_the_package_are_valid(name, tmp_path):
    _, values = finetune.make_parser().parse_recipe([name])
    FinetuneArguments(**{**values["training"], "output_dir": str(tmp_path), "use_cpu": True, "fp16": False})
    QuestionArguments(**values["data"])
    AdapterArguments(**values["adapter"])
    StepScheme(**values["steps"])
    assert bool(BaseModelArguments(**values["model"]).path) != bool(
        NewModelArguments(**values["new_model"]).architecture
    )


@pytest.mark.parametrize(
    ("name", "steps", "mode"),
    [("plain_lora", {"marks": "none"}, "lora"), ("prefix_only", {"num_step_tokens": 0}, "lora+tokens")],
)
def test_a_baseline_differs_from_its_published_recipe_in_its_scheme_alone(name, steps, mode):
    published = load_recipe(RECIPES_FOLDER / f"{FINETUNE}strategyqa_llama2.yaml")
    baseline = load_recipe(RECIPES_FOLDER / f"{FINETUNE}strategyqa_llama2_{name}.yaml")
    scheme = StepScheme(**{**published["steps"], **steps})
    # Without tokens their numbers do not matter.
    assert StepScheme(**baseline["steps"]).tokens == scheme.tokens and baseline["adapter"].pop("mode") == mode
    assert StepScheme(**baseline["steps"]).marks == scheme.marks
    del published["steps"], published["adapter"]["mode"], baseline["steps"]
    assert baseline == published


@pytest.mark.parametrize(
    "name, base, prefix, epochs, warmup, length",
    [
        ("strategyqa_llama2", "Llama-2-7b-chat-hf", 2, 10, 700, 700),
        ("truthfulqa_llama31", "Llama-3.1-8B-Instruct", 3, 15, 1000, 850),
        ("commonsenseqa", "Llama-2-7b-chat-hf", 2, 5, 700, 700),
    ],
)
def test_published_settings(name, base, prefix, epochs, warmup, length):
    content = load_recipe(RECIPES_FOLDER / f"{FINETUNE}{name}.yaml")
    training = content["training"]
    assert content["model"]["path"].endswith(base)
    assert content["steps"] == {"num_prefix_tokens": prefix, "num_step_tokens": 4}
    assert content["adapter"] == {
        "mode": "lora+tokens",
        "lora_r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_targets": "mlp",
    }
    assert (training["num_train_epochs"], training["warmup_steps"], content["data"]["max_length"]) == (
        epochs,
        warmup,
        length,
    )
    assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 16
    assert (training["learning_rate"], training["lr_scheduler_type"]) == (2e-4, "cosine")


def test_help_teaches(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        finetune.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in ("examples:", "a recipe:", "--data ", "--mode", "--num_test", "--too_long", "--restart", "tiny"):
        assert part in text
    (tmp_path / "example.yaml").write_text(text[text.index("a recipe:") + len("a recipe:") :])
    _, values = finetune.make_parser().parse_recipe([str(tmp_path / "example.yaml")])
    assert all(values[section] for section in ("data", "model", "steps", "adapter", "training"))


@pytest.mark.slow
@pytest.mark.skipif(not QUESTIONS.is_dir(), reason="the study's data are not there")
@pytest.mark.parametrize("architecture", ["llama", "recurrent"])
def test_the_tiny_recipe_on_the_real_questions(tmp_path, capsys, architecture):
    """Shortened: a fourth of the items, once."""
    flags = ["--num_train_items", "400", "--num_train_epochs", "1", "--num_test", "8", "--max_new_tokens", "60"]
    flags += ["--logging_steps", "10"]
    run = [
        "--output_dir",
        str(tmp_path),
        "--architecture",
        architecture,
        "--disable_tqdm",
        "true",
        "--use_cpu",
        "true",
    ]
    assert finetune.main(["tiny", "--data", str(QUESTIONS), *flags, *run]) == 0
    losses = [
        e["loss"] for e in json.loads((tmp_path / "trainer_state.json").read_text())["log_history"] if "loss" in e
    ]
    assert losses[-1] < losses[0] - 1.5


@pytest.mark.slow
def test_two_processes_started_by_accelerate(recipe, tmp_path):
    """With plain gradient descent they end where one process with the same global batch does."""
    training = {"optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 2, "expected_world_size": 2}
    path = recipe(training=training)
    config = RECIPES_FOLDER / "accelerate" / "cpu_2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["-m", "memreason_hf.commands.finetune", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Trained for 4 steps.") == 1
    one = tmp_path / "one"
    flags = ["--per_device_train_batch_size", "4", "--expected_world_size", "1", "--output_dir", str(one)]
    assert finetune.main([path, *flags]) == 0
    logs = [
        json.loads((folder / "trainer_state.json").read_text())["log_history"] for folder in (tmp_path / "run", one)
    ]
    for name, tolerance in (("loss", 1e-4), ("eval_acc", 0), ("eval_num_test", 0)):
        two, single = ([entry[name] for entry in entries if name in entry] for entries in logs)
        assert two == pytest.approx(single, rel=tolerance) and two
    two, single = (
        AutoModelForCausalLM.from_pretrained(folder / "checkpoint-4").state_dict()
        for folder in (tmp_path / "run", one)
    )
    for name, value in single.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
