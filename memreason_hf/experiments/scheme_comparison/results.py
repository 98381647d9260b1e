"""The schema of `comparison.json`, a document of kind `"scheme_comparison"`."""

from typing import Literal

from pydantic import JsonValue
from typing_extensions import TypedDict

from memreason_hf.analysis.comparison_tables import ComparisonRow
from memreason_hf.evaluation.results import Document, register_kind


class Training(TypedDict):
    """How the training of one scheme went."""

    steps: int
    seconds: float
    num_parameters: int
    num_trained: int
    """Parameters that were trained."""
    log: list[dict[str, JsonValue]]
    """What the Trainer logged."""


class SchemeResults(TypedDict):
    """One of the schemes."""

    title: str
    """The name in tables."""
    scheme: dict[str, JsonValue]
    """The fields of `StepScheme`, those with a default that was added later left out."""
    mode: str
    """Which weights were trained, one of `ADAPTER_MODES`."""
    training: Training
    measures: dict[str, JsonValue]
    """What the metrics `answer_accuracy`, `step_distribution` and `step_attribution` return."""
    num_tokens: int
    """Generated tokens of all solutions, their ends included."""
    num_cut: int
    """Solutions that were cut off by `max_new_tokens` or the context."""
    seconds: float
    """Time of the evaluation."""


class ComparisonResults(Document):
    """Schemes of steps on one data set: accuracy, tokens and steps of each."""

    kind: Literal["scheme_comparison"]
    recipe: dict[str, dict[str, JsonValue]]
    """The sections of the fine-tuning recipe, with which all schemes were trained."""
    num_items: int
    """Test questions."""
    seed: int
    schemes: dict[str, SchemeResults]
    """By name."""
    token_counts: list[int]
    """The numbers of step tokens with which the scheme of the study was trained."""
    seconds: float
    """Wall time of the whole command, without what an earlier run had finished."""


register_kind("scheme_comparison", ComparisonResults)


def comparison_rows(results: dict) -> list[ComparisonRow]:
    """The rows of the table, in the order of the schemes."""
    return [
        ComparisonRow.from_results(entry["title"], entry["measures"], num_tokens=entry["num_tokens"])
        for entry in results["schemes"].values()
    ]
