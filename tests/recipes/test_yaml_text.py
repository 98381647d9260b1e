"""YAML 1.2 as recipes are read, and files that would take all time or memory."""

import time

import pytest

from memreason_hf.commands import finetune, train
from memreason_hf.recipes import FINETUNE, load_recipe, recipe_names
from memreason_hf.recipes.yaml_text import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read_yaml


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    "text, value",
    [
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("none", "none"),
        ("None", "None"),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("1e-4", 1e-4),
        ("3E2", 300.0),
        ("1.0", 1.0),
        ("12", 12),
        ("010", 10),
        ("1:30", "1:30"),
        ('"1e-4"', "1e-4"),
        ("2-8,12", "2-8,12"),
        ("[2, 8]", [2, 8]),
    ],
)
def test_words_and_numbers_are_those_of_yaml_1_2(write, text, value):
    read = read_yaml(write(f"key: {text}"))["key"]
    assert read == value and type(read) is type(value)


def test_a_recipe_can_be_json(write):
    assert read_yaml(write('{"model": {"width": 1e-2, "name": "no"}}')) == {"model": {"width": 1e-2, "name": "no"}}


def bomb():
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, message",
    [
        (bomb(), f"expands to more than {MAX_VALUES:,} values"),
        ("a: &a {b: &b [*a]}", r"\*a is used inside or before &a"),
        ("a: *a", r"\*a is used inside or before &a"),
        ("a: " + "[" * 30_000, f"line 1: nested more than {MAX_DEPTH} levels deep"),
        ("a: " + "[" * 30_000 + "]" * 30_000, f"nested more than {MAX_DEPTH}"),
        ("a: " + "{a: " * 10_000, f"nested more than {MAX_DEPTH}"),
        ("- " * 30_000, f"nested more than {MAX_DEPTH}"),
        ("? " * 30_000, f"nested more than {MAX_DEPTH}"),
        ("\n".join(" " * i + "a:" for i in range(300)), f"line {MAX_DEPTH + 1}: nested more than {MAX_DEPTH}"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 30)),
            f"nested more than {MAX_DEPTH}",
        ),
        ("a: [" + "1, " * (MAX_VALUES + 1) + "]", f"expands to more than {MAX_VALUES:,} values"),
        ("# " + "x" * MAX_BYTES, f"is larger than {MAX_BYTES:,} bytes"),
        (b"\xff\xfe\x00", "must be a text in UTF-8"),
        ("a: \x00", "not valid YAML"),
        ("a: 2024-13-45", "a value cannot be read"),
        ("a: " + "1" * 5000, "a value cannot be read"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML: could not determine a constructor"),
        ("a: 1\n---\nb: 2", "another document"),
    ],
    ids=range(18),
)
def test_a_file_that_never_ends_is_refused_quickly_in_one_line(write, text, message):
    path = write(text)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert time.perf_counter() - start < 5
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path)) and len(str(error.value)) < 500


def test_what_lies_within_the_limits_is_read(write):
    """Controls: aliases, depth, values and bytes that a recipe may have."""
    assert read_yaml(write("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}")) == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }
    deepest = read_yaml(write("[" * MAX_DEPTH + "]" * MAX_DEPTH))
    for _ in range(MAX_DEPTH - 1):
        (deepest,) = deepest
    assert deepest == []
    assert len(read_yaml(write("[" + "1, " * (MAX_VALUES - 1) + "]"))) == MAX_VALUES - 1
    assert read_yaml(write("a: 1 #" + "x" * (MAX_BYTES - 6))) == {"a": 1}


@pytest.mark.parametrize("name", [*recipe_names(), *recipe_names(FINETUNE)])
def test_the_recipes_of_the_package_pass_the_strict_check_as_they_are(name):
    parser = finetune.make_parser() if name.startswith(FINETUNE) else train.make_parser(train.kind_of([name]))
    _, values = parser.parse_recipe([name])
    assert {section: keys for section, keys in values.items() if keys} == load_recipe(name)


def test_none_and_no_of_the_recipes():
    for name in ("quickstart", "depth_extrapolation"):
        assert load_recipe(name)["model"]["position_embedding_type"] == "none"
    assert load_recipe("depth_extrapolation")["model"]["input_injection"] == "none"
    assert load_recipe("quickstart")["training"]["eval_strategy"] == "no"
    assert load_recipe("depth_extrapolation")["training"]["learning_rate"] == 1e-4
