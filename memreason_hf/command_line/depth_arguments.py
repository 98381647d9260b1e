"""The depth of a recurrent-depth model: one set of flags for all verbs that run such a model."""

import copy
from dataclasses import dataclass, field, fields, make_dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from memreason_hf.command_line.parser import Section
from memreason_hf.steps.depth import DepthByKind, read_depths
from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA, criterion_parameters


def _criteria_with(parameter):
    return [name for name, criterion in HALTING_CRITERIA.items() if parameter in {f.name for f in fields(criterion)}]


_MEANINGS = {
    "kl_threshold": "halts below this KL divergence of the next-token probabilities from those of the recurrence "
    "before, in nats.",
    "entropy_threshold": "halts below this entropy of the next-token probabilities, in nats.",
    "confidence_threshold": "halts when the highest next-token probability is at least this.",
    "margin_threshold": "halts when the highest logit is at least this much above the second highest.",
    "state_difference_threshold": "halts below this change of the state, relative to the norm of the state.",
    "acceleration_threshold": "halts below this change of the change of the state, relative to the norm of the state.",
    "exit_gate_threshold": "halts when the learned gate has given at least this probability to leaving up to now.",
    "argmax_patience": "halts when the most probable token is the same for this many recurrences.",
}


def _parameter_field(name):
    kind = int if RecurrentDepthConfig.__annotations__[name] is int else float
    help_text = f"{', '.join(_criteria_with(name))}: {_MEANINGS.get(name, 'parameter of the criterion.')}"
    return name, kind | None, field(default=None, metadata={"help": help_text})


@dataclass
class _DepthArguments:
    halting_criterion: str | None = field(
        default=None,
        metadata={
            "help": f"Decides when a row or token halts: {', '.join(HALTING_CRITERIA)}, or none for a fixed depth."
        },
    )
    halting_granularity: str | None = field(
        default=None,
        metadata={"help": "sequence: a row halts when its last token does. token: every token halts by itself."},
    )
    min_recurrences: int | None = field(
        default=None, metadata={"help": "First recurrence at which a row or token may halt."}
    )
    max_recurrences: int | None = field(
        default=None, metadata={"help": "Last recurrence. Every row and token halts there at the latest."}
    )
    num_recurrences: int | None = field(
        default=None, metadata={"help": "Fixed number of recurrences, instead of a criterion."}
    )


# A new criterion adds its flags.
DepthArguments = make_dataclass(
    "DepthArguments", [_parameter_field(name) for name in criterion_parameters()], bases=(_DepthArguments,)
)
DepthArguments.__doc__ = "Depth, by the names of the config's fields. A field that is None keeps the config's value."

DEPTH = Section("depth", DepthArguments, "depth; by default, that of the model's config", key="halting")


@dataclass
class DepthByKindArguments:
    """Depth that follows the kind of the step being written."""

    depth_by_kind: str | None = field(
        default=None,
        metadata={
            "help": "Recurrences in the steps of a kind, for example memory=2,reason=16; with a criterion, their "
            "maximum. All other tokens take num_recurrences, or with a criterion max_recurrences."
        },
    )


