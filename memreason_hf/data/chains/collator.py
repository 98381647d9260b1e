"""Batches of encoded chains: padded on the left to their own longest row, labels in place."""

from collections.abc import Mapping, Sequence

import torch

from memreason_hf.data.padding import IGNORED_LABEL, pad_rows


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
