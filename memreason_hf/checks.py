"""Checks of arguments, whose errors name the argument, its value and what it must be."""

import dataclasses
import enum
import math
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence


_MOST_LETTERS = 80


def shortened(value: object) -> str:
    """
    A value in a message: `repr`, shortened.

    Example:

        >>> shortened("a" * 100)[-3:]
        'aa…'
    """
    try:
        text = repr(value)
    except ValueError:
        return "(a very large number)"
    text = " ".join(text.split())
    return text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "…"


def check_type(name: str, value: object, types: type | tuple[type, ...], wanted: str) -> None:
    """
    Checks the type of an argument.

    Args:
        name: of the argument.
        types: as for `isinstance`.
        wanted: what the argument must be, for example `"a list of texts"`.

    Raises:
        TypeError: `value` is of another type. The message names it.

    Example:

        >>> check_type("text", 5, str, "a text")
        Traceback (most recent call last):
        TypeError: text=5 must be a text, got int.
    """
    if not isinstance(value, types):
        raise TypeError(f"{name}={shortened(value)} must be {wanted}, got {type(value).__name__}.")


def check_has(name: str, value: object, attribute: str, wanted: str) -> None:
    """
    Checks that an argument is an object of a kind that is recognised by an attribute, without an import of its class.

    Raises:
        TypeError: `value` does not have the attribute.
    """
    if not hasattr(value, attribute):
        raise TypeError(f"{name}={shortened(value)} must be {wanted}, got {type(value).__name__}.")


def check_int(
    name: str, value: object, least: int | None = None, most: int | None = None, reason: str | None = None
) -> None:
    """
    Checks that an argument is a whole number in a range.

    Args:
        reason: of the upper bound, for the message.

    Raises:
        TypeError: `value` is not an int. A bool is none.
        ValueError: `value` is below `least` or above `most`.

    Example:

        >>> check_int("batch_size", 0, least=1)
        Traceback (most recent call last):
        ValueError: batch_size=0 must be at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={shortened(value)} must be a whole number, got {type(value).__name__}.")
    if least is not None and value < least:
        raise ValueError(f"{name}={shortened(value)} must be at least {least:,}.")
    if most is not None and value > most:
        why = f": {reason}" if reason else ""
        raise ValueError(f"{name}={shortened(value)} must be at most {most:,}{why}.")


def check_number(
    name: str,
    value: object,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """
    Checks that an argument is a finite number in a range.

    Args:
        least, most: the bounds of the range, which are in it.
        above, below: bounds that are not in it.

    Raises:
        TypeError: `value` is not a number.
        ValueError: `value` is not finite, or out of the range.

    Example:

        >>> check_number("confidence", 1.0, above=0, below=1)
        Traceback (most recent call last):
        ValueError: confidence=1.0 must be below 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={shortened(value)} must be a number, got {type(value).__name__}.")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number.")
    if least is not None and value < least:
        raise ValueError(f"{name}={value} must be at least {least}.")
    if most is not None and value > most:
        raise ValueError(f"{name}={value} must be at most {most}.")
    if above is not None and value <= above:
        raise ValueError(f"{name}={value} must be above {above}.")
    if below is not None and value >= below:
        raise ValueError(f"{name}={value} must be below {below}.")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """
    Checks that an argument is one of some texts.

    Raises:
        ValueError: `value` is none of them.
    """
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={shortened(value)} must be one of {', '.join(choices)}.")


def check_sequence(name: str, value: object, wanted: str) -> None:
    """
    Checks that an argument holds several items and is not a single text or a mapping.

    Raises:
        TypeError: `value` is something else.
    """
    is_items = isinstance(value, Sequence | Iterable) or hasattr(value, "__getitem__")
    if isinstance(value, str | bytes | Mapping) or not is_items:
        raise TypeError(f"{name}={shortened(value)} must be {wanted}, got {type(value).__name__}.")


def check_row(name: str, row: object, columns: Iterable[str]) -> None:
    """
    Checks that a row of a data set is a mapping with some columns.

    Raises:
        TypeError: `row` is not a mapping.
        ValueError: a column is missing.
    """
    if not isinstance(row, Mapping):
        raise TypeError(f"{name}={shortened(row)} must be a mapping of columns, got {type(row).__name__}.")
    missing = [column for column in columns if column not in row]
    if missing:
        raise ValueError(f"{name}={shortened(row)} lacks {' and '.join(missing)}. Add what is missing.")


def check_path(name: str, value: object) -> None:
    """
    Checks that an argument can be the path of a file or folder.

    Raises:
        TypeError: `value` is neither a text nor a path.
        ValueError: `value` is empty or holds a null character.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}={shortened(value)} must be a path, got {type(value).__name__}.")
    if not os.fspath(value) or "\0" in str(value):
        raise ValueError(f"{name}={shortened(os.fspath(value))} must be a path, but it is empty or holds a null.")


def check_columns(name: str, columns: Iterable[str], needed: Iterable[str]) -> None:
    """
    Checks that a data set has some columns.

    Raises:
        ValueError: a column is missing.
    """
    columns = list(columns)
    missing = [column for column in needed if column not in columns]
    if missing:
        raise ValueError(f"{name} lacks the columns {', '.join(missing)}; it has {', '.join(columns) or 'none'}.")


def check_callable(name: str, value: object, wanted: str) -> None:
    """
    Checks that an argument can be called.

    Raises:
        TypeError: it cannot.
    """
    if not callable(value):
        raise TypeError(f"{name}={shortened(value)} must be {wanted}, got {type(value).__name__}.")


def check_finite_fields(arguments: object) -> None:
    """
    Checks that no field of a dataclass is NaN or infinite.

    Raises:
        ValueError: a field is. The message names it.
    """
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name}={value} must be a finite number.")


def check_field_types(arguments: object, prefix: str = "") -> None:
    """
    Checks the fields of a dataclass against their types, where these are numbers, texts, choices, lists or mappings. A
    whole number is also a number, an enum's value is the enum, and no number may be NaN.

    Args:
        prefix: what messages put before the name of a field.

    Raises:
        TypeError: a field is of another type.
        ValueError: a field is NaN, or none of the values of its enum.
    """
    hints = typing.get_type_hints(type(arguments))
    for field in dataclasses.fields(arguments):
        _check_field(prefix + field.name, getattr(arguments, field.name), hints[field.name])


def _check_field(name, value, hint):
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    arms = typing.get_args(hint) if union else (hint,)
    plain = [typing.get_origin(arm) or arm for arm in arms]
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{name}={value} must be a number, or left out.")
    for enumeration in plain:
        if isinstance(enumeration, type) and issubclass(enumeration, enum.Enum):
            if not isinstance(value, enumeration) and not (value is None and type(None) in plain):
                check_choice(name, value, [item.value for item in enumeration])
            return
    if not all(arm in _PLAIN for arm in plain):
        return
    allowed = tuple(kind for arm in plain for kind in _PLAIN[arm])
    is_wrong_bool = isinstance(value, bool) and bool not in plain
    if is_wrong_bool or not isinstance(value, allowed):
        wanted = " or ".join(dict.fromkeys(_NAMES[arm] for arm in plain))
        raise TypeError(f"{name}={shortened(value)} must be {wanted}, got {type(value).__name__}.")


# The types of fields that are checked, and the classes that are accepted for them.
_PLAIN = {
    int: (numbers.Integral,),
    float: (numbers.Real,),
    bool: (bool,),
    str: (str, os.PathLike),
    list: (list, tuple),
    dict: (dict,),
    type(None): (type(None),),
}
_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    type(None): "None",
}
