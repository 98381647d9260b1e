"""When to stop: one small class for each criterion, and the rule that applies it to rows or tokens."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch

from .fields_recurrent import MOST_RECURRENCES, RECURRENCES_REASON, check_number, shortened


@dataclass
class HaltingCriterion:
    """
    Base of the criteria. A criterion looks at every *unit* (a row, or a token) after each recurrence.

    Its dataclass fields are its parameters, filled from the config fields of the same names. A criterion implements
    `measure`, whose value is compared with one of the parameters, or `__call__` itself.

    Attributes:
        name (`str`): The value of `halting_criterion` that selects it.
        reads (`str`): What `signal` is: `"log_probs"` of the next token, the `"state"`, or the probability that the
            learned `"exit_gate"` of the model gives to leaving now.
        compares (`bool`): Whether it uses `previous`. If it reads log-probabilities of many tokens, these are then
            computed twice.
        threshold (`str`, *optional*): The parameter that the measured value is compared with.
        halts_below (`bool`): Whether units halt below the threshold, or from it on upwards.
    """

    name: ClassVar[str]
    reads: ClassVar[str]
    compares: ClassVar[bool] = True
    threshold: ClassVar[str | None] = None
    halts_below: ClassVar[bool] = True

    def measure(
        self, signal: torch.Tensor, previous: torch.Tensor | None, memory: dict[str, torch.Tensor]
    ) -> torch.Tensor | None:
        """
        The value of every unit that is compared with the threshold, of shape `units`; `None` as long as there is none.
        The arguments are those of a call.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement measure, or __call__.")

    def __call__(
        self, signal: torch.Tensor, previous: torch.Tensor | None, memory: dict[str, torch.Tensor]
    ) -> torch.Tensor | None:
        """
        Args:
            signal (`torch.Tensor` of shape `(*units, vocab)`, `(*units, hidden)` or `(*units, 1)`, float32):
                What the criterion reads, after one recurrence.
            previous (`torch.Tensor` like `signal`, *optional*): The same after the previous recurrence; `None` at the
                first.
            memory (`dict`): Tensors of shape `(*units, ...)` that the criterion keeps between recurrences; empty at
                the first one. The criterion sets its entries. Rows that leave the batch are removed from them.

        Returns:
            `torch.BoolTensor` of shape `units`: the units that may stop; `None` as long as this cannot be decided.
        """
        value = self.measure(signal, previous, memory)
        if value is None:
            return None
        threshold = getattr(self, self.threshold)
        return value < threshold if self.halts_below else value >= threshold


def _entropy(log_probs):
    return -(log_probs.exp() * log_probs).sum(-1)


def _kl(log_probs, previous):
    return (log_probs.exp() * (log_probs - previous)).sum(-1)


def _relative(difference, state):
    return difference.norm(dim=-1) / state.norm(dim=-1).clamp_min(torch.finfo(state.dtype).tiny)


@dataclass
class KLEntropyCriterion(HaltingCriterion):
    """KL(p_t || p_{t-1}) < `kl_threshold` and H(p_t) < `entropy_threshold`, in nats (arXiv 2604.07822)."""

    name: ClassVar[str] = "kl_entropy"
    reads: ClassVar[str] = "log_probs"
    threshold: ClassVar[str] = "kl_threshold"
    kl_threshold: float
    entropy_threshold: float

    def measure(self, signal, previous, memory):
        if previous is None:
            return None
        # Where the entropy is too high, no threshold of the divergence may halt.
        return _kl(signal, previous).where(_entropy(signal) < self.entropy_threshold, torch.inf)


@dataclass
class KLCriterion(HaltingCriterion):
    """KL(p_t || p_{t-1}) < `kl_threshold`, in nats (arXiv 2502.05171)."""

    name: ClassVar[str] = "kl"
    reads: ClassVar[str] = "log_probs"
    threshold: ClassVar[str] = "kl_threshold"
    kl_threshold: float

    def measure(self, signal, previous, memory):
        return None if previous is None else _kl(signal, previous)


