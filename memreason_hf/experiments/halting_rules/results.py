"""The schema of `halting_rules.json`, a document of kind `"halting_rules"`."""

from typing import Literal

from pydantic import JsonValue
from typing_extensions import TypedDict

from memreason_hf.evaluation.results import Document, register_kind


class Point(TypedDict):
    """A threshold on the test rows."""

    threshold: float
    recurrences: float
    """Mean recurrences."""
    accuracy: float
    loss: float
    """Share of rows that are right at full depth and wrong when halted."""


class Rule(TypedDict):
    """A rule at all thresholds."""

    points: list[Point]
    """From cautious to daring, those of other numbers than the one before."""
    calibrated: Point | None
    """The threshold with a guarantee, chosen on other rows; null if no threshold was safe."""


class Oracle(TypedDict):
    """Every row halts at its first right answer, or at once if it never has one."""

    recurrences: float
    accuracy: float


class ModelResults(TypedDict):
    """One model."""

    title: str
    training: dict[str, JsonValue]
    rules: dict[str, Rule]
    """By criterion, or by the title of a gate."""
    fixed: list[float]
    """Accuracy after each recurrence."""
    oracle: Oracle
    first_correct: float
    """Mean first recurrence of a right answer, which may be by luck."""
    lasting_correct: float
    """Mean recurrence from which on the answer stays right."""
    solved: float | None
    """Mean recurrence at which 95 % of the chains of the same length are right; null if a length never is."""
    num_rows: dict[str, int]
    seconds: float
    """Of the measurement."""
    cpu_seconds: float
    """Of training and measurement."""
    repetitions: list[dict[str, JsonValue]]
    """Repeated calibrations, each of one criterion: `RepetitionReport`."""


class HaltingRulesResults(Document):
    """Rules that decide when to stop, side by side."""

    kind: Literal["halting_rules"]
    settings: dict[str, JsonValue]
    models: dict[str, ModelResults]
    seconds: float
    """Wall time of the whole command, without what an earlier run had finished."""


register_kind("halting_rules", HaltingRulesResults)


def reaches(rule: Rule, accuracy: float) -> Point | None:
    """The point of the fewest recurrences with at least this accuracy; None if there is none."""
    points = [point for point in rule["points"] if point["accuracy"] >= accuracy]
    return min(points, key=lambda point: point["recurrences"], default=None)
