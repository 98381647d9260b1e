"""Accuracy and logit margins after every recurrence, read in one pass."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset

from memreason_hf.checks import check_int
from memreason_hf.evaluation.chains.predictions import (
    answer_batches,
    check_evaluation,
    gather_parts,
    group_names,
    sorted_groups,
)
from memreason_hf.evaluation.mode import MOST_RECURRENCES, evaluation_mode


@dataclass(eq=False)
class DepthSweep:
    """
    The answers of a model after each of the recurrences 1..R, by group. Column t - 1 belongs to recurrence t.

    Attributes:
        groups: the G groups, in natural order.
        counts: rows of each group, shape (G,).
        accuracy: share of rows in which the correct answer ranks first, in 0..1, shape (G, R).
        margins: mean of the logit of the correct answer minus the largest other logit, shape (G, R)
            (arXiv 2604.07822, Figure 8).
        first_correct: mean first recurrence at which the correct answer ranks first, over the rows in which it ever
            does, shape (G,); NaN if there are none.
        ever_correct: share of the rows in which it ever does, shape (G,).
        seconds: wall time of the pass, on the slowest process.
    """

    groups: list
    counts: np.ndarray
    accuracy: np.ndarray
    margins: np.ndarray
    first_correct: np.ndarray
    ever_correct: np.ndarray
    seconds: float = field(default=0.0)

    @property
    def max_recurrences(self) -> int:
        """R, the last recurrence."""
        return self.accuracy.shape[1]

    @property
    def best_recurrence(self) -> np.ndarray:
        """The first recurrence of the highest accuracy of each group, counted from 1, shape (G,)."""
        return self.accuracy.argmax(axis=1) + 1

    @property
    def best_accuracy(self) -> np.ndarray:
        """The highest accuracy of each group at one common number of recurrences, shape (G,)."""
        return self.accuracy.max(axis=1)

    @property
    def overall_accuracy(self) -> np.ndarray:
        """Accuracy over all rows after each recurrence, shape (R,)."""
        return self.counts @ self.accuracy / self.counts.sum()

    @property
    def overall_margins(self) -> np.ndarray:
        """Mean margin over all rows after each recurrence, shape (R,)."""
        return self.counts @ self.margins / self.counts.sum()

    @property
    def overall_first_correct(self) -> float:
        """`first_correct` over all rows."""
        rows = self.counts * self.ever_correct
        return float(np.nansum(rows * self.first_correct) / rows.sum()) if rows.sum() else float("nan")


def sweep_depth(
    model: torch.nn.Module,
    dataset: Dataset,
    collator: Callable,
    *,
    max_recurrences: int,
    batch_size: int,
    progress: bool = False,
    group_column: str = "hops",
    distributed: bool = False,
) -> DepthSweep:
    """
    Reads the answer of every row after each of the recurrences 1..`max_recurrences`.

    The model runs once, at `max_recurrences`, and applies the output head at the answer position after every
    recurrence. That costs much less than `max_recurrences` runs.

    Args:
        model, dataset, collator, batch_size, progress, group_column: see `predict_answers`.
        max_recurrences: R, the last recurrence to read; it may exceed that of the config.
        distributed: whether the processes of `torch.distributed` share the batches; each returns the whole sweep.

    Raises:
        ValueError: `max_recurrences` is below 1, or logits are NaN after a recurrence; see `predict_answers` for
            others.

    Example:

    ```python
    sweep = sweep_depth(model, dataset, ChainCollator(tokenizer.pad_token_id), max_recurrences=40, batch_size=256)
    accuracy_figure(sweep, trained_hops=8).savefig("depth_sweep.png")
    ```
    """
    check_evaluation(model, dataset, collator, batch_size)
    check_int("max_recurrences", max_recurrences, least=1, most=MOST_RECURRENCES)
    started = time.perf_counter()
    row_groups = group_names(dataset, group_column)
    groups = sorted_groups(row_groups)
    position = {group: index for index, group in enumerate(groups)}
    group_of_row = np.array([position[group] for group in row_groups])

    # Sums over rows, by group: hits and margins after each recurrence, rows that were ever right, and when they first
    # were.
    hits = np.zeros((len(groups), max_recurrences))
    margins = np.zeros((len(groups), max_recurrences))
    ever = np.zeros(len(groups))
    first = np.zeros(len(groups))
    with evaluation_mode(model):
        for rows, inputs, references in answer_batches(
            model, dataset, collator, batch_size, progress=progress, title="sweep", distributed=distributed
        ):
            reader = _AnswerReader(references, max_recurrences)
            depth = {"num_recurrences": max_recurrences, "on_recurrence": reader}
            model(**inputs, logits_to_keep=1, use_cache=False, **depth)
            correct, margin = reader.correct.T.cpu().numpy(), reader.margins.T.cpu().numpy()
            if np.isnan(margin).any():
                first_broken = int(np.isnan(margin).any(axis=0).argmax()) + 1
                raise ValueError(
                    f"The logits of row {int(rows[np.isnan(margin).any(axis=1).argmax()])} are NaN after recurrence "
                    f"{first_broken}, so its answers mean nothing. Lower max_recurrences={max_recurrences}, check the "
                    "weights, or use float32."
                )
            batch_groups, ever_correct = group_of_row[rows], correct.any(axis=1)
            np.add.at(hits, batch_groups, correct)
            np.add.at(margins, batch_groups, margin)
            np.add.at(ever, batch_groups, ever_correct)
            np.add.at(first, batch_groups, np.where(ever_correct, correct.argmax(axis=1) + 1, 0))

    parts = gather_parts((hits, margins, ever, first, time.perf_counter() - started), distributed)
    hits, margins, ever, first = (sum(part[index] for part in parts) for index in range(4))
    counts = np.bincount(group_of_row, minlength=len(groups))
    return DepthSweep(
        groups=groups,
        counts=counts,
        accuracy=hits / counts[:, None],
        margins=margins / counts[:, None],
        first_correct=np.divide(first, ever, out=np.full(len(groups), np.nan), where=ever > 0),
        ever_correct=ever / counts,
        seconds=max(part[4] for part in parts),
    )


class _AnswerReader:
    """Called by the model after every recurrence; keeps hits and margins, of shape `(recurrences, batch)`."""

    def __init__(self, references, max_recurrences):
        self.references = references[:, None]
        shape = (max_recurrences, len(references))
        self.correct = torch.zeros(shape, dtype=torch.bool, device=references.device)
        self.margins = torch.zeros(shape, dtype=torch.float32, device=references.device)

    def __call__(self, recurrence, rows, logits):
        if rows is not None:
            raise RuntimeError("The model dropped rows, although the number of recurrences is fixed.")
        logits = logits[:, -1].float()
        target = logits.gather(1, self.references)
        best_other = logits.scatter(1, self.references, -torch.inf).amax(1, keepdim=True)
        # With argmax, as in predict_answers, a tie goes to the lower id.
        self.correct[recurrence - 1] = logits.argmax(1) == self.references[:, 0]
        self.margins[recurrence - 1] = (target - best_other)[:, 0]
