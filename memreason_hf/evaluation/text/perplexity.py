"""Perplexity after every recurrence, read in one pass."""

import math
import time
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from memreason_hf.checks import check_int, check_sequence, check_type, shortened
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.evaluation.chains.predictions import gather_parts
from memreason_hf.evaluation.mode import MOST_RECURRENCES, evaluation_mode
from modeling_recurrent import RecurrentDepthConfig


# The float32 logits that the loss reads at once. With a vocabulary of 32,000 these are 2,048 tokens.
_AT_ONCE = 2**26


@dataclass(frozen=True)
class RecurrencePerplexity:
    """
    How well a model predicts text after each of the recurrences 1..R. Every token weighs the same.

    Attributes:
        losses (`np.ndarray` of shape `(R,)`): Mean cross-entropy of a token after each recurrence, in nats. A model
            without recurrences has one.
        num_tokens (`int`): The predicted tokens: all but the first of each document.
        num_documents (`int`): The documents.
        num_bytes (`int`, *optional*): The UTF-8 bytes of the predicted text.
        seconds (`float`): Wall time of the pass, on the slowest process.
    """

    losses: np.ndarray
    num_tokens: int
    num_documents: int
    num_bytes: int | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def max_recurrences(self) -> int:
        """R."""
        return len(self.losses)

    @property
    def perplexities(self) -> np.ndarray:
        """exp of the losses, shape `(R,)`; infinite where they are too large."""
        with np.errstate(over="ignore"):
            return np.exp(self.losses)

    @property
    def bits_per_byte(self) -> np.ndarray | None:
        """
        Bits that a byte of text takes, shape `(R,)`. It does not depend on the tokenizer, so that models with
        different ones can be compared. `None` if the bytes are not known.
        """
        if self.num_bytes is None:
            return None
        return self.losses * self.num_tokens / (math.log(2) * self.num_bytes)

    @property
    def best_recurrence(self) -> int:
        """The first recurrence of the lowest loss, counted from 1."""
        return int(self.losses.argmin()) + 1


def perplexity_by_recurrence(
    model: torch.nn.Module,
    documents: Sequence[Sequence[int]],
    *,
    max_recurrences: int | None = None,
    max_length: int = 1024,
    batch_size: int = 8,
    packed: bool = False,
    num_bytes: int | None = None,
    progress: bool = False,
    distributed: bool = False,
) -> RecurrencePerplexity:
    """
    The perplexity of documents after each of the recurrences 1..`max_recurrences`.

    The model runs once, at `max_recurrences`, and applies coda and head after every recurrence. The losses are those
    of separate runs at each depth. Sums are taken in float64.

    Args:
        model ([`~transformers.PreTrainedModel`]): A recurrent-depth model, or any causal language model, which is read
            once.
        documents (`Sequence[Sequence[int]]`): Token ids, one sequence for each document. A document that is longer
            than `max_length` is cut into pieces, each of which is predicted without the ones before it; every token
            but the first of the document is predicted once. Documents of fewer than two tokens are left out.
        max_recurrences (`int`, *optional*): R. Default: `max_recurrences` of the config.
        max_length (`int`, *optional*, defaults to 1024): The tokens of a row; at most `max_position_embeddings`.
        batch_size (`int`, *optional*, defaults to 8): The rows of a forward pass.
        packed (`bool`, *optional*, defaults to `False`): Whether several documents share a row, which do not attend to
            each other. Saves padding. The losses are the same.
        num_bytes (`int`, *optional*): The UTF-8 bytes of the predicted text, for bits per byte.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.
        distributed (`bool`, *optional*, defaults to `False`): Whether the processes of `torch.distributed` share the
            batches. Each returns the whole result.

    Raises:
        ValueError: a value out of range, no document with a token to predict, or a token id outside the vocabulary.

    Example:

    ```python
    documents = [tokenizer(text)["input_ids"] for text in texts]
    result = perplexity_by_recurrence(model, documents, max_recurrences=16)
    result.perplexities[result.best_recurrence - 1]
    ```
    """
    started = time.perf_counter()
    check_type("model", model, torch.nn.Module, "a model")
    if max_recurrences is not None:
        check_int("max_recurrences", max_recurrences, least=1, most=MOST_RECURRENCES)
    max_recurrences = _depth_of(model.config, max_recurrences)
    for name, value in (("max_length", max_length), ("batch_size", batch_size)):
        check_int(name, value, least=1)
    check_type("packed", packed, bool, "True or False")
    if num_bytes is not None:
        check_int("num_bytes", num_bytes, least=1)
    pieces, num_documents = _cut(documents, row_length(model.config, max_length), model.config)
    rows = _pack(pieces, row_length(model.config, max_length)) if packed else [[piece] for piece in pieces]
    # The longest rows first: if memory does not suffice, the first batch shows it.
    rows.sort(key=lambda row: -sum(map(len, row)))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    rank, world_size = 0, 1
    if distributed:
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    device = next(model.parameters()).device
    sums = np.zeros(max_recurrences)
    with evaluation_mode(model):
        own = batches[rank::world_size]
        for batch in tqdm(own, desc="perplexity", unit="batch", disable=not progress or rank > 0):
            sums += _sums_of_batch(model, _tensors(batch, device, packed), max_recurrences)
    parts = gather_parts((sums, time.perf_counter() - started), distributed)
    num_tokens = sum(len(piece) - 1 for piece in pieces)
    return RecurrencePerplexity(
        losses=sum(part[0] for part in parts) / num_tokens,
        num_tokens=num_tokens,
        num_documents=num_documents,
        num_bytes=num_bytes,
        seconds=max(part[1] for part in parts),
    )