def depth_settings(config: RecurrentDepthConfig, depth: "DepthArguments") -> tuple[dict, dict]:
    """
    The depth that flags and config give together.

    Returns:
        The `settings` entry of a results file (without `batch_size`), and the arguments of `forward`.

    Raises:
        ValueError, StrictDataclassError: the config refuses a value; a fixed depth and a criterion are both given; or
            the parameter of a criterion that is not used is given.

    Example:
        >>> config = RecurrentDepthConfig(halting_criterion="kl", kl_threshold=0.5)
        >>> depth_settings(config, DepthArguments(num_recurrences=4))[1]
        {'num_recurrences': 4}
    """
    names = ("halting_criterion", "halting_granularity", "min_recurrences", "max_recurrences", *criterion_parameters())
    given = {name: getattr(depth, name) for name in names if getattr(depth, name) is not None}
    switched_off = given.get("halting_criterion") == "none"
    if depth.num_recurrences is not None and "halting_criterion" in given and not switched_off:
        raise ValueError(
            f"num_recurrences={depth.num_recurrences} fixes the depth, but halting_criterion="
            f"{given['halting_criterion']!r} decides it. Pass only one of them; max_recurrences limits a criterion."
        )
    wanted = copy.deepcopy(config)
    for name, value in given.items():
        setattr(wanted, name, None if name == "halting_criterion" and switched_off else value)
    if depth.num_recurrences is not None:
        wanted.num_recurrences = depth.num_recurrences
    wanted.validate()

    criterion = None if depth.num_recurrences is not None else wanted.halting_criterion
    parameters = {}
    if criterion is not None:
        parameters = {entry.name: getattr(wanted, entry.name) for entry in fields(HALTING_CRITERIA[criterion])}
    _check_parameters(given, parameters, criterion, wanted.num_recurrences)
    settings = {
        "num_recurrences": wanted.num_recurrences if criterion is None else None,
        "halting_criterion": criterion,
        "halting_granularity": wanted.halting_granularity,
        "min_recurrences": wanted.min_recurrences,
        "max_recurrences": wanted.max_recurrences,
        "parameters": parameters,
    }
    if criterion is None:
        return settings, {"num_recurrences": wanted.num_recurrences}
    return settings, {**{name: getattr(wanted, name) for name in names[:4]}, **parameters}


def _check_parameters(given, parameters, criterion, count):
    for name in given:
        if name not in criterion_parameters() or name in parameters:
            continue
        decides = f"num_recurrences={count}" if criterion is None else f"halting_criterion={criterion!r}"
        raise ValueError(
            f"{name}={given[name]} is a parameter of {', '.join(_criteria_with(name))}, but {decides} decides the "
            "depth. Leave the parameter out, or choose its criterion."
        )


def given_depth(*flags: object) -> dict:
    """The fields that were given, of `DepthArguments` and other dataclasses of depth flags."""
    values = {entry.name: getattr(part, entry.name) for part in flags for entry in fields(part)}
    return {name: value for name, value in values.items() if value is not None}


def check_has_recurrences(config: PreTrainedConfig, model: str, given: dict) -> None:
    """
    Refuses depth flags for a model without recurrences.

    Args:
        given: the flags and their values.

    Raises:
        ValueError: names the first of them.
    """
    if given and not isinstance(config, RecurrentDepthConfig):
        name, value = next(iter(given.items()))
        raise ValueError(
            f"{name}={value!r}: model={model!r} is a {config.model_type!r} model, without recurrences. Leave it out."
        )


def schedule_by_kind(
    config: RecurrentDepthConfig, depth: "DepthArguments", depths: str, tokenizer: PreTrainedTokenizerBase
) -> dict:
    """
    The arguments of `generate` for `depth_by_kind`.

    Args:
        depths: recurrences by kind, as `read_depths` reads them.
        tokenizer: extended by a scheme with kinds.

    Raises:
        ValueError: as `depth_settings` and `DepthByKind`; or `max_recurrences` is given without a criterion.
    """
    settings, arguments = depth_settings(config, depth)
    halts = settings["halting_criterion"] is not None
    if depth.max_recurrences is not None and not halts:
        raise ValueError(
            f"max_recurrences={depth.max_recurrences} has no effect with depth_by_kind={depths!r}, because no "
            "criterion halts. Pass num_recurrences for all other tokens, or a halting_criterion."
        )
    # The schedule takes the place of the limit, or of the fixed count.
    otherwise = arguments.pop("max_recurrences" if halts else "num_recurrences")
    schedule = DepthByKind(tokenizer, read_depths(depths), otherwise)
    return {"halting_criterion": "none", **arguments, "depth_schedule": schedule}


def describe_depth(settings: dict) -> str:
    """One line on how the depth was decided."""
    if settings["num_recurrences"] is not None:
        return f"fixed at {settings['num_recurrences']} recurrences"
    parameters = ", ".join(f"{name} {value:g}" for name, value in settings["parameters"].items())
    return (
        f"halting by {settings['halting_criterion']} ({parameters}), {settings['min_recurrences']} to "
        f"{settings['max_recurrences']} recurrences"
    )
