"""The files of a data set on the Hub: parquet shards, and the metadata by which they are read."""

import math
import re
from collections.abc import Iterable
from pathlib import Path

from datasets import DatasetDict, DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.table import embed_table_storage
from datasets.utils.metadata import MetadataConfigs
from datasets.utils.py_utils import convert_file_size_to_int
from huggingface_hub import DatasetCardData
from pyarrow import parquet


SHARDS_FOLDER = "data"
_SHARD_NAME = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\.parquet")
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
_CONFIG = "default"


def write_shards(dataset: DatasetDict, folder: Path, max_shard_size: str | int = "500MB") -> None:
    """
    Writes `data/SPLIT-00000-of-0000N.parquet` for every split, as `DatasetDict.push_to_hub` names them.

    Args:
        dataset: a data set; formats such as `torch` are not kept, because parquet has none.
        folder: the folder above `data/`.
        max_shard_size: of the rows of a file in memory.

    Raises:
        ValueError: a split has no name for a file, or two splits have different features: the Hub shows one table.
    """
    check_splits(dataset)
    (folder / SHARDS_FOLDER).mkdir(parents=True, exist_ok=True)
    limit = convert_file_size_to_int(max_shard_size)
    for split, part in dataset.items():
        part = part.with_format(None)
        count = max(1, min(math.ceil(_num_bytes(part) / limit), len(part)))
        for index in range(count):
            shard = part.shard(num_shards=count, index=index, contiguous=True) if count > 1 else part
            path = folder / SHARDS_FOLDER / f"{split}-{index:05d}-of-{count:05d}.parquet"
            _with_media(shard).to_parquet(path)


def check_splits(dataset: DatasetDict) -> None:
    """
    Checks that a data set can be one table on the Hub.

    Raises:
        ValueError: there are no splits, a name is no name of a split, or features differ.
    """
    if not dataset:
        raise ValueError("The data set has no splits, so there is nothing to publish.")
    first = next(iter(dataset))
    for split, part in dataset.items():
        if not _SPLIT_NAME.fullmatch(str(split)):
            raise ValueError(f"split={str(split)!r} must consist of letters, digits, _ and dots. Rename it.")
        if not part.column_names:
            raise ValueError(f"The split {split} has no columns, so there is nothing to publish.")
        if part.features != dataset[first].features:
            raise ValueError(
                f"The splits {first} and {split} have different features ({dataset[first].features} and "
                f"{part.features}), but a data set on the Hub has one table. Publish them as two data sets."
            )


def dataset_card_data(folder: Path, splits: Iterable[str] | None = None) -> DatasetCardData:
    """
    The metadata of a folder with parquet shards: `configs` (which files are a split) and `dataset_info` (features,
    rows and bytes of the splits).

    Args:
        folder: the folder above `data/`.
        splits: the splits in order. Default: training, validation, test, then the others by name.

    Raises:
        FileNotFoundError: the folder has no shards.
        OSError: a shard cannot be read.
    """
    paths = sorted((folder / SHARDS_FOLDER).glob("*.parquet"))
    shards = {path: match["split"] for path in paths if (match := _SHARD_NAME.fullmatch(path.name))}
    if not shards:
        raise FileNotFoundError(f"{folder} has no {SHARDS_FOLDER}/SPLIT-00000-of-00001.parquet.")
    features, sizes = None, {}
    for path, split in shards.items():
        with parquet.ParquetFile(path) as file:
            features = features or Features.from_arrow_schema(file.schema_arrow)
            size = sizes.setdefault(split, SplitInfo(split, num_bytes=0, num_examples=0))
            size.num_examples += file.metadata.num_rows
            groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
            size.num_bytes += sum(group.total_byte_size for group in groups)
    order = list(splits) if splits is not None else _order(sizes)
    info = DatasetInfo(features=features, splits=SplitDict())
    for split in order:
        info.splits.add(sizes[split])
    info.download_size = sum(path.stat().st_size for path in shards)
    info.dataset_size = sum(size.num_bytes for size in sizes.values())
    data = DatasetCardData()
    DatasetInfosDict({_CONFIG: info}).to_dataset_card_data(data)
    files = [{"split": split, "path": f"{SHARDS_FOLDER}/{split}-*"} for split in order]
    MetadataConfigs({_CONFIG: {"data_files": files}}).to_dataset_card_data(data)
    return data


def _order(splits):
    known = ("train", "validation", "test")
    return sorted(splits, key=lambda split: (known.index(split) if split in known else len(known), split))


def _num_bytes(part):
    return part.data.nbytes * len(part) / max(1, part.data.num_rows)


def _with_media(shard):
    """The bytes of pictures and sounds that lie in other files are put into the table: those files stay here."""
    if not any(_is_media(feature) for feature in shard.features.values()):
        return shard
    arrow = shard.with_format("arrow").map(embed_table_storage, batched=True, batch_size=100, keep_in_memory=True)
    return arrow.with_format(None)


def _is_media(feature):
    if isinstance(feature, dict):
        return any(map(_is_media, feature.values()))
    inner = getattr(feature, "feature", None)
    return hasattr(feature, "embed_storage") or (inner is not None and _is_media(inner))
