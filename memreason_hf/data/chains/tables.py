"""Chains as Arrow tables: texts from token ids and token ids from texts, without a Python object for each row."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memreason_hf.messages import first_few


CHAIN_SCHEMA = pa.schema(
    {
        "input_text": pa.string(),
        "target_text": pa.string(),
        "type": pa.string(),
        "hops": pa.int32(),
        "entities": pa.list_(pa.string()),
    }
)


def chain_table(
    words: pa.Array, input_ids: np.ndarray, reached_ids: np.ndarray, chain_type: str, end: str
) -> pa.Table:
    """
    Makes the rows of chains of one length and one type.

    Args:
        words: the vocabulary, in the order of the ids.
        input_ids: ids of the start and of every relation, shape (number of chains, hops + 1).
        reached_ids: ids of the entity reached after every relation, shape (number of chains, hops); the last one is
            the answer.
        chain_type: value of the column `type`.
        end: token at the end of `target_text`.
    """
    num_chains, hops = reached_ids.shape
    input_text = pc.binary_join(_word_lists(words, input_ids), "")
    columns = [
        input_text,
        target_texts(input_text, words.take(pa.array(reached_ids[:, -1])), end),
        pa.repeat(pa.scalar(chain_type), num_chains),
        pa.repeat(pa.scalar(hops, pa.int32()), num_chains),
        _word_lists(words, reached_ids),
    ]
    return pa.table(columns, schema=CHAIN_SCHEMA)


def target_texts(input_text: pa.Array, answers: pa.Array, end: str) -> pa.Array:
    """The column `target_text`: the input, the answer, and the token that ends an answer."""
    return pc.binary_join_element_wise(input_text, answers, end, "")


def split_tokens(texts: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """
    Cuts texts of tokens (`<e_3><r_1>`) after every `>`, without a copy.

    Returns:
        The tokens of all rows, and the offsets of the rows among them, int64 of shape (rows + 1,).

    Raises:
        ValueError: a text is empty or missing, or does not end with a token; quotes the text.
    """
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    texts = texts.cast(pa.string())
    if texts.null_count:
        raise ValueError(f"Row {_first(texts.is_null())} has no text.")
    if not len(texts):
        return pa.array([], pa.string()), np.zeros(1, dtype=np.int64)
    _, offset_buffer, data = texts.buffers()
    row_ends = np.frombuffer(offset_buffer, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    characters = np.frombuffer(data, dtype=np.uint8)[: row_ends[-1]] if data is not None else np.empty(0, np.uint8)
    token_ends = np.flatnonzero(characters[row_ends[0] :] == ord(">")) + row_ends[0] + 1
    offsets = np.searchsorted(token_ends, row_ends, side="right")
    is_whole = np.diff(row_ends) > 0
    is_whole &= np.concatenate([token_ends, [-1]])[offsets[1:] - 1] == row_ends[1:]
    if not is_whole.all():
        row = int(np.argmin(is_whole))
        raise ValueError(f"The text of row {row} is not made of whole `<...>` tokens: {texts[row].as_py()!r}.")
    token_offsets = np.concatenate([row_ends[:1], token_ends]).astype(np.int32)
    return pa.StringArray.from_buffers(len(token_ends), pa.py_buffer(token_offsets), data), offsets.astype(np.int64)


def look_up(tokens: pa.Array, words: pa.Array) -> np.ndarray:
    """
    The position of every token in `words`, as int64.

    Raises:
        UnknownTokens: a token is not in `words`.
    """
    tokens = tokens.combine_chunks() if isinstance(tokens, pa.ChunkedArray) else tokens
    ids = pc.index_in(tokens, value_set=words)
    if ids.null_count:
        raise UnknownTokens(sorted({str(token) for token in tokens.filter(ids.is_null()).unique().to_pylist()}))
    return ids.to_numpy(zero_copy_only=False).astype(np.int64)


class UnknownTokens(ValueError):
    """Raised for tokens that a vocabulary lacks; they are in the attribute `tokens`."""

    def __init__(self, tokens: list[str]):
        super().__init__(f"{len(tokens)} tokens are not in the vocabulary: {first_few(tokens)}.")
        self.tokens = tokens


def content_fingerprint(table: pa.Table) -> str:
    """
    A digest of the names and values of the columns, which `datasets` uses as the identity of the table. It does not
    depend on how the rows are cut into chunks, so a table that was written and read again keeps it.
    """
    digest = hashlib.blake2b(str(table.schema.remove_metadata()).encode(), digest_size=8)
    for column in table.columns:
        array = column.combine_chunks()
        for chunk in array.chunks if isinstance(array, pa.ChunkedArray) else [array]:
            digest.update(f"{len(chunk)},{chunk.offset};".encode())
            for buffer in chunk.buffers():
                if buffer is not None:
                    digest.update(buffer)
    return digest.hexdigest()


def _word_lists(words: pa.Array, ids: np.ndarray) -> pa.Array:
    offsets = np.arange(0, ids.size + 1, ids.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), words.take(pa.array(ids.ravel())))


def _first(mask: pa.Array) -> int:
    return int(np.argmax(mask.to_numpy(zero_copy_only=False)))
