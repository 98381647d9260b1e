"""Answers to chains: the predicted token at the answer position of every row, and the recurrences that it took."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed
from datasets import Dataset
from tqdm.auto import tqdm

from memreason_hf.checks import check_callable, check_columns, check_int, check_type
from memreason_hf.evaluation.mode import evaluation_mode


@dataclass
class AnswerPredictions:
    """
    The answers of a model, one entry for each row, in the order of the data set.

    Attributes:
        predictions: ids of the predicted answer tokens.
        references: ids of the correct answer tokens.
        groups: the group of each row, as in the group column (int or str).
        num_recurrences: recurrences of each answer.
        seconds: wall time of the pass, on the slowest process.
    """

    predictions: list[int]
    references: list[int]
    groups: list
    num_recurrences: list[int]
    seconds: float = field(default=0.0, compare=False)

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def accuracy(self) -> float:
        """Share of correct rows, in 0..1."""
        return float(np.mean(np.asarray(self.predictions) == np.asarray(self.references)))


def predict_answers(
    model: torch.nn.Module,
    dataset: Dataset,
    collator: Callable,
    *,
    batch_size: int,
    progress: bool = False,
    group_column: str = "hops",
    distributed: bool = False,
    **forward_kwargs,
) -> AnswerPredictions:
    """
    The answer of `model` to every row of `dataset`, at the depth that it chooses or is given.

    Args:
        model: a `RecurrentDepthForCausalLM`, on any device; its training mode is restored afterwards.
        dataset: encoded chains (`input_ids`, `label_ids`, and the group column).
        collator: makes a left-padded batch of a list of rows, so that the answer position is the last one:
            `input_ids`, `shift_labels` and, where rows differ in length, `attention_mask`, all `(batch, sequence)`.
        batch_size: rows of a forward call. Rows of similar length share a batch; the results do not depend on it.
        progress: whether to show a progress bar.
        group_column: the column that names the group of a row.
        distributed: whether the processes of `torch.distributed` share the batches; each returns all rows.
        forward_kwargs: for the model, for example `num_recurrences=16` or `halting_criterion="kl_entropy"`.

    Raises:
        ValueError: there are no rows, the group column is missing, an id is outside the model's vocabulary, a row
            has no answer, or logits are NaN.

    Example:

    ```python
    dataset = encode_chains(load_multi_hop("data/small_world")["test"], tokenizer)
    collator = ChainCollator(tokenizer.pad_token_id)
    answers = predict_answers(model, dataset, collator, batch_size=256, halting_criterion="kl_entropy")
    answers.accuracy, halting_statistics(answers).by_group[8].mean
    ```
    """
    check_evaluation(model, dataset, collator, batch_size)
    started = time.perf_counter()
    groups = group_names(dataset, group_column)
    predicted = np.zeros((len(dataset), 3), dtype=np.int64)
    written = []
    with evaluation_mode(model):
        for rows, inputs, references in answer_batches(
            model, dataset, collator, batch_size, progress=progress, title="answers", distributed=distributed
        ):
            outputs = model(**inputs, logits_to_keep=1, use_cache=False, **forward_kwargs)
            counts = outputs.num_recurrences
            best, answers = outputs.logits[:, -1].max(-1)
            # Of values with a NaN it is the largest, and would count as a wrong answer.
            broken = best.isnan().cpu().numpy()
            if broken.any():
                raise ValueError(
                    f"The logits of row {int(rows[broken.argmax()])} are NaN, so its answer means nothing. Check the "
                    "weights, use fewer recurrences, or float32."
                )
            predicted[rows, 0] = answers.cpu().numpy()
            predicted[rows, 1] = references.cpu().numpy()
            # If counts are per token, the last one belongs to the position whose logits gave the answer.
            predicted[rows, 2] = (counts[:, -1] if counts.ndim == 2 else counts).cpu().numpy()
            written.append(rows)
    seconds = time.perf_counter() - started
    own_rows = np.concatenate(written) if written else np.empty(0, dtype=np.int64)
    for rows, values, other_seconds in gather_parts((own_rows, predicted[own_rows], seconds), distributed):
        predicted[rows] = values
        seconds = max(seconds, other_seconds)
    predictions, references, num_recurrences = predicted.T.tolist()
    return AnswerPredictions(predictions, references, groups, num_recurrences, seconds)


def check_evaluation(model: torch.nn.Module, dataset: Dataset, collator: Callable, batch_size: int) -> None:
    """
    Checks what an evaluation on chains is called with.

    Raises:
        ValueError, TypeError: an argument is of another type, there are no rows, or `batch_size` is below 1.
    """
    check_type("model", model, torch.nn.Module, "a model")
    check_type("dataset", dataset, Dataset, "encoded rows (encode_chains)")
    check_callable("collator", collator, "a collator such as ChainCollator")
    check_int("batch_size", batch_size, least=1)
    check_columns("dataset", dataset.column_names, ("input_ids", "label_ids"))


def answer_batches(
    model: torch.nn.Module,
    dataset: Dataset,
    collator: Callable,
    batch_size: int,
    *,
    progress: bool,
    title: str,
    distributed: bool,
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor], torch.Tensor]]:
    """
    Batches of rows of similar length, the longest first: if memory does not suffice, the first batch shows it.

    Yields:
        `(rows, inputs, references)`: indices into `dataset`, arguments of the model, and ids of the answers of shape
        `(batch,)`. The latter two are on the model's device.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    rows_by_column = dataset.select_columns(["input_ids", "label_ids"])[:]
    input_ids, label_ids = rows_by_column["input_ids"], rows_by_column["label_ids"]
    order = np.argsort([-len(ids) for ids in input_ids], kind="stable")
    rank, world_size = _process_rank(distributed)
    starts = range(rank * batch_size, len(order), world_size * batch_size)
    device = next(model.parameters()).device
    for start in tqdm(starts, desc=title, unit="batch", disable=not progress or rank > 0):
        rows = order[start : start + batch_size]
        batch = dict(collator([{"input_ids": input_ids[row], "label_ids": label_ids[row]} for row in rows]))
        references = _references(batch, model.config.vocab_size)
        inputs = {name: value.to(device) for name, value in batch.items()}
        yield rows, inputs, references.to(device)


