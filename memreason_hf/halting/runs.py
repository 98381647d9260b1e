"""
What halting does to texts and to written solutions: the model is run with each threshold.

A token that halts leaves its state to all later tokens, and a solution that halts goes on from what it wrote. No pass
at full depth could tell what a threshold does, so each is tried, and a calibration stops at the first that fails.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.checks import check_choice, check_int, check_number
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.evaluation.text.perplexity import row_length
from memreason_hf.halting.calibration import Outcome
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


TEXT_LOSSES = ("perplexity", "agreement")
SOLUTION_LOSSES = ("accuracy", "agreement")


def depth_arguments(criterion: str, threshold: float, **depth: object) -> dict:
    """The arguments of `forward` and `generate` for one candidate."""
    return {"halting_criterion": criterion, HALTING_CRITERIA[criterion].threshold: threshold, **depth}


class TextRuns:
    """
    The losses of documents, by running the model with each threshold.

    A document is one row of the test: its tokens depend on each other. It is cut into pieces of `max_length` tokens,
    each of which is predicted without the ones before it.

    Args:
        model: a recurrent-depth model.
        documents: token ids, one sequence of at least two for each document.
        reference: the fixed number of recurrences that it is compared with.
        loss: `"perplexity"`: how much the mean cross-entropy of a token rises, from 0 to `largest_loss` nats, divided
            by `largest_loss`. `"agreement"`: the share of tokens for which another token is the most probable.
        largest_loss: in nats; a document that loses more counts as losing so much.
        max_length, batch_size, progress: as in `perplexity_by_recurrence`.
        depth: arguments of every run, such as `min_recurrences`, `max_recurrences` and `halting_granularity`.

    Raises:
        ValueError: a document of fewer than two tokens, or a value out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        documents: Sequence[Sequence[int]],
        *,
        reference: int,
        loss: str = "perplexity",
        largest_loss: float = 1.0,
        max_length: int = 1024,
        batch_size: int = 8,
        progress: bool = False,
        **depth: object,
    ):
        check_choice("loss", loss, TEXT_LOSSES)
        check_int("batch_size", batch_size, least=1)
        check_int("max_length", max_length, least=1)
        check_number("largest_loss", largest_loss, above=0)
        self.model, self.loss, self.largest_loss, self.depth = model, loss, largest_loss, depth
        self.batch_size, self.progress = batch_size, progress
        length = row_length(model.config, max_length)
        self.pieces, self.owners = [], []
        vocab_size = model.config.get_text_config().vocab_size
        for index, ids in enumerate(documents):
            if len(ids) < 2:
                raise ValueError(f"documents[{index}] has {len(ids)} tokens, but needs two for one to predict.")
            if max(ids) >= vocab_size:
                raise ValueError(
                    f"documents[{index}] has the token id {max(ids)}, but the model's vocab_size is {vocab_size}."
                )
            cut = [list(ids[start : start + length + 1]) for start in range(0, len(ids) - 1, length)]
            self.pieces += cut
            self.owners += [index] * len(cut)
        self.sizes = np.bincount(self.owners, weights=[len(piece) - 1 for piece in self.pieces])
        self.reference = self._run("reference", num_recurrences=reference)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def reference_loss(self) -> float:
        """The mean cross-entropy of a token at the reference depth, in nats."""
        return float(sum(losses.sum() for losses, _, _ in self.reference) / self.sizes.sum())

    def __call__(self, criterion: str, threshold: float) -> Outcome:
        """Runs the model with this threshold."""
        halted = self._run(f"{criterion} {threshold:g}", **depth_arguments(criterion, threshold, **self.depth))
        lost, recurrences = np.zeros(len(self)), np.zeros(len(self))
        for owner, (nll, top, counts), (full, full_top, _) in zip(self.owners, halted, self.reference, strict=True):
            lost[owner] += (top != full_top).sum() if self.loss == "agreement" else (nll - full).sum()
            recurrences[owner] += counts.sum()
        lost /= self.sizes
        if self.loss == "perplexity":
            lost = np.clip(lost, 0, self.largest_loss) / self.largest_loss
        return Outcome(lost, recurrences / self.sizes)

    def _run(self, title, **depth):
        """(cross-entropy, most probable token, recurrences) of every predicted token, by piece."""
        found = [None] * len(self.pieces)
        order = sorted(range(len(self.pieces)), key=lambda index: -len(self.pieces[index]))
        starts = range(0, len(order), self.batch_size)
        with evaluation_mode(self.model):
            for start in tqdm(starts, desc=title, unit="batch", disable=not self.progress):
                indices = order[start : start + self.batch_size]
                for index, values in zip(indices, self._run_batch(indices, depth), strict=True):
                    found[index] = values
        return found

    def _run_batch(self, indices, depth):
        width = max(len(self.pieces[index]) - 1 for index in indices)
        ids = torch.zeros((len(indices), width), dtype=torch.long)
        labels = torch.full((len(indices), width), IGNORED_LABEL)
        for row, index in enumerate(indices):
            piece = torch.tensor(self.pieces[index])
            ids[row, : len(piece) - 1], labels[row, : len(piece) - 1] = piece[:-1], piece[1:]
        device = next(self.model.parameters()).device
        ids, labels = ids.to(device), labels.to(device)
        real = labels != IGNORED_LABEL
        outputs = self.model(ids, attention_mask=real.long(), use_cache=False, **depth)
        counts = outputs.num_recurrences
        counts = counts[:, None].expand(labels.shape) if counts.ndim == 1 else counts
        for row, is_real in enumerate(real):
            logits = outputs.logits[row][is_real].float()
            if logits.isnan().any():
                raise ValueError("The logits of a document are NaN. Check the weights, or use float32.")
            nll = F.cross_entropy(logits, labels[row][is_real], reduction="none").double()
            yield nll.cpu().numpy(), logits.argmax(-1).cpu().numpy(), counts[row][is_real].cpu().numpy()


