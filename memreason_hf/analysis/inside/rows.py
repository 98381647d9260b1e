"""The rows that an analysis reads: groups of equal length, and how a document describes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from typing_extensions import TypedDict


# Recurrences that a table shows one by one; deeper ones as powers of two.
_MOST_COLUMNS = 10


class InsideData(TypedDict):
    """What was read."""

    kind: Literal["chains", "text"]
    path: str | None
    """Folder of the data set (see `portable_path`); null for a text that was given."""
    split: str | None
    """Null for a text."""
    num_rows: int


@dataclass(frozen=True, eq=False)
class RowGroup:
    """
    Rows of equal length n.

    Attributes:
        name: what tables call the group: the number of hops, or `"text"`.
        input_ids: shape `(rows, n)`.
        tokens: the tokens of each row as they are shown.
        targets: the token to look for at each position, shape `(rows, n)`; None: the next token of the row.
        entities: of chains: the entities that each passes through, from the start to the answer, shape `(rows, n)`.
    """

    name: int | str
    input_ids: torch.Tensor
    tokens: Sequence[Sequence[str]]
    targets: torch.Tensor | None = None
    entities: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


def shown_recurrences(last: int) -> list[int]:
    """
    The recurrences that a table shows: all of a few, otherwise powers of two and the last one.

    Example:
        >>> shown_recurrences(24)
        [1, 2, 4, 8, 16, 24]
    """
    if last <= _MOST_COLUMNS:
        return list(range(1, last + 1))
    powers = [2**power for power in range(last.bit_length())]
    return powers if powers[-1] == last else [*powers, last]
