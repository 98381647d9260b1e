"""How deep a model may go, as flags: what the commands that run one share."""

import copy
from dataclasses import dataclass, field, fields, make_dataclass

from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA, criterion_parameters


def _criteria_reading(parameter):
    return [name for name, criterion in HALTING_CRITERIA.items() if parameter in {f.name for f in fields(criterion)}]


def _parameter_field(name):
    kind = int if RecurrentDepthConfig.__annotations__[name] is int else float
    help_text = f"Parameter of {', '.join(_criteria_reading(name))}. Default: the model's."
    return name, kind | None, field(default=None, metadata={"help": help_text})


@dataclass
class _DepthArguments:
    halting_criterion: str | None = field(
        default=None,
        metadata={"help": f"What decides who halts: {', '.join(HALTING_CRITERIA)}, or none. Default: the model's."},
    )
    halting_granularity: str | None = field(
        default=None,
        metadata={
            "help": "sequence: a row halts when its last token does; token: every token decides for itself. Default: "
            "the model's."
        },
    )
    min_recurrences: int | None = field(default=None, metadata={"help": "Nobody halts before. Default: the model's."})
    max_recurrences: int | None = field(default=None, metadata={"help": "Everybody halts here. Default: the model's."})
    num_recurrences: int | None = field(
        default=None, metadata={"help": "The same fixed depth for all, in place of a criterion."}
    )


# A new criterion brings its flags along.
DepthArguments = make_dataclass(
    "DepthArguments", [_parameter_field(name) for name in criterion_parameters()], bases=(_DepthArguments,)
)
DepthArguments.__doc__ = "How deep it may go, by the names of the config's fields; what is not given is the config's."


def depth_settings(config: RecurrentDepthConfig, depth: "DepthArguments") -> tuple[dict, dict]:
    """
    What the flags and the config together ask for.

    Returns:
        The `settings` entry of the results (without `batch_size`), and the arguments of `forward`.

    Raises:
        ValueError, StrictDataclassError: what the config refuses by these names; a fixed depth and a criterion; a
            parameter that what decides does not read.
    """
    names = ("halting_criterion", "halting_granularity", "min_recurrences", "max_recurrences", *criterion_parameters())
    given = {name: getattr(depth, name) for name in names if getattr(depth, name) is not None}
    switched_off = given.get("halting_criterion") == "none"
    if depth.num_recurrences is not None and "halting_criterion" in given and not switched_off:
        raise ValueError(
            f"num_recurrences={depth.num_recurrences} fixes the depth and halting_criterion="
            f"{given['halting_criterion']!r} decides it: give one of them; max_recurrences bounds a criterion."
        )
    asked = copy.deepcopy(config)
    for name, value in given.items():
        setattr(asked, name, None if name == "halting_criterion" and switched_off else value)
    if depth.num_recurrences is not None:
        asked.num_recurrences = depth.num_recurrences
    asked.validate()

    criterion = None if depth.num_recurrences is not None else asked.halting_criterion
    parameters = {}
    if criterion is not None:
        parameters = {entry.name: getattr(asked, entry.name) for entry in fields(HALTING_CRITERIA[criterion])}
    _check_parameters(given, parameters, criterion, asked.num_recurrences)
    settings = {
        "num_recurrences": asked.num_recurrences if criterion is None else None,
        "halting_criterion": criterion,
        "halting_granularity": asked.halting_granularity,
        "min_recurrences": asked.min_recurrences,
        "max_recurrences": asked.max_recurrences,
        "parameters": parameters,
    }
    if criterion is None:
        return settings, {"num_recurrences": asked.num_recurrences}
    return settings, {**{name: getattr(asked, name) for name in names[:4]}, **parameters}


def _check_parameters(given, parameters, criterion, count):
    for name in given:
        if name not in criterion_parameters() or name in parameters:
            continue
        decides = f"num_recurrences={count}" if criterion is None else f"halting_criterion={criterion!r}"
        raise ValueError(
            f"{name}={given[name]} is a parameter of {', '.join(_criteria_reading(name))}, but {decides} decides: "
            "leave it out, or choose the criterion."
        )


def describe_depth(settings: dict) -> str:
    """One line on how the depth was decided."""
    if settings["num_recurrences"] is not None:
        return f"fixed at {settings['num_recurrences']} recurrences"
    parameters = ", ".join(f"{name} {value:g}" for name, value in settings["parameters"].items())
    return (
        f"halting by {settings['halting_criterion']} ({parameters}), {settings['min_recurrences']} to "
        f"{settings['max_recurrences']} recurrences"
    )