class SolutionRuns:
    """
    The losses of written solutions, by writing them with each threshold.

    Args:
        model, tokenizer, rows, batch_size, max_new_tokens, progress: see `generate_solutions`.
        reference: the fixed number of recurrences that it is compared with.
        loss: `"accuracy"`: 1 where the answer of the reference is right and the halted one is not. The mean is at
            least the difference of the accuracies. `"agreement"`: 1 where the answers differ.
        depth: arguments of every run, such as `min_recurrences`, `max_recurrences` and `halting_granularity`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Mapping],
        *,
        reference: int,
        loss: str = "accuracy",
        batch_size: int = 16,
        max_new_tokens: int = 512,
        progress: bool = False,
        **depth: object,
    ):
        check_choice("loss", loss, SOLUTION_LOSSES)
        self.loss, self.depth = loss, depth
        self._solve = partial(
            generate_solutions,
            model,
            tokenizer,
            rows,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
        self.reference = self._solve(halting_criterion="none", num_recurrences=reference)

    def __len__(self) -> int:
        return len(self.reference)

    @property
    def reference_accuracy(self) -> float:
        """The share of right answers at the reference depth."""
        return float(np.mean([solution.is_correct for solution in self.reference]))

    def __call__(self, criterion: str, threshold: float) -> Outcome:
        """Writes all solutions with this threshold."""
        halted = self._solve(**depth_arguments(criterion, threshold, **self.depth))
        if self.loss == "agreement":
            lost = [new.answer != old.answer for new, old in zip(halted, self.reference, strict=True)]
        else:
            lost = [old.is_correct and not new.is_correct for new, old in zip(halted, self.reference, strict=True)]
        return Outcome(np.array(lost, dtype=np.float64), np.array([_mean_recurrences(new) for new in halted]))


def _mean_recurrences(solution):
    """Of a token; NaN where the scheme has no tokens for kinds, so that they were not counted."""
    counts = list((solution.recurrences or {}).values())
    tokens = sum(tokens for tokens, _ in counts)
    return sum(recurrences for _, recurrences in counts) / tokens if tokens else float("nan")


__all__ = ["SOLUTION_LOSSES", "TEXT_LOSSES", "SolutionRuns", "TextRuns", "depth_arguments"]
