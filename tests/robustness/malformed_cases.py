"""A malformed input, and the pools that wrong values are drawn from."""

import contextlib
import io
import math
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch


# Stands for "no value was given", for example where a file is missing or a name is misspelt.
NO_VALUE = object()


@dataclass
class Case:
    """
    One input.

    Attributes:
        entrance: what is called, for example `RecurrentDepthConfig` or `memreason generate`.
        label: what is wrong with the input, for the table.
        run: runs the entrance in an empty folder and returns what it returns.
        names: a message must hold one of these: the field, flag or file at fault.
        value: the value at fault, which the message must show in some form.
        is_wrong: whether the input must be refused. Otherwise it may also be accepted.
        fault: what is wrong with the result of an accepted input, or None.
    """

    entrance: str
    label: str
    run: Callable[[Path], object]
    names: tuple[str, ...]
    value: object = NO_VALUE
    is_wrong: bool = True
    fault: Callable[[object], str | None] = field(default=lambda result: None)

    def __str__(self):
        return f"{self.entrance}: {self.label}"


class CommandResult(str):
    """What a command that returned 0 printed to standard output, and `.errors` to standard error."""

    errors = ""


class RefusedByCommand(Exception):
    """A command ended with code 2. The message is its last message on standard error."""


class Strange:
    """An object of a class that no field takes."""

    def __repr__(self):
        return "<Strange>"


def _numbers_near(low, high):
    """Values just outside of the bounds, and far outside."""
    wrong = []
    if low is not None:
        wrong += [low - 1, -(10**6) if low >= 0 else low * 10 - 10]
    if high is not None:
        wrong += [high + 1, high * 1000 + 1]
    return wrong


def wrong_ints(low=1, high=None, optional=False):
    """Values that no whole number from `low` to `high` can be."""
    wrong = ["three", "", 2.5, math.nan, math.inf, [1, 2], {"value": 1}, Strange(), *_numbers_near(low, high)]
    return wrong if optional else [*wrong, None]


def wrong_floats(low=None, high=None, optional=False, open_low=False):
    """
    Values that no finite number from `low` to `high` can be.

    Args:
        open_low: whether `low` itself is wrong.
    """
    wrong = ["fast", "", math.nan, math.inf, -math.inf, [0.5], {"value": 0.5}, 1 + 2j, Strange()]
    wrong += [float(value) for value in _numbers_near(low, high)]
    if open_low:
        wrong.append(float(low))
    return wrong if optional else [*wrong, None]


def wrong_bools(optional=False):
    wrong = ["maybe", 2, -1, 0.5, [], {}, Strange()]
    return wrong if optional else [*wrong, None]


def wrong_texts(optional=False):
    wrong = [5, 2.5, True, [], b"bytes", {"a": "b"}, Strange()]
    return wrong if optional else [*wrong, None]


def wrong_choices(choices, optional=False):
    """Among them a value with a typo, and one in capitals."""
    first = next(iter(choices))
    wrong = ["nonsense", "", f"{first}x", first.upper() + "_", 5, 0.5, [first], {first: 1}, Strange()]
    return wrong if optional else [*wrong, None]


def wrong_lists(optional=False):
    wrong = ["text", 5, 0.5, True, {"a": 1}, Strange()]
    return wrong if optional else [*wrong, None]


def wrong_mappings(optional=False):
    wrong = ["text", 5, [1], True, Strange()]
    return wrong if optional else [*wrong, None]


def misspelt(name: str, rng: random.Random) -> str:
    """`name` with one letter left out, doubled, exchanged with the next, or replaced."""
    while True:
        place = rng.randrange(1, len(name) - 1)
        before, letter, after = name[:place], name[place], name[place + 1 :]
        spelt = rng.choice(
            [before + after, before + letter * 2 + after, before + after[0] + letter + after[1:], before + "q" + after]
        )
        if spelt != name:
            return spelt


def some(rng: random.Random, values: Iterable, count: int) -> list:
    """`count` of the values, in their order."""
    values = list(values)
    chosen = sorted(rng.sample(range(len(values)), min(count, len(values))))
    return [values[index] for index in chosen]


def show(value: object) -> str:
    """A value in a label: short, also for tensors."""
    if isinstance(value, torch.Tensor):
        return f"tensor of shape {tuple(value.shape)} and {value.dtype}"
    try:
        text = repr(value)
    except ValueError:
        text = "an int of thousands of digits"
    return text if len(text) <= 60 else text[:60] + "…"


def field_cases(
    rng: random.Random,
    entrance: str,
    make: Callable[..., object],
    wrong: dict[str, list],
    count: int,
    fault: Callable[[object], str | None] = lambda result: None,
) -> list[Case]:
    """
    `count` cases for each field of `wrong`, which maps fields to wrong values.

    Args:
        make: called with the field and its value; its other arguments must be right.
    """
    return [
        Case(
            entrance,
            f"{name}={show(value)}",
            lambda scratch, name=name, value=value: make(**{name: value}),
            names=(name,),
            value=value,
            fault=fault,
        )
        for name, values in wrong.items()
        for value in some(rng, values, count)
    ]


_MESSAGE = re.compile(r"^(memreason( [\w-]+){1,2}|\w+\.py): error", re.MULTILINE)


def command(main: Callable, *arguments) -> CommandResult:
    """
    Runs a command in this process.

    Returns:
        What it printed, if it returned 0.

    Raises:
        RefusedByCommand: It ended with code 2.
    """
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    if code == 2:
        match = _MESSAGE.search(errors.getvalue())
        raise RefusedByCommand(errors.getvalue()[match.start() if match else 0 :].strip())
    if code != 0:
        raise AssertionError(f"exit code {code}: {errors.getvalue()[-300:]}")
    result = CommandResult(output.getvalue())
    result.errors = errors.getvalue()
    return result