@dataclass
class EntropyCriterion(HaltingCriterion):
    """H(p_t) < `entropy_threshold`, in nats."""

    name: ClassVar[str] = "entropy"
    reads: ClassVar[str] = "log_probs"
    compares: ClassVar[bool] = False
    threshold: ClassVar[str] = "entropy_threshold"
    entropy_threshold: float

    def measure(self, signal, previous, memory):
        return _entropy(signal)


@dataclass
class ConfidenceCriterion(HaltingCriterion):
    """max p_t >= `confidence_threshold`."""

    name: ClassVar[str] = "confidence"
    reads: ClassVar[str] = "log_probs"
    compares: ClassVar[bool] = False
    threshold: ClassVar[str] = "confidence_threshold"
    halts_below: ClassVar[bool] = False
    confidence_threshold: float

    def measure(self, signal, previous, memory):
        return signal.amax(-1).exp()


@dataclass
class MarginCriterion(HaltingCriterion):
    """The highest logit is at least `margin_threshold` above the second highest."""

    name: ClassVar[str] = "margin"
    reads: ClassVar[str] = "log_probs"
    compares: ClassVar[bool] = False
    threshold: ClassVar[str] = "margin_threshold"
    halts_below: ClassVar[bool] = False
    margin_threshold: float

    def measure(self, signal, previous, memory):
        # Log-probabilities differ from logits by the same number for all tokens.
        highest = signal.topk(min(2, signal.shape[-1]), dim=-1).values
        if highest.shape[-1] == 1:
            return torch.full_like(highest[..., 0], torch.inf)
        return highest[..., 0] - highest[..., 1]


@dataclass
class StateDifferenceCriterion(HaltingCriterion):
    """|s_t - s_{t-1}| / |s_t| < `state_difference_threshold` (Euclidean norms)."""

    name: ClassVar[str] = "state_difference"
    reads: ClassVar[str] = "state"
    threshold: ClassVar[str] = "state_difference_threshold"
    state_difference_threshold: float

    def measure(self, signal, previous, memory):
        return None if previous is None else _relative(signal - previous, signal)


@dataclass
class AccelerationCriterion(HaltingCriterion):
    """|(s_t - s_{t-1}) - (s_{t-1} - s_{t-2})| / |s_t| < `acceleration_threshold`: after arXiv 2509.23314, relative."""

    name: ClassVar[str] = "acceleration"
    reads: ClassVar[str] = "state"
    threshold: ClassVar[str] = "acceleration_threshold"
    acceleration_threshold: float

    def measure(self, signal, previous, memory):
        if previous is None:
            return None
        last_step, memory["step"] = memory.get("step"), signal - previous
        return None if last_step is None else _relative(memory["step"] - last_step, signal)


@dataclass
class ArgmaxStabilityCriterion(HaltingCriterion):
    """The most probable token has been the same for `argmax_patience` recurrences, this one included."""

    name: ClassVar[str] = "argmax_stability"
    reads: ClassVar[str] = "log_probs"
    compares: ClassVar[bool] = False
    threshold: ClassVar[str] = "argmax_patience"
    halts_below: ClassVar[bool] = False
    argmax_patience: int

    def measure(self, signal, previous, memory):
        token = signal.argmax(-1)
        last, memory["token"] = memory.get("token"), token
        seen = torch.ones_like(token)
        memory["seen"] = seen if last is None else torch.where(token == last, memory["seen"] + 1, seen)
        return memory["seen"]


