import dataclasses
from typing import Literal

import pytest

from memreason_hf import cli
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.recipes import RECIPES_FOLDER, find_recipe, load_recipe, recipe_names


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
    max_rows: int | None = dataclasses.field(default=None, metadata={"help": "Rows."})


@dataclasses.dataclass
class Source:
    model: str = dataclasses.field(metadata={"help": "A folder."})
    device: str | None = dataclasses.field(default=None, metadata={"help": "A device."})


@dataclasses.dataclass
class Data:
    data: str = dataclasses.field(metadata={"help": "Data."})


def make_parser(**kwargs):
    sections = [
        Section("model", Model, "the model", flags={"seed": "model_seed"}, shown=("width",)),
        Section("training", Training, "the training"),
    ]
    return CommandParser(sections, prog="memreason test", **{"recipe": "required", **kwargs})


def make_model_parser(**kwargs):
    sections = [
        Section("source", Source, "model", key="inputs"),
        Section("data", Data, "data", key="inputs"),
        Section("training", Training, "training", defaults={"seed": 7}, left_out=("loud",)),
    ]
    return CommandParser(sections, model=True, prog="memreason test", **kwargs)


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_flag_wins_over_the_recipe_and_what_is_not_given_has_no_entry(recipe):
    path = recipe("model: {width: 16, window: null, rope: {theta: 1}}\ntraining: {rate: 1e-4, stages: [2, 3]}")
    found, values = make_parser().parse_recipe([path, "--width", "32", "--model_seed=5", "--loud", "--no_quiet"])
    assert str(found) == path
    assert values == {
        "model": {"width": 32, "window": None, "rope": {"theta": 1}, "seed": 5},
        "training": {"rate": 1e-4, "stages": [2, 3], "loud": True, "quiet": False},
    }
    _, values = make_parser().parse_recipe([path, "--stages", "4", "5", "--kind", "b", "--loud", "false"])
    assert values["training"] == {"rate": 1e-4, "stages": [4, 5], "kind": "b", "loud": False}


def test_every_flag_has_two_spellings(recipe):
    path = recipe("{}")
    flags = {"--max_rows": "--max-rows", "--model_seed": "--model-seed"}
    for flag, other in flags.items():
        values = [make_parser().parse_recipe([path, spelling, "5"])[1] for spelling in (flag, other)]
        assert values[0] == values[1]
        # Control: the flag has an effect, and another value differs.
        assert values[0] != make_parser().parse_recipe([path])[1]
        assert values[0] != make_parser().parse_recipe([path, other, "6"])[1]
    off = [make_parser().parse_recipe([path, spelling])[1]["training"] for spelling in ("--no_quiet", "--no-quiet")]
    assert off == [{"quiet": False}] * 2
    # A third spelling is none.
    with pytest.raises(ValueError, match="unknown flag '--maxRows 5'"):
        make_parser().parse_recipe([path, "--maxRows", "5"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: {widht: 3}", r"section model: unknown key 'widht'. Did you mean 'width'\?"),
        ("model: {rate: 3}", r"section model: unknown key 'rate'. Did you mean 'rate' of section training\?"),
        ("model: {zzz: 3}", "The keys of section model are width, window, rope, seed"),
        ("model: {1: 3}", "section model: unknown key 1"),
        ("modle: {width: 3}", r"unknown section 'modle'.*Did you mean 'model'\?"),
        ("model: {width: wide}", "model.width='wide' must be a whole number"),
        ("model: {width: 2.5}", "model.width=2.5 must be a whole number"),
        ("model: {width: 2.0}", "model.width=2.0 must be a whole number: write 2"),
        ("model: {width: true}", "model.width=true must be a whole number"),
        ("model: {rope: 3}", "model.rope=3 must be a mapping or null"),
        ("training: {rate: [1]}", r"training.rate=\[1\] must be a number"),
        ("training: {rate: '1e-4'}", "training.rate='1e-4' must be a number: leave out the quotes"),
        ("training: {loud: 1}", "training.loud=1 must be true or false"),
        ("training: {loud: yes}", "training.loud='yes' must be true or false: YAML 1.2 reads yes, no, on"),
        ("training: {kind: c}", "training.kind='c' must be one of 'a', 'b'"),
        ("training: {stages: [2, x]}", r"training.stages=\[2, 'x'\] must be a list of whole numbers or null"),
        ("training: {rate: null}", "training.rate=null must be a number"),
        ("training: 3", "section 'training' must hold keys"),
        ("- 3", "must hold sections"),
        ("model: {width: 3", "not valid YAML"),
        ("model: {width: 3, width: 4}", 'found duplicate key "width"'),
        ("model: {width: 3}\nmodel: {window: 4}", 'line 2.*found duplicate key "model"'),
    ],
)
def test_a_recipe_that_is_wrong(recipe, text, message):
    path = recipe(text)
    with pytest.raises(ValueError, match=message) as error:
        make_parser().parse_recipe([path])
    # One line that names the file, and nothing of pydantic's.
    assert str(error.value).startswith(path) and "\n" not in str(error.value)
    assert "pydantic" not in str(error.value) and "type=" not in str(error.value)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--widht", "3"], r"unknown flag '--widht 3'. Did you mean --width\?"),
        (["--wid", "3"], "unknown flag '--wid 3'"),
        (["--max-row", "3"], r"unknown flag '--max-row 3'. Did you mean --max-rows\?"),
        (["--zzzzz"], "unknown flag '--zzzzz'. --help_all lists all flags"),
        (["--kind", "c"], "invalid choice: 'c'"),
        (["--width", "wide"], "width='wide' must be a whole number"),
        (["--width"], "expected one argument"),
        (["other.yaml"], "the command takes at most one RECIPE"),
    ],
)
def test_flags_that_are_wrong(recipe, argv, message):
    with pytest.raises(ValueError, match=message) as error:
        make_parser().parse_recipe([recipe(""), *argv])
    assert "\n" not in str(error.value)


