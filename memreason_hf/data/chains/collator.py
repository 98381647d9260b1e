"""Batches of encoded chains: padded on the left to their own longest row, labels in place."""

from collections.abc import Mapping, Sequence

import torch

from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.data.padding import pad_rows


SUPERVISIONS = ("answer", "prefix", "path")


class ChainCollator:
    """
    Makes a batch of encoded chains, whose `input_ids` are an entity and then relations, and whose `label_ids` are -100
    and then the entity reached after each relation.

    Called with a list of rows, it returns int64 tensors of shape `(batch, longest row)`: `input_ids`, `shift_labels`
    (the label at a position is compared with the logits at that position; -100: no label) and, only if a row was
    padded, `attention_mask` (0 on padding). Other columns are ignored.

    Args:
        pad_token_id (`int`): The token that shorter rows are padded with, on the left, so that the answer is at
            position -1.
        supervision (`str`, defaults to `"answer"`):
            `"answer"` labels only the last position, `"prefix"` every relation, and `"path"` the entity at the start
            as well, with itself: the state of a start is then read like that of an entity that was reached, so that
            a fact learned after the one is known after the other.

    Raises:
        ValueError: there are no rows, a row has no tokens, or a row has more or fewer labels than tokens.

    Example:

        >>> collator = ChainCollator(pad_token_id=0, supervision="prefix")
        >>> rows = [{"input_ids": [5, 8, 9], "label_ids": [-100, 6, 7]}, {"input_ids": [4, 8], "label_ids": [-100, 3]}]
        >>> collator(rows)["shift_labels"].tolist()
        [[-100, 6, 7], [-100, -100, 3]]
    """

    def __init__(self, pad_token_id: int, supervision: str = "answer"):
        if supervision not in SUPERVISIONS:
            raise ValueError(f"supervision={supervision!r} must be one of {', '.join(SUPERVISIONS)}.")
        if isinstance(pad_token_id, bool) or not isinstance(pad_token_id, int):
            raise TypeError(f"pad_token_id={pad_token_id!r} must be an integer. Pass tokenizer.pad_token_id.")
        if pad_token_id < 0:
            raise ValueError(f"pad_token_id={pad_token_id} must not be negative. Pass tokenizer.pad_token_id.")
        self.pad_token_id = pad_token_id
        self.supervision = supervision

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        batch = pad_rows(rows, self.pad_token_id, side="left")
        if self.supervision == "answer":
            batch["shift_labels"][:, :-1] = IGNORED_LABEL
        if self.supervision == "path":
            labels, input_ids = batch["shift_labels"], batch["input_ids"]
            is_start = labels.eq(IGNORED_LABEL) & batch.get("attention_mask", torch.ones_like(labels)).eq(1)
            batch["shift_labels"] = torch.where(is_start, input_ids, labels)
        return batch
