"""
What halting does to chains at every threshold, read in one pass.

    signals = read_signals(model, dataset, collator, criterion="kl", max_recurrences=64, batch_size=256)
    signals.counts(threshold=0.01)                  # the recurrences that each row would take

A row that halts as a whole has the same state after each recurrence, whatever its threshold is. So one run at full
depth tells what every threshold does. The values are those that the model's own halting rule compares.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from memreason_hf.checks import check_choice, check_int
from memreason_hf.evaluation.chains.predictions import answer_batches, check_evaluation, group_names
from memreason_hf.evaluation.mode import MOST_RECURRENCES, evaluation_mode
from memreason_hf.halting.calibration import Outcome
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


LOSSES = ("accuracy", "agreement")


@dataclass(frozen=True)
class ChainSignals:
    """
    A criterion and the answers of a model, after each of the recurrences 1..R. Column t - 1 belongs to recurrence t.

    Attributes:
        criterion: its name.
        values: what the criterion compares with its threshold, shape (rows, R), float32; NaN where there is none yet.
        predictions: the answers, shape (rows, R).
        references: the right answers, shape (rows,).
        groups: the group of each row.
    """

    criterion: str
    values: np.ndarray
    predictions: np.ndarray
    references: np.ndarray
    groups: list

    def __len__(self) -> int:
        return len(self.references)

    def cut(self, max_recurrences: int) -> "ChainSignals":
        """The same after the recurrences 1..`max_recurrences` only."""
        check_int("max_recurrences", max_recurrences, least=1, most=self.values.shape[1])
        values, predictions = self.values[:, :max_recurrences], self.predictions[:, :max_recurrences]
        return ChainSignals(self.criterion, values, predictions, self.references, self.groups)

    def take(self, rows: np.ndarray) -> "ChainSignals":
        """The same of some rows (indices)."""
        groups = [self.groups[row] for row in rows]
        return ChainSignals(self.criterion, self.values[rows], self.predictions[rows], self.references[rows], groups)

    @property
    def is_correct(self) -> np.ndarray:
        """Whether the answer is right, shape (rows, R)."""
        return self.predictions == self.references[:, None]

    @property
    def first_correct(self) -> float:
        """The mean first recurrence of a right answer, over the rows that ever have one; NaN without such rows."""
        right = self.is_correct
        ever = right.any(axis=1)
        return float((right[ever].argmax(axis=1) + 1).mean()) if ever.any() else float("nan")

    def counts(self, threshold: float, min_recurrences: int = 1) -> np.ndarray:
        """
        The recurrences of each row with this threshold, shape (rows,): the first from `min_recurrences` on at which
        the criterion holds, at most R.
        """
        below = HALTING_CRITERIA[self.criterion].halts_below
        limit = np.float32(threshold)
        holds = self.values < limit if below else self.values >= limit
        holds[:, : min_recurrences - 1] = False
        holds[:, -1] = True
        return holds.argmax(axis=1) + 1

    def outcome(self, threshold: float, *, loss: str = "accuracy", min_recurrences: int = 1) -> Outcome:
        """
        What is lost against the answer after recurrence R.

        Args:
            loss: `"accuracy"`: 1 where that answer is right and the halted one is wrong. The mean is at least the
                difference of the accuracies. `"agreement"`: 1 where the answers differ.
        """
        check_choice("loss", loss, LOSSES)
        counts = self.counts(threshold, min_recurrences)
        rows = np.arange(len(self))
        if loss == "agreement":
            lost = self.predictions[rows, counts - 1] != self.predictions[:, -1]
        else:
            right = self.is_correct
            lost = right[:, -1] & ~right[rows, counts - 1]
        return Outcome(lost.astype(np.float64), counts.astype(np.float64))


def read_signals(
    model: torch.nn.Module,
    dataset: Dataset,
    collator: Callable,
    *,
    criterion: str,
    max_recurrences: int,
    batch_size: int,
    progress: bool = False,
    group_column: str = "hops",
    **parameters: float,
) -> ChainSignals:
    """
    Runs a model once at full depth and records a criterion and the answers after every recurrence.

    Args:
        model, dataset, collator, batch_size, progress, group_column: see `predict_answers`.
        criterion: the name of a halting criterion.
        max_recurrences: R, the last recurrence.
        parameters: of the criterion, apart from the threshold that is calibrated: `entropy_threshold` of
            `"kl_entropy"`. Default: those of the config.

    Raises:
        ValueError: logits are NaN, the model cannot evaluate the criterion, or as for `predict_answers`.
    """
    check_evaluation(model, dataset, collator, batch_size)
    check_choice("halting_criterion", criterion, HALTING_CRITERIA)
    check_int("max_recurrences", max_recurrences, least=1, most=MOST_RECURRENCES)
    if criterion == "exit_gate" and not model.config.exit_gate:
        raise ValueError(
            "halting_criterion='exit_gate' reads a learned gate, which this model does not have (exit_gate=False in "
            "its config). Choose another criterion."
        )
    groups = group_names(dataset, group_column)
    values = np.full((len(dataset), max_recurrences), np.nan, dtype=np.float32)
    predictions = np.zeros((len(dataset), max_recurrences), dtype=np.int64)
    all_references = np.zeros(len(dataset), dtype=np.int64)
    batches = answer_batches(
        model, dataset, collator, batch_size, progress=progress, title=criterion, distributed=False
    )
    with evaluation_mode(model), _recording(criterion) as (name, recorded):
        for rows, inputs, references in batches:
            recorded.clear()
            answers = []

            def read(recurrence, kept, logits, answers=answers):
                best, token = logits[:, -1].max(-1)
                # Of values with a NaN it is the largest.
                answers.append(torch.where(best.isnan(), -1, token))

            depth = {"max_recurrences": max_recurrences, "min_recurrences": 1, "halting_granularity": "sequence"}
            depth |= {"halting_criterion": name, **parameters}
            model(**inputs, logits_to_keep=1, use_cache=False, on_recurrence=read, **depth)
            predictions[rows] = torch.stack(answers, dim=1).cpu().numpy()
            all_references[rows] = references.cpu().numpy()
            for column, value in enumerate(recorded):
                if value is not None:
                    values[rows, column] = value.float().cpu().numpy()
    if (predictions < 0).any():
        row, column = np.argwhere(predictions < 0)[0]
        raise ValueError(
            f"The logits of row {row} are NaN after recurrence {column + 1}, so its answers mean nothing. Lower "
            f"max_recurrences={max_recurrences}, check the weights, or use float32."
        )
    return ChainSignals(criterion, values, predictions, all_references, groups)


@contextmanager
def _recording(criterion: str) -> Iterator[tuple[str, list]]:
    """
    Adds a criterion that measures like `criterion`, records what it measures, and never halts.

    So a pass records what the model's own rule would compare, in its precision and at its places.
    """
    recorded = []

    class Recorder(HALTING_CRITERIA[criterion]):
        name = f"recorded_{criterion}_{id(recorded)}"

        def __call__(self, signal, previous, memory):
            recorded.append(self.measure(signal, previous, memory))

    HALTING_CRITERIA[Recorder.name] = Recorder
    try:
        yield Recorder.name, recorded
    finally:
        del HALTING_CRITERIA[Recorder.name]


__all__ = ["LOSSES", "ChainSignals", "read_signals"]
