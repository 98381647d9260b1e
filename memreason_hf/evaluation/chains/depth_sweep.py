"""Accuracy and logit margins after every recurrence, read in one pass."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset

from memreason_hf.evaluation.chains.predictions import answer_batches, gather_parts, group_names, sorted_groups
from memreason_hf.evaluation.mode import evaluation_mode


@dataclass(eq=False)
class DepthSweep:
    """
    What a model answers after each of the recurrences 1..R, by group. Column t - 1 belongs to recurrence t.

    Attributes:
        groups: the G groups, in natural order.
        counts: rows of each group, shape (G,).
        accuracy: share of rows whose correct answer ranks first, in 0..1, shape (G, R).
        margins: mean of the logit of the correct answer minus the largest other logit, shape (G, R)
            (arXiv 2604.07822, Figure 8).
        first_correct: mean over rows of the first recurrence at which the correct answer ranks first, shape (G,);
            rows where it never does are left out, NaN where there is no other.
        ever_correct: share of the rows that `first_correct` speaks of, shape (G,).
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
        """R, the last recurrence that was read."""
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

    One run at `max_recurrences` with a look at the answer position after every recurrence: the price is the output
    head at one position a recurrence, not `max_recurrences` runs.

    Args:
        model: a `RecurrentDepthForCausalLM`, on any device; its training mode is put back afterwards.
        dataset: encoded chains (`input_ids`, `label_ids`, the group column).
        collator: makes a left-padded batch of a list of rows, as for `predict_answers`.
        max_recurrences: R, the last recurrence to read; may exceed the config's.
        batch_size: rows a forward call.
        progress: show a progress bar.
        group_column: the column that names the group of a row.
        distributed: share the batches among the processes of `torch.distributed`; each returns the whole sweep.

    Raises:
        ValueError: `max_recurrences` below 1, and what `predict_answers` refuses.
    """
    if max_recurrences < 1:
        raise ValueError(f"max_recurrences={max_recurrences} must be at least 1.")
    started = time.perf_counter()
    row_groups = group_names(dataset, group_column)
    groups = sorted_groups(row_groups)
    position = {group: index for index, group in enumerate(groups)}
    group_of_row = np.array([position[group] for group in row_groups])

    # Sums over rows, by group: counts, hits and margins a recurrence, then rows that were ever right and when first.
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
    """Called by the model after every recurrence; keeps what the sweep needs, of shape `(recurrences, batch)`."""

    def __init__(self, references, max_recurrences):
        self.references = references[:, None]
        shape = (max_recurrences, len(references))
        self.correct = torch.zeros(shape, dtype=torch.bool, device=references.device)
        self.margins = torch.zeros(shape, dtype=torch.float32, device=references.device)

    def __call__(self, recurrence, rows, logits):
        if rows is not None:
            raise RuntimeError("A fixed number of recurrences keeps every row, but the model has dropped some.")
        logits = logits[:, -1].float()
        target = logits.gather(1, self.references)
        best_other = logits.scatter(1, self.references, -torch.inf).amax(1, keepdim=True)
        # By argmax, as predict_answers decides: a tie goes to the lower id and not always to the target.
        self.correct[recurrence - 1] = logits.argmax(1) == self.references[:, 0]
        self.margins[recurrence - 1] = (target - best_other)[:, 0]
