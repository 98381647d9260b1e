"""
What halting does to chains at every threshold, read in one pass.

    signals = read_signals(model, dataset, collator, criteria=["kl"], max_recurrences=64, batch_size=256)
    signals["kl"].counts(threshold=0.01)                  # the recurrences that each row would take

A row that halts as a whole has the same state after each recurrence, whatever its threshold is. So one run at full
depth tells what every threshold does. The values are those that the model's own halting rule compares.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch
from datasets import Dataset

from memreason_hf.checks import check_choice, check_int
from memreason_hf.evaluation.chains.predictions import answer_batches, check_evaluation, group_names
from memreason_hf.evaluation.mode import MOST_RECURRENCES, evaluation_mode
from memreason_hf.halting.calibration import Outcome
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA, HaltingCriterion


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

    @property
    def lasting_correct(self) -> float:
        """
        The mean recurrence from which on the answer stays right up to R, over the rows that are right at R; NaN
        without such rows. Unlike `first_correct`, it does not count answers that are right by luck on the way.
        """
        right = self.is_correct[self.is_correct[:, -1]]
        return (
            float((right.shape[1] - right[:, ::-1].cumprod(axis=1).sum(axis=1) + 1).mean()) if len(right) else np.nan
        )

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
    criteria: Sequence[str],
    max_recurrences: int,
    batch_size: int,
    progress: bool = False,
    group_column: str = "hops",
) -> dict[str, ChainSignals]:
    """
    Runs a model at full depth and records criteria and the answers after every recurrence.

    There is one pass for all criteria that read the same, so at most three. Parameters other than the thresholds that
    are calibrated, such as `entropy_threshold` of `"kl_entropy"`, are those of the model's config.

    Args:
        model, dataset, collator, batch_size, progress, group_column: see `predict_answers`.
        criteria: the names of halting criteria.
        max_recurrences: R, the last recurrence.

    Returns:
        The signals of each criterion, in the order of `criteria`.

    Raises:
        ValueError: logits are NaN, the model cannot evaluate a criterion, or as for `predict_answers`.
    """
    check_evaluation(model, dataset, collator, batch_size)
    check_int("max_recurrences", max_recurrences, least=1, most=MOST_RECURRENCES)
    by_signal: dict[str, list[str]] = {}
    for criterion in criteria:
        check_choice("halting_criterion", criterion, HALTING_CRITERIA)
        if criterion == "exit_gate" and not model.config.exit_gate:
            raise ValueError(
                "halting_criterion='exit_gate' reads a learned gate, which this model does not have (exit_gate=False "
                "in its config). Choose another criterion."
            )
        by_signal.setdefault(HALTING_CRITERIA[criterion].reads, []).append(criterion)
    groups = group_names(dataset, group_column)
    found = {}
    for names in by_signal.values():
        batches = answer_batches(
            model, dataset, collator, batch_size, progress=progress, title="signals", distributed=False
        )
        values, predictions, references = _read(model, batches, len(dataset), names, max_recurrences)
        if (predictions < 0).any():
            row, column = np.argwhere(predictions < 0)[0]
            raise ValueError(
                f"The logits of row {row} are NaN after recurrence {column + 1}, so its answers mean nothing. Lower "
                f"max_recurrences={max_recurrences}, check the weights, or use float32."
            )
        found |= {name: ChainSignals(name, values[name], predictions, references, groups) for name in names}
    return {name: found[name] for name in criteria}


def _read(model, batches, num_rows, names, max_recurrences):
    """What the criteria measure, the answers (-1 where logits are NaN), and the right ones."""
    values = {name: np.full((num_rows, max_recurrences), np.nan, dtype=np.float32) for name in names}
    predictions = np.zeros((num_rows, max_recurrences), dtype=np.int64)
    all_references = np.zeros(num_rows, dtype=np.int64)
    with evaluation_mode(model), _recording(names, model.config) as (recorder, recorded):
        depth = {"max_recurrences": max_recurrences, "min_recurrences": 1, "halting_granularity": "sequence"}
        depth["halting_criterion"] = recorder
        for rows, inputs, references in batches:
            answers = []

            def read(recurrence, kept, logits, answers=answers):
                best, token = logits[:, -1].max(-1)
                # Of values with a NaN it is the largest.
                answers.append(torch.where(best.isnan(), -1, token))

            recorded.clear()
            model(**inputs, logits_to_keep=1, use_cache=False, on_recurrence=read, **depth)
            predictions[rows] = torch.stack(answers, dim=1).cpu().numpy()
            all_references[rows] = references.cpu().numpy()
            for column, measured in enumerate(recorded):
                for name, value in measured.items():
                    values[name][rows, column] = value.float().cpu().numpy()
    return values, predictions, all_references


@contextmanager
def _recording(names: Sequence[str], config) -> Iterator[tuple[str, list[dict]]]:
    """
    Adds a criterion that measures like all of `names`, records what they measure, and never halts.

    So a pass records what the model's own rule would compare, in its precision and at its places.

    Yields:
        The name of the criterion, and the list to which each recurrence adds `{name: values}`.
    """
    recorded: list[dict] = []
    criteria = [
        HALTING_CRITERIA[name](**{field.name: getattr(config, field.name) for field in fields(HALTING_CRITERIA[name])})
        for name in names
    ]
    memories: dict[str, dict] = {}

    class Recorder(HaltingCriterion):
        name = f"recorder_{id(recorded)}"
        reads = criteria[0].reads
        compares = any(criterion.compares for criterion in criteria)

        def __call__(self, signal, previous, memory):
            if previous is None:
                memories.clear()
            measured = {}
            for criterion in criteria:
                value = criterion.measure(signal, previous, memories.setdefault(criterion.name, {}))
                if value is not None:
                    measured[criterion.name] = value
            recorded.append(measured)

    # A dataclass without parameters, as the rule expects.
    HALTING_CRITERIA[Recorder.name] = dataclass(Recorder)
    try:
        yield Recorder.name, recorded
    finally:
        del HALTING_CRITERIA[Recorder.name]


__all__ = ["LOSSES", "ChainSignals", "read_signals"]