@dataclass
class ExitGateCriterion(HaltingCriterion):
    """
    The probability of having left is at least `exit_gate_threshold` (arXiv 2510.25741).

    The learned gate of the model gives the probability that a unit which has stayed so far leaves at this recurrence.
    """

    name: ClassVar[str] = "exit_gate"
    reads: ClassVar[str] = "exit_gate"
    compares: ClassVar[bool] = False
    threshold: ClassVar[str] = "exit_gate_threshold"
    halts_below: ClassVar[bool] = False
    exit_gate_threshold: float

    def measure(self, signal, previous, memory):
        leaves = signal[..., 0]
        stayed = memory.get("stayed", torch.ones_like(leaves))
        memory["left"] = memory.get("left", torch.zeros_like(leaves)) + leaves * stayed
        memory["stayed"] = stayed * (1 - leaves)
        return memory["left"]


HALTING_CRITERIA = {
    criterion.name: criterion
    for criterion in (
        KLEntropyCriterion,
        KLCriterion,
        EntropyCriterion,
        ConfidenceCriterion,
        MarginCriterion,
        StateDifferenceCriterion,
        AccelerationCriterion,
        ArgmaxStabilityCriterion,
        ExitGateCriterion,
    )
}


def criterion_parameters() -> list[str]:
    """Names of the parameters of all criteria, each once."""
    return list(dict.fromkeys(parameter for name in HALTING_CRITERIA for parameter in _parameters_of(name)))


def _parameters_of(criterion):
    return [field.name for field in fields(HALTING_CRITERIA[criterion])]


def applies(name: str, given: dict) -> bool:
    """Whether the depth argument `name` of a generation config still applies beside those that a call gives."""
    criterion = given.get("halting_criterion")
    if criterion == "none" or isinstance(given.get("num_recurrences"), int):
        bounds = ("min_recurrences", "max_recurrences", "halting_criterion", "halting_granularity")
        return name not in (*bounds, *criterion_parameters())
    if criterion in HALTING_CRITERIA:
        is_foreign = name in criterion_parameters() and name not in _parameters_of(criterion)
        return name != "num_recurrences" and not is_foreign
    return True


class HaltingRule:
    """
    Decides after each recurrence which units have halted, from given counts, a criterion, or both.

    Args:
        limit (`int`): No recurrence runs after this one.
        counts (`torch.LongTensor` of shape `(batch,)` or `(batch, sequence)`):
            Given counts; 0 leaves the unit to the criterion.
        criterion (`HaltingCriterion`, *optional*): Decides for the units whose count is 0.
        min_recurrences (`int`): The first recurrence at which the criterion may halt a unit.
        granularity (`"sequence"` or `"token"`): What a unit is.
        limits (`torch.LongTensor` like `counts`, *optional*):
            The maximum number of recurrences of each unit. Default: `limit`.

    Attributes:
        taken (`torch.LongTensor` like `counts`): The count of every unit that has halted, 0 for the others. Only of
            the rows still in the batch.
    """

    def __init__(self, limit, counts, criterion, min_recurrences, granularity, limits=None):
        self.limit = limit
        self.counts = counts
        self.criterion = criterion
        self.min_recurrences = min_recurrences
        self.granularity = granularity
        self.limits = limits
        self.taken = torch.zeros_like(counts)
        self.previous: torch.Tensor | None = None
        self.memory: dict[str, torch.Tensor] = {}

    @property
    def reads(self) -> str | None:
        """What the criterion reads: `"log_probs"`, `"state"`, `"exit_gate"`, or `None` without a criterion."""
        return None if self.criterion is None else self.criterion.reads

    def update(self, recurrence: int, hidden: torch.Tensor | None, read=None, at_once: int = 1) -> None:
        """
        Records in `taken` the units for which `recurrence` was the last.

        `hidden` (`(*units, hidden)`) is what the criterion reads, or what `read` computes this from. `read` gets
        `at_once` units at a time, because the log-probabilities of all tokens of a prompt may not fit into memory.
        """
        if self.limits is None:
            verdict = torch.full_like(self.counts, recurrence >= self.limit, dtype=torch.bool)
        else:
            verdict = self.limits <= recurrence
        if self.criterion is not None:
            opinion = self._opinion(hidden, read, at_once)
            if opinion is not None and recurrence >= self.min_recurrences:
                verdict = verdict | opinion
        verdict = torch.where(self.counts > 0, self.counts <= recurrence, verdict)
        self.taken = torch.where((self.taken == 0) & verdict, recurrence, self.taken)

    def _opinion(self, hidden, read, at_once):
        previous, self.previous = self.previous, hidden
        if read is None:
            return self.criterion(hidden, previous, self.memory)
        undecided = ((self.taken == 0) & (self.counts == 0)).flatten().nonzero().flatten()
        flat = {name: value.flatten(0, self.counts.ndim - 1) for name, value in self.memory.items()}
        hidden = hidden.flatten(0, -2)
        previous = None if previous is None else previous.flatten(0, -2)
        opinion, kept = None, {}
        for units in undecided.split(at_once):
            memory = {name: value[units] for name, value in flat.items()}
            signal = read(hidden[units])
            before = None if previous is None or not self.criterion.compares else read(previous[units])
            verdict = self.criterion(signal, before, memory)
            if verdict is not None:
                opinion = torch.zeros_like(self.counts, dtype=torch.bool).flatten() if opinion is None else opinion
                opinion[units] = verdict
            for name, value in memory.items():
                if name not in kept:
                    # Only undecided units are read again.
                    kept[name] = value.new_zeros((hidden.shape[0], *value.shape[1:]))
                kept[name][units] = value
        self.memory |= {name: value.unflatten(0, self.counts.shape) for name, value in kept.items()}
        return None if opinion is None else opinion.view_as(self.counts)

    def keep(self, rows: torch.Tensor) -> None:
        """Forgets all rows but `rows` (indices into those still in the batch)."""
        self.counts, self.taken = self.counts[rows], self.taken[rows]
        self.limits = None if self.limits is None else self.limits[rows]
        self.previous = None if self.previous is None else self.previous[rows]
        self.memory = {name: value[rows] for name, value in self.memory.items()}


