"""Batches of packed rows: positions that start anew at every document, and a label for every token."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from memreason_hf.data.labels import IGNORED_LABEL


class TextCollator:
    """
    Makes a batch of packed rows.

    Called with a list of rows of `pack_documents`, it returns int64 tensors of shape `(batch, longest row)`:
    `input_ids`, `position_ids`, which start at 0 in every document, and `shift_labels` (the label at a position is
    compared with the logits at that position; -100: no label). Models of this package and of transformers read from
    such positions that documents do not attend to each other. There is no attention mask: padding stands after the
    last document, and has no labels.

    Args:
        pad_token_id (`int`): The token that shorter rows are padded with, on the right.
        flatten (`bool`, *optional*, defaults to `False`): Whether to return one row without padding, as flash
            attention takes packed documents.

    Example:

        >>> collator = TextCollator(pad_token_id=0)
        >>> batch = collator([{"input_ids": [5, 6, 8], "seq_lengths": [2, 1], "next_ids": [7, 9]}])
        >>> batch["position_ids"].tolist(), batch["shift_labels"].tolist()
        ([[0, 1, 0]], [[6, 7, 9]])
    """

    def __init__(self, pad_token_id: int, flatten: bool = False):
        self.pad_token_id = pad_token_id
        self.flatten = flatten

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        if len(rows) == 0:
            raise ValueError("A batch needs at least one row, but got none.")
        if self.flatten:
            rows = [
                {
                    name: np.concatenate([row[name] for row in rows])
                    for name in ("input_ids", "seq_lengths", "next_ids")
                }
            ]
        width = max(len(row["input_ids"]) for row in rows)
        input_ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORED_LABEL, dtype=np.int64)
        positions = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            ids, ends = np.asarray(row["input_ids"]), np.cumsum(row["seq_lengths"])
            length = len(ids)
            input_ids[index, :length] = ids
            labels[index, : length - 1] = ids[1:]
            labels[index, ends - 1] = row["next_ids"]
            starts = ends - row["seq_lengths"]
            # Padding continues the last document, which does not see it: a document of its own would need a mask.
            lengths = np.diff(np.append(starts, width))
            positions[index] = np.arange(width) - np.repeat(starts, lengths)
        batch = {"input_ids": input_ids, "position_ids": positions, "shift_labels": labels}
        return {name: torch.from_numpy(values) for name, values in batch.items()}
