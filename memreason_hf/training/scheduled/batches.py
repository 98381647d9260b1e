"""The rows of every training step: a pure function of (seed, stage, step of the stage), the same on every rank."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from memreason_hf.checks import check_has


# The key of a `RowInfo` in a micro-batch.
# The numbers of a pool of this size take 1 GB.
MOST_POOLED_ROWS = 2**27
ROW_INFO = "row_info"
# Columns of integers that are no token ids.
_NOT_IDS = ("seq_lengths",)
# Independent streams of random numbers.
_PERMUTATION, _POOL = 0, 1


@dataclass(frozen=True)
class Position:
    """
    Where training is.

    Attributes:
        stage_index (`int`): The index of the curriculum's stage, from 0.
        limit (`int`, *optional*): Only rows of groups up to it are trained on. `None`: all rows.
        step (`int`): The training steps that the stage has taken.
    """

    stage_index: int
    limit: int | None
    step: int


@dataclass(frozen=True)
class RowInfo:
    """
    About the rows of a micro-batch.

    Attributes:
        groups (`np.ndarray` of shape `(rows,)`, *optional*): The groups of the rows.
        tokens_of_step (`int`): The unpadded tokens of the whole global batch.
    """

    groups: np.ndarray | None
    tokens_of_step: int


class TokenRows:
    """
    The rows of a dataset in memory. Columns of integer lists are flat arrays, so no row has to be decoded.

    Args:
        dataset (`datasets.Dataset`): Needs `input_ids`. Its other columns of integer lists are kept, too.
        group_column (`str`, *optional*, defaults to `"hops"`):
            A column of integers, kept as `groups`. If there is no such column, `groups` is `None`.

    Raises:
        ValueError: no rows, or no column `input_ids` of integer lists.
    """

    def __init__(self, dataset, group_column: str | None = "hops"):
        check_has("train_dataset", dataset, "with_format", "rows as a datasets.Dataset")
        if len(dataset) == 0:
            raise ValueError("The training dataset is empty.")
        table = dataset.with_format("arrow")[:]
        self._columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in table.column_names:
            kind = table.schema.field(name).type
            if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type):
                lists = pa.concat_arrays(table.column(name).chunks)
                offsets = np.concatenate(([0], np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))))
                self._columns[name] = (lists.flatten().to_numpy(zero_copy_only=False), offsets.astype(np.int64))
        if "input_ids" not in self._columns:
            raise ValueError(f"The training data need a column input_ids of token ids. Columns: {table.column_names}.")
        self.lengths = np.diff(self._columns["input_ids"][1])
        self.groups = None
        if group_column in table.column_names and pa.types.is_integer(table.schema.field(group_column).type):
            self.groups = table.column(group_column).to_numpy()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {name: flat[offsets[row] : offsets[row + 1]] for name, (flat, offsets) in self._columns.items()}

    @property
    def largest_id(self) -> int:
        """The largest token id among inputs and labels."""
        return max(int(flat.max()) for name, (flat, _) in self._columns.items() if name not in _NOT_IDS)

    def fingerprint(self) -> str:
        """A hash of the rows in their order. It does not depend on where they are stored."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self._columns):
            for array in (np.frombuffer(name.encode(), dtype=np.uint8), *self._columns[name]):
                digest.update(np.ascontiguousarray(array).astype(np.int64).data)
        if self.groups is not None:
            digest.update(np.ascontiguousarray(self.groups).astype(np.int64).data)
        return digest.hexdigest()


