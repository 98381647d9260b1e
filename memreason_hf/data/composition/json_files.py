"""
The JSON files of the systematicity study: `train.json` and `valid.json` without types, `test.json` with the group of
each probe, and `vocab.json`.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from memreason_hf.data.chains.folder import ChainFolder
from memreason_hf.data.chains.items import AtomicFacts, complete, input_ids, read_items
from memreason_hf.data.chains.tables import CHAIN_SCHEMA
from memreason_hf.data.chains.tokenizer import read_vocabulary
from memreason_hf.data.composition.world import PROBE_GROUPS
from memreason_hf.messages import first_few


ID_ATOMIC, OOD_ATOMIC, TRAIN_INFERRED, TEST_IID, TEST_OOD = PROBE_GROUPS
UNTYPED_KEYS = ("input_text", "target_text")
COMPOSITION = ChainFolder(
    "a composition data set",
    "data_scripts/build_composition.py",
    {"train": "train.json", "validation": "valid.json", "test": "test.json"},
    {"train": UNTYPED_KEYS, "validation": UNTYPED_KEYS},
)


def read_json_folder(folder: str | Path) -> tuple[list[str], dict[str, pa.Table]]:
    """
    Reads a folder of JSON files in the study's schema.

    The study's training items have no type. A fact that a training composition uses is in distribution. Whether any
    other fact is, the probes say: `test.json` holds all OOD facts if there are fewer of them than probes. Otherwise
    its place says it: the study lists all in-distribution facts before the OOD facts.

    Returns:
        The vocabulary in the order of the ids, and a table with `CHAIN_SCHEMA` for each split.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or contradicts itself, or the sort of a fact cannot be known; names the file and
            the item.
    """
    folder = Path(folder)
    missing = [name for name in COMPOSITION.json_files if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is not {COMPOSITION.contents}: it lacks {first_few(missing)}. Pass its folder (input_dir)."
        )
    vocabulary = read_vocabulary(folder)
    words = pa.array(vocabulary)
    tables, facts = {}, None
    for split, name in COMPOSITION.split_files.items():
        try:
            items = read_items(folder / name, COMPOSITION.item_keys.get(split, (*UNTYPED_KEYS, "type")))
            ids, offsets = input_ids(items, words)
            _check_hops(items, offsets)
            facts = facts or AtomicFacts(items, ids, offsets, words)
            types = items["type"].combine_chunks() if split == "test" else pa.nulls(len(items), pa.string())
            tables[split] = complete(items, types, ids, offsets, facts, words)
        except ValueError as error:
            raise ValueError(f"{folder / name}: {error}") from None
    labels = {"train": _train_types(folder, tables), "validation": [TEST_OOD] * len(tables["validation"])}
    place = CHAIN_SCHEMA.get_field_index("type")
    for split, types in labels.items():
        tables[split] = tables[split].set_column(place, CHAIN_SCHEMA.field(place), pa.array(types, pa.string()))
    return vocabulary, tables


def _check_hops(items, offsets):
    hops = np.diff(offsets) - 1
    wrong = np.flatnonzero(hops > 2)
    if wrong.size:
        raise ValueError(f"item {wrong[0]} has {hops[wrong[0]]} relations, but a composition has 2.")
    if "type" not in items.column_names:
        return
    for row, (label, count) in enumerate(zip(items["type"].to_pylist(), hops.tolist())):
        if label not in PROBE_GROUPS:
            raise ValueError(f"item {row} has the type {label!r}; it must be one of {', '.join(PROBE_GROUPS)}.")
        if count != (1 if label in (ID_ATOMIC, OOD_ATOMIC) else 2):
            raise ValueError(f"item {row} is labelled {label}, but has {count} relations.")


def _train_types(folder, tables) -> list[str]:
    """The types of the training items."""
    texts, hops = (tables["train"][name].to_pylist() for name in ("input_text", "hops"))
    places = {text: row for row, (text, count) in enumerate(zip(texts, hops)) if count == 1}
    sorts = _known_sorts(folder, tables)
    probes = Counter(tables["test"]["type"].to_pylist())
    if probes[OOD_ATOMIC] < probes[ID_ATOMIC]:
        # As many probes of each sort are drawn, so test.json holds all facts of the sort that has fewer.
        sorts |= {text: ID_ATOMIC for text in places if text not in sorts}
    unknown = [text for text in places if text not in sorts]
    if unknown:
        first_ood = min((row for text, row in places.items() if sorts.get(text) == OOD_ATOMIC), default=len(texts))
        last_id = max((row for text, row in places.items() if sorts.get(text) == ID_ATOMIC), default=-1)
        lost = [text for text in unknown if last_id > first_ood or last_id < places[text] < first_ood]
        if lost:
            raise ValueError(
                f"{folder}: whether {len(lost):,} facts are in distribution cannot be known (the first is {lost[0]}): "
                "no training composition uses them, test.json does not hold them, and their place in train.json, "
                "which lists the in-distribution facts first, does not say it."
            )
        sorts |= {text: OOD_ATOMIC if places[text] > first_ood else ID_ATOMIC for text in unknown}
    return [sorts[text] if count == 1 else TRAIN_INFERRED for text, count in zip(texts, hops)]


def _known_sorts(folder, tables) -> dict[str, str]:
    """The sort of each fact that training composes, or that a probe is or composes."""
    sorts = {}
    for split, name in COMPOSITION.split_files.items():
        default = {"train": TRAIN_INFERRED, "validation": TEST_OOD}.get(split)
        columns = (tables[split][column].to_pylist() for column in ("input_text", "type", "entities"))
        for text, label, entities in zip(*columns):
            parts = text.replace("><", "> <").split()
            if len(parts) == 2 and split == "train":
                continue
            sort = OOD_ATOMIC if (label or default) in (OOD_ATOMIC, TEST_OOD) else ID_ATOMIC
            for start, relation in zip((parts[0], *entities), parts[1:]):
                if sorts.setdefault(start + relation, sort) != sort:
                    raise ValueError(
                        f"{folder / name}: {text} makes {start}{relation} {sort}, but another item makes it "
                        f"{sorts[start + relation]}."
                    )
    return sorts
