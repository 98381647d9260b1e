"""Pads rows of different lengths into one batch, with a label at every position."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from memreason_hf.checks import check_row, check_sequence
from memreason_hf.data.labels import IGNORED_LABEL


def pad_rows(rows: Sequence[Mapping], pad_token_id: int, *, side: str) -> dict[str, torch.Tensor]:
    """
    Pads rows into a batch.

    Args:
        rows (`Sequence[Mapping]`): Each with `input_ids` and `label_ids`, the label of each position.
        pad_token_id (`int`): What fills up shorter rows.
        side (`str`): `"left"` or `"right"`, where they are filled up.

    Returns:
        Int64 tensors of shape `(batch, longest row)`: `input_ids`, `shift_labels` and, if a row was padded,
        `attention_mask`.

    Raises:
        ValueError: no rows, a row without tokens, or a row with another number of labels than tokens.

    Example:

    ```python
    >>> rows = [{"input_ids": [5, 6], "label_ids": [6, 7]}, {"input_ids": [8], "label_ids": [9]}]
    >>> pad_rows(rows, 0, side="left")["shift_labels"]
    tensor([[   6,    7],
            [-100,    9]])
    ```
    """
    check_sequence("rows", rows, "a list of rows")
    for row in rows:
        check_row("row", row, ("input_ids", "label_ids"))
        check_sequence("input_ids", row["input_ids"], "a list of token ids")
    if len(rows) == 0:
        raise ValueError("A batch needs at least one row, but got none.")
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
