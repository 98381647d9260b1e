"""The JSON files of the depth-extrapolation study: the four splits with labels by hop count, and `vocab.json`."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from memreason_hf.data.chains.items import AtomicFacts, complete, input_ids, read_items
from memreason_hf.data.chains.tokenizer import VOCABULARY_FILE, read_vocabulary
from memreason_hf.messages import first_few


SPLIT_FILES = {
    "train": "train.json",
    "validation": "valid.json",
    "test": "test.json",
    "test_small": "test_small.json",
}
JSON_FILES = (*SPLIT_FILES.values(), VOCABULARY_FILE)
ATOMIC, ATOMIC_PROBE = "atomic", "atomic_facts"

_CHAIN_TYPE = re.compile(r"\d+hop_(train|test)")


def chain_type(hops: int, kind: str) -> str:
    """The label of a chain: `chain_type(12, "test")` is `12hop_test`."""
    return f"{hops}hop_{kind}"


def read_json_folder(folder: str | Path) -> tuple[list[str], dict[str, pa.Table]]:
    """
    Reads a folder of JSON files in the study's schema.

    The type of an item is set again with the number of its relations, because the labels of the study's own
    training chains are two hops too low. The entity reached after every hop comes from the atomic facts of
    `train.json`.

    Returns:
        The vocabulary in the order of the ids, and a table with `CHAIN_SCHEMA` for each split.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, contradicts itself or has another schema; names the file and the item.
    """
    folder = Path(folder)
    missing = [name for name in JSON_FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is not a complete multi-hop data set: it lacks {first_few(missing)}. Pass its folder "
            "(input_dir)."
        )
    vocabulary = read_vocabulary(folder)
    words = pa.array(vocabulary)
    tables, facts = {}, None
    for split, name in SPLIT_FILES.items():
        try:
            items = read_items(folder / name)
            ids, offsets = input_ids(items, words)
            if facts is None:
                facts = AtomicFacts(items, ids, offsets, words)
            types = _relabelled(items["type"], np.diff(offsets) - 1)
            tables[split] = complete(items, types, ids, offsets, facts, words)
        except ValueError as error:
            raise ValueError(f"{folder / name}: {error}") from None
    return vocabulary, tables


def _relabelled(types: pa.ChunkedArray, hops: np.ndarray) -> pa.Array:
    """The labels with the hop counts of the items. Labels of atomic facts are not changed."""
    codes = types.combine_chunks().dictionary_encode()
    labels = codes.dictionary.to_pylist()
    kinds = []
    for label in labels:
        match = _CHAIN_TYPE.fullmatch(label)
        if not match and label not in (ATOMIC, ATOMIC_PROBE):
            row = types.to_pylist().index(label)
            raise ValueError(
                f"item {row} has the type {label!r}; it must be {ATOMIC}, {ATOMIC_PROBE}, or a label such as "
                f"{chain_type(12, 'train')} or {chain_type(12, 'test')}."
            )
        kinds.append(match[1] if match else None)
    codes = codes.indices.to_numpy()
    is_atomic = np.array([kind is None for kind in kinds])[codes]
    wrong = np.flatnonzero(is_atomic & (hops != 1))
    if wrong.size:
        raise ValueError(f"item {wrong[0]} is labelled {labels[codes[wrong[0]]]}, but has {hops[wrong[0]]} relations.")
    pairs, index = np.unique(np.stack([codes, hops], axis=1), axis=0, return_inverse=True)
    texts = [labels[code] if kinds[code] is None else chain_type(count, kinds[code]) for code, count in pairs.tolist()]
    return pa.array(texts).take(pa.array(index.ravel()))
