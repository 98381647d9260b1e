"""Texts to evaluate on: files become documents of token ids."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet
from transformers import PreTrainedTokenizerBase


SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class TokenDocuments:
    """
    Documents of token ids.

    Attributes:
        ids (`list[list[int]]`): One list for each document.
        num_bytes (`int`): The UTF-8 bytes of the text that is predicted, over all documents. The first token of a
            document is not predicted; its text counts unless it is a special token that the tokenizer put there.
    """

    ids: list[list[int]]
    num_bytes: int


def tokenize_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> TokenDocuments:
    """
    Tokenizes texts as the tokenizer does by default, with the special tokens that it adds, and counts their bytes.

    Raises:
        ValueError: there is no text that has a token to predict.
    """
    encoded = tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    documents, num_bytes = [], 0
    for text, ids in zip(texts, encoded, strict=True):
        if len(ids) < 2:
            continue
        documents.append(ids)
        num_bytes += len(text.encode())
        if ids[0] not in special:
            num_bytes -= len(tokenizer.decode(ids[:1]).encode())
    if not documents:
        raise ValueError(f"None of the {len(texts)} documents has a token to predict: each needs at least two tokens.")
    return TokenDocuments(documents, num_bytes)


def read_texts(paths: Sequence[str | os.PathLike], column: str = "text") -> list[str]:
    """
    The texts of local files: a `.txt` file is one, `.jsonl` and `.parquet` files hold one in each row.

    Args:
        paths: files, in the order of the texts.
        column: the key or column of the texts.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is of another kind, not UTF-8, damaged, empty, or lacks the column.
    """
    texts = []
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"data={str(path)!r}: no such file.")
        if path.suffix not in SUFFIXES:
            raise ValueError(f"data={str(path)!r} must be a file of the kind {', '.join(SUFFIXES)}.")
        try:
            texts += _read(path, column)
        except UnicodeDecodeError as error:
            raise ValueError(f"data={str(path)!r} is not UTF-8 (byte {error.start}). Convert it to UTF-8.") from error
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError(f"data={', '.join(map(str, paths))!r} holds no text.")
    return texts


def _read(path, column):
    if path.suffix == ".txt":
        return [path.read_text(encoding="utf-8")]
    if path.suffix == ".parquet":
        try:
            table = pyarrow.parquet.read_table(path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"data={str(path)!r} is not a parquet file: {error}") from error
        if column not in table.column_names:
            raise ValueError(_missing(path, column, table.column_names))
        return [text for text in table.column(column).to_pylist() if text is not None]
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"data={str(path)!r}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            found = list(row) if isinstance(row, dict) else [type(row).__name__]
            raise ValueError(f"line {number}: {_missing(path, column, found)}")
        texts.append(row[column])
    return texts


def _missing(path, column, found):
    return f"data={str(path)!r} has no texts in column={column!r}. Its columns are {', '.join(map(str, found))}."
