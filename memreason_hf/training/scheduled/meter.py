"""What training has seen since the last log and since the last look at the gate."""

import time
from collections.abc import Callable

import torch


def answers_right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Which rows have their last label predicted.

    Args:
        logits: `(labels that are not -100, vocabulary)`, row by row, as the model returns them with
            `labelled_logits_only=True`.
        labels: `(batch, sequence)`, in place; every row has at least one.

    Returns:
        Bool tensor `(batch,)`.
    """
    labelled = labels.ne(-100)
    last_logit = labelled.sum(1).cumsum(0) - 1
    positions = torch.arange(labels.shape[1], device=labels.device)
    last_label = (labelled * positions).argmax(1, keepdim=True)
    return logits[last_logit].argmax(-1) == labels.gather(1, last_label).squeeze(1)


class TrainingMeter:
    """
    Sums over the steps since the last `take`. Nothing is fetched from the device before that.

    Args:
        device: where the model computes.
        reduce: sums a tensor over all ranks.
    """

    def __init__(self, device: torch.device, reduce: Callable[[torch.Tensor], torch.Tensor]):
        self._device, self._reduce = device, reduce
        self._started = 0.0
        self._clear()
        self.set_gate_counts(0, 0)

    def start_step(self, num_recurrences: int | None = None):
        """A step begins, before its batch is made; of a model without recurrences nothing is said of them."""
        self._started = time.perf_counter()
        self._recurrences += num_recurrences or 0

    def end_step(self, tokens: int):
        """It ends, before evaluation and saving; `tokens`: real ones, of all ranks."""
        self._seconds += time.perf_counter() - self._started
        self._steps += 1
        self._tokens += tokens

    def add_answers(self, right: torch.Tensor, of_stage: torch.Tensor | None):
        """`right` `(rows,)` of a micro-batch; `of_stage` `(rows,)`, bool, on the CPU: rows that count for the gate."""
        self._right += right.sum()
        self._rows += len(right)
        if of_stage is not None:
            self._gate_right += (right & of_stage.to(right.device, non_blocking=True)).sum()
            self._gate_rows += int(of_stage.sum())

    def take(self) -> dict[str, float]:
        """
        The means since the last call: accuracy of the answers, recurrences, tokens and steps a second. All ranks must
        call it.
        """
        right, rows = self._sum_ranks(self._right, self._rows)
        steps, seconds = max(self._steps, 1), max(self._seconds, 1e-9)
        logs = {"num_recurrences": self._recurrences / steps} if self._recurrences else {}
        if rows:
            logs["accuracy"] = right / rows
        logs["tokens_per_second"] = round(self._tokens / seconds, 1)
        logs["steps_per_second"] = round(self._steps / seconds, 3)
        self._clear()
        return logs

    def gate_counts(self) -> tuple[int, int]:
        """(right, rows) of the gate's group since they were cleared, over all ranks, which must all call it."""
        return self._sum_ranks(self._gate_right, self._gate_rows)

    def set_gate_counts(self, right: int, rows: int):
        self._gate_right = torch.full((), right, dtype=torch.int64, device=self._device)
        self._gate_rows = rows

    def _sum_ranks(self, right, rows):
        sums = self._reduce(torch.stack([right, torch.tensor(rows, device=self._device)]))
        return tuple(sums.tolist())

    def _clear(self):
        self._right = torch.zeros((), dtype=torch.int64, device=self._device)
        self._rows, self._steps, self._tokens, self._recurrences, self._seconds = 0, 0, 0, 0, 0.0
