"""
Items of the studies' JSON files, lists of `{"input_text": ..., "target_text": ..., "type": ...}`: written, read, and
followed over the atomic facts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memreason_hf.data.chains.tables import CHAIN_SCHEMA, UnknownTokens, look_up, split_tokens, target_texts
from memreason_hf.data.chains.tokenizer import END_OF_ANSWER, VOCABULARY_FILE
from memreason_hf.files import parse_json, read_bytes


ITEM_KEYS = ("input_text", "target_text", "type")


def write_items(table: pa.Table, path: str | Path, keys: Sequence[str] = ITEM_KEYS):
    """
    Writes the rows exactly as `json.dump` would write the list of items.

    Nothing is escaped, so texts must consist of tokens of the vocabulary, and types must be labels of this package.

    Args:
        keys: the columns that an item holds.
    """
    with open(path, "wb") as file:
        file.write(b"[")
        separator = b""
        for batch in table.select(keys).to_batches():
            if not batch.num_rows:
                continue
            pieces = [piece for key, column in zip(keys, batch.columns) for piece in (f'", "{key}": "', column)]
            pieces[0] = f', {{"{keys[0]}": "'
            items = pc.binary_join_element_wise(*pieces, '"}', "")
            # The strings of all rows lie in one buffer, which is written without the first ", ".
            _, offset_buffer, characters = items.buffers()
            first, last = np.frombuffer(offset_buffer, dtype=np.int32)[[items.offset, items.offset + len(items)]]
            file.write(separator)
            file.write(memoryview(characters)[first + 2 : last])
            separator = b", "
        file.write(b"]")


def read_items(path: Path, keys: Sequence[str] = ITEM_KEYS) -> pa.Table:
    """
    The items of a file, as a table with the columns `keys`.

    Raises:
        ValueError: the file is not a list of items with these texts; names the item.
    """
    try:
        items = parse_json(read_bytes(path))
    except ValueError as error:
        raise ValueError(f"not a JSON file (damaged or cut off?): {error}") from None
    if not isinstance(items, list):
        raise ValueError(f"holds a {type(items).__name__}; it must hold a list of items.")
    if not items:
        raise ValueError("holds no items.")
    row = next((row for row, item in enumerate(items) if not _is_item(item, keys)), None)
    if row is not None:
        raise ValueError(f"item {row} must hold the texts {', '.join(keys)}, but is {items[row]!r}.")
    return pa.table({key: pa.array([item[key] for item in items], pa.string()) for key in keys})


def _is_item(item, keys) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(key), str) for key in keys)


def input_ids(items: pa.Table, words: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """
    The token ids of all inputs, and the offsets of the rows among them.

    Raises:
        ValueError: an input is not a text of known tokens with at least one relation.
    """
    try:
        tokens, offsets = split_tokens(items["input_text"])
        ids = look_up(tokens, words)
    except UnknownTokens as error:
        raise ValueError(
            f"{error} {VOCABULARY_FILE} has {len(words)} tokens and does not belong to this file."
        ) from None
    too_short = np.flatnonzero(np.diff(offsets) < 2)
    if too_short.size:
        raise ValueError(f"item {too_short[0]} has no relation: {items['input_text'][too_short[0]].as_py()!r}.")
    return ids, offsets


class AtomicFacts:
    """Maps (head, relation) to the tail, over token ids. The id `len(words)` stands for "no such fact"."""

    def __init__(self, items: pa.Table, ids: np.ndarray, offsets: np.ndarray, words: pa.Array):
        rows = np.flatnonzero(np.diff(offsets) == 2)
        if not rows.size:
            raise ValueError("holds no atomic facts (items with one relation): the chains cannot be followed.")
        heads, relations = ids[offsets[rows]], ids[offsets[rows] + 1]
        target_tokens, target_offsets = split_tokens(items["target_text"].take(pa.array(rows)))
        if np.any(np.diff(target_offsets) != 4):
            row = rows[np.argmax(np.diff(target_offsets) != 4)]
            raise ValueError(
                f"item {row}, an atomic fact, must have its answer and {END_OF_ANSWER} after the input, but its "
                f"target_text is {items['target_text'][row].as_py()!r}."
            )
        tails = look_up(target_tokens.take(pa.array(target_offsets[:-1] + 2)), words)

        self.unknown = len(words)
        self.entity_index, num_entities = _dense_index(np.concatenate([heads, tails]), self.unknown)
        self.relation_index, num_relations = _dense_index(relations, self.unknown)
        # One more row and column are for tokens that are not an entity, or not a relation.
        self.tails = np.full((num_entities + 1, num_relations + 1), self.unknown)
        where = self.entity_index[heads], self.relation_index[relations]
        self.tails[where] = tails
        contradicted = np.flatnonzero(self.tails[where] != tails)
        if contradicted.size:
            text = items["input_text"][rows[contradicted[0]]].as_py()
            raise ValueError(f"item {rows[contradicted[0]]}: {text} has another answer elsewhere in the file.")

    def walk(self, ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entities reached after every hop of all rows, and the offsets of the rows among them."""
        hops = np.diff(offsets) - 1
        reached_offsets = np.concatenate([[0], np.cumsum(hops)])
        reached = np.empty(reached_offsets[-1], dtype=np.int64)
        rows, current = np.arange(len(hops)), ids[offsets[:-1]]
        for hop in range(hops.max()):
            goes_on = hops[rows] > hop
            rows, current = rows[goes_on], current[goes_on]
            relations = ids[offsets[rows] + 1 + hop]
            current = self.tails[self.entity_index[current], self.relation_index[relations]]
            reached[reached_offsets[rows] + hop] = current
        return reached, reached_offsets


