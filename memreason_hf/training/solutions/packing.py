"""
Packing: several solutions in one row of constant length, none of which sees another.

A row holds whole solutions. Their positions start at 0 again, by which the models of transformers and of this package
recognise separate texts. Not every model and kernel does, so `check_packing` measures it before training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.adapters.prompts import virtual_tokens_of
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.data.text.packing import fill_rows
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.steps.attention import get_step_attention
from memreason_hf.steps.tokenization import padding_id
from memreason_hf.training.runs.errors import ArgumentsError


# The tokens of the two texts of a trial row.
_FIRST, _SECOND = 9, 13
# Share of the largest logit, by dtype: another order of summation.
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True)
class PackingReport:
    """
    What packing did.

    Attributes:
        num_solutions: the rows before.
        num_rows: the rows after.
        num_tokens: the tokens of the solutions.
        length: the tokens of a row, with its padding.
    """

    num_solutions: int
    num_rows: int
    num_tokens: int
    length: int

    def describe(self) -> str:
        """One line for a terminal."""
        share = self.num_tokens / (self.num_rows * self.length)
        return (
            f"Packed into {self.num_rows:,} rows of {self.length:,} tokens, {share:.1%} of which are tokens of "
            "solutions."
        )


def pack_solutions(rows: Dataset, length: int) -> tuple[Dataset, PackingReport]:
    """
    Packs encoded solutions into rows, the longest first, each into the fullest row that has room for it.

    Args:
        rows (`datasets.Dataset`): As `encode_solutions` returns them, with `input_ids` and `label_ids`.
        length (`int`): The most tokens of a row.

    Returns:
        Rows with `input_ids`, `label_ids` and `seq_lengths`, the tokens of each solution in them; and a report.

    Raises:
        ValueError: a solution is longer than a row.

    Example:

    ```python
    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"input_ids": [[1, 2], [3, 4, 5]], "label_ids": [[2, -100], [4, 5, -100]]})
    >>> packed, report = pack_solutions(rows, length=6)
    >>> packed[0]["input_ids"], packed[0]["seq_lengths"]
    ([3, 4, 5, 1, 2], [3, 2])
    ```
    """
    rows = list(rows)
    lengths = [len(row["input_ids"]) for row in rows]
    if max(lengths) > length:
        raise ValueError(
            f"packing_length={length} is less than the {max(lengths)} tokens of the longest solution with its "
            "question. Raise it, or leave long items out (data.max_length with data.too_long=drop)."
        )
    columns = {"input_ids": [], "label_ids": [], "seq_lengths": []}
    for places in fill_rows(lengths, length):
        for name in ("input_ids", "label_ids"):
            columns[name].append([token for place in places for token in rows[place][name]])
        columns["seq_lengths"].append([lengths[place] for place in places])
    report = PackingReport(len(rows), len(columns["input_ids"]), sum(lengths), length)
    return Dataset.from_dict(columns), report


class PackedStepCollator:
    """
    Makes a batch of rows from `pack_solutions`.

    Called with a list of rows, it returns int64 tensors of shape `(batch, length)`: `input_ids`, `shift_labels` (the
    label at a position is compared with the logits at that position; -100: no label) and `position_ids`, which start
    at 0 in each solution and in the padding. There is no mask, because padding is a text of its own.

    Args:
        tokenizer: the tokenizer of the rows, which gives the padding token.
        length: the tokens of every row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int):
        self.pad_token_id, self.length = padding_id(tokenizer), length

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        shape = (len(rows), self.length)
        ids, labels = np.full(shape, self.pad_token_id), np.full(shape, IGNORED_LABEL)
        positions = np.zeros(shape, dtype=np.int64)
        for index, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[index, :size], labels[index, :size] = row["input_ids"], row["label_ids"]
            pieces = [*row["seq_lengths"], self.length - size]
            positions[index] = np.concatenate([np.arange(piece) for piece in pieces])
        return {
            "input_ids": torch.from_numpy(ids),
            "shift_labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }


def check_single_texts(model: PreTrainedModel) -> None:
    """
    Refuses what belongs to a single text in a row.

    Raises:
        ValueError: attention between steps, or virtual prompt tokens.
    """
    if (variant := get_step_attention(model)) is not None:
        raise ValueError(
            f"packing_length cannot be combined with step attention {variant!r}, for which a row is one text. Leave "
            "one of them out."
        )
    if virtual_tokens_of(model):
        raise ValueError(
            "packing_length cannot be combined with adapter.mode='prompt': virtual prompt tokens stand only in front "
            "of the first solution of a row. Leave one of them out."
        )


@torch.no_grad()
def check_packing(model: PreTrainedModel, batch_size: int = 1) -> None:
    """
    Checks that the texts of a packed row do not see each other, by a trial of two random texts.

    The logits of the second text must not change with the first, and must be those that it has alone.

    Args:
        model: the model, or an `AdapterModel` around it, on the device and in the dtype of training.
        batch_size: the rows of a micro-batch, because some kernels recognise packed texts only in a single row.

    Raises:
        ArgumentsError: the second text sees the first.
        ValueError: as for `check_single_texts`.
    """
    check_single_texts(model)
    generator = torch.Generator().manual_seed(0)
    rows, size = min(batch_size, 2), _FIRST + _SECOND
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (rows, size), generator=generator).to(model.device)
    other = ids.clone()
    other[:, :_FIRST] = (ids[:, :_FIRST] + 1) % vocabulary
    positions = torch.cat((torch.arange(_FIRST), torch.arange(_SECOND))).expand(rows, -1).to(model.device)
    with evaluation_mode(model):
        packed, changed = (
            model(input_ids=each, position_ids=positions, use_cache=False).logits[:, _FIRST:].float()
            for each in (ids, other)
        )
        alone = model(input_ids=ids[:, _FIRST:], use_cache=False).logits.float()
    is_mixed = torch.is_autocast_enabled(model.device.type)
    tolerance = 0.1 if is_mixed else _TOLERANCES.get(model.dtype, 0.1)
    largest = float(alone.abs().max())
    seen = float((packed - changed).abs().max())
    moved = float((packed - alone).abs().max())
    # A text that is masked away contributes exactly nothing. The same text in another place may be rounded otherwise.
    if seen > 1e-6 * largest or not moved <= tolerance * largest:
        raise ArgumentsError(
            f"packing_length: in packed rows the texts of this {model.config.model_type} would see each other (logits "
            f"differ by {max(seen, moved):.3g} of {largest:.3g} with batches of {rows} and "
            f"attn_implementation={model.config._attn_implementation!r}). Leave packing_length out, or choose another "
            "model.attn_implementation (sdpa)."
        )
