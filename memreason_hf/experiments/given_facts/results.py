"""The schema of `given_facts.json`, a document of kind `"given_facts"`."""

from typing import Literal, NotRequired

from pydantic import JsonValue
from typing_extensions import TypedDict

from memreason_hf.evaluation.results import Document, register_kind


class Training(TypedDict):
    """How the training of one model went."""

    steps: int
    seconds: float
    """CPU seconds."""
    num_parameters: int
    log: list[dict[str, JsonValue]]
    """What the Trainer logged."""


class HopGroup(TypedDict):
    """Questions of one hop count."""

    count: int
    accuracy: float


FalseMemories = TypedDict("FalseMemories", {"follows": int, "the truth": int, "another answer": int})
FalseMemories.__doc__ = """Solutions in which one memory step names a false entity, by their answer: what follows from
it, the right answer of the question, or another one."""


class Measures(TypedDict):
    """One model on test questions about fresh worlds, or about the learned one."""

    hops: dict[str, HopGroup]
    """By hop count."""
    false_memories: NotRequired[dict[str, FalseMemories]]
    """For `trained` and `longer` chains. Models that write steps."""
    other_memories: NotRequired[float]
    """Accuracy if the memory steps state the facts of another world. Models that write steps, on fresh worlds."""


class ModelResults(TypedDict):
    """One of the models."""

    title: str
    training: Training
    fresh: Measures
    learned: NotRequired[Measures]
    """Models that were trained on the learned world, too."""
    depth_by_kind: NotRequired[Measures]
    """Fresh worlds, with 2 recurrences in memory steps. Recurrent models that write steps."""
    seconds: float
    """CPU seconds of the evaluation."""


class GivenFactsSettings(TypedDict):
    """Settings of the command."""

    seed: int
    num_questions: int


class GivenFactsResults(Document):
    """Facts that a question's own world gives, with and without written steps and recurrent depth."""

    kind: Literal["given_facts"]
    trained_hops: int
    settings: GivenFactsSettings
    models: dict[str, ModelResults]
    """By name."""
    seconds: float
    """Wall time of the whole command, without what an earlier run had finished."""


register_kind("given_facts", GivenFactsResults)
