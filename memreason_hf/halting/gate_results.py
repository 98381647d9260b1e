"""Results of fitting an exit gate: the schema of `exit_gate.json`."""

from typing import Literal

from typing_extensions import TypedDict

from memreason_hf.evaluation.results import Document, Environment, ModelDescription, new_document, register_kind
from memreason_hf.halting.gates import GateFit


class GateData(TypedDict):
    """What a gate was fitted on."""

    task: Literal["chains", "text"]
    paths: list[str]
    """Folders or files; see `portable_path`."""
    split: str | None
    num_labels: int


class GateObjective(TypedDict):
    """What it was fitted to."""

    name: Literal["settled", "improvement", "expected_loss"]
    prior: str | None
    """Of `expected_loss`, as the next two."""
    prior_stop: float | None
    prior_weight: float | None


class GateResults(Document):
    """An exit gate that was fitted to a frozen model."""

    kind: Literal["exit_gate"]
    model: ModelDescription
    """The model with the gate."""
    data: GateData
    objective: GateObjective
    num_recurrences: int
    """The recurrences of the fit."""
    first_loss: float
    """The mean of the objective for a gate that leaves everywhere with the same probability."""
    loss: float
    """The same for the fitted gate."""
    mean_recurrence: float
    """Of the distribution over recurrences that the gate gives on these labels."""
    seed: int
    """Of the choice of the labels."""
    seconds: float


register_kind("exit_gate", GateResults)


def gate_results(
    fit: GateFit,
    *,
    model: ModelDescription,
    environment: Environment,
    data: GateData,
    objective: GateObjective,
    seed: int,
    seconds: float,
) -> dict:
    """A document of kind `"exit_gate"`; the arguments are entries of it."""
    numbers = {name: getattr(fit, name) for name in ("num_recurrences", "first_loss", "loss", "mean_recurrence")}
    return new_document(
        "exit_gate",
        model=model,
        data=data,
        objective=objective,
        **numbers,
        seed=seed,
        seconds=seconds,
        environment=environment,
    )


def describe_gate(results: dict) -> str:
    """Two sentences on how a gate was found."""
    data, objective = results["data"], results["objective"]
    how = {
        "settled": "to leave where the answer stays the same up to the last recurrence",
        "improvement": "to stay where the last recurrence improved the loss (arXiv 2510.25741, second stage)",
        "expected_loss": f"to the expected loss where it leaves, held close to a {objective['prior']} prior",
    }[objective["name"]]
    return (
        f"The exit gate was fitted to the frozen model, on {data['num_labels']:,} labels of {data['task']} and "
        f"{results['num_recurrences']} recurrences, {how}. The mean loss of the fit fell from "
        f"{results['first_loss']:.4f} to {results['loss']:.4f}; on these labels the gate leaves after "
        f"{results['mean_recurrence']:.2f} recurrences in the mean."
    )


__all__ = ["GateResults", "describe_gate", "gate_results"]
