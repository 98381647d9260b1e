"""
The multi-hop data set of the depth-extrapolation study: built, saved, loaded.

    data = build_multi_hop(MultiHopConfig(num_entities=20, num_relations=4, train_hops="2-8", cap_to_available=True))
    save_multi_hop(data, "runs/small_world")
    dataset = load_multi_hop("runs/small_world")
    tokenizer = load_multi_hop_tokenizer("runs/small_world")
    train = encode_chains(dataset["train"], tokenizer)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, NamedSplit
from datasets.table import InMemoryTable

from memreason_hf.checks import check_int, check_path, check_sequence, check_type
from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.encoding import encode_chains
from memreason_hf.data.chains.folder import ChainFolder
from memreason_hf.data.chains.json_files import ATOMIC, ATOMIC_PROBE, SPLIT_FILES, chain_type, read_json_folder
from memreason_hf.data.chains.tables import chain_table, content_fingerprint
from memreason_hf.data.chains.tokenizer import (
    END_OF_ANSWER,
    build_vocabulary,
    entity_token,
    load_multi_hop_tokenizer,
    relation_token,
)
from memreason_hf.data.chains.world import (
    Chains,
    MultiHopWorld,
    atomic_chains,
    build_world,
    sample_chains,
    sample_probes,
)


__all__ = [
    "MultiHopConfig",
    "MultiHopData",
    "MultiHopWorld",
    "build_multi_hop",
    "build_world",
    "chain_datasets",
    "convert_multi_hop",
    "encode_chains",
    "load_multi_hop",
    "load_multi_hop_tokenizer",
    "prepare_multi_hop",
    "read_multi_hop_json",
    "save_multi_hop",
    "select_chains",
]

MULTI_HOP = ChainFolder("a multi-hop data set", "data_scripts/build_multi_hop.py", SPLIT_FILES)


@dataclass(frozen=True)
class MultiHopData:
    """
    A whole data set in memory.

    Attributes:
        vocabulary: tokens in the order of their ids, `<pad>` first.
        dataset: the splits `train`, `validation` (a copy of `test`), `test` and `test_small`, each with the columns
            `input_text`, `target_text`, `type`, `hops` and `entities` (the entity reached after every hop).
        config: the sizes that the data set was built with; None if it was read from files.
    """

    vocabulary: list[str]
    dataset: DatasetDict
    config: MultiHopConfig | None = None


def build_multi_hop(config: MultiHopConfig) -> MultiHopData:
    """
    Builds the data set in memory. The result depends only on `config` and on the release of numpy, whose generators
    may change their streams between releases.

    The training split holds all atomic facts (`atomic`), then the training chains by hop count (`12hop_train`). The
    test split holds the test chains by hop count (`12hop_test`), none of which is a training chain. They are followed
    by probes of memory: random atomic facts (`atomic_facts`) and training chains (`12hop_train`). The small test split
    repeats some test chains of every hop count, and some atomic facts if `test_hops` contains 1.

    Example:

        >>> sizes = {"num_entities": 4, "num_relations": 2, "train_hops": "2", "test_hops": "2"}
        >>> config = MultiHopConfig(**sizes, cap_to_available=True)
        >>> data = build_multi_hop(config)
        >>> data.dataset["train"].num_rows, data.dataset["train"][0]["type"]
        (21, 'atomic')
    """
    check_type("config", config, MultiHopConfig, "a MultiHopConfig")
    world = build_world(config)
    facts = atomic_chains(world)
    vocabulary = build_vocabulary(config.num_entities, config.num_relations)
    words = pa.array(vocabulary)
    entity_offset, relation_offset = vocabulary.index(entity_token(0)), vocabulary.index(relation_token(0))

    def rows(chains: Chains, type_: str) -> pa.Table:
        entities = chains.entities + entity_offset
        input_ids = np.concatenate([entities[:, :1], chains.relations + relation_offset], axis=1)
        return chain_table(words, input_ids, entities[:, 1:], type_, END_OF_ANSWER)

    train, test, small = [rows(facts, ATOMIC)], [], []
    atomic_probes = sample_probes(config, facts, config.num_atomic_probes)
    train_probes = []
    if 1 in config.test_hop_counts:
        small.append(rows(atomic_probes[: config.num_small_test_chains], ATOMIC_PROBE))
    for hops, (num_train, num_test) in config.plan_chains().items():
        # The test chains are drawn first, so that they do not depend on the number of training chains.
        chains = sample_chains(config, world, hops, num_test + num_train)
        test_chains, train_chains = chains[:num_test], chains[num_test:]
        if num_train:
            train.append(rows(train_chains, chain_type(hops, "train")))
            probes = sample_probes(config, train_chains, config.num_train_probes)
            train_probes.append(rows(probes, chain_type(hops, "train")))
        if num_test:
            test.append(rows(test_chains, chain_type(hops, "test")))
            small_chains = sample_probes(config, test_chains, config.num_small_test_chains)
            small.append(rows(small_chains, chain_type(hops, "test")))
    test = [*test, rows(atomic_probes, ATOMIC_PROBE), *train_probes]
    tables = {"train": train, "validation": test, "test": test, "test_small": small}
    return MultiHopData(vocabulary, chain_datasets({k: pa.concat_tables(t) for k, t in tables.items()}), config)


def read_multi_hop_json(path: str | Path) -> MultiHopData:
    """
    Reads a folder of JSON files in the study's schema, and checks every chain against the atomic facts.

    Types are set again with the number of relations.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or contradicts itself; names the file and the item.
    """
    check_path("path", path)
    vocabulary, tables = read_json_folder(path)
    return MultiHopData(vocabulary, chain_datasets(tables))


def save_multi_hop(data: MultiHopData, output_dir: str | Path, *, overwrite: bool = False) -> dict:
    """
    Writes the JSON files, the Arrow form (`datasets.load_from_disk(output_dir)`) and the tokenizer
    (`AutoTokenizer.from_pretrained(output_dir)`) into one folder, which appears whole or not at all.

    Returns:
        The manifest: the sizes that the data set was built with, its rows by split, and bytes by file.

    Raises:
        FileExistsError: the folder holds anything foreign, or it holds a data set and `overwrite` is false.
    """
    check_type("data", data, MultiHopData, "a MultiHopData (build_multi_hop)")
    return MULTI_HOP.save(data.dataset, data.vocabulary, data.config, output_dir, overwrite=overwrite)


def prepare_multi_hop(config: MultiHopConfig, output_dir: str | Path, *, overwrite: bool = False) -> dict:
    """
    Builds and saves the data set, unless `output_dir` already holds exactly this one. If another process is building
    it, waits for that.

    Returns:
        The manifest.

    Raises:
        FileExistsError: the folder holds another data set and `overwrite` is false. Checked before anything is built.

    Example:

    ```python
    prepare_multi_hop(MultiHopConfig(num_entities=20, num_relations=4, train_hops="2-8"), "data/small_world")
    dataset = load_multi_hop("data/small_world")
    ```
    """
    check_type("config", config, MultiHopConfig, "a MultiHopConfig")

    def save():
        return save_multi_hop(build_multi_hop(config), output_dir, overwrite=overwrite)

    return MULTI_HOP.prepare(config, save, output_dir, overwrite=overwrite)


def convert_multi_hop(input_dir: str | Path, output_dir: str | Path, *, overwrite: bool = False) -> dict:
    """
    Reads the JSON files of one folder (`read_multi_hop_json`) and saves the data set (`save_multi_hop`) in another
    one, or with `overwrite` in the same one.

    Returns:
        The manifest.
    """
    check_path("input_dir", input_dir)
    check_path("output_dir", output_dir)
    MULTI_HOP.check_output(Path(output_dir), overwrite)
    return save_multi_hop(read_multi_hop_json(input_dir), output_dir, overwrite=overwrite)


def load_multi_hop(path: str | Path) -> DatasetDict:
    """
    Loads a data set: the Arrow form, memory-mapped, or the JSON files if the folder has no other form, as that of the
    study. JSON files take some seconds at full size.

    Raises:
        FileNotFoundError: the folder holds no data set.
        ValueError: the data set is damaged, or is not a multi-hop data set.
    """
    return MULTI_HOP.load(path, lambda folder: read_multi_hop_json(folder).dataset)


def select_chains(dataset: Dataset, *, kind: str | None = None, hops: Iterable[int] | None = None) -> Dataset:
    """
    The rows of one kind and of some hop counts, in order.

    Args:
        dataset: a split, encoded or not, with the columns `type` and `hops`.
        kind: `"test"` (chains that are not in training), `"train"` or `"atomic"`; None for all. In the test split the
            last two are probes of memory.
        hops: hop counts to keep; None for all.

    Raises:
        ValueError: the kind is unknown, or no row is left.
    """
    check_type("dataset", dataset, Dataset, "a split of a multi-hop data set (load_multi_hop)")
    patterns = {"test": r"hop_test$", "train": r"hop_train$", "atomic": r"^atomic"}
    if kind is not None and (not isinstance(kind, str) or kind not in patterns):
        raise ValueError(f"kind={kind!r} must be one of {', '.join(patterns)}, or None for all.")
    if hops is not None:
        check_sequence("hops", hops, "a list of hop counts")
        hops = list(hops)
        for count in hops:
            check_int("hops", count)
    columns = dataset.select_columns(["type", "hops"]).with_format("arrow")[:]
    keep = np.ones(len(dataset), dtype=bool)
    if kind is not None:
        keep &= pc.match_substring_regex(columns["type"], patterns[kind]).to_numpy()
    wanted = None if hops is None else sorted(set(hops))
    if wanted is not None:
        keep &= np.isin(columns["hops"].to_numpy(), wanted)
    if not keep.any():
        known = sorted(set(columns["hops"].unique().to_pylist()))
        raise ValueError(f"No rows have kind={kind!r} and hops={wanted}; the data set has the hop counts {known}.")
    return dataset.select(np.flatnonzero(keep))


def chain_datasets(tables: dict[str, pa.Table]) -> DatasetDict:
    """
    The data set of a table with `CHAIN_SCHEMA` for each split.

    Fingerprints follow from the rows alone, so that a run recognises its data wherever they were built or copied to.
    """
    return DatasetDict(
        {
            split: Dataset(InMemoryTable(table), split=NamedSplit(split), fingerprint=content_fingerprint(table))
            for split, table in tables.items()
        }
    )