def resolve_depth(
    config,
    shape: tuple[int, int],
    device,
    *,
    training: bool = False,
    real: torch.Tensor | None = None,
    sample: Callable[[], int] | None = None,
    num_recurrences: int | torch.Tensor | None = None,
    min_recurrences: int | None = None,
    max_recurrences: int | torch.Tensor | None = None,
    halting_criterion: str | None = None,
    halting_granularity: str | None = None,
    **parameters,
) -> "int | HaltingRule":
    """
    The depth of a call, from its arguments and, where these are not given, from the config.

    Args:
        config (`RecurrentDepthConfig`): Defaults.
        shape (`(batch, sequence)`), device: The shape and the device of the input.
        training (`bool`): Whether the call trains. Its depth is then given or drawn, never decided by a criterion.
        real (`torch.BoolTensor` of shape `(batch, sequence)`, *optional*): `False` on padding, which halts at once.
        sample (`Callable`, *optional*): Draws the count of a training step if the call does not give one.
        num_recurrences … halting_granularity: As in `DepthKwargs`. Where a row halts as a whole, the
            `max_recurrences` of its last real token applies.
        parameters: Parameters of the criteria by their config names.

    Returns:
        An `int` for a fixed count, so that no decision depends on a tensor; otherwise a new `HaltingRule`.

    Raises:
        `ValueError`, `TypeError`: An argument is invalid, or two arguments contradict each other.
    """
    given = {"min_recurrences": min_recurrences, "max_recurrences": max_recurrences}
    given = {**given, "halting_granularity": halting_granularity, **parameters}
    least = _bound("min_recurrences", min_recurrences, config.min_recurrences)
    most, limits = _upper_bound(max_recurrences, config, shape, device, least)
    count = _as_count(num_recurrences, shape, device)
    if not isinstance(halting_criterion, str | None):
        raise TypeError(f"halting_criterion must be the name of a criterion, got {halting_criterion!r}.")
    criterion = None if halting_criterion == "none" else halting_criterion
    _refuse_contradictions(count, criterion, training)
    if halting_criterion is None and not isinstance(count, int) and not training:
        criterion = config.halting_criterion
    _refuse_unused(count, criterion, training, {name: value for name, value in given.items() if value is not None})
    if count is None and training:
        return config.num_recurrences if sample is None else sample()
    if criterion is not None:
        criterion = _make_criterion(criterion, config, parameters)
    if isinstance(count, int):
        return count
    if count is None and criterion is None:
        return config.num_recurrences

    if count is None:
        granularity = config.halting_granularity if halting_granularity is None else halting_granularity
        if granularity not in ("sequence", "token"):
            raise ValueError(f"halting_granularity={granularity!r} must be 'sequence' or 'token'.")
        count = torch.zeros(shape if granularity == "token" else shape[:1], dtype=torch.long, device=device)
    granularity = "token" if count.ndim == 2 else "sequence"
    if granularity == "token" and real is not None:
        count = torch.where(real, count, 1)
    undecided = bool((count == 0).any())
    if undecided and criterion is None:
        raise ValueError("num_recurrences holds 0 (the criterion decides), but no halting_criterion is set.")
    limit = max(int(count.max()), most if undecided else 1)
    limits = _limits_of_units(limits, count, real) if undecided else None
    return HaltingRule(limit, count, criterion if undecided else None, least, granularity, limits)