class BatchSchedule:
    """
    The rows of every global batch.

    A stage reads an endless stream: one permutation of its rows after the other, so that no row comes twice before all
    have come once. `length_pool * batch_size` rows of the stream form a pool, which is sorted by length and cut into
    batches, and the batches are shuffled. Permutations and shuffles follow from (seed, stage, index), so any step can
    be computed directly.

    Args:
        lengths (`np.ndarray` of shape `(rows,)`): The number of tokens of every row.
        groups (`np.ndarray` of shape `(rows,)`, *optional*): The group of every row, for a curriculum.
        batch_size (`int`): The rows of a global batch, over all ranks and accumulated micro-batches.
        length_pool (`int`): The batches of a pool. With 1 a batch has rows of mixed length.
        seed (`int`): Any integer.

    Raises:
        ValueError: a pool of more than 2**27 rows.

    Example:

    ```python
    >>> import numpy as np
    >>> schedule = BatchSchedule(np.array([3, 3, 4, 5]), None, batch_size=2, length_pool=2, seed=0)
    >>> sorted(np.concatenate([schedule.rows(Position(0, None, step)) for step in range(2)]).tolist())
    [0, 1, 2, 3]
    ```
    """

    def __init__(self, lengths: np.ndarray, groups: np.ndarray | None, batch_size: int, length_pool: int, seed: int):
        if length_pool * batch_size > MOST_POOLED_ROWS:
            raise ValueError(
                f"length_pool={length_pool} must be at most {MOST_POOLED_ROWS // batch_size:,} with a global batch of "
                f"{batch_size:,} rows: a pool is sorted in memory, at most {MOST_POOLED_ROWS:,} rows of it."
            )
        self.lengths, self.groups = lengths, groups
        self.batch_size, self.length_pool, self.seed = batch_size, length_pool, seed
        # Each of these is computed again when training moves on.
        self._stage = (None, None)
        self._permutations: dict[tuple, np.ndarray] = {}
        self._pool = (None, None)

    def rows(self, position: Position) -> np.ndarray:
        """The row indices of the global batch at `position`, of shape `(batch_size,)`, the shortest row first."""
        number, place = divmod(position.step, self.length_pool)
        key = (position.stage_index, position.limit, number)
        if self._pool[0] != key:
            self._pool = (key, self._make_pool(position, number))
        return self._pool[1][place]

    def tokens_of_pools(self, count: int) -> int:
        """The tokens of the first `count` pools of a run without stages, computed without making them."""
        passes, rest = divmod(count * self.length_pool * self.batch_size, len(self.lengths))
        part = self._permutation(Position(0, None, 0), passes, len(self.lengths))[:rest]
        return passes * int(self.lengths.sum()) + int(self.lengths[part].sum())

    def _make_pool(self, position, number):
        candidates = self._stage_rows(position.limit)
        size = self.length_pool * self.batch_size
        parts = []
        first, end = number * size, (number + 1) * size
        while first < end:
            epoch, offset = divmod(first, len(candidates))
            part = self._permutation(position, epoch, len(candidates))[offset : offset + end - first]
            parts.append(candidates[part])
            first += len(part)
        rows = np.concatenate(parts)
        rows = rows[np.argsort(self.lengths[rows], kind="stable")].reshape(self.length_pool, self.batch_size)
        return rows[self._generator(_POOL, position.stage_index, number).permutation(self.length_pool)]

    def _permutation(self, position, epoch, size):
        key = (position.stage_index, position.limit, epoch)
        if key not in self._permutations:
            if len(self._permutations) > 1:
                self._permutations.clear()
            self._permutations[key] = self._generator(_PERMUTATION, position.stage_index, epoch).permutation(size)
        return self._permutations[key]

    def _stage_rows(self, limit):
        if self._stage[0] != (limit,):
            rows = np.arange(len(self.lengths))
            rows = rows if limit is None else rows[self.groups <= limit]
            if len(rows) == 0:
                raise ValueError(f"The stage has nothing to train on: no training row is in a group up to {limit}.")
            self._stage = ((limit,), rows)
        return self._stage[1]

    def _generator(self, *key):
        return np.random.default_rng([self.seed % 2**63, *key])


class TrainBatches:
    """
    The micro-batches of one rank, each computed when it is needed. Nothing is fetched ahead, so a batch follows from
    where training is at that moment, also after a change of stage or a resume.

    Each rank takes its slice of the global batch. Micro-batch m of rank r is slice `m * world_size + r`, so that the
    micro-batches that the ranks compute at the same time have similar lengths.

    Args:
        rows (`TokenRows`): The data.
        schedule (`BatchSchedule`): The order of the data.
        collator (`Callable`): Turns a list of rows into a batch, a dict of tensors.
        position (`Callable`): Returns the current `Position` of training.
        per_device_batch_size (`int`): The rows of a micro-batch.
        gradient_accumulation_steps (`int`, *optional*, defaults to 1): The micro-batches of a rank in a training step.
        rank (`int`, *optional*, defaults to 0): The index of the process.
        world_size (`int`, *optional*, defaults to 1): The number of processes.
    """

    def __init__(
        self,
        rows: TokenRows,
        schedule: BatchSchedule,
        collator: Callable,
        position: Callable[[], Position],
        *,
        per_device_batch_size: int,
        gradient_accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.rows, self.schedule, self.collator, self.position = rows, schedule, collator, position
        self.per_device_batch_size = per_device_batch_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[dict]:
        while True:
            position = self.position()
            for micro_batch in range(self.gradient_accumulation_steps):
                yield self.micro_batch(position, micro_batch)

    def micro_batch(self, position: Position, micro_batch: int) -> dict:
        """A micro-batch of this rank: the collator's batch, with a `RowInfo` under the key `ROW_INFO`."""
        chosen = self.schedule.rows(position)
        first = (micro_batch * self.world_size + self.rank) * self.per_device_batch_size
        own = chosen[first : first + self.per_device_batch_size]
        batch = dict(self.collator([self.rows[row] for row in own]))
        groups = None if self.rows.groups is None else self.rows.groups[own]
        batch[ROW_INFO] = RowInfo(groups, int(self.rows.lengths[chosen].sum()))
        return batch
