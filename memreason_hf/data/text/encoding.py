"""From texts to rows: a tokenizer turns a text into a document of tokens, and documents are packed."""

import os
from collections.abc import Sequence

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from memreason_hf.checks import check_has, check_type
from memreason_hf.data.text.packing import DocumentTooLongError, TextCounts, check_packing, pack_documents


# Documents that are packed together. Rows of one block are full; only the last row of a block may be short.
PACKED_TOGETHER = 10_000
_ROW_FEATURES = Features({name: List(Value("int32")) for name in ("input_ids", "seq_lengths", "next_ids")})
_MOST_PROCESSES = 16


class DocumentTokenizer:
    """
    Turns texts into documents of token ids.

    A document has the special tokens that the tokenizer adds, and ends with its `eos_token` where it has one.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Any tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str | None]) -> list[list[int]]:
        """The token ids of every text. A text that is empty or null gives an empty document."""
        filled = [text for text in texts if text]
        if not filled:
            return [[] for _ in texts]
        # `verbose`: a document may be longer than the model's context, which packing takes care of.
        encoded = iter(self.tokenizer(filled, return_attention_mask=False, verbose=False)["input_ids"])
        eos = self.tokenizer.eos_token_id
        documents = []
        for text in texts:
            ids = next(encoded) if text else []
            if ids and eos is not None and ids[-1] != eos:
                ids = [*ids, eos]
            documents.append(ids)
        return documents


def encode_texts(
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    too_long: str = "split",
    num_proc: int | None = None,
) -> tuple[Dataset, TextCounts]:
    """
    Tokenises and packs texts in memory. Both results are cached by `datasets`.

    Args:
        texts (`datasets.Dataset`): With a column `text`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Any tokenizer.
        sequence_length (`int`): The most tokens of a row.
        too_long (`str`, *optional*, defaults to `"split"`): See `pack_documents`.
        num_proc (`int`, *optional*): Processes that tokenise. The rows do not depend on it.

    Returns:
        The rows, as `pack_documents` describes them, and the counts.

    Raises:
        ValueError: a document is too long and `too_long` is `"error"`, or no document has two tokens.
    """
    check_type("texts", texts, Dataset, "a data set with the column text")
    check_has("tokenizer", tokenizer, "eos_token", "a tokenizer")
    check_packing(sequence_length, too_long)
    _check_column(texts)
    num_proc = num_proc or min(os.cpu_count() or 1, _MOST_PROCESSES)
    # Starting processes takes longer than tokenising some thousand texts.
    num_proc = max(min(num_proc, len(texts) // 2000), 1)
    documents = texts.map(
        _tokenize,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=texts.column_names,
        features=Features({"input_ids": List(Value("int32"))}),
        num_proc=num_proc if num_proc > 1 else None,
        desc="Tokenising",
    )
    lengths = _lengths(documents)
    counts = _count(lengths, sequence_length, too_long)
    if too_long == "error" and counts.too_long:
        raise DocumentTooLongError(
            f"data.too_long='error': {counts.too_long:,} of {counts.documents:,} documents have more than "
            f"data.sequence_length={sequence_length:,} tokens; the longest, document {int(lengths.argmax()):,}, has "
            f"{int(lengths.max()):,}. Raise sequence_length, or use too_long=split or truncate."
        )
    if not counts.documents:
        raise ValueError(f"None of the {len(texts):,} documents has two tokens: there is nothing to train on.")
    # Not in several processes: each would end with a row that is not full, so the rows would depend on their number.
    rows = documents.map(
        _pack,
        batched=True,
        batch_size=PACKED_TOGETHER,
        fn_kwargs={"sequence_length": sequence_length, "too_long": too_long},
        remove_columns=documents.column_names,
        features=_ROW_FEATURES,
        desc="Packing",
    )
    counts.rows = len(rows)
    return rows, counts


def _check_column(texts):
    feature = texts.features.get("text")
    if feature is None or getattr(feature, "dtype", None) not in ("string", "large_string", "null"):
        found = ", ".join(f"{name} ({getattr(kind, 'dtype', kind)})" for name, kind in texts.features.items())
        raise ValueError(f"texts must have a column text of texts; the columns are {found or 'none'}.")


def _tokenize(batch, tokenizer):
    return {"input_ids": DocumentTokenizer(tokenizer)(batch["text"])}


def _pack(batch, sequence_length, too_long):
    rows, _ = pack_documents(batch["input_ids"], sequence_length, too_long)
    return {name: [row[name] for row in rows] for name in _ROW_FEATURES}


def _lengths(documents):
    column = documents.with_format("arrow")[:].column("input_ids")
    return np.concatenate([chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in column.chunks])


def _count(lengths, sequence_length, too_long):
    """The counts of `pack_documents`, without the rows."""
    kept = lengths[lengths > 1].astype(np.int64)
    extra = np.maximum(kept - sequence_length - 1, 0)
    cut = int(extra.sum()) if too_long == "truncate" else 0
    return TextCounts(
        documents=len(kept),
        skipped=len(lengths) - len(kept),
        too_long=int(np.count_nonzero(extra)),
        cut_tokens=cut,
        tokens=int(kept.sum()) - len(kept) - cut,
    )