def test_no_recipe(tmp_path):
    with pytest.raises(
        ValueError, match="RECIPE is not given: a YAML file, or one of depth_extrapolation, depth_extrapolation_small"
    ):
        make_parser().parse_recipe([])
    for recipe in ("optional", "file"):
        path, values = make_parser(recipe=recipe).parse_recipe(["--width", "3"])
        assert path is None
        assert values == {"model": {"width": 3}, "training": {}}
    # It can be one of the package, or a file alone.
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_parser(recipe="optional").parse_recipe(["nowhere"])
    with pytest.raises(FileNotFoundError, match=r"^quickstart: no such file. RECIPE.yaml must be a YAML file.$"):
        make_parser(recipe="file").parse_recipe(["quickstart"])
    with pytest.raises(FileNotFoundError, match=r"^nowhere.yaml: no such file"):
        make_model_parser().parse_recipe(["nowhere.yaml", "model"])
    with pytest.raises(ValueError, match="the command takes flags only"):
        make_parser(recipe=None).parse_recipe(["recipe.yaml"])
    with pytest.raises(
        FileNotFoundError, match=r"No recipe 'depth_extrapolatoin'.*Did you mean depth_extrapolation\?"
    ):
        make_parser().parse_recipe(["depth_extrapolatoin"])
    with pytest.raises(FileNotFoundError, match="No recipe"):
        find_recipe("accelerate/gpu_1")
    with pytest.raises(FileNotFoundError, match="No recipe"):
        find_recipe(tmp_path)


def test_recipe_and_model_before_or_after_the_flags(recipe):
    path = recipe("inputs: {model: other, data: here}\ntraining: {rate: 2}")
    expected = [Source("mine"), Data("here"), Training(seed=7, rate=2.0, max_rows=3)]
    for argv in (
        [path, "mine", "--max_rows", "3"],
        ["mine", path, "--max-rows=3"],
        ["--max_rows", "3", path, "mine"],
        ["mine", "--max_rows", "3", path],
        [path, "--model", "mine", "--max_rows", "3"],
        # The flag wins over MODEL.
        [path, "yours", "--max_rows", "3", "--model", "mine"],
    ):
        assert make_model_parser().parse_sections(argv) == expected
    assert make_model_parser().parse_sections([path])[0] == Source("other")
    with pytest.raises(ValueError, match=r"'a b': the command takes at most one RECIPE.yaml and one MODEL"):
        make_model_parser().parse_recipe(["a", "b"])


def test_places_are_fields_without_their_flags():
    sections = [Section("source", Source, "model"), Section("data", Data, "data")]
    parser = CommandParser(sections, recipe=None, places=("model", "data"), prog="memreason test")
    expected = [Source("m"), Data("d")]
    for argv in (["m", "d"], ["--model", "m", "--data", "d"], ["m", "--data", "d"], ["x", "d", "--model", "m"]):
        assert parser.parse_sections(argv) == expected
    assert parser.parse_sections(["m", "--device", "cpu", "d"]) == [Source("m", "cpu"), Data("d")]
    with pytest.raises(ValueError, match=r"'a b c': the command takes at most one MODEL and one DATA"):
        parser.parse_sections(["a", "b", "c"])
    with pytest.raises(ValueError, match="data is not given"):
        parser.parse_sections(["m"])
    text = parser.format_help()
    assert "[MODEL] DATA [--flag value ...]" in text and "MODEL DATA is short for --model MODEL --data DATA." in text


@dataclasses.dataclass
class Files:
    files: list[str]
    label: str | None = None


