"""
Packing: documents of tokens become rows of at most `sequence_length` tokens, without crossing a document's border.

A row holds whole pieces. A piece is a document, or a part of one that is longer than a row. It is stored as its inputs
(all tokens but the last) and the token that follows them, so every stored token has a label, which is always a token
of the same document. Positions start at 0 in every piece, and no token attends to another piece.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from memreason_hf.checks import check_choice, check_int, check_sequence, shortened


TOO_LONG = ("split", "truncate", "error")


class DocumentTooLongError(ValueError):
    """A document is longer than a row, and `too_long` is `"error"`."""


@dataclass
class TextCounts:
    """
    What became of documents.

    Attributes:
        documents (`int`): The documents with at least two tokens.
        skipped (`int`): The documents with fewer, which have nothing to predict.
        too_long (`int`): The documents longer than a row.
        cut_tokens (`int`): The tokens that `"truncate"` cut off.
        rows (`int`): The rows.
        tokens (`int`): The tokens of the rows, each of which has a label.
    """

    documents: int = 0
    skipped: int = 0
    too_long: int = 0
    cut_tokens: int = 0
    rows: int = 0
    tokens: int = 0

    def add(self, other: "TextCounts"):
        """Adds other counts to these."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def describe(self, sequence_length: int, too_long: str) -> str:
        """One or two sentences for the user."""
        full = self.tokens / max(self.rows * sequence_length, 1)
        text = (
            f"{self.documents:,} documents in {self.rows:,} rows of {sequence_length:,} tokens: {self.tokens:,} "
            f"tokens, {full:.1%} of the space."
        )
        if self.too_long:
            verb = "were split" if too_long == "split" else f"lost {self.cut_tokens:,} tokens at their ends"
            text += f" {self.too_long:,} documents are longer than a row and {verb} (data.too_long={too_long})."
        if self.skipped:
            text += f" {self.skipped:,} documents have fewer than two tokens and were skipped."
        return text


def check_packing(sequence_length: int, too_long: str) -> None:
    """
    Checks how documents are to be packed.

    Raises:
        ValueError, TypeError: `sequence_length` is not a whole number of at least 1, or `too_long` is unknown.
    """
    check_int("sequence_length", sequence_length, least=1)
    check_choice("too_long", too_long, TOO_LONG)


def pack_documents(
    documents: Iterable[Sequence[int]], sequence_length: int, too_long: str = "split"
) -> tuple[list[dict[str, np.ndarray]], TextCounts]:
    """
    Packs documents into rows, the longest first, each into the fullest row that has room for it (best fit).

    Args:
        documents (`Iterable[Sequence[int]]`): The token ids of each document.
        sequence_length (`int`): The most tokens of a row.
        too_long (`str`, *optional*, defaults to `"split"`): What happens to a document of more than
            `sequence_length + 1` tokens: `"split"` into several pieces, `"truncate"`, or `"error"`.

    Returns:
        The rows, with `input_ids` of at most `sequence_length` tokens, `seq_lengths`, the tokens of every piece, and
        `next_ids`, the token that follows every piece (int32 arrays); and the counts.

    Raises:
        DocumentTooLongError: a document is too long and `too_long` is `"error"`.

    Example:

    ```python
    >>> rows, counts = pack_documents([[1, 2, 3], [4, 5, 6, 7]], sequence_length=5)
    >>> [(row["input_ids"].tolist(), row["seq_lengths"].tolist(), row["next_ids"].tolist()) for row in rows]
    [([4, 5, 6, 1, 2], [3, 2], [7, 3])]
    ```
    """
    check_packing(sequence_length, too_long)
    check_sequence("documents", documents, "lists of token ids")
    counts = TextCounts()
    pieces: list[tuple[np.ndarray, int]] = []
    for index, document in enumerate(documents):
        ids = np.asarray(document)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise TypeError(f"document {index:,} must be a list of token ids, got {shortened(document)}.")
        ids = ids.astype(np.int32, copy=False)
        if len(ids) < 2:
            counts.skipped += 1
            continue
        counts.documents += 1
        if len(ids) > sequence_length + 1:
            counts.too_long += 1
            if too_long == "error":
                raise DocumentTooLongError(
                    f"data.too_long='error': a document has {len(ids):,} tokens, but data.sequence_length="
                    f"{sequence_length:,} (document {index:,} of its block). Raise sequence_length, or use "
                    "too_long=split or truncate."
                )
            if too_long == "truncate":
                counts.cut_tokens += len(ids) - sequence_length - 1
                ids = ids[: sequence_length + 1]
        for start in range(0, len(ids) - 1, sequence_length):
            end = min(start + sequence_length, len(ids) - 1)
            pieces.append((ids[start:end], int(ids[end])))
    rows = [
        _make_row([pieces[index] for index in row]) for row in fill_rows([len(p) for p, _ in pieces], sequence_length)
    ]
    counts.rows = len(rows)
    counts.tokens = sum(len(piece) for piece, _ in pieces)
    return rows, counts


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """
    The indices of the pieces of every row: best fit decreasing.

    Args:
        lengths: the tokens of each piece, none above `capacity`.
        capacity: the most tokens of a row.
    """
    rows: list[list[int]] = []
    # (free tokens, row), sorted. A full row is left out.
    free: list[tuple[int, int]] = []
    for index in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        place = bisect_left(free, (lengths[index], -1))
        if place == len(free):
            rows.append([index])
            room, row = capacity, len(rows) - 1
        else:
            room, row = free.pop(place)
            rows[row].append(index)
        if room > lengths[index]:
            insort(free, (room - lengths[index], row))
    return rows


def _make_row(pieces):
    return {
        "input_ids": np.concatenate([ids for ids, _ in pieces]),
        "seq_lengths": np.array([len(ids) for ids, _ in pieces], dtype=np.int32),
        "next_ids": np.array([following for _, following in pieces], dtype=np.int32),
    }
