"""
The depth that a visitor chooses: a fixed number of recurrences, or a halting criterion with its thresholds.

    options = DepthOptions.of(model.config)
    choice = options.choose("kl", 16, {"kl_threshold": -3.0})
    model.generate(ids, **options.arguments(choice))
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from transformers import PreTrainedConfig

from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


# The choice without a criterion.
FIXED = "fixed"
_PROBABILITIES = ("confidence_threshold", "exit_gate_threshold")
_MOST_PATIENCE = 32
# Powers of ten between which a slider moves, and the part of a power by which it moves.
_LEAST_POWER, _GREATEST_POWER, _POWER_STEP = -6.0, 1.0, 0.1
# A probability of exactly 1 is not reached in floating point.
_GREATEST_PROBABILITY = 0.999
_MEANINGS = {
    "kl_threshold": "KL divergence from the recurrence before, in nats",
    "entropy_threshold": "entropy of the next token, in nats",
    "confidence_threshold": "probability of the most probable token",
    "margin_threshold": "highest logit minus the second highest",
    "state_difference_threshold": "relative change of the state",
    "acceleration_threshold": "relative change of the change of the state",
    "exit_gate_threshold": "probability of having left, by the learned gate",
    "argmax_patience": "recurrences with the same most probable token",
}


@dataclass(frozen=True)
class ParameterRange:
    """
    The slider of one parameter of a criterion.

    Attributes:
        name: field of the config.
        meaning: what the parameter is compared with, in a few words.
        scale: `"power"` if the slider holds the power of ten, `"plain"` if it holds the value, `"count"` for an int.
        low, high, step: of the slider.
        position: where the slider stands for `default`.
        default: the value of the config, which the slider's own steps may miss.
    """

    name: str
    meaning: str
    scale: str
    low: float
    high: float
    step: float
    position: float
    default: float

    @classmethod
    def of(cls, name: str, default: float) -> "ParameterRange":
        """The slider of a parameter whose value in the config is `default`."""
        meaning = _MEANINGS.get(name, "parameter of the criterion")
        if isinstance(default, int):
            return cls(name, meaning, "count", 1, max(_MOST_PATIENCE, default), 1, default, default)
        if name in _PROBABILITIES:
            low, high = min(0.01, default), max(_GREATEST_PROBABILITY, default)
            return cls(name, meaning, "plain", low, high, 0.001, round(default, 3), default)
        power = math.log10(default)
        low, high = min(_LEAST_POWER, math.floor(power)), max(_GREATEST_POWER, math.ceil(power))
        return cls(name, meaning, "power", low, high, _POWER_STEP, round(power, 1), default)

    def value(self, position: float) -> float | int:
        """
        The parameter at a position of the slider: exactly the config's value where the slider starts.

        Raises:
            ValueError: the position is no number, or is outside the slider.
        """
        if isinstance(position, bool) or not isinstance(position, int | float) or not math.isfinite(position):
            raise ValueError(f"{self.name}: the slider must be at a number, not at {position!r}.")
        if not self.low - self.step / 2 <= position <= self.high + self.step / 2:
            raise ValueError(f"{self.name}: the slider goes from {self.low:g} to {self.high:g}, not to {position:g}.")
        if math.isclose(position, self.position, abs_tol=self.step / 100):
            return self.default
        if self.scale == "count":
            return round(position)
        return 10.0**position if self.scale == "power" else float(position)


@dataclass(frozen=True)
class DepthChoice:
    """
    A depth.

    Attributes:
        criterion: name of a halting criterion, or `"fixed"`.
        recurrences: their number if fixed, otherwise the most of them.
        parameters: of the criterion.
    """

    criterion: str
    recurrences: int
    parameters: Mapping[str, float]


@dataclass(frozen=True)
class DepthOptions:
    """
    What can be chosen for a model, with its config as defaults.

    Attributes:
        criteria: `"fixed"`, then the criteria that the model can follow. Empty for a model without recurrences.
        default: the criterion of the config, or `"fixed"`.
        num_recurrences, max_recurrences, min_recurrences: of the config.
        deepest: the most recurrences that a visitor can ask for.
        ranges: the sliders of all criteria, by parameter.
        granularities: by criterion, whether a row or a token halts.

    Example:
        >>> options = DepthOptions.of(RecurrentDepthConfig(halting_criterion="kl", kl_threshold=0.5))
        >>> options.arguments(options.choose("fixed", 4, {}))
        {'num_recurrences': 4}
    """

    criteria: tuple[str, ...]
    default: str
    num_recurrences: int
    min_recurrences: int
    max_recurrences: int
    deepest: int
    ranges: Mapping[str, ParameterRange]
    granularities: Mapping[str, str]

    @classmethod
    def of(cls, config: PreTrainedConfig, deepest: int | None = None) -> "DepthOptions":
        """
        The options of a model.

        Args:
            deepest: the most recurrences that a visitor can ask for; by default the config's `max_recurrences`.

        Raises:
            ValueError: `deepest` is below the recurrences that the config asks for.
        """
        if not isinstance(config, RecurrentDepthConfig):
            return cls((), FIXED, 1, 1, 1, 1, {}, {})
        least = max(config.num_recurrences, config.min_recurrences)
        if deepest is not None and deepest < least:
            raise ValueError(f"deepest={deepest} is below the {least} recurrences that the model's config asks for.")
        deepest = max(config.max_recurrences, config.num_recurrences) if deepest is None else deepest
        criteria = [name for name, criterion in HALTING_CRITERIA.items() if _can_follow(config, criterion)]
        names = dict.fromkeys(entry.name for name in criteria for entry in fields(HALTING_CRITERIA[name]))
        return cls(
            criteria=(FIXED, *criteria),
            default=config.halting_criterion or FIXED,
            num_recurrences=config.num_recurrences,
            min_recurrences=config.min_recurrences,
            max_recurrences=min(config.max_recurrences, deepest),
            deepest=deepest,
            ranges={name: ParameterRange.of(name, getattr(config, name)) for name in names},
            granularities={name: _granularity(config, name) for name in criteria},
        )

    @property
    def has_depth(self) -> bool:
        """Whether the model has recurrences."""
        return bool(self.criteria)

    def parameters_of(self, criterion: str) -> tuple[str, ...]:
        """The parameters of a criterion; none of `"fixed"`."""
        if criterion == FIXED:
            return ()
        return tuple(entry.name for entry in fields(HALTING_CRITERIA[criterion]))

    def start(self, criterion: str) -> int:
        """Where the slider of recurrences stands at first: their number if fixed, otherwise the most of them."""
        return self.num_recurrences if criterion == FIXED else self.max_recurrences

    def choose(self, criterion: str, recurrences: float, positions: Mapping[str, float]) -> DepthChoice:
        """
        Reads the controls.

        Args:
            criterion: one of `criteria`.
            recurrences: of their slider.
            positions: of the sliders of the parameters; those of other criteria are ignored.

        Raises:
            ValueError: a value that the controls do not have. A page can be called without its controls.
        """
        if not self.has_depth:
            return DepthChoice(FIXED, 1, {})
        if criterion not in self.criteria:
            raise ValueError(f"halting_criterion={criterion!r} must be one of {', '.join(self.criteria)}.")
        if isinstance(recurrences, bool) or not isinstance(recurrences, int | float) or recurrences % 1:
            raise ValueError(f"recurrences={recurrences!r} must be a whole number.")
        least = 1 if criterion == FIXED else self.min_recurrences
        if not least <= recurrences <= self.deepest:
            raise ValueError(f"recurrences={recurrences:g} must be from {least} to {self.deepest}.")
        parameters = {}
        for name in self.parameters_of(criterion):
            given = self.ranges[name]
            parameters[name] = given.value(positions.get(name, given.position))
        return DepthChoice(criterion, int(recurrences), parameters)

    def arguments(self, choice: DepthChoice) -> dict:
        """The arguments of `generate` and `forward` for a choice; none for a model without recurrences."""
        if not self.has_depth:
            return {}
        if choice.criterion == FIXED:
            return {"num_recurrences": choice.recurrences}
        return {
            "halting_criterion": choice.criterion,
            "halting_granularity": self.granularities[choice.criterion],
            "min_recurrences": self.min_recurrences,
            "max_recurrences": choice.recurrences,
            **choice.parameters,
        }

    def describe(self, choice: DepthChoice) -> str:
        """A choice in a few words, with its exact thresholds."""
        if not self.has_depth:
            return "no recurrences"
        if choice.criterion == FIXED:
            return f"fixed at {choice.recurrences} recurrence{'s' if choice.recurrences != 1 else ''}"
        parameters = ", ".join(f"{name} {value:.3g}" for name, value in choice.parameters.items())
        by = " by row" if self.granularities[choice.criterion] == "sequence" else ""
        return f"{choice.criterion}{by} ({parameters}), at most {choice.recurrences} recurrences"


def _can_follow(config, criterion):
    return criterion.reads != "exit_gate" or config.exit_gate


def _granularity(config, name):
    """The config's, but by row where tokens cannot read logits: with a coda they would still be provisional."""
    if config.num_coda_layers and HALTING_CRITERIA[name].reads == "log_probs":
        return "sequence"
    return config.halting_granularity
