"""Opens texts, as one column `text`: local files, a data set of the Hub or its folder, in memory or as a stream."""

import glob
from collections.abc import Sequence
from pathlib import Path

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from memreason_hf.data.text.arguments import TextArguments
from memreason_hf.data.text.files import builder_of, check_files, find_files
from memreason_hf.files import check_regular
from memreason_hf.messages import first_few


TEXT = "text"
_DISK_FILES = ("dataset_dict.json", "state.json")
# A folder of `save_to_disk` becomes a stream of at most this many shards.
_MOST_SHARDS = 64


def open_texts(arguments: TextArguments, seed: int) -> tuple[Dataset | IterableDataset, Dataset | None]:
    """
    Opens the texts to train on and the held-out ones.

    Args:
        arguments (`TextArguments`): Section `data`. Local files are read whole, to check that they are UTF-8.
        seed (`int`): Chooses the held-out documents, unless the texts are streamed.

    Returns:
        Both with the single column `text`. The texts to train on are an `IterableDataset` with `streaming`. The
        held-out texts are in memory, or `None`.

    Raises:
        ValueError: files that cannot be read, a data set, configuration or split that does not exist, no such column,
            or nothing left to train on.
        OSError: the data set cannot be read.
    """
    train, heldout = _open(arguments, arguments.split, arguments.files, "data.files", arguments.streaming), None
    if arguments.eval_files:
        heldout = _open(arguments, "train", arguments.eval_files, "data.eval_files", streaming=False)
    elif arguments.eval_split:
        heldout = _open(arguments, arguments.eval_split, None, "data.eval_split", streaming=False)
    elif arguments.eval_documents and arguments.streaming:
        count = arguments.eval_documents
        heldout = Dataset.from_list(list(train.take(count)), features=Features({TEXT: Value("large_string")}))
        train = train.skip(count)
    elif arguments.eval_documents:
        if arguments.eval_documents >= len(train):
            raise ValueError(
                f"data.eval_documents={arguments.eval_documents} leaves nothing to train on: there are {len(train):,} "
                "documents. Use a smaller number, or sample_by=paragraph or line for txt files."
            )
        parts = train.train_test_split(arguments.eval_documents, seed=seed)
        train, heldout = parts["train"], parts["test"]
    return train, heldout


def read_texts(files: str | Sequence[str], column: str = TEXT, field: str = "data.files") -> list[str]:
    """
    The texts of local files, without empty ones: a txt file is one text, other files hold one in each row.

    Args:
        files (`str` or `Sequence[str]`): Paths, patterns and folders; see `find_files`.
        column (`str`): The column of the texts.
        field (`str`): What the messages call `files`.

    Raises:
        ValueError: as for `open_texts`.
    """
    texts = _open(TextArguments(files=files, column=column), "train", files, field, streaming=False)
    return [text for text in texts[TEXT] if text]


def _open(arguments, split, files, field, streaming):
    if arguments.dataset:
        texts, column = _open_dataset(arguments, split, streaming), arguments.column
        where = f"data.dataset={arguments.dataset!r} (split {split})"
    else:
        paths = find_files(files, field)
        builder = builder_of(paths, field)
        check_files(paths, field)
        # A byte order mark is not part of the text. The builder for json skips it without being told.
        options = {"sample_by": arguments.sample_by, "encoding": "utf-8-sig"} if builder == "text" else {}
        column = TEXT if builder == "text" else arguments.column
        where = f"{field}={str(paths[0])!r}"
        # `datasets` takes names for patterns.
        names = [glob.escape(str(path)) for path in paths]
        texts = _load(where, builder, data_files={"train": names}, split="train", streaming=streaming, **options)
    texts = _select(texts, column, where)
    if not streaming and len(texts) == 0:
        raise ValueError(f"{where} holds no documents.")
    return texts


def _open_dataset(arguments, split, streaming):
    name, folder = arguments.dataset, Path(arguments.dataset)
    if folder.is_dir() and any((folder / file).is_file() for file in _DISK_FILES):
        check_regular(folder)
        texts = load_from_disk(str(folder))
        if isinstance(texts, DatasetDict):
            _check_split(texts, split, name)
            texts = texts[split]
        return texts.to_iterable_dataset(num_shards=min(_MOST_SHARDS, max(len(texts), 1))) if streaming else texts
    where = f"data.dataset={name!r}"
    texts = _load(where, name, arguments.dataset_config, revision=arguments.revision, streaming=streaming)
    if isinstance(texts, DatasetDict | IterableDatasetDict):
        _check_split(texts, split, name)
        texts = texts[split]
    return texts


def _check_split(texts, split, name):
    if split not in texts:
        raise ValueError(f"data.split={split!r}: {name} has the splits {', '.join(texts)}. Pass one of them.")


def _load(where, *args, **kwargs):
    try:
        return load_dataset(*args, **kwargs)
    except DatasetNotFoundError as error:
        raise ValueError(
            f"{where}: no such folder, and no such data set on the Hub ({reading_error(error)})."
        ) from error
    except (DatasetGenerationError, ValueError) as error:
        raise ValueError(f"{where} cannot be read ({reading_error(error)}).") from error


def reading_error(error: BaseException) -> str:
    """What is wrong with a file, in one line, from an exception of `datasets`."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].strip().removesuffix(".") if lines else type(error).__name__


def _select(texts, column, where):
    """The column of texts, called `text`."""
    features = texts.features
    if features is None:
        # A stream knows its columns only after the first example.
        try:
            features = next(iter(texts.take(1)), {})
        except Exception as error:  # whatever the file, the network or a parser raises
            raise ValueError(f"{where} cannot be read ({reading_error(error)}).") from error
    if column not in features:
        raise ValueError(
            f"data.column={column!r}: {where} has the columns {first_few(list(features), 20) or '(none)'}. Pass one "
            "of them with --column."
        )
    kind = features[column]
    if not (isinstance(kind, str) or kind is None or (isinstance(kind, Value) and "string" in kind.dtype)):
        raise ValueError(
            f"data.column={column!r}: {where} holds {_describe(kind)} there, not text. Pass another --column."
        )
    texts = texts.select_columns([column])
    return texts if column == TEXT else texts.rename_column(column, TEXT)


def _describe(kind):
    if isinstance(kind, Value):
        return kind.dtype
    return type(kind).__name__