def _upper_bound(value, config, shape, device, least):
    """The maximum number of recurrences of all units and, if units differ, that of each unit."""
    limits = None
    if isinstance(value, torch.Tensor) and value.ndim > 0:
        limits = _as_count(value, shape, device, "max_recurrences")
        most, lowest = int(limits.max()), int(limits.min())
    else:
        most = lowest = _bound("max_recurrences", value, config.max_recurrences)
    if least > lowest:
        raise ValueError(f"min_recurrences={least} is above max_recurrences={lowest}.")
    return most, limits


def _refuse_contradictions(count, criterion, training):
    if isinstance(count, int) and criterion is not None:
        raise ValueError(
            f"num_recurrences={count} fixes the depth and halting_criterion={criterion!r} decides it: give one of "
            "them; max_recurrences bounds a criterion."
        )
    if training and criterion is not None:
        raise ValueError(f"halting_criterion={criterion!r} is for inference: call model.eval() first.")
    if training and isinstance(count, torch.Tensor) and count.ndim == 2:
        raise ValueError("num_recurrences per token is for inference only: call model.eval() first.")


def _refuse_unused(count, criterion, training, given):
    """Refuses arguments of a call that only a criterion reads, if there is none, or another one."""
    if criterion is None:
        for name, value in given.items():
            reason = "but training uses none" if training else "but none is set"
            if isinstance(count, int):
                reason = f"but num_recurrences={count} fixes the depth"
            raise ValueError(f"{name}={value!r} is for a halting criterion, {reason}. Leave one of them out.")
    elif criterion in HALTING_CRITERIA:
        own = _parameters_of(criterion)
        for name in criterion_parameters():
            if name in given and name not in own:
                raise ValueError(
                    f"{name}={given[name]!r} is not a parameter of halting_criterion={criterion!r}, which has "
                    f"{', '.join(own)}."
                )


def last_real(real: torch.Tensor) -> torch.LongTensor:
    """`(batch,)`: the place of each row's last real token, 0 where it has none; `real` is `(batch, tokens)`, bool."""
    return (real * torch.arange(real.shape[1], device=real.device)).argmax(-1)


def _limits_of_units(limits, count, real):
    """`limits` in the shape of `count`."""
    if limits is None or limits.ndim == count.ndim:
        return limits
    if count.ndim == 2:
        return limits[:, None].expand_as(count)
    if real is None:
        return limits[:, -1]
    return limits.gather(1, last_real(real)[:, None])[:, 0]


def _bound(name, value, default):
    if value is None:
        return default
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}.")
    if value < 1:
        raise ValueError(f"{name}={shortened(value)} must be at least 1.")
    if value > MOST_RECURRENCES:
        raise ValueError(_TOO_MANY.format(name=name, value=shortened(value)))
    return value


