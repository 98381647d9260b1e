"""Checks the values of a recipe against the types of the fields that they are for."""

import difflib
import enum
import functools
import operator
import types
import typing
from collections.abc import Iterable, Mapping

from pydantic import TypeAdapter, ValidationError


# How alike two names must be for one to be suggested for the other, from 0 to 1.
_ALIKE = 0.6
_MOST_LETTERS = 80
# How messages call the types of a JSON schema.
_WANTED = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "object": "a mapping",
    "null": "null",
}
_WANTED_ITEMS = {"integer": "whole numbers", "number": "numbers", "string": "texts"}
# What YAML 1.1 reads as true or false.
_OLD_BOOLEANS = ("yes", "no", "on", "off", "y", "n")


def check_value(name: str, value: object, hint: object) -> object:
    """
    `value`, as YAML gave it, for a field of type `hint`.

    Nothing is converted but an int for a float. A field of an enum takes the text of one of its values.

    Args:
        name: of the field, for messages.

    Raises:
        ValueError: the value is of another type. The message names the field, the value and the type.

    Example:
        >>> check_value("training.learning_rate", 1, float)
        1.0
        >>> check_value("training.learning_rate", "fast", float)
        Traceback (most recent call last):
        ValueError: training.learning_rate='fast' must be a number.
    """
    adapter = TypeAdapter(_expressible(hint))
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError:
        schema = adapter.json_schema()
        raise ValueError(f"{name}={shown(value)} must be {_wanted(schema)}{_advice(value, schema)}") from None


def closest(name: object, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be, or None."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=_ALIKE)), None)


def is_enum(hint: object) -> bool:
    """Whether a type hint is an enum."""
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def union_arms(hint: object) -> tuple:
    """The types that a hint allows: those of a union, or the hint itself."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _expressible(hint):
    """The part of a hint that YAML can express: enums by their values, no objects that only code can make."""
    arms = union_arms(hint)
    if len(arms) > 1:
        # Next to an enum, text can only be one of its values.
        arms = [arm for arm in arms if arm is not str or not any(map(is_enum, arms))]
        arms = [arm for arm in map(_expressible, arms) if arm is not None]
        return functools.reduce(operator.or_, arms) if arms else None
    if is_enum(hint):
        return typing.Literal[tuple(item.value for item in hint)]
    if typing.get_origin(hint) is list:
        return list[_expressible(*typing.get_args(hint))]
    is_plain = hint in (int, float, bool, str, dict, list, type(None), typing.Any)
    return hint if is_plain or typing.get_origin(hint) in (typing.Literal, dict) else None


def _wanted(schema: Mapping) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_wanted, schema["anyOf"])))
    if choices := _choices(schema):
        return ("one of " if len(choices) > 1 else "") + ", ".join(map(shown, choices))
    if schema.get("type") == "array":
        items = schema.get("items", {})
        return f"a list of {_WANTED_ITEMS.get(items.get('type')) or _wanted(items)}" if items else "a list"
    return _WANTED.get(schema.get("type"), "of another type")


def _choices(schema):
    """The values that a schema lists, of all arms of a union."""
    if "anyOf" in schema:
        return [choice for arm in schema["anyOf"] for choice in _choices(arm)]
    return schema.get("enum") or ([schema["const"]] if "const" in schema else [])


def _advice(value, schema):
    """The end of the sentence: what to write instead, for mistakes that are easy to make in YAML."""
    wanted = {part.get("type") for part in schema.get("anyOf", [schema])}
    if choices := _choices(schema):
        close = closest(value, map(str, choices))
        return f". Did you mean {close!r}?" if close else "."
    if isinstance(value, str):
        if "boolean" in wanted and value.lower() in _OLD_BOOLEANS:
            return ": YAML 1.2 reads yes, no, on and off as text."
        if wanted & {"integer", "number"} and _is_number(value):
            return ": leave out the quotes."
    elif isinstance(value, float) and "integer" in wanted and value.is_integer():
        return f": write {value:.0f}."
    elif "string" in wanted and value is not None and not isinstance(value, list | dict):
        return ': put it in "quotes".'
    return "."


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def shown(value: object) -> str:
    """A value in a message: a Python literal, shortened; null, true and false as in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except ValueError:
        # Python does not print ints of thousands of digits.
        return "(a very large number)"
    return text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "…"