def _references(batch, vocab_size):
    """Removes the labels from a batch. Ids are checked on the CPU, because a bad id on a GPU ends the process."""
    if "shift_labels" not in batch:
        raise ValueError(f"The collator must return 'shift_labels', which hold the answer, got {sorted(batch)}.")
    references = batch.pop("shift_labels")[:, -1]
    if (references < 0).any():
        raise ValueError(
            "shift_labels has no label at the last position of some rows: pad on the left, with the answer last."
        )
    largest = max(int(batch["input_ids"].max()), int(references.max()))
    if largest >= vocab_size:
        raise ValueError(
            f"The data have the token id {largest}, but the model's vocab_size is {vocab_size}: the vocabulary does "
            "not match. Encode the data with the tokenizer that the model was trained with."
        )
    return references


def group_names(dataset: Dataset, group_column: str) -> list:
    """
    The group column of a data set, as a list.

    Raises:
        ValueError: the data set has no rows, or no such column.
    """
    if len(dataset) == 0:
        raise ValueError("dataset is an empty Dataset: there is nothing to evaluate. Check the split and the filters.")
    if group_column not in dataset.column_names:
        raise ValueError(f"group_column={group_column!r} must be one of the columns {dataset.column_names}.")
    return list(dataset[group_column])


def sorted_groups(groups: Iterable) -> list:
    """
    The distinct groups in natural order.

    Example:

        >>> sorted_groups(["12hop_test", "2hop_test", "2hop_test"])
        ['2hop_test', '12hop_test']
    """
    return sorted(set(groups), key=_natural_key)


def _natural_key(group):
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(group)) if part
    ]


def gather_parts(part, distributed: bool) -> list:
    """The `part` of every process, in the order of their ranks, on each process."""
    world_size = _process_rank(distributed)[1]
    if world_size == 1:
        return [part]
    parts = [None] * world_size
    torch.distributed.all_gather_object(parts, part)
    return parts


def _process_rank(distributed):
    if distributed and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
