"""
Data folders on the Hub: what is uploaded of one, and the folder that comes back.

    with whole_folder("staged") as staged:
        stage_dataset("data/world", staged, repo_id="user/world", license="apache-2.0")

Anyone reads the result with `load_dataset("user/world")`. A folder for this package's commands, with its tokenizer and
its other files, comes back by

    fetch_dataset("user/world", "data/world")
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, DatasetDict, DatasetInfo, load_dataset, load_from_disk
from huggingface_hub import DatasetCard, snapshot_download
from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from yaml import YAMLError

from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.folder import MANIFEST_FILE, ChainFolder, read_manifest
from memreason_hf.data.chains.multi_hop import MULTI_HOP, chain_datasets, read_multi_hop_json
from memreason_hf.data.chains.tables import CHAIN_SCHEMA
from memreason_hf.data.chains.tokenizer import VOCABULARY_FILE, build_tokenizer, read_vocabulary, write_vocabulary
from memreason_hf.data.composition.compositions import read_composition_json
from memreason_hf.data.composition.config import CompositionConfig
from memreason_hf.data.composition.json_files import COMPOSITION
from memreason_hf.data.questions.memory_reason import REPORT_FILE
from memreason_hf.data.saved_folders import is_saved, is_saved_split, saved_splits
from memreason_hf.files import check_folder, check_regular, portable_path, read_json, whole_folder, write_json
from memreason_hf.hub.cards import is_generated, make_card
from memreason_hf.hub.dataset_files import dataset_card_data, write_shards


_CARD = "README.md"
_DOCUMENTS = ("LICENSE*", "NOTICE*", "CITATION.*")
# The sizes of each kind of folder, and what reads its JSON files. A multi-hop world has one split more.
_CHAIN_FOLDERS = (
    (MULTI_HOP, MultiHopConfig, read_multi_hop_json),
    (COMPOSITION, CompositionConfig, read_composition_json),
)


def stage_dataset(
    folder: str | Path, staged: str | Path, *, repo_id: str | None = None, max_shard_size: str | int = "500MB", **facts
) -> None:
    """
    Writes what a data set's repository on the Hub holds: parquet shards that the viewer shows, the files by which
    `fetch_dataset` makes the folder again (vocabulary and tokenizer, manifest with sizes and seed, report), licence
    files, and the card. A card that a person wrote keeps its text and gets the metadata of the shards.

    Args:
        folder: A folder of `save_multi_hop` or `save_compositions`, of the studies' JSON files, of
            `save_memory_reason`, or of any
            `save_to_disk`. What is published is what loading the folder gives; formats such as `torch` are not kept.
        staged: An existing folder, for the result.
        repo_id: The name on the Hub, for the card. Default: the name of the folder.
        max_shard_size: Of the rows of a parquet file in memory.
        facts: For `make_card`, such as `license`.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder holds no data set, a damaged one, or one that is not one table.

    Example:

    ```python
    >>> stage_dataset("data/world", "staged", repo_id="user/world", license="apache-2.0")  # doctest: +SKIP
    ```
    """
    folder, staged = Path(folder), Path(staged)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder={str(folder)!r} does not exist.")
    if (folder / VOCABULARY_FILE).is_file() and (folder / MULTI_HOP.split_files["train"]).is_file():
        dataset = _stage_chains(folder, staged)
    else:
        dataset = _load_saved(folder)
        _stage_report(folder / REPORT_FILE, staged / REPORT_FILE)
    write_shards(dataset, staged, max_shard_size)
    for pattern in _DOCUMENTS:
        for path in folder.glob(pattern):
            shutil.copyfile(path, staged / path.name)
    _write_card(folder, staged, repo_id, list(dataset), facts)


def fetch_dataset(
    source: str | Path,
    output_dir: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    overwrite: bool = False,
) -> Path:
    """
    Makes a data folder of a data set on the Hub that `stage_dataset` wrote. The folder is what was published: of a
    multi-hop world also its JSON files, tokenizer and manifest; of annotated questions also the report.

    Args:
        source: A name on the Hub, or a folder with the files of such a repository.
        output_dir: The folder to write. It appears whole or not at all.
        revision: A branch, tag or commit on the Hub.
        token: For a private data set. Default: the token of this login.
        overwrite: Whether to replace a folder that is not empty.

    Raises:
        FileExistsError: `output_dir` is not empty, and `overwrite` is false.
        OSError: The data set cannot be downloaded.
        ValueError: The files are damaged.
    """
    check_folder(output_dir, overwrite=overwrite)
    folder = Path(source) if Path(source).is_dir() else _download(str(source), revision, token)
    # The library's own cache takes two folders of one name for the same data if they were written in one second.
    with tempfile.TemporaryDirectory() as cache:
        try:
            dataset = load_dataset(str(folder), cache_dir=cache)
        except Exception as error:  # the library, pandas and Arrow have their own errors
            raise ValueError(f"{source} cannot be read as a data set: {type(error).__name__} {error}") from error
        _write_folder(folder, dataset, Path(output_dir), overwrite)
    return Path(output_dir)


def _write_folder(folder, dataset, output_dir, overwrite):
    kind, make_config, _ = _kind_of_splits(dataset)
    if (folder / VOCABULARY_FILE).is_file() and kind is not None:
        manifest = read_json(folder / MANIFEST_FILE) if (folder / MANIFEST_FILE).is_file() else {}
        sizes = manifest.get("config")
        tables = {split: part.with_format("arrow")[:].cast(CHAIN_SCHEMA) for split, part in dataset.items()}
        config = None if sizes is None else make_config(**sizes)
        kind.save(chain_datasets(tables), read_vocabulary(folder), config, output_dir, overwrite=overwrite)
        return
    # Without the record of the load, which names folders of this machine.
    plain = {
        split: Dataset(part.data, info=DatasetInfo(features=part.features), split=part.split)
        for split, part in dataset.items()
    }
    with whole_folder(output_dir, overwrite=overwrite) as staged:
        DatasetDict(plain).save_to_disk(staged)
        if (folder / REPORT_FILE).is_file():
            shutil.copyfile(folder / REPORT_FILE, staged / REPORT_FILE)


def _kind_of_splits(splits) -> tuple[ChainFolder | None, type | None, Callable | None]:
    return next((entry for entry in _CHAIN_FOLDERS if set(entry[0].split_files) <= set(splits)), (None, None, None))


def _stage_chains(folder, staged):
    """The rows of a data set of chains; its vocabulary, tokenizer and manifest are written."""
    manifest = read_manifest(folder) or {}
    if is_saved(folder):
        # A folder of neither kind is refused by the first of them, with the split that it lacks.
        kind = _kind_of_splits(saved_splits(folder))[0] or MULTI_HOP
        dataset, vocabulary = kind.load(folder, read_multi_hop_json), read_vocabulary(folder)
    else:
        names = {path.stem for path in folder.glob("*.json")}
        read = read_multi_hop_json if "test_small" in names else read_composition_json
        data = read(folder)
        dataset, vocabulary = data.dataset, data.vocabulary
    write_vocabulary(vocabulary, staged)
    build_tokenizer(vocabulary).save_pretrained(staged)
    # The sizes of the files are those of the folder, not of the repository.
    record = {name: value for name, value in manifest.items() if name != "files"}
    write_json(staged / MANIFEST_FILE, {"config": None, **record, "rows": dataset.num_rows})
    return dataset


def _stage_report(path, staged):
    """The report on annotated questions, whose source may be a folder of this machine."""
    if not path.is_file():
        return
    report = read_json(path)
    if isinstance(report, dict) and isinstance(report.get("source"), str):
        report["source"] = portable_path(report["source"])
    write_json(staged, report, ensure_ascii=False)


def _load_saved(folder):
    if not is_saved(folder) and not is_saved_split(folder):
        raise ValueError(
            f"{folder} holds no data set. Publish a folder of save_to_disk, of data_scripts/build_multi_hop.py or of "
            "data_scripts/build_memory_reason.py."
        )
    for part in [folder, *(folder / split for split in saved_splits(folder))]:
        if is_saved_split(part) and not read_json(part / "state.json").get("_data_files"):
            raise ValueError(f"{part} holds no rows, and datasets cannot load a split without any. Leave it out.")
    check_regular(folder)
    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # a damaged file shows as almost any error of Arrow, json or fsspec
        raise ValueError(f"{folder}: the data set is damaged ({error}). Build it again.") from error
    return DatasetDict({str(dataset.split or "train"): dataset}) if isinstance(dataset, Dataset) else dataset


def _write_card(folder, staged, repo_id, splits, facts):
    data = dataset_card_data(staged, splits)
    path = folder / _CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    if text is not None and not is_generated(text):
        try:
            card = DatasetCard(text)
        except (ValueError, YAMLError) as error:
            raise ValueError(f"{path} has metadata that cannot be read: {str(error).splitlines()[0]}") from error
    else:
        card = make_card(staged, repo_id, kind="dataset", **facts)
    for name, value in data.to_dict().items():
        card.data[name] = value
    (staged / _CARD).write_text(str(card), encoding="utf-8")


def _download(name, revision, token):
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, token=token))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, ValueError) as error:
        raise OSError(f"{name} cannot be downloaded: {str(error).strip().splitlines()[0]}") from error
