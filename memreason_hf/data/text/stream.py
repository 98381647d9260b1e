"""
Rows of a stream that can go on exactly where it was stopped.

A stream is read in shares, side by side, each by the rank that it belongs to. A share is read in blocks of
`shuffle_buffer` documents. The documents of a block are packed and its rows shuffled, both as a function of the texts
and (seed, share, block). So the place in a share is where its block began in the source, which `datasets` can return
to (`IterableDataset.state_dict`), and how many rows of the block were taken. No buffer has to be saved.
"""

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from memreason_hf.data.text.packing import TextCounts, pack_documents
from memreason_hf.data.text.sources import TEXT, reading_error


class StreamError(ValueError):
    """A stream that cannot be read on, or that is empty."""


@dataclass
class _Block:
    """The rows of a block, where it began, and the counts up to its beginning and of itself."""

    start: dict
    rows: list[dict]
    counts: TextCounts


class StreamShare:
    """
    One share of a stream: endless, one pass over its documents after the other.

    While the rows of a block are taken, a thread reads, tokenises and packs the next one.

    Args:
        texts (`datasets.IterableDataset`): The documents of the share, with a column `text`.
        encode (`Callable`): Turns a list of texts into documents of token ids.
        index (`int`): The index of the share.
        stride (`int`): Of `texts`, the share has every `stride`-th document only, from number `index` on.
        sequence_length, too_long, shuffle_buffer, seed: See `TextStream`.
    """

    def __init__(
        self,
        texts: IterableDataset,
        encode: Callable[[list], list],
        *,
        index: int,
        stride: int,
        sequence_length: int,
        too_long: str,
        shuffle_buffer: int,
        seed: int,
    ):
        # Data sets made from one another read through the same objects, which hold the place of the reader. (A deep
        # copy would not do: it includes the caches of the connection to the Hub.)
        self._texts, self._encode, self._index = pickle.loads(pickle.dumps(texts)), encode, index
        self._stride, self._sequence_length, self._too_long = stride, sequence_length, too_long
        self._shuffle_buffer, self._seed = shuffle_buffer, seed
        self._thread: ThreadPoolExecutor | None = None
        self.load({"epoch": 0, "source": None, "block": 0, "taken": 0, "counts": asdict(TextCounts())})

    def load(self, state: dict):
        """Goes to a place that `state` returned."""
        self.close()
        self._place = copy.deepcopy(state)
        self.counts = TextCounts(**state["counts"])
        self._block: _Block | None = None
        self._next: Future | None = None

    def state(self) -> dict:
        """The place in the share, JSON-like. A share that loads it gives the same rows from here on."""
        return copy.deepcopy(self._place)

    @property
    def epoch(self) -> int:
        """The finished passes over the documents of the share."""
        return self._place["epoch"]

    def take(self) -> dict[str, np.ndarray]:
        """
        The next row.

        Raises:
            StreamError: the source cannot be read, or holds no document of two tokens.
            DocumentTooLongError: see `pack_documents`.
        """
        if self._block is None:
            self._open(self._place["taken"])
        if self._place["taken"] == len(self._block.rows):
            # The counts are those of whole blocks, so that they are the same after a resume.
            self.counts.add(self._block.counts)
            self._open(0)
        row = self._block.rows[self._place["taken"]]
        self._place["taken"] += 1
        return row

    def close(self):
        """Stops reading ahead."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None

    def _open(self, taken):
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"stream-{self._index}")
            self._blocks = self._read_blocks(self._place)
            self._next = self._thread.submit(next, self._blocks)
        self._block = self._next.result()
        self._next = self._thread.submit(next, self._blocks)
        self._place = {**self._block.start, "taken": taken, "counts": asdict(self.counts)}

    def _read_blocks(self, place) -> Iterator[_Block]:
        epoch, source, number = place["epoch"], copy.deepcopy(place["source"]), place["block"]
        while True:
            # A data set that has loaded a state begins there every time, so each pass takes a new one.
            texts = self._texts.select_columns([TEXT])
            if source is not None:
                texts.load_state_dict(source)
            documents, is_empty = iter(texts), source is None
            while True:
                start = {"epoch": epoch, "source": source, "block": number}
                batch = _read(documents, self._shuffle_buffer * self._stride)
                source = copy.deepcopy(texts.state_dict())
                if not batch:
                    break
                block = self._pack(start, batch)
                number += 1
                if block.rows:
                    is_empty = False
                    yield block
            if is_empty:
                raise StreamError(
                    f"Share {self._index} of the stream holds no document with two tokens. Use more documents, or a "
                    "smaller data.num_streams."
                )
            epoch, source = epoch + 1, None

    def _pack(self, start, batch):
        own = batch if self._stride == 1 else batch[self._index :: self._stride]
        rows, counts = pack_documents(self._encode(own), self._sequence_length, self._too_long)
        order = np.random.default_rng([self._seed % 2**63, self._index, start["block"]]).permutation(len(rows))
        return _Block(start, [rows[place] for place in order], counts)


class TextStream:
    """
    The rows of a stream that one rank trains on.

    Share s of `num_streams` belongs to rank `s % world_size`. A global batch has equally many rows of every share, so
    it does not depend on the number of ranks.

    Args:
        texts (`datasets.IterableDataset`): All documents, with a column `text`. `datasets` gives each share some of
            its shards where their number allows it, and every n-th document otherwise.
        encode (`Callable`): Turns a list of texts into documents of token ids.
        source (`dict`): Describes the documents and the tokenizer, for the fingerprint of a run. JSON-like.
        sequence_length (`int`): The most tokens of a row.
        too_long (`str`, *optional*, defaults to `"split"`): See `pack_documents`.
        shuffle_buffer (`int`, *optional*, defaults to 1000): The documents of a block.
        seed (`int`, *optional*, defaults to 0): Shuffles the rows of a block.
        num_streams (`int`, *optional*): The number of shares. Default: `world_size`.
        by_document (`bool`, *optional*, defaults to `False`):
            Whether every share reads all documents and keeps every n-th. This is needed after `texts.skip(n)`:
            `datasets` would skip documents in every share's own shards, not the first n of all.
        rank, world_size (`int`, *optional*, default to 0 and 1): The index and the number of processes.

    Raises:
        ValueError: `num_streams` is not a multiple of `world_size`.
    """

    def __init__(
        self,
        texts: IterableDataset,
        encode: Callable[[list], list],
        *,
        source: dict,
        sequence_length: int,
        too_long: str = "split",
        shuffle_buffer: int = 1000,
        seed: int = 0,
        num_streams: int | None = None,
        by_document: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.num_streams = num_streams or world_size
        if self.num_streams % world_size:
            raise ValueError(
                f"data.num_streams={self.num_streams} must be a multiple of the {world_size} processes, each of which "
                "reads equally many shares."
            )
        self.sequence_length, self.too_long, self._source = sequence_length, too_long, source
        self._settings = {"shuffle_buffer": shuffle_buffer, "seed": seed}
        self.shares = {
            index: StreamShare(
                texts if by_document else split_dataset_by_node(texts, index, self.num_streams),
                encode,
                index=index,
                stride=self.num_streams if by_document else 1,
                sequence_length=sequence_length,
                too_long=too_long,
                shuffle_buffer=shuffle_buffer,
                seed=seed,
            )
            for index in range(rank, self.num_streams, world_size)
        }
        self._start = self.state()

    def take(self, rows_per_share: int) -> list[dict[str, np.ndarray]]:
        """The next rows of every share of this rank, one share after the other."""
        return [share.take() for share in self.shares.values() for _ in range(rows_per_share)]

    def state(self) -> dict[str, dict]:
        """The place in every share of this rank, JSON-like."""
        return {str(index): share.state() for index, share in self.shares.items()}

    def load(self, states: dict[str, dict]):
        """Goes to the places of a checkpoint. `states` may also hold those of other ranks."""
        for index, share in self.shares.items():
            share.load(states[str(index)])

    def reset(self):
        """Goes back to the beginning."""
        self.load(self._start)

    def counts(self) -> TextCounts:
        """What became of the documents of the blocks that were used up, in the shares of this rank."""
        total = TextCounts()
        for share in self.shares.values():
            total.add(share.counts)
        return total

    def fingerprint(self) -> dict:
        """What decides the rows, in addition to the texts themselves."""
        return {
            **self._source,
            **self._settings,
            "sequence_length": self.sequence_length,
            "too_long": self.too_long,
            "num_streams": self.num_streams,
        }

    def close(self):
        """Stops reading ahead."""
        for share in self.shares.values():
            share.close()


def _read(documents, count):
    """The next texts of an iterator, at most `count`."""
    try:
        return [document[TEXT] for document in islice(documents, count)]
    except Exception as error:  # whatever the file, the network or a parser raises
        raise StreamError(f"The stream cannot be read on ({reading_error(error)}).") from error
