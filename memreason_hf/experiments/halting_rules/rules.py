"""
What every rule does to the chains of a trained model: signals of all thresholds, points of a curve, and a calibrated
threshold.

Rows are in three parts of each hop count: gates are fitted on the first, thresholds calibrated on the second, and
everything is measured on the third.
"""

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset

from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.halting.calibration import Outcome, Promise, calibrate
from memreason_hf.halting.candidates import candidate_thresholds
from memreason_hf.halting.gates import GateRows, fit_gate, read_gate_rows
from memreason_hf.halting.repetitions import repeat_calibration
from memreason_hf.halting.signals import ChainSignals, read_signals
from memreason_hf.models.exit_gates import exit_log_probs
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


BATCH_SIZE = 64
# A group counts as solved from the recurrence on at which so many of its answers are right.
SOLVED = 0.95
# The candidates of each criterion; more where a loss rises steeply.
NUM_CANDIDATES, NUM_REPEATED = 400, 1000
# How fine the curves of the results are.
_POINTS_A_RECURRENCE = 5


def read_rows(model: torch.nn.Module, dataset: Dataset, pad_token_id: int, depth: int) -> GateRows:
    """States, losses and answers of all rows, in their order."""
    collator = ChainCollator(pad_token_id)

    def batches() -> Iterator[dict]:
        for start in range(0, len(dataset), BATCH_SIZE):
            rows = dataset.select(range(start, min(start + BATCH_SIZE, len(dataset))))
            yield dict(collator([{"input_ids": row["input_ids"], "label_ids": row["label_ids"]} for row in rows]))

    return read_gate_rows(model, batches(), num_recurrences=depth)


def parts_of(groups: list) -> dict[str, np.ndarray]:
    """The rows (indices) of the three parts; each holds a third of every group, in turns."""
    seen, parts = {}, ([], [], [])
    for row, group in enumerate(groups):
        count = seen[group] = seen.get(group, -1) + 1
        parts[count % 3].append(row)
    return dict(zip(("fit", "calibration", "test"), map(np.array, parts)))


def gate_signals(rows: GateRows, like: ChainSignals, weight: torch.Tensor, bias: torch.Tensor) -> ChainSignals:
    """The signals of a gate, from the states that it reads."""
    left = exit_log_probs(rows.states @ weight + bias).exp().cumsum(-1).numpy().astype(np.float32)
    return ChainSignals("exit_gate", left, like.predictions, like.references, like.groups)


def all_signals(model, dataset, pad_token_id, depth, fits: dict[str, str], has_gate: bool) -> dict[str, ChainSignals]:
    """
    The signals of every rule by its title: the criteria of the package by their names, a gate that learned with the
    model, and gates that are fitted on the first part of the rows.
    """
    names = [name for name in HALTING_CRITERIA if name != "exit_gate"]
    arguments = {"max_recurrences": depth, "batch_size": 4 * BATCH_SIZE}
    signals = read_signals(model, dataset, ChainCollator(pad_token_id), criteria=names, **arguments)
    if not (fits or has_gate):
        return signals
    rows, like = read_rows(model, dataset, pad_token_id, depth), next(iter(signals.values()))
    if has_gate:
        gate = model.model.exit_gate
        weight, bias = gate.weight.detach()[0].cpu().float(), gate.bias.detach()[0].cpu().float()
        signals["gate as trained"] = gate_signals(rows, like, weight, bias)
    some = torch.from_numpy(parts_of(like.groups)["fit"])
    fitted_rows = GateRows(rows.states[some], rows.losses[some], rows.predictions[some])
    for objective, title in fits.items():
        fit = fit_gate(fitted_rows, objective=objective, prior="geometric", stop=1 / depth, prior_weight=0.01)
        signals[title] = gate_signals(rows, like, fit.weight, fit.bias)
    return signals


def measure_rules(signals: dict[str, ChainSignals], *, risk: float, confidence: float) -> dict:
    """
    The numbers of every rule on the third part of the rows, with thresholds calibrated on the second.

    Returns:
        `rules`, `fixed`, `oracle`, `first_correct`, `lasting_correct` and `solved` of `ModelResults`.
    """
    one = next(iter(signals.values()))
    parts = parts_of(one.groups)
    test = one.take(parts["test"])
    promise = Promise(risk, confidence)
    rules = {
        title: _rule(of.take(parts["calibration"]), of.take(parts["test"]), promise) for title, of in signals.items()
    }
    right = test.is_correct
    ever = right.any(axis=1)
    oracle = {
        "recurrences": float(np.where(ever, right.argmax(axis=1) + 1, 1).mean()),
        "accuracy": float(ever.mean()),
    }
    return {
        "rules": rules,
        "fixed": [float(value) for value in right.mean(axis=0)],
        "oracle": oracle,
        "first_correct": test.first_correct,
        "lasting_correct": test.lasting_correct,
        "solved": _solved(test),
        "num_rows": {name: len(rows) for name, rows in parts.items()},
    }


def repeat(
    signals: dict[str, ChainSignals], name: str, *, risk: float, confidence: float, times: int, seed: int
) -> dict:
    """Calibrates one rule on draws from all rows but those of the fit, beside thresholds without a promise."""
    parts = parts_of(signals[name].groups)
    rows = np.sort(np.concatenate((parts["calibration"], parts["test"])))
    population = {name: signals[name].take(rows)}
    depth = signals[name].values.shape[1]
    thresholds = {name: candidate_thresholds(signals[name].criterion, depth, NUM_REPEATED)}
    report = repeat_calibration(
        population,
        thresholds,
        Promise(risk, confidence),
        num_rows=len(parts["calibration"]),
        repetitions=times,
        seed=seed,
    )
    return {"criterion": name, **vars(report)}


def _rule(calibration: ChainSignals, test: ChainSignals, promise: Promise) -> dict:
    name, depth = calibration.criterion, calibration.values.shape[1]
    thresholds = candidate_thresholds(name, depth, NUM_CANDIDATES)

    def measure(criterion: str, threshold: float) -> Outcome:
        return calibration.outcome(threshold)

    chosen = calibrate(measure, {name: thresholds}, promise, num_rows=len(calibration)).chosen
    # For a file of a readable size: of thresholds that take about as many recurrences, the one of the best accuracy;
    # if several have it, the one that takes the fewest.
    points = {}
    for threshold in thresholds:
        point = _point(test, threshold)
        place = round(_POINTS_A_RECURRENCE * point["recurrences"])
        points[place] = max(points.get(place, point), point, key=lambda one: (one["accuracy"], -one["recurrences"]))
    found = None if chosen is None else _point(test, chosen.threshold)
    return {"points": list(points.values()), "calibrated": found}


def _point(signals: ChainSignals, threshold: float) -> dict:
    counts = signals.counts(threshold)
    right = signals.is_correct[np.arange(len(signals)), counts - 1]
    return {
        "threshold": float(threshold),
        "recurrences": float(counts.mean()),
        "accuracy": float(right.mean()),
        "loss": float(signals.outcome(threshold).losses.mean()),
    }


def _solved(signals: ChainSignals) -> float | None:
    """The mean recurrence at which the group of a row is first solved; None if a group never is."""
    groups, right = np.array(signals.groups), signals.is_correct
    found = np.zeros(len(groups))
    for group in set(signals.groups):
        solved = right[groups == group].mean(axis=0) >= SOLVED
        if not solved.any():
            return None
        found[groups == group] = solved.argmax() + 1
    return float(found.mean())