def _depth_of(config, max_recurrences):
    if not isinstance(config, RecurrentDepthConfig):
        if max_recurrences not in (None, 1):
            raise ValueError(
                f"max_recurrences={max_recurrences} is for recurrent-depth models, but the model is of type "
                f"{config.model_type!r}, which is read once. Leave it out."
            )
        return 1
    max_recurrences = config.max_recurrences if max_recurrences is None else max_recurrences
    if max_recurrences < 1:
        raise ValueError(f"max_recurrences={max_recurrences} must be at least 1.")
    return max_recurrences


def row_length(config, max_length: int) -> int:
    """The most tokens of a row: `max_length`, or the context of the model if that is shorter."""
    return min(max_length, getattr(config.get_text_config(), "max_position_embeddings", None) or max_length)


def _cut(documents, length, config):
    """Pieces of `length` + 1 tokens at most: a piece begins with the last token of the one before it."""
    pieces, num_documents = [], 0
    vocab_size = config.get_text_config().vocab_size
    check_sequence("documents", documents, "lists of token ids")
    for index, document in enumerate(documents):
        ids = np.asarray(document)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise TypeError(f"documents[{index}] must be a list of token ids, got {shortened(document)}.")
        ids = ids.astype(np.int64, copy=False)
        if len(ids) < 2:
            continue
        if ids.min() < 0:
            raise ValueError(f"documents[{index}] has the token id {ids.min()}, but must not have negative ids.")
        if ids.max() >= vocab_size:
            raise ValueError(
                f"The documents have the token id {ids.max()}, but the model's vocab_size is {vocab_size}: encode "
                "them with the model's tokenizer."
            )
        num_documents += 1
        pieces += [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
    if not pieces:
        raise ValueError("None of the documents has a token to predict: each needs at least two tokens.")
    return pieces, num_documents


def _pack(pieces, length):
    """Rows of pieces with at most `length` inputs together. The longest comes first and takes the fullest row."""
    rows, rooms = [], []  # `rooms` holds (room, row), sorted
    for piece in sorted(pieces, key=len, reverse=True):
        size = len(piece) - 1
        place = bisect_left(rooms, (size, -1))
        if place < len(rooms):
            room, row = rooms.pop(place)
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(piece)
        insort(rooms, (room - size, row))
    return rows


def _tensors(batch, device, packed):
    """Inputs, labels in place, and where rows differ in length a mask, padded on the right."""
    width = max(sum(len(piece) - 1 for piece in row) for row in batch)
    inputs, positions = (np.zeros((len(batch), width), dtype=np.int64) for _ in range(2))
    labels = np.full((len(batch), width), IGNORED_LABEL, dtype=np.int64)
    for index, row in enumerate(batch):
        end = 0
        for piece in row:
            start, end = end, end + len(piece) - 1
            inputs[index, start:end], labels[index, start:end] = piece[:-1], piece[1:]
            positions[index, start:end] = np.arange(end - start)
    arrays = {"input_ids": inputs, "shift_labels": labels}
    if packed:
        arrays["position_ids"] = positions
    if (labels == IGNORED_LABEL).any():
        arrays["attention_mask"] = (labels != IGNORED_LABEL).astype(np.int64)
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _sums_of_batch(model, inputs, max_recurrences):
    """The summed losses after each recurrence, float64 of shape `(max_recurrences,)`."""
    labels = inputs["shift_labels"]
    labels = labels[labels != IGNORED_LABEL]
    sums = np.zeros(max_recurrences)

    def read(recurrence, rows, logits):
        if rows is not None:
            raise RuntimeError("The model dropped rows, although the number of recurrences is fixed.")
        sums[recurrence - 1] = _summed_loss(logits, labels)

    if not isinstance(model.config, RecurrentDepthConfig):
        is_label = inputs.pop("shift_labels") != IGNORED_LABEL
        read(1, None, model(**inputs, use_cache=False).logits[is_label])
        return sums
    outputs = model(
        **inputs,
        labelled_logits_only=True,
        use_cache=False,
        num_recurrences=max_recurrences,
        on_recurrence=read,
        recurrences_to_show=range(1, max_recurrences),
    )
    read(max_recurrences, None, outputs.logits)
    return sums


def _summed_loss(logits, labels):
    rows = max(_AT_ONCE // logits.shape[-1], 1)
    parts = [
        F.cross_entropy(some.float(), wanted, reduction="none").double().sum()
        for some, wanted in zip(logits.split(rows), labels.split(rows), strict=True)
    ]
    return float(torch.stack(parts).sum())
