"""
The composition data set of the systematicity study: built, saved, loaded.

    data = build_compositions(CompositionConfig(num_entities=100, num_relations=20, out_degree=10, ratio=5))
    save_compositions(data, "runs/compositions")
    dataset = load_compositions("runs/compositions")
    tokenizer = load_multi_hop_tokenizer("runs/compositions")
    train = encode_chains(dataset["train"], tokenizer)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import DatasetDict

from memreason_hf.checks import check_path, check_type
from memreason_hf.data.chains.multi_hop import chain_datasets
from memreason_hf.data.chains.tables import chain_table
from memreason_hf.data.chains.tokenizer import END_OF_ANSWER, build_vocabulary, entity_token, relation_token
from memreason_hf.data.composition.config import CompositionConfig
from memreason_hf.data.composition.json_files import COMPOSITION, read_json_folder
from memreason_hf.data.composition.world import PROBE_GROUPS, build_facts, compose


@dataclass(frozen=True)
class CompositionData:
    """
    A whole data set in memory.

    Attributes:
        vocabulary: tokens in the order of their ids, `<pad>` first.
        dataset: the splits `train`, `validation` and `test`, each with the columns `input_text`, `target_text`,
            `type`, `hops` and `entities` (the entity reached after every hop).
        config: the sizes that the data set was built with; None if it was read from files.
    """

    vocabulary: list[str]
    dataset: DatasetDict
    config: CompositionConfig | None = None


def build_compositions(config: CompositionConfig) -> CompositionData:
    """
    Builds the data set in memory. The result depends only on `config` and on the release of numpy.

    The training split holds all in-distribution facts (`id_atomic`), all OOD facts (`ood_atomic`), and compositions of
    two in-distribution facts (`train_inferred`). The test split holds at most `num_probes` items of five groups: these
    three, compositions of in-distribution facts that are not in training (`test_inferred_iid`), and compositions of
    two OOD facts (`test_inferred_ood`). The validation split repeats the last group.

    Raises:
        ValueError: such a data set does not exist; gives the numbers.

    Example:

        >>> data = build_compositions(CompositionConfig(num_entities=100, num_relations=20, out_degree=10, ratio=5))
        >>> data.dataset["train"].num_rows, data.dataset["train"][0]["type"]
        (5750, 'id_atomic')
    """
    check_type("config", config, CompositionConfig, "a CompositionConfig")
    world = build_facts(config)
    groups = compose(config, world)
    vocabulary = build_vocabulary(config.num_entities, config.num_relations)
    words = pa.array(vocabulary)
    entity_offset, relation_offset = vocabulary.index(entity_token(0)), vocabulary.index(relation_token(0))
    heads = world.heads

    def rows(facts: np.ndarray, type_: str) -> pa.Table:
        # Facts have one number, compositions two.
        facts = facts.reshape(len(facts), -1)
        starts = heads[facts[:, :1]] + entity_offset
        input_ids = np.concatenate([starts, world.relations[facts] + relation_offset], axis=1)
        return chain_table(words, input_ids, world.tails[facts] + entity_offset, type_, END_OF_ANSWER)

    facts = np.arange(config.num_facts)
    train = [
        rows(facts[~world.is_ood], "id_atomic"),
        rows(facts[world.is_ood], "ood_atomic"),
        rows(groups.train, "train_inferred"),
    ]
    probes = {name: rows(groups.probes[name], name) for name in PROBE_GROUPS}
    tables = {
        "train": pa.concat_tables(train),
        "validation": probes["test_inferred_ood"],
        "test": pa.concat_tables(probes.values()),
    }
    return CompositionData(vocabulary, chain_datasets(tables), config)


def read_composition_json(path: str | Path) -> CompositionData:
    """
    Reads a folder of JSON files in the study's schema, and checks every item against the facts.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged or contradicts itself; names the file and the item.
    """
    check_path("path", path)
    vocabulary, tables = read_json_folder(path)
    return CompositionData(vocabulary, chain_datasets(tables))


def save_compositions(data: CompositionData, output_dir: str | Path, *, overwrite: bool = False) -> dict:
    """
    Writes the JSON files, the Arrow form (`datasets.load_from_disk(output_dir)`) and the tokenizer
    (`AutoTokenizer.from_pretrained(output_dir)`) into one folder, which appears whole or not at all.

    Returns:
        The manifest: the sizes that the data set was built with, its rows by split, and bytes by file.

    Raises:
        FileExistsError: the folder holds anything foreign, or it holds a data set and `overwrite` is false.
    """
    check_type("data", data, CompositionData, "a CompositionData (build_compositions)")
    return COMPOSITION.save(data.dataset, data.vocabulary, data.config, output_dir, overwrite=overwrite)


def prepare_compositions(config: CompositionConfig, output_dir: str | Path, *, overwrite: bool = False) -> dict:
    """
    Builds and saves the data set, unless `output_dir` already holds exactly this one. If another process is building
    it, waits for that.

    Returns:
        The manifest.

    Raises:
        FileExistsError: the folder holds another data set and `overwrite` is false. Checked before anything is built.
        ValueError: such a data set does not exist; gives the numbers.

    Example:

    ```python
    prepare_compositions(CompositionConfig(num_entities=100, num_relations=20, out_degree=10, ratio=5), "data/small")
    dataset = load_compositions("data/small")
    ```
    """
    check_type("config", config, CompositionConfig, "a CompositionConfig")

    def save():
        return save_compositions(build_compositions(config), output_dir, overwrite=overwrite)

    return COMPOSITION.prepare(config, save, output_dir, overwrite=overwrite)


def convert_compositions(input_dir: str | Path, output_dir: str | Path, *, overwrite: bool = False) -> dict:
    """
    Reads the JSON files of one folder (`read_composition_json`) and saves the data set (`save_compositions`) in
    another one, or with `overwrite` in the same one.

    Returns:
        The manifest.
    """
    check_path("input_dir", input_dir)
    check_path("output_dir", output_dir)
    COMPOSITION.check_output(Path(output_dir), overwrite)
    return save_compositions(read_composition_json(input_dir), output_dir, overwrite=overwrite)


def load_compositions(path: str | Path) -> DatasetDict:
    """
    Loads a data set: the Arrow form, memory-mapped, or the JSON files if the folder has no other form, as that of the
    study.

    Raises:
        FileNotFoundError: the folder holds no data set.
        ValueError: the data set is damaged, or is not a composition data set.
    """
    return COMPOSITION.load(path, lambda folder: read_composition_json(folder).dataset)
