"""Results of calibrations: their schema, the documents made of them, and a table."""

import math
from dataclasses import asdict
from typing import Literal

from typing_extensions import TypedDict

from memreason_hf.evaluation.results import (
    Document,
    Environment,
    ModelDescription,
    new_document,
    register_kind,
)
from memreason_hf.halting.calibration import Calibration, Candidate
from memreason_hf.halting.repetitions import RepetitionReport
from memreason_hf.tables import format_table


# Candidates that the table shows beside the chosen one.
_MOST_LINES = 12


class CalibrationData(TypedDict):
    """The rows that thresholds were chosen on."""

    task: Literal["chains", "solutions", "text"]
    paths: list[str]
    """Folders or files; see `portable_path`."""
    split: str | None
    num_rows: int
    """Rows of the test: chains, questions or documents."""


class CalibrationPromise(TypedDict):
    """What is guaranteed."""

    risk: float
    """The largest mean loss, in `unit`."""
    unit: Literal["share", "nats"]
    loss: Literal["accuracy", "agreement", "perplexity"]
    """What a row loses against the reference depth: a right answer, the same answer, or cross-entropy."""
    largest_loss: float
    """A row that loses more counts as losing so much, in `unit`."""
    method: Literal["fixed_sequence", "holm", "conformal"]
    confidence: float | None
    """The probability, over the draw of the rows, that it holds; null for conformal, which promises the mean."""
    by_group: bool
    """Whether it holds for each group."""


class ReferenceDepth(TypedDict):
    """The fixed depth that halting is compared with; halting goes no deeper."""

    kind: Literal["deepest", "best"]
    num_recurrences: int
    accuracy: float | None
    """Share of right answers; null for text."""
    nats: float | None
    """Mean cross-entropy of a token; null for answers."""


class CalibrationSettings(TypedDict):
    """How the model halts, by the names of the config."""

    halting_granularity: Literal["sequence", "token"]
    min_recurrences: int
    max_recurrences: int
    parameters: dict[str, float]
    """Parameters of criteria that were not calibrated."""
    seed: int
    """Of the choice of the rows that chose the best depth."""
    weights: dict[str, str]
    """Digests of the weight files, which the promise holds for."""


class CandidateNumbers(TypedDict):
    """One threshold on the rows."""

    criterion: str
    threshold: float
    loss: float
    """Mean loss, in the unit of the promise."""
    recurrences: float | None
    """Mean recurrences; null if they are not known."""
    p_value: float
    is_safe: bool
    """Whether the guarantee covers it."""


class CalibrationGroup(TypedDict):
    """The chosen threshold on the rows of one group."""

    group: int | str
    num_rows: int
    loss: float | None
    recurrences: float | None


class RepetitionNumbers(TypedDict):
    """What the calibration and a naive choice did on draws from the rows; shares in 0..1, losses in the unit."""

    repetitions: int
    num_rows: int
    kept: float
    naive_kept: float
    loss: float
    naive_loss: float
    largest_loss: float
    naive_largest_loss: float
    recurrences: float
    naive_recurrences: float
    no_threshold: float


class CalibrationResults(Document):
    """Thresholds that were tried, and the one that was chosen."""

    kind: Literal["calibration"]
    model: ModelDescription
    data: CalibrationData
    promise: CalibrationPromise
    reference: ReferenceDepth
    settings: CalibrationSettings
    chosen: CandidateNumbers | None
    """The safe candidate of the fewest recurrences; null if there is none."""
    naive: CandidateNumbers | None
    """The candidate that looks best on these rows, without a guarantee."""
    first_correct: float | None
    """Mean first recurrence of a right answer, which may be by luck, over the rows that have one; null except for
    chains."""
    lasting_correct: float | None
    """Mean recurrence from which on the answer stays right, over the rows that end with a right one; null except for
    chains."""
    candidates: list[CandidateNumbers]
    groups: list[CalibrationGroup]
    repetitions: RepetitionNumbers | None
    seconds: float


def _check(results):
    if results["chosen"] is not None and not results["chosen"]["is_safe"]:
        raise ValueError("chosen.is_safe=False: only a safe candidate can be chosen.")
    if not results["candidates"]:
        raise ValueError("candidates=[] is empty: a calibration has tried at least one threshold.")


register_kind("calibration", CalibrationResults, check=_check)


