"""
The choice of a threshold with a guarantee.

    promise = Promise(risk=0.005, confidence=0.95)
    calibration = calibrate(measure, {"kl": candidate_thresholds("kl", 64)}, promise)
    calibration.chosen.threshold

A row loses something where halting gives another answer than the reference, a fixed depth. `measure` knows how: by
reading signals of one pass (`signals`), or by running the model (`runs`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from memreason_hf.checks import check_choice
from memreason_hf.halting.guarantees import (
    check_promise,
    conformal,
    fixed_sequence,
    holm,
    p_value,
    rows_needed,
    rows_needed_in_mean,
)


METHODS = ("fixed_sequence", "holm", "conformal")


@dataclass(frozen=True)
class Promise:
    """
    What a calibration guarantees.

    Attributes:
        risk: the largest mean loss, in the units of the losses divided by `scale`, in 0..1.
        confidence: the probability, over the draw of the rows, with which the loss stays below `risk`. The method
            `"conformal"` promises the mean over such draws instead and does not use it.
        method: `"fixed_sequence"`, `"holm"` or `"conformal"`.

    Raises:
        ValueError, TypeError: a value is out of its range.
    """

    risk: float
    confidence: float = 0.95
    method: Literal["fixed_sequence", "holm", "conformal"] = "fixed_sequence"

    def __post_init__(self):
        check_promise(self.risk, self.confidence)
        check_choice("method", self.method, METHODS)

    def rows_needed(self, num_criteria: int = 1, num_candidates: int = 1) -> int:
        """The fewest rows with which the promise can be kept."""
        if self.method == "conformal":
            return rows_needed_in_mean(self.risk)
        return rows_needed(self.risk, self.confidence, num_criteria * (num_candidates if self.method == "holm" else 1))


@dataclass(frozen=True)
class Outcome:
    """
    What a candidate does on the rows.

    Attributes:
        losses: of each row, in 0..1, shape (rows,).
        recurrences: of each row, the mean where a row is a text, shape (rows,); NaN where they are not known.
    """

    losses: np.ndarray
    recurrences: np.ndarray


@dataclass(frozen=True)
class Candidate:
    """
    One threshold and its test.

    Attributes:
        criterion, threshold: what was tried.
        loss: mean loss of the rows, in 0..1.
        recurrences: mean recurrences; NaN where they are not known.
        p_value: of the hypothesis that the loss is above the risk; with groups, the largest of theirs.
        is_safe: whether the guarantee covers it.
        group_losses, group_recurrences: the means of each group, in its order.
    """

    criterion: str
    threshold: float
    loss: float
    recurrences: float
    p_value: float
    is_safe: bool
    group_losses: tuple[float, ...]
    group_recurrences: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """
    A calibration.

    Attributes:
        promise: what is guaranteed.
        candidates: those that were tried, by criterion, from cautious to daring.
        chosen: the safe candidate of the fewest mean recurrences; `None` where no candidate is safe.
        naive: the candidate of the fewest recurrences whose loss on these rows is at most the risk, without a
            guarantee; `None` where there is none.
        groups: names of the groups that the promise holds for, one by one; empty without groups.
        group_rows: the rows of each.
    """

    promise: Promise
    candidates: dict[str, list[Candidate]]
    chosen: Candidate | None
    naive: Candidate | None
    num_rows: int
    groups: list = field(default_factory=list)
    group_rows: list[int] = field(default_factory=list)


def calibrate(
    measure: Callable[[str, float], Outcome],
    thresholds: Mapping[str, Sequence[float]],
    promise: Promise,
    *,
    num_rows: int,
    groups: Sequence | None = None,
    group_names: Sequence | None = None,
    tries_all: bool = True,
) -> Calibration:
    """
    Chooses the threshold of the fewest recurrences that keeps the promise.

    Several criteria share the error: each is tested at `(1 - confidence)` divided by their number.

    Args:
        measure: `(criterion, threshold)` -> `Outcome` on the same rows.
        thresholds: by criterion, from cautious to daring, chosen without these rows.
        promise: what must hold.
        num_rows: the rows.
        groups: the group of each row. The promise then holds for every group, at once: a candidate is safe where it
            is in each of them.
        group_names: the groups that must have rows; by default those that occur.
        tries_all: whether to measure candidates beyond the last safe one, which change nothing but the table.
            `"holm"` always needs all.

    Raises:
        ValueError: too few rows, with the number that is needed; or a group without rows, or with too few.

    Example:

        >>> rows = np.linspace(0, 1, 2000)
        >>> def measure(criterion, threshold):
        ...     return Outcome((rows < threshold).astype(float), np.full(2000, 10 * (1 - threshold)))
        >>> thresholds = {"kl": [0.0, 0.01, 0.02, 0.04, 0.08]}
        >>> calibrate(measure, thresholds, Promise(risk=0.05), num_rows=2000).chosen.threshold
        0.04
    """
    members = check_rows(promise, thresholds, num_rows=num_rows, groups=groups, group_names=group_names)
    level = (1 - promise.confidence) / max(len(thresholds), 1)
    candidates = {
        criterion: _try(measure, criterion, values, promise, level, members, tries_all)
        for criterion, values in thresholds.items()
    }
    every = [candidate for tried in candidates.values() for candidate in tried]
    naive = [one for one in every if max(one.group_losses, default=one.loss) <= promise.risk]
    return Calibration(
        promise=promise,
        candidates=candidates,
        chosen=_fastest([one for one in every if one.is_safe]),
        naive=_fastest(naive),
        num_rows=num_rows,
        groups=[] if groups is None else list(members),
        group_rows=[] if groups is None else [len(rows) for rows in members.values()],
    )


def check_rows(
    promise: Promise,
    thresholds: Mapping[str, Sequence[float]],
    *,
    num_rows: int,
    groups: Sequence | None = None,
    group_names: Sequence | None = None,
) -> dict:
    """
    Checks, before a model runs, that rows can show what is promised. The arguments are those of `calibrate`.

    Returns:
        The rows (indices) of each group; those of one group `None` where there are no groups.

    Raises:
        ValueError: as from `calibrate`.
    """
    if not thresholds:
        raise ValueError("halting_criterion names no criterion: there is nothing to calibrate.")
    if promise.method == "conformal" and len(thresholds) > 1:
        raise ValueError(
            f"method='conformal' calibrates one criterion, but halting_criterion names {len(thresholds)}: "
            f"{', '.join(thresholds)}. Choose one, or method='fixed_sequence'."
        )
    members = _members(groups, group_names, num_rows)
    needed = promise.rows_needed(len(thresholds), max(map(len, thresholds.values())))
    confidence = "" if promise.method == "conformal" else f" and confidence={promise.confidence:g}"
    for name, rows in members.items():
        if len(rows) < needed:
            where = f"the {num_rows} calibration rows" if name is None else f"the {len(rows)} rows of group {name}"
            raise ValueError(
                f"risk={promise.risk:g}{confidence} cannot be shown with {where}: at least {needed} are needed, even "
                "if none of them loses anything. Give more rows, a larger risk or a lower confidence."
            )
    return members


def _members(groups, names, num_rows):
    """The rows of each group; of one group with all rows where there are no groups."""
    if groups is None:
        return {None: np.arange(num_rows)}
    if len(groups) != num_rows:
        raise ValueError(f"groups has {len(groups)} entries, but there are {num_rows} rows.")
    members = {name: [] for name in (dict.fromkeys(groups) if names is None else names)}
    for row, group in enumerate(groups):
        if group not in members:
            raise ValueError(f"Row {row} is of group {group!r}, which is not among the groups {list(members)}.")
        members[group].append(row)
    empty = [str(name) for name, rows in members.items() if not rows]
    if empty:
        raise ValueError(f"No row is of group {', '.join(empty)}: leave the group out, or give rows of it.")
    return {name: np.array(rows) for name, rows in members.items()}


def _try(measure, criterion, values, promise, level, members, tries_all):
    """The candidates of one criterion, tested."""
    outcomes, p_values, sums = [], [], {name: [] for name in members}
    for threshold in values:
        outcome = measure(criterion, threshold)
        outcomes.append(outcome)
        p_values.append(max(p_value(outcome.losses[rows], promise.risk) for rows in members.values()))
        for name, rows in members.items():
            sums[name].append(outcome.losses[rows])
        if not tries_all and promise.method != "holm" and _count_safe(promise, level, p_values, sums) < len(outcomes):
            break
    if promise.method == "holm":
        safe = holm(p_values, level)
    else:
        safe = np.arange(len(outcomes)) < _count_safe(promise, level, p_values, sums)
    return [
        Candidate(
            criterion=criterion,
            threshold=threshold,
            loss=float(outcome.losses.mean()),
            recurrences=float(outcome.recurrences.mean()),
            p_value=p,
            is_safe=bool(ok),
            group_losses=tuple(float(outcome.losses[rows].mean()) for rows in members.values()),
            group_recurrences=tuple(float(outcome.recurrences[rows].mean()) for rows in members.values()),
        )
        for threshold, outcome, p, ok in zip(values, outcomes, p_values, safe)
    ]


def _count_safe(promise, level, p_values, losses):
    if promise.method == "conformal":
        return min(conformal(np.stack(of_group), promise.risk) for of_group in losses.values())
    return fixed_sequence(p_values, level)


def _fastest(candidates):
    """
    The candidate of the fewest recurrences; of several, the most cautious. Where recurrences are not known, the last
    one, which is the most daring.
    """
    if not candidates:
        return None
    if any(np.isnan(one.recurrences) for one in candidates):
        return candidates[-1]
    return min(candidates, key=lambda one: one.recurrences)


__all__ = ["METHODS", "Calibration", "Candidate", "Outcome", "Promise", "calibrate", "check_rows"]
