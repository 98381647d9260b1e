import json
import shutil
from pathlib import Path

import pytest
import torch
from refusals import refused
from transformers import AutoModelForCausalLM, AutoTokenizer

from memreason_hf.commands import train
from memreason_hf.models.recurrent_models import ModelArguments, make_model
from memreason_hf.recipes import load_recipe, recipe_names
from memreason_hf.training import CurriculumArguments, RecurrentTrainingArguments
from memreason_hf.training.chains.recipe import DataArguments, open_data
from modeling_recurrent import RecurrentDepthForCausalLM


RECIPE = {
    "model": {
        "style": "gpt2",
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_recurrent_layers": 1,
        "num_recurrences": 3,
        "position_embedding_type": "none",
        "input_injection": "add",
        "state_norm": "layernorm",
    },
    "data": {
        "num_entities": 6,
        "num_relations": 3,
        "train_hops": "2-3",
        "test_hops": "2-4",
        "num_train_chains": 20,
        "num_test_chains": 5,
    },
    "training": {
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "save_steps": 3,
        "logging_steps": 3,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe with changed sections, to one data folder and one output folder; returns its path."""

    def write(**changes):
        content = {name: {**values, **changes.pop(name, {})} for name, values in RECIPE.items()} | changes
        content["data"].setdefault("path", str(tmp_path / "data"))
        content["training"].setdefault("output_dir", str(tmp_path / "run"))
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(content))
        return str(path)

    return write


def refusal(capsys, *argv):
    message = refused(capsys, train.main, list(argv))
    assert message.startswith("memreason train: error: ")
    return message


def test_trains_saves_and_returns_at_once_the_second_time(recipe, tmp_path, capsys):
    assert train.main([recipe()]) == 0
    assert "Trained for 6 steps. The model is in" in capsys.readouterr().out
    run = tmp_path / "run"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(run), AutoTokenizer.from_pretrained(run)
    assert isinstance(model, RecurrentDepthForCausalLM)
    assert model.config.vocab_size == len(tokenizer)
    ids = tokenizer("<e_0><r_1><r_2>", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, 3, len(tokenizer))
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 6
    written = (run / "checkpoint-6" / "model.safetensors").stat().st_mtime_ns
    assert train.main([recipe()]) == 0
    assert "The run was finished already, after 6 steps." in capsys.readouterr().out
    assert (run / "checkpoint-6" / "model.safetensors").stat().st_mtime_ns == written


def test_resumes_to_the_same_weights(recipe, tmp_path):
    assert train.main([recipe()]) == 0
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "run").state_dict()
    parts = str(tmp_path / "parts")
    assert train.main([recipe(), "--output_dir", parts, "--max_steps", "3"]) == 0
    assert train.main([recipe(), "--output_dir", parts]) == 0
    resumed = AutoModelForCausalLM.from_pretrained(parts).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_curriculum_from_the_recipe_and_flags(recipe, tmp_path, capsys):
    curriculum = {"threshold": 1e-9, "eval_steps": 2, "gate": "train"}
    assert train.main([recipe(curriculum=curriculum), "--curriculum_last_stage", "2", "--max_steps", "50"]) == 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] < 50
    progress = json.loads((tmp_path / "run" / f"checkpoint-{state['global_step']}" / "callbacks.json").read_text())
    assert progress["CurriculumCallback"]["passed_at"] == state["global_step"]
    other = str(tmp_path / "other")
    argv = [recipe(curriculum=curriculum), "--curriculum_threshold", "1.0", "--output_dir", other]
    assert train.main(argv) == 0
    assert "max_steps=6 ended it before these stages were passed: 2, 3." in capsys.readouterr().out


def test_another_run_in_the_folder(recipe, tmp_path, capsys):
    assert train.main([recipe(), "--max_steps", "3"]) == 0
    assert "training.seed was 42, now 7" in refusal(capsys, recipe(), "--seed", "7")
    assert "model.hidden_size was 16, now 32" in refusal(capsys, recipe(model={"hidden_size": 32}))
    assert train.main([recipe(), "--seed", "7", "--restart", "--max_steps", "3"]) == 0


def test_a_damaged_checkpoint(recipe, tmp_path, capsys):
    assert train.main([recipe()]) == 0
    (tmp_path / "run" / "checkpoint-6" / "optimizer.pt").write_bytes(b"cut")
    message = refusal(capsys, recipe(), "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-6"))
    assert "optimizer.pt has 3 bytes instead of" in message
    shutil.rmtree(tmp_path / "run" / "checkpoint-3")
    assert "All checkpoints" in refusal(capsys, recipe())


@pytest.mark.parametrize(
    "changes, flags, message",
    [
        ({"training": {"lerning_rate": 3}}, [], "unknown key 'lerning_rate'. Did you mean 'learning_rate'?"),
        ({"model": {"num_recurence": 3}}, [], "unknown key 'num_recurence'. Did you mean 'num_recurrences'?"),
        ({"training": {"hidden_size": 3}}, [], "Did you mean 'hidden_size' of section model?"),
        ({}, ["--lerning_rate", "3"], "Did you mean --learning_rate?"),
        ({"model": {"hidden_size": 15}}, [], "hidden_size=15"),
        ({"model": {"num_recurrent_layers": 0}}, [], "num_recurrent_layers: Value must be at least 1, got 0"),
        ({"model": {"recurrence_min": 5, "recurrence_max": 3}}, [], "recurrence_min=5 is above recurrence_max=3"),
        ({"model": {"halting_criterion": "kl_entorpy"}}, [], "halting_criterion='kl_entorpy' must be one of"),
        ({"model": {"vocab_size": 4}}, [], "model.vocab_size=4 is below the"),
        ({"model": {"path": "no/such/model"}}, [], "no/such/model"),
        ({"data": {"train_hops": "2-30", "num_train_chains": 10**7}}, [], "distinct chains"),
        ({"data": {"eval_split": "dev"}}, [], "data.eval_split='dev' is not in"),
        ({"data": {"path": ""}}, [], "data.path is not given"),
        ({"training": {"supervision": "all"}}, [], "supervision='all'"),
        ({"training": {"expected_world_size": 2}}, [], "expected_world_size=2, but 1"),
        ({"curriculum": {"last_stage": 9}, "training": {"max_steps": 9}}, [], "Stage 9 has no training rows"),
        ({"curriculum": {"threshold": 95}}, [], "curriculum.threshold=95"),
    ],
    ids=str,
)
def test_bad_input_is_one_message_and_leaves_nothing(recipe, tmp_path, capsys, changes, flags, message):
    assert message in refusal(capsys, recipe(**changes), *flags)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_losses_that_are_no_numbers(recipe, tmp_path, capsys):
    flags = ["--learning_rate", "1e30", "--max_grad_norm", "0", "--max_steps", "40"]
    message = refusal(capsys, recipe(), *flags)
    assert "Step " in message
    assert "the loss is" in message


def test_a_data_folder_with_other_sizes(recipe, tmp_path, capsys):
    assert train.main([recipe()]) == 0
    message = refusal(capsys, recipe(data={"num_entities": 7}), "--output_dir", str(tmp_path / "b"))
    assert "num_entities=6 in the folder, 7 in the recipe" in message


def test_goes_on_from_a_trained_model(recipe, tmp_path, capsys):
    assert train.main([recipe()]) == 0
    again = {"path": str(tmp_path / "run"), "num_recurrences": 5}
    path = Path(recipe(training={"output_dir": str(tmp_path / "b")}))
    content = json.loads(path.read_text())
    content["model"] = again
    path.write_text(json.dumps(content))
    assert train.main([str(path)]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert model.config.num_recurrences == 5
    assert model.config.hidden_size == 16
    # Other words, and as many of them.
    tokenizer, _, _ = open_data({"path": str(tmp_path / "data")})
    model.save_pretrained(tmp_path / "foreign")
    vocabulary = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["<e_0>"], words["<e_1>"] = words["<e_1>"], words["<e_0>"]
    (tmp_path / "foreign" / "tokenizer.json").write_text(json.dumps(vocabulary))
    shutil.copy(tmp_path / "run" / "tokenizer_config.json", tmp_path / "foreign")
    with pytest.raises(ValueError, match=r"The vocabulary does not match: '<e_[01]>'"):
        make_model({"path": str(tmp_path / "foreign")}, tokenizer)


def test_help_teaches(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in ("examples:", "a recipe:", "--data_path", "--curriculum_threshold", "--recurrence_loss", "--restart"):
        assert part in text
    (tmp_path / "example.yaml").write_text(text[text.index("a recipe:") + len("a recipe:") :])
    _, values = train.make_parser().parse_recipe([str(tmp_path / "example.yaml")])
    assert all(values[section] for section in ("model", "data", "training", "curriculum"))
    assert CurriculumArguments(**values["curriculum"]).gate == "train"
    assert values["model"]["position_embedding_type"] == "none"


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_of_the_package_are_valid(name, tmp_path):
    parser = train.make_parser()
    if train.kind_of([name]) == "text":
        pytest.skip("see test_train_text.py")
    if not set(load_recipe(name)) <= set(parser.sections):
        pytest.skip("a recipe of another command")
    _, values = parser.parse_recipe([name])
    RecurrentTrainingArguments(**{**values["training"], "output_dir": str(tmp_path), "use_cpu": True})
    CurriculumArguments(**values["curriculum"])
    DataArguments(**values["data"])
    ModelArguments(**values["model"])


def test_the_study_at_its_full_size():
    _, values = train.make_parser().parse_recipe(["depth_extrapolation"])

    class Vocabulary:
        pad_token_id = 0

        def __len__(self):
            return 217

    model = make_model(values["model"], Vocabulary())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(28.5e6, rel=0.002)
    # It starts as the identity.
    assert all(not layer.mlp.down_proj.weight.any() for layer in model.model.recurrent_layers)
