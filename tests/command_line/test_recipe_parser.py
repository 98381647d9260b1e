import dataclasses
import enum
from typing import Literal

import pytest

from memreason_hf.command_line.recipe_parser import RecipeParser, RecipeSection, convert
from memreason_hf.recipes import RECIPES_FOLDER, find_recipe, load_recipe, recipe_names


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Model:
    width: int = dataclasses.field(default=8, metadata={"help": "How wide."})
    window: int | None = dataclasses.field(default=4, metadata={"help": "How far."})
    rope: dict | None = dataclasses.field(default=None, metadata={"help": "A mapping."})
    seed: int = dataclasses.field(default=0, metadata={"help": "Of the model."})


@dataclasses.dataclass
class Training:
    seed: int = dataclasses.field(default=0, metadata={"help": "Of training."})
    rate: float = dataclasses.field(default=0.1, metadata={"help": "How fast."})
    loud: bool = dataclasses.field(default=False, metadata={"help": "Noise."})
    quiet: bool = dataclasses.field(default=True, metadata={"help": "No noise."})
    stages: list[int] | None = dataclasses.field(default=None, metadata={"help": "Numbers."})
    kind: Literal["a", "b"] = dataclasses.field(default="a", metadata={"help": "Which."})


def make_parser(**kwargs):
    sections = [
        RecipeSection("model", Model, "the model", flags={"seed": "model_seed"}, shown=("width",)),
        RecipeSection("training", Training, "the training"),
    ]
    return RecipeParser(sections, prog="memreason test", **kwargs)


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_flag_wins_over_the_recipe_and_what_is_not_given_is_not_there(recipe):
    path = recipe("model: {width: 16, window: null, rope: {theta: 1}}\ntraining: {rate: 1e-4, stages: [2, 3]}")
    found, values = make_parser().parse_recipe([path, "--width", "32", "--model_seed=5", "--loud", "--no_quiet"])
    assert str(found) == path
    assert values == {
        "model": {"width": 32, "window": None, "rope": {"theta": 1}, "seed": 5},
        "training": {"rate": 1e-4, "stages": [2, 3], "loud": True, "quiet": False},
    }
    _, values = make_parser().parse_recipe([path, "--stages", "4", "5", "--kind", "b", "--loud", "false"])
    assert values["training"] == {"rate": 1e-4, "stages": [4, 5], "kind": "b", "loud": False}


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: {widht: 3}", r"section model: unknown key 'widht'. Did you mean 'width'\?"),
        ("model: {rate: 3}", r"section model: unknown key 'rate'. Did you mean 'rate' of section training\?"),
        ("model: {zzz: 3}", "Section model knows width, window, rope, seed"),
        ("modle: {width: 3}", r"unknown section 'modle'.*Did you mean 'model'\?"),
        ("model: {width: wide}", "model.width: 'wide' is not a whole number"),
        ("model: {width: 2.5}", "model.width: 2.5 is not a whole number"),
        ("model: {width: true}", "model.width: True is not a whole number"),
        ("model: {rope: 3}", "model.rope: 3 is not a mapping"),
        ("training: {rate: [1]}", r"training.rate: \[1\] is not a number"),
        ("training: {loud: 1}", "training.loud: 1 is not true or false"),
        ("training: {kind: c}", "training.kind: 'c' is not one of 'a', 'b'"),
        ("training: {stages: [2, x]}", "training.stages: 'x' is not a whole number"),
        ("training: {rate: null}", "training.rate: None is not a number"),
        ("training: 3", "section 'training' must hold keys"),
        ("- 3", "must hold sections"),
        ("model: {width: 3", "no valid YAML"),
        ("model: {width: 3, width: 4}", "'width' appears twice"),
        ("model: {width: 3}\nmodel: {window: 4}", "'model' appears twice"),
    ],
)
def test_a_recipe_that_is_wrong(recipe, text, message):
    with pytest.raises(ValueError, match=message):
        make_parser().parse_recipe([recipe(text)])


def test_flags_that_are_wrong(recipe, capsys):
    path = recipe("")
    with pytest.raises(ValueError, match=r"unknown flag '--widht 3'. Did you mean --width\?"):
        make_parser().parse_recipe([path, "--widht", "3"])
    with pytest.raises(ValueError, match="unknown flag '--wid 3'"):
        make_parser().parse_recipe([path, "--wid", "3"])
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_recipe([path, "--kind", "c"])
    assert stop.value.code == 2
    assert "invalid choice: 'c'" in capsys.readouterr().err


def test_no_recipe():
    with pytest.raises(SystemExit):
        make_parser().parse_recipe([])
    path, values = make_parser(recipe_required=False).parse_recipe(["--width", "3"])
    assert path is None
    assert values == {"model": {"width": 3}, "training": {}}
    with pytest.raises(
        FileNotFoundError, match=r"No recipe 'depth_extrapolatoin'.*Did you mean depth_extrapolation\?"
    ):
        make_parser().parse_recipe(["depth_extrapolatoin"])
    with pytest.raises(FileNotFoundError, match="No recipe"):
        find_recipe("accelerate/gpu_1")


def test_yaml_reads_some_words_as_truth_values():
    with pytest.raises(ValueError, match="quotes"):
        convert(False, str)
    assert convert("no", str) == "no"
    assert convert("red", Colour | str) == "red"
    with pytest.raises(ValueError, match="'blue' is not one of 'red'"):
        convert("blue", Colour)


def test_help_is_short_or_whole(capsys):
    for flag, hidden in (("--help", False), ("--help_all", True)):
        with pytest.raises(SystemExit) as stop:
            make_parser(description="What it does.").parse_recipe([flag])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "What it does." in text
        assert "How wide. (default: 8)" in text
        assert ("How far." in text) is hidden
        assert "--model-seed" not in text
        # The flag that switches something off says so, and not what it switches.
        assert " ".join(text.split("--no_quiet")[1].split("--")[0:2]).split() == ["Switches", "quiet", "off."]


def test_recipes_of_the_package_are_found_by_name():
    assert "depth_extrapolation" in recipe_names()
    for name in recipe_names():
        assert find_recipe(name) == RECIPES_FOLDER / f"{name}.yaml"
        assert load_recipe(name)
