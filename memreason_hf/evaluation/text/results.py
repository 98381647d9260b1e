"""Results over text: their schema, the documents made of their numbers, and a table."""

import math
from typing import Literal

from typing_extensions import TypedDict

from memreason_hf.evaluation.results import (
    Document,
    Environment,
    ModelDescription,
    describe_model,
    new_document,
    register_kind,
)
from memreason_hf.evaluation.text.perplexity import RecurrencePerplexity
from memreason_hf.files import portable_path
from memreason_hf.tables import format_table


# Up to this depth the table shows every recurrence; beyond it powers of two, the best and the last one.
_MOST_LINES = 16


class TextData(TypedDict):
    """The text that was evaluated."""

    files: list[str]
    num_documents: int
    num_tokens: int
    """The predicted tokens: all but the first of each document."""
    num_bytes: int | None
    """UTF-8 bytes of the predicted text; null if unknown."""


class PerplexitySettings(TypedDict):
    """Settings of an evaluation on text."""

    max_recurrences: int
    """The last recurrence that was read."""
    max_length: int
    """The most tokens that a prediction sees."""
    batch_size: int
    packed: bool
    """Whether several documents share a row."""


class PerplexityResults(Document):
    """Perplexity after every recurrence, read in one pass. Entry t - 1 of a list belongs to recurrence t."""

    kind: Literal["perplexity"]
    model: ModelDescription
    data: TextData
    settings: PerplexitySettings
    loss: list[float]
    """Mean cross-entropy of a token, in nats."""
    perplexity: list[float | None]
    """exp of the loss; null where it is too large for a number."""
    bits_per_byte: list[float] | None
    """Bits of a byte of text, which do not depend on the tokenizer; null if the bytes are unknown."""
    best_recurrence: int
    """The first recurrence of the lowest loss, counted from 1."""
    seconds: float


def _check_lengths(results):
    expected = results["settings"]["max_recurrences"]
    for name in ("loss", "perplexity", "bits_per_byte"):
        if results[name] is not None and len(results[name]) != expected:
            raise ValueError(f"{name} has {len(results[name])} entries, but settings.max_recurrences is {expected}.")
    if not 1 <= results["best_recurrence"] <= expected:
        raise ValueError(f"best_recurrence={results['best_recurrence']} must be from 1 to {expected}.")


register_kind("perplexity", PerplexityResults, check=_check_lengths)


def describe_text_model(model, name_or_path: str) -> ModelDescription:
    """The entry `model` of a document about text."""
    description = describe_model(model, name_or_path)
    return {name: description[name] for name in ModelDescription.__annotations__}


def perplexity_results(
    result: RecurrencePerplexity,
    *,
    model: ModelDescription,
    environment: Environment,
    files: list[str],
    max_length: int,
    batch_size: int,
    packed: bool,
) -> dict:
    """
    A document of kind `"perplexity"`.

    Args:
        result: from `perplexity_by_recurrence`.
        model: from `describe_text_model`.
        environment: from `describe_environment`.
        files: where the text is from.
        max_length, batch_size, packed: as they were passed to `perplexity_by_recurrence`.
    """
    bits = result.bits_per_byte
    return new_document(
        "perplexity",
        model=model,
        data={
            "files": [portable_path(file) for file in files],
            "num_documents": result.num_documents,
            "num_tokens": result.num_tokens,
            "num_bytes": result.num_bytes,
        },
        settings={
            "max_recurrences": result.max_recurrences,
            "max_length": max_length,
            "batch_size": batch_size,
            "packed": packed,
        },
        loss=result.losses.tolist(),
        perplexity=[value if math.isfinite(value) else None for value in result.perplexities.tolist()],
        bits_per_byte=None if bits is None else bits.tolist(),
        best_recurrence=result.best_recurrence,
        seconds=result.seconds,
        environment=environment,
    )


def perplexity_table(results: dict) -> str:
    """A table of a document of kind `"perplexity"`, one line for each recurrence; the best one is marked."""
    last, best = results["settings"]["max_recurrences"], results["best_recurrence"]
    shown = range(1, last + 1)
    if last > _MOST_LINES:
        shown = sorted({2**power for power in range(int(math.log2(last)) + 1)} | {best, last})
    bits = results["bits_per_byte"]
    header = ["recurrences", "loss", "perplexity", *(["bits per byte"] if bits else []), ""]
    lines = []
    for recurrence in shown:
        perplexity = results["perplexity"][recurrence - 1]
        line = [recurrence, f"{results['loss'][recurrence - 1]:.4f}"]
        line.append("-" if perplexity is None else f"{perplexity:.3f}")
        line += [f"{bits[recurrence - 1]:.4f}"] if bits else []
        lines.append([*line, "best" if recurrence == best else ""])
    return format_table(header, lines)