def _dense_index(ids: np.ndarray, num_ids: int) -> tuple[np.ndarray, int]:
    """Numbers the distinct ids from 0. Every other id, and `num_ids` itself, gets the number after the last one."""
    distinct = np.unique(ids)
    index = np.full(num_ids + 1, len(distinct))
    index[distinct] = np.arange(len(distinct))
    return index, len(distinct)


def complete(
    items: pa.Table, types: pa.Array, ids: np.ndarray, offsets: np.ndarray, facts: AtomicFacts, words: pa.Array
) -> pa.Table:
    """
    The rows of items, with their types, hops and entities.

    Args:
        items: as from `read_items`.
        types: the value of the column `type` for each item.
        ids, offsets: as from `input_ids`.
        facts: the atomic facts that the chains follow.
        words: the vocabulary, in the order of the ids.

    Raises:
        ValueError: a chain cannot be followed, or has another answer; names the item.
    """
    reached, reached_offsets = facts.walk(ids, offsets)
    lost = np.flatnonzero(reached == facts.unknown)
    if lost.size:
        row = int(np.searchsorted(reached_offsets, lost[0], side="right")) - 1
        raise ValueError(
            f"item {row}: hop {lost[0] - reached_offsets[row] + 1} of {items['input_text'][row].as_py()!r} is not an "
            "atomic fact of train.json."
        )
    entities = words.take(pa.array(reached))
    expected = target_texts(items["input_text"], entities.take(pa.array(reached_offsets[1:] - 1)), END_OF_ANSWER)
    is_right = pc.equal(expected, items["target_text"]).to_numpy(zero_copy_only=False)
    if not is_right.all():
        row = int(np.argmin(is_right))
        raise ValueError(
            f"item {row}: target_text is {items['target_text'][row].as_py()!r}, but the atomic facts of train.json "
            f"lead to {expected[row].as_py()!r}."
        )
    hops = np.diff(reached_offsets).astype(np.int32)
    columns = [
        items["input_text"],
        items["target_text"],
        types,
        pa.array(hops),
        pa.ListArray.from_arrays(pa.array(reached_offsets.astype(np.int32)), entities),
    ]
    return pa.table(columns, schema=CHAIN_SCHEMA)
