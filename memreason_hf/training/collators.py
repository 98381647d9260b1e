"""Batches of encoded chains: padded on the left to their own longest row, labels in place."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from memreason_hf.data.encoding import IGNORED_LABEL


SUPERVISIONS = ("answer", "prefix")


class ChainCollator:
    """
    Makes a batch of rows with `input_ids` (an entity, then relations) and `label_ids` (-100, then the entity reached
    after each relation).

    Args:
        pad_token_id (`int`): What shorter rows are filled up with, on the left: the answer is at position -1.
        supervision (`str`, defaults to `"answer"`):
            `"answer"` labels the last position only, `"prefix"` every relation.

    Called with a list of rows it returns int64 tensors of shape `(batch, longest row)`: `input_ids`, `shift_labels`
    (the label at a position is compared with the logits at that position; -100: none) and, only where a row was
    padded, `attention_mask` (0 on padding). Other columns are ignored.

    Raises:
        ValueError: no rows, a row without tokens, or labels that are fewer or more than the tokens.
    """

    def __init__(self, pad_token_id: int, supervision: str = "answer"):
        if supervision not in SUPERVISIONS:
            raise ValueError(f"supervision={supervision!r} must be one of {', '.join(SUPERVISIONS)}.")
        if isinstance(pad_token_id, bool) or not isinstance(pad_token_id, int):
            raise TypeError(f"pad_token_id={pad_token_id!r} must be an integer: the tokenizer's pad_token_id.")
        self.pad_token_id = pad_token_id
        self.supervision = supervision

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        batch = pad_rows(rows, self.pad_token_id, side="left")
        if self.supervision == "answer":
            batch["shift_labels"][:, :-1] = IGNORED_LABEL
        return batch


def pad_rows(rows: Sequence[Mapping], pad_token_id: int, *, side: str) -> dict[str, torch.Tensor]:
    """
    Rows of `input_ids` and `label_ids` (the label at a position) as a batch.

    Args:
        side: `"left"` or `"right"`, where shorter rows are filled up.

    Returns:
        Int64 tensors of shape `(batch, longest row)`: `input_ids`, `shift_labels` and, where a row was padded,
        `attention_mask`.

    Raises:
        ValueError: no rows, a row without tokens, or labels that are fewer or more than the tokens.
    """
    if len(rows) == 0:
        raise ValueError("A batch needs at least one row, got none.")
    lengths = [len(row["input_ids"]) for row in rows]
    width, shortest = max(lengths), min(lengths)
    if shortest == 0:
        raise ValueError(f"Row {lengths.index(0)} of a batch has no tokens.")
    input_ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    labels = np.full((len(rows), width), IGNORED_LABEL, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for index, (row, length) in enumerate(zip(rows, lengths)):
        if len(row["label_ids"]) != length:
            raise ValueError(f"A row has {length} input_ids and {len(row['label_ids'])} label_ids.")
        filled = slice(width - length, width) if side == "left" else slice(length)
        input_ids[index, filled], labels[index, filled], mask[index, filled] = row["input_ids"], row["label_ids"], 1
    batch = {"input_ids": torch.from_numpy(input_ids), "shift_labels": torch.from_numpy(labels)}
    if shortest < width:
        batch["attention_mask"] = torch.from_numpy(mask)
    return batch
