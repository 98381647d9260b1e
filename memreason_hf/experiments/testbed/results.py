"""The schema of `testbed.json`, a document of kind `"testbed"`."""

from dataclasses import fields
from typing import Literal, NotRequired

from pydantic import JsonValue
from typing_extensions import TypedDict

from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.evaluation.results import Document, register_kind


class Training(TypedDict):
    """How the training of one model went."""

    steps: int
    max_steps: int
    seconds: float
    most_seconds: float
    """The limit on `seconds`."""
    ended_by: Literal["steps", "time"]
    num_parameters: int
    log: list[dict[str, JsonValue]]
    """What the Trainer logged."""


class ErrorAttribution(TypedDict):
    """Where solutions first go wrong, by the known truth; all entries are numbers of solutions."""

    wrong_answers: dict[str, int]
    """With a wrong answer, by the kind of the first wrong step; `no answer`: no step is wrong, but there is no answer;
    `none`: nothing is wrong. The first release counted a missing answer as `none`."""
    right_answers: dict[str, int]
    """With a right answer, by the kind of the first wrong step."""
    reason_errors: dict[str, int]
    """With a wrong answer and first wrong at a reason step. `recalled`, `not recalled`: whether a memory step before
    it states the fact that its hop needs; `no hop`: the step is about no hop of the question."""
    answer_errors: dict[str, int]
    """With a wrong answer and first wrong at the answer. `stopped early`: the answer is the entity that the last
    reason step reaches, so hops are missing; `another`: any other answer."""


class HopGroup(TypedDict):
    """One model on the test chains of one hop count."""

    count: int
    accuracy: float
    tokens: float
    """Mean tokens generated, the end of the text included."""
    recurrences: float
    """Mean recurrences of a generated token."""
    is_cut: NotRequired[int]
    """Solutions that were cut off. This and the entries below: models that write steps."""
    recalled: NotRequired[float]
    """Share of the solutions whose memory steps state every fact of the chain."""
    attribution: NotRequired[ErrorAttribution]


class ModelResults(TypedDict):
    """One of the models."""

    title: str
    """The name in tables and figures."""
    training: Training
    hops: dict[str, HopGroup]
    """By hop count."""
    recurrences_by_kind: dict[str, float]
    """Mean recurrences of a token, by the kind of its step."""
    recurrences_by_word: NotRequired[dict[str, float]]
    """The same by kind and by the token's place in its step. This and the entries below: models that write steps."""
    steps_by_kind: NotRequired[dict[str, float]]
    """Mean number of steps of a solution."""
    false_memories: NotRequired[dict[str, int]]
    """Solutions that continue a false memory of a needed fact, by what the reason step of its hop states:
    `as recalled`, `the truth` (which the model knows from its weights), `another fact`, or `no such step`.
    `carried_on`: those as recalled whose answer follows from the false memory."""
    seconds: float
    """Time of the evaluation."""


class ErrorCount(TypedDict):
    """Errors of one kind that were inserted into correct solutions."""

    count: int
    found: int
    """Found at the right step and kind."""


class ChangeCount(TypedDict):
    """Correct solutions with one kind of change."""

    count: int
    false_alarms: int
    """Solutions in which a step departs."""


class KindCount(TypedDict):
    """Errors of one kind: memory, reason, answer, or `no answer`."""

    errors: int
    """Inserted."""
    found: int
    """Found at the right step and kind."""
    blamed: int
    """Solutions, with or without an error, that the judge says first go wrong at this kind."""
    false_alarms: int
    """Solutions without an error of which it says so."""


class JudgeResults(TypedDict):
    """What one judge said about changed solutions."""

    errors: dict[str, ErrorCount]
    right: dict[str, ChangeCount]
    hit_rate: float
    false_alarm_rate: float
    kinds: NotRequired[dict[str, KindCount]]
    """This and the entries below: not in results of the first release."""
    num_right: NotRequired[int]
    """Solutions without an error."""
    num_not_judged: NotRequired[int]
    """Solutions at which the judge failed."""


class TestbedSettings(TypedDict):
    """Settings of the command."""

    seed: int
    num_judged: int
    at_once: int


# The fields of the config, by which the world and its chains can be built again.
WorldSizes = TypedDict("WorldSizes", {field.name: field.type for field in fields(MultiHopConfig)})
WorldSizes.__doc__ = "The fields of `MultiHopConfig`, by which the world and its chains can be built again."


class TestbedResults(Document):
    """The test bed: four models on one world, and judges on inserted errors."""

    kind: Literal["testbed"]
    created: NotRequired[str]
    """UTC time, ISO 8601; the first release did not write it."""
    data: WorldSizes
    settings: TestbedSettings
    models: dict[str, ModelResults]
    """By name."""
    judges: dict[str, JudgeResults]
    """By name."""
    seconds: float
    """Wall time of the whole command, without what an earlier run had finished."""


register_kind("testbed", TestbedResults)