def test_the_last_place_can_take_several_values(recipe):
    sections = [Section("source", Source, "model"), Section("files", Files, "files")]
    parser = CommandParser(sections, places=("model", "files"), prog="memreason test")
    for argv in (["m", "a", "b"], ["m", "--files", "a", "b"], ["m", "a", "--device", "cpu", "b"]):
        source, files = parser.parse_sections(argv)
        assert source.model == "m" and files == Files(["a", "b"])
    assert parser.parse_sections(["m", "a"])[1] == Files(["a"])
    assert parser.parse_sections([recipe("files: {files: [a, b]}"), "m"])[1] == Files(["a", "b"])
    for argv in (["m"], []):
        with pytest.raises(ValueError, match="is not given"):
            parser.parse_sections(argv)
    assert "[RECIPE.yaml] [MODEL] FILES... [--flag value ...]" in parser.format_help()
    # A control: a last place that is not a list takes one value.
    parser = CommandParser([Section("files", Files, "files")], places=("label",), prog="memreason test")
    with pytest.raises(ValueError, match=r"'a b': the command takes at most one RECIPE\.yaml and one LABEL"):
        parser.parse_sections(["a", "b"])


def test_sections_that_share_a_key_and_leave_fields_out(recipe):
    parser = make_model_parser()
    path = recipe("inputs: {model: m, data: d, device: cpu}")
    assert parser.parse_sections([path]) == [Source("m", "cpu"), Data("d"), Training(seed=7)]
    with pytest.raises(ValueError, match=r"unknown key 'dta'. Did you mean 'data'\?"):
        parser.parse_recipe([recipe("inputs: {model: m, dta: d}")])
    for argv in (["--loud"], ["--no_loud"]):
        with pytest.raises(ValueError, match="unknown flag"):
            parser.parse_recipe(argv)
    with pytest.raises(ValueError, match="section training: unknown key 'loud'"):
        parser.parse_recipe([recipe("training: {loud: true}")])


def test_fields_without_a_default_are_required(recipe):
    with pytest.raises(ValueError, match=r"^model is not given. Pass --model or set inputs.model in the recipe.$"):
        make_model_parser().parse_sections(["--data", "d"])
    with pytest.raises(ValueError, match=r"^data is not given"):
        make_model_parser().parse_sections([recipe("inputs: {data: ''}"), "m"])
    parser = CommandParser([Section("data", Data, "data")], recipe=None, prog="script")
    with pytest.raises(ValueError, match=r"^data is not given. Pass --data.$"):
        parser.parse_sections([])
    # Only `parse_sections` needs them.
    assert parser.parse_recipe([])[1] == {"data": {}}


def test_help_is_short_or_whole(capsys):
    for flag, is_hidden in (("--help", True), ("-h", True), ("--help_all", False), ("--help-all", False)):
        with pytest.raises(SystemExit) as stop:
            make_parser(description="What it does.", epilog="examples:\n  one\n  two").parse_recipe([flag])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith("usage: memreason test RECIPE [--flag value ...]\n\nWhat it does.\n\nRECIPE is a YAML")
        assert "depth_extrapolation_small, quickstart" in " ".join(text.split())
        assert "the model (section model of a recipe):" in text and "the training (section training" in text
        assert "How wide. (default: 8)" in text
        assert ("How far." in text) is not is_hidden
        assert "--model-seed" not in text and "default: None" not in text and "default: False" not in text
        assert "(default: 0)" in text
        assert text.rstrip().endswith("examples:\n  one\n  two")
        # The flag that switches something off says so, and not what it switches.
        assert " ".join(text.split("--no_quiet")[1].split("--")[0:2]).split() == ["Switches", "quiet", "off."]


def test_help_of_a_command_that_takes_a_model(capsys):
    with pytest.raises(SystemExit):
        make_model_parser().parse_recipe(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: memreason test [RECIPE.yaml] [MODEL] [--flag value ...]")
    assert "MODEL is short for --model MODEL." in text and "Required." in text and "(default: 7)" in text
    assert "--loud" not in text
    with pytest.raises(SystemExit):
        CommandParser([Section("data", Data, "data")], recipe=None, prog="script").parse_recipe(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: script [--flag value ...]") and "recipe" not in text.lower()


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_the_one_parser(verb):
    parser = cli.import_module(f"memreason_hf.commands.{verb.replace('-', '_')}").make_parser()
    name = f"{verb} retrofit" if verb == "reproduce" else verb
    assert type(parser) is CommandParser and parser.prog == f"memreason {name}"
    # Every flag has a help text.
    silent = [action.option_strings for action in parser._actions if not action.help]
    assert silent == []


def test_recipes_of_the_package_are_found_by_name():
    assert "depth_extrapolation" in recipe_names()
    for name in recipe_names():
        assert find_recipe(name) == RECIPES_FOLDER / f"{name}.yaml"
        assert load_recipe(name)