def calibration_results(
    calibration: Calibration,
    *,
    model: ModelDescription,
    environment: Environment,
    data: CalibrationData,
    promise: CalibrationPromise,
    reference: ReferenceDepth,
    settings: CalibrationSettings,
    first_right: tuple[float, float] | None = None,
    repetitions: RepetitionReport | None = None,
    seconds: float,
) -> dict:
    """
    A document of kind `"calibration"`.

    The losses of `calibration` are in 0..1 and are multiplied by `largest_loss` of the promise. `first_right` holds
    `first_correct` and `lasting_correct` of the signals; the other arguments are entries of the document.
    """
    scale = promise["largest_loss"]

    def numbers(candidate: Candidate | None):
        if candidate is None:
            return None
        values = {name: getattr(candidate, name) for name in ("criterion", "p_value", "is_safe")}
        values |= {"threshold": float(candidate.threshold), "loss": candidate.loss * scale}
        return {**values, "recurrences": _without_nan(candidate.recurrences)}

    chosen = calibration.chosen
    groups = [
        {
            "group": group,
            "num_rows": rows,
            "loss": None if chosen is None else chosen.group_losses[index] * scale,
            "recurrences": None if chosen is None else _without_nan(chosen.group_recurrences[index]),
        }
        for index, (group, rows) in enumerate(zip(calibration.groups, calibration.group_rows))
    ]
    return new_document(
        "calibration",
        model=model,
        data=data,
        promise=promise,
        reference=reference,
        settings=settings,
        chosen=numbers(chosen),
        naive=numbers(calibration.naive),
        first_correct=None if first_right is None else _without_nan(first_right[0]),
        lasting_correct=None if first_right is None else _without_nan(first_right[1]),
        candidates=[numbers(one) for tried in calibration.candidates.values() for one in tried],
        groups=groups,
        repetitions=None if repetitions is None else asdict(repetitions),
        seconds=seconds,
        environment=environment,
    )


def _without_nan(value):
    return float(value) if math.isfinite(value) else None


def describe_promise(results: dict) -> str:
    """One sentence on what the chosen threshold guarantees."""
    promise, reference = results["promise"], results["reference"]
    what = {
        "accuracy": "answers that are right at that depth and wrong when halted",
        "agreement": "answers that differ from those at that depth",
        "perplexity": "rise of the cross-entropy of a token over that at that depth",
    }[promise["loss"]]
    if promise["loss"] == "agreement" and results["data"]["task"] == "text":
        what = "most probable tokens that differ from those at that depth"
    bound = f"{promise['risk']:g} nats" if promise["unit"] == "nats" else f"{100 * promise['risk']:g} %"
    how = (
        "in the mean over draws of the calibration rows (conformal risk control, arXiv 2208.02814)"
        if promise["confidence"] is None
        else f"with a confidence of {100 * promise['confidence']:g} % (Learn then Test, arXiv 2110.01052)"
    )
    each = " in every group" if promise["by_group"] else ""
    count = reference["num_recurrences"]
    return (
        f"Against a fixed depth of {count} recurrence{'s' if count > 1 else ''}, the {reference['kind']} one, at most "
        f"{bound}{each}: {what}; {how}, for new rows that are drawn like the {results['data']['num_rows']:,} "
        "calibration rows."
    )


def calibration_table(results: dict) -> str:
    """The chosen candidate, the naive one, and candidates around them, one line each."""
    chosen, naive = results["chosen"], results["naive"]
    marked = [one for one in results["candidates"] if _is_same(one, chosen) or _is_same(one, naive)]
    step = max(len(results["candidates"]) // _MOST_LINES, 1)
    shown = [
        one
        for index, one in enumerate(results["candidates"])
        if index % step == 0 or index == len(results["candidates"]) - 1 or one in marked
    ]
    lines = []
    for one in shown:
        notes = [word for word, other in (("chosen", chosen), ("naive", naive)) if _is_same(one, other)]
        recurrences = "-" if one["recurrences"] is None else f"{one['recurrences']:.2f}"
        lines.append(
            [
                one["criterion"],
                f"{one['threshold']:.6g}",
                f"{one['loss']:.5f}",
                recurrences,
                f"{one['p_value']:.3g}",
                "yes" if one["is_safe"] else "no",
                ", ".join(notes),
            ]
        )
    return format_table(["criterion", "threshold", "loss", "recurrences", "p-value", "safe", ""], lines)


def _is_same(one, other):
    return other is not None and (one["criterion"], one["threshold"]) == (other["criterion"], other["threshold"])


__all__ = ["CalibrationResults", "calibration_results", "calibration_table", "describe_promise"]