_TOO_MANY = f"{{name}}={{value}} must be at most {MOST_RECURRENCES:,}: {RECURRENCES_REASON}."


def _as_count(value, shape, device, name="num_recurrences"):
    if value is None:
        return None
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return _bound(name, value, None)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got dtype {value.dtype}.")
    if value.shape not in (shape[:1], shape):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, but must have {tuple(shape[:1])}, a count for each row, or "
            f"{tuple(shape)}, a count for each token."
        )
    low, high = (int(bound) for bound in torch.stack(value.aminmax()).tolist())
    if low < 0:
        raise ValueError(f"{name} holds {low}, but counts must not be negative.")
    if high > MOST_RECURRENCES:
        raise ValueError(_TOO_MANY.format(name=name, value=high))
    return value.to(device=device, dtype=torch.long)


def _make_criterion(name, config, parameters):
    if name not in HALTING_CRITERIA:
        raise ValueError(f"halting_criterion={name!r} must be one of {', '.join(HALTING_CRITERIA)}.")
    if HALTING_CRITERIA[name].reads == "exit_gate" and not config.exit_gate:
        raise ValueError(
            f"halting_criterion={name!r} reads a learned gate, which this model does not have (exit_gate=False in its "
            "config). Choose another criterion."
        )
    values = {}
    for field in fields(HALTING_CRITERIA[name]):
        given = parameters.get(field.name)
        values[field.name] = _parameter(field.name, getattr(config, field.name) if given is None else given)
    return HALTING_CRITERIA[name](**values)


def _parameter(name, value):
    """The checked value of a parameter of a criterion."""
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    if name == "argmax_patience":
        return _bound(name, value, None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not value > 0:
        raise ValueError(f"{name}={value} must be positive.")
    try:
        check_number(value)
    except ValueError as error:
        raise ValueError(f"{name}={shortened(value)} is out of range. {error}.") from None
    if name in ("confidence_threshold", "exit_gate_threshold") and value > 1:
        raise ValueError(f"{name}={value} must be at most 1: it is a probability.")
    return value


def check_readable(config, depth, head, documents) -> None:
    """
    Refuses halting criteria that a call cannot evaluate.

    Args:
        config (`RecurrentDepthConfig`): `num_coda_layers` is read.
        depth (`int` or `HaltingRule`): The depth of the call.
        head (`Callable`, *optional*), documents (`torch.Tensor`, *optional*): See `RecurrentDepthModel.forward`.

    Raises:
        `ValueError`: The criterion reads logits that the call does not have or that are still provisional, or decides
            for a row of several documents.
    """
    if not isinstance(depth, HaltingRule) or depth.criterion is None:
        return
    name = depth.criterion.name
    if documents is not None and depth.granularity == "sequence" and not torch.compiler.is_compiling():
        raise ValueError(
            f"halting_criterion={name!r} with halting_granularity='sequence' gives a row one count, but rows hold "
            "several documents. Use halting_granularity='token', or one document per row."
        )
    if depth.reads != "log_probs":
        return
    if head is None:
        raise ValueError(
            f"halting_criterion={name!r} reads logits, which RecurrentDepthModel does not compute: use "
            "RecurrentDepthForCausalLM, or a criterion on the state."
        )
    if depth.granularity == "token" and config.num_coda_layers:
        raise ValueError(
            f"halting_criterion={name!r} with halting_granularity='token' and num_coda_layers="
            f"{config.num_coda_layers}: logits would depend on states that are still provisional. Choose a "
            "criterion on the state ('state_difference', 'acceleration') or halting_granularity='sequence'."
        )


__all__ = [
    "HALTING_CRITERIA",
    "HaltingCriterion",
    "HaltingRule",
    "applies",
    "criterion_parameters",
    "last_real",
    "resolve_depth",
]
