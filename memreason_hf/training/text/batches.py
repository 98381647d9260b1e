"""The rows of a training step on text: from memory, or from a stream."""

from collections.abc import Callable, Iterator

import numpy as np

from memreason_hf.data.text.stream import TextStream
from memreason_hf.training.runs.errors import TrainingError
from memreason_hf.training.runs.trainer import ResumableCallback
from memreason_hf.training.scheduled.batches import ROW_INFO, BatchSchedule, Position, RowInfo, TokenRows


class TextRows(TokenRows):
    """Packed rows in memory."""

    @property
    def largest_id(self) -> int:
        """The largest token id among inputs and labels."""
        return max(int(self._columns[name][0].max()) for name in ("input_ids", "next_ids"))


class StreamReadError(TrainingError):
    """A stream cannot be read on, or holds a document that is too long."""


class StreamBatches:
    """
    The micro-batches of one rank from a stream. Nothing is collated ahead, so the place of the stream is that of the
    training step.

    Args:
        stream (`TextStream`): The rows of this rank.
        collator (`Callable`): Turns a list of rows into a batch.
        per_device_batch_size (`int`): The rows of a micro-batch.
        gradient_accumulation_steps (`int`): The micro-batches of a rank in a training step.

    Raises:
        ValueError: the rows of a training step cannot be shared out equally.
    """

    def __init__(
        self, stream: TextStream, collator: Callable, *, per_device_batch_size: int, gradient_accumulation_steps: int
    ):
        self.stream, self.collator = stream, collator
        self.per_device_batch_size, self.micro_batches = per_device_batch_size, gradient_accumulation_steps
        rows, shares = per_device_batch_size * gradient_accumulation_steps, len(stream.shares)
        if rows % shares:
            raise ValueError(
                f"data.num_streams={stream.num_streams} gives each process {shares} shares, but the {rows} rows of "
                "its training step (per_device_train_batch_size * gradient_accumulation_steps) are not a multiple of "
                "that."
            )
        self.rows_per_share = rows // shares

    def __iter__(self) -> Iterator[dict]:
        while True:
            try:
                rows = self.stream.take(self.rows_per_share)
            except ValueError as error:
                raise StreamReadError(str(error)) from error
            tokens = sum(len(row["input_ids"]) for row in rows)
            for first in range(0, len(rows), self.per_device_batch_size):
                batch = self.collator(rows[first : first + self.per_device_batch_size])
                yield batch | {ROW_INFO: RowInfo(None, tokens)}


class StreamState(ResumableCallback):
    """
    Saves the places of all ranks in a stream with every checkpoint.

    Attributes:
        places (`dict`): The places in all shares, as `TextStream.state` returns them.
    """

    def __init__(self):
        self.places: dict[str, dict] = {}

    def progress(self) -> dict:
        return self.places

    def restore(self, progress: dict):
        self.places = progress


def steps_for_tokens(schedule: BatchSchedule, lengths: np.ndarray, max_tokens: int) -> int:
    """The number of training steps after which rows in memory have given at least `max_tokens` tokens."""
    # Whole pools of the passes before the last one need no batches.
    passes = (max_tokens - 1) // int(lengths.sum())
    pools = passes * len(lengths) // (schedule.length_pool * schedule.batch_size)
    steps, seen = pools * schedule.length_pool, schedule.tokens_of_pools(pools)
    while seen < max_tokens:
        seen += int(lengths[schedule.rows(Position(0, None, steps))].sum())
        steps += 1
    return steps
