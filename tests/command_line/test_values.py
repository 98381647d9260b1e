import enum
import typing
from typing import Literal, Optional

import pytest
from transformers import TrainingArguments
from transformers.modeling_rope_utils import RopeParameters

from memreason_hf.command_line.values import check_value, shown
from memreason_hf.commands import finetune, train


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class OnlyInCode:
    pass


@pytest.mark.parametrize(
    "value, hint, expected",
    [
        (3, int, 3),
        (3, float, 3.0),
        (0.5, float | int, 0.5),
        (3, float | int, 3),
        (None, int | None, None),
        ("no", str, "no"),
        ("no", str | bool, "no"),
        (False, str | bool, False),
        ("red", Colour, "red"),
        ("red", Colour | str, "red"),
        (["red"], list[Colour] | str, ["red"]),
        ([2, 3], list[int] | None, [2, 3]),
        (["a"], None | str | list[str], ["a"]),
        ({"theta": 1, "any": [1]}, RopeParameters | dict | None, {"theta": 1, "any": [1]}),
        ({"a": True}, dict[str, bool] | None, {"a": True}),
        (None, OnlyInCode | None, None),
        ("a", Optional[Literal["a", "b"]], "a"),  # noqa: UP045 - as HfArgumentParser writes it
        ([1, "a"], typing.Any, [1, "a"]),
    ],
)
def test_values_of_the_right_type(value, hint, expected):
    checked = check_value("section.key", value, hint)
    assert checked == expected and type(checked) is type(expected)


@pytest.mark.parametrize(
    "value, hint, message",
    [
        (False, str, 'section.key=false must be text: put it in "quotes".'),
        (3, str, 'section.key=3 must be text: put it in "quotes".'),
        (2.0, int, "section.key=2.0 must be a whole number: write 2."),
        (2.5, int, "section.key=2.5 must be a whole number."),
        (True, int, "section.key=true must be a whole number."),
        (True, float, "section.key=true must be a number."),
        ("1e-4", float, "section.key='1e-4' must be a number: leave out the quotes."),
        ("fast", float, "section.key='fast' must be a number."),
        (1, bool, "section.key=1 must be true or false."),
        ("off", bool, "section.key='off' must be true or false: YAML 1.2 reads yes, no, on and off as text."),
        (None, float, "section.key=null must be a number."),
        ("green", Colour, "section.key='green' must be one of 'red', 'blue'."),
        ("rad", Colour | str, "section.key='rad' must be one of 'red', 'blue'. Did you mean 'red'?"),
        ("RED", Colour | str, "section.key='RED' must be one of 'red', 'blue'."),
        ("c", Literal["a", "b"] | None, "section.key='c' must be one of 'a', 'b' or null."),
        ([2, "x"], list[int] | None, "section.key=[2, 'x'] must be a list of whole numbers or null."),
        ({"a": 1}, dict[str, bool] | None, "section.key={'a': 1} must be a mapping or null."),
        (3, dict | str | None, 'section.key=3 must be a mapping or text or null: put it in "quotes".'),
        ({"a": 1}, OnlyInCode | None, "section.key={'a': 1} must be null."),
    ],
)
def test_values_of_the_wrong_type(value, hint, message):
    with pytest.raises(ValueError) as error:
        check_value("section.key", value, hint)
    assert str(error.value) == message


@pytest.mark.parametrize("section", [*train.SECTIONS, *finetune.SECTIONS], ids=lambda section: section.name)
def test_every_field_of_the_recipes_takes_its_own_default(section):
    for name, hint in section.hints.items():
        default = section.fields_of.__dataclass_fields__[name].default
        if isinstance(default, str | int | float | bool | None):
            value = default.value if isinstance(default, enum.Enum) else default
            assert check_value(name, value, hint) == value
        # Control: no field takes everything.
        with pytest.raises(ValueError, match=f"^{name}="):
            check_value(name, object(), hint)


def test_an_enum_of_the_library_is_given_by_its_text():
    hint = typing.get_type_hints(TrainingArguments)["eval_strategy"]
    assert check_value("training.eval_strategy", "no", hint) == "no"
    with pytest.raises(ValueError, match=r"eval_strategy='epochs' must be one of 'no', 'steps', 'epoch'. Did you"):
        check_value("training.eval_strategy", "epochs", hint)


def test_values_are_shown_short():
    assert shown(["x" * 200]) == "['" + "x" * 78 + "…"
    assert shown(10**5000) == "(a very large number)"
    assert shown("a\nb") == r"'a\nb'"
