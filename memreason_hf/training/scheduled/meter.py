"""What training has seen since the last log, and since the gate of a curriculum was last evaluated."""

import time
from collections.abc import Callable

import torch


def answers_right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Whether the last label of each row is predicted.

    Args:
        logits (`torch.Tensor` of shape `(labels that are not -100, vocabulary)`):
            Row by row, as the model returns them with `labelled_logits_only=True`.
        labels (`torch.LongTensor` of shape `(batch, sequence)`):
            The label of each position. Every row has at least one.

    Returns:
        `torch.BoolTensor` of shape `(batch,)`.
    """
    labelled = labels.ne(-100)
    last_logit = labelled.sum(1).cumsum(0) - 1
    positions = torch.arange(labels.shape[1], device=labels.device)
    last_label = (labelled * positions).argmax(1, keepdim=True)
    return logits[last_logit].argmax(-1) == labels.gather(1, last_label).squeeze(1)


class TrainingMeter:
    """
    Sums over the training steps since the last call of `take`. Nothing is copied from the device before that call.

    Args:
        device (`torch.device`): Where the model computes.
        reduce (`Callable`): Sums a tensor over all ranks.
    """

    def __init__(self, device: torch.device, reduce: Callable[[torch.Tensor], torch.Tensor]):
        self._device, self._reduce = device, reduce
        self._started = 0.0
        self._clear()
        self.set_gate_counts(0, 0)

    def start_step(self, num_recurrences: int | None = None):
        """
        Starts the time of a training step, before its batch is made.

        Args:
            num_recurrences (`int`, *optional*): The depth of the step, for a recurrent-depth model.
        """
        self._started = time.perf_counter()
        self._recurrences += num_recurrences or 0

    def add_terms(self, terms: dict[str, torch.Tensor]):
        """
        Adds the terms of the loss of a micro-batch.

        Args:
            terms (`dict[str, torch.Tensor]`): 0-d tensors, by name, the same names in every micro-batch and on every
                rank. Their sum over the micro-batches and ranks of a training step is the term of the step.
        """
        for name, term in terms.items():
            self._terms[name] = self._terms.get(name, 0) + term.detach().float()

    def end_step(self, tokens: int):
        """Stops the time, before evaluation and saving. `tokens` counts the unpadded tokens of all ranks."""
        self._seconds += time.perf_counter() - self._started
        self._steps += 1
        self._tokens += tokens

    def add_answers(self, right: torch.Tensor, of_stage: torch.Tensor | None):
        """
        Adds the answers of a micro-batch.

        Args:
            right (`torch.BoolTensor` of shape `(rows,)`): Which answers are right.
            of_stage (`torch.BoolTensor` of shape `(rows,)`, *optional*): On the CPU: which rows the gate counts.
        """
        self._right += right.sum()
        self._rows += len(right)
        if of_stage is not None:
            self._gate_right += (right & of_stage.to(right.device, non_blocking=True)).sum()
            self._gate_rows += int(of_stage.sum())

    def take(self) -> dict[str, float]:
        """
        The means since the last call: accuracy of the answers, recurrences, terms of the loss, tokens and steps per
        second.

        All ranks must call it.
        """
        right, rows = self._sum_ranks(self._right, self._rows)
        steps, seconds = max(self._steps, 1), max(self._seconds, 1e-9)
        logs = {"num_recurrences": self._recurrences / steps} if self._recurrences else {}
        if self._terms:
            sums = self._reduce(torch.stack(list(self._terms.values()))).tolist()
            logs |= {f"{name}_loss": value / steps for name, value in zip(self._terms, sums)}
        if rows:
            logs["accuracy"] = right / rows
        logs["tokens_per_second"] = round(self._tokens / seconds, 1)
        logs["steps_per_second"] = round(self._steps / seconds, 3)
        self._clear()
        return logs

    def gate_counts(self) -> tuple[int, int]:
        """The right answers and the rows of the gate since they were last set, over all ranks. All must call it."""
        return self._sum_ranks(self._gate_right, self._gate_rows)

    def set_gate_counts(self, right: int, rows: int):
        """Sets the right answers and the rows of the gate on this rank."""
        self._gate_right = torch.full((), right, dtype=torch.int64, device=self._device)
        self._gate_rows = rows

    def _sum_ranks(self, right, rows):
        sums = self._reduce(torch.stack([right, torch.tensor(rows, device=self._device)]))
        return tuple(sums.tolist())

    def _clear(self):
        self._terms: dict[str, torch.Tensor] = {}
        self._right = torch.zeros((), dtype=torch.int64, device=self._device)
        self._rows, self._steps, self._tokens, self._recurrences, self._seconds = 0, 0, 0, 0, 0.0
