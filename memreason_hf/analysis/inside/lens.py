"""
The logit lens over recurrences: what the model would say at every position of a text if it stopped there.

After recurrence t the lens applies what follows the loop (coda, last norm, head) to the state, so it shows exactly
the logits of a run with `num_recurrences=t`; at the last recurrence these are the logits of the model.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from memreason_hf.analysis.inside.runs import check_run
from memreason_hf.checks import check_int
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.evaluation.mode import evaluation_mode


@dataclass(frozen=True, eq=False)
class LensReading:
    """
    The lens over some rows of n tokens, after each of R recurrences. Entry t - 1 belongs to recurrence t.

    Attributes:
        top_ids: the most probable tokens, the first one first, shape `(rows, n, R, top)`.
        top_probabilities: of these tokens, same shape.
        entropy: of the next-token distribution, in nats, shape `(rows, n, R)`.
        target_probability: of the target at the position, shape `(rows, n, R)`; NaN where there is no target.
        target_rank: how many tokens are more probable than the target, plus 1; 0 where there is no target.
        targets: the ids of the targets, shape `(rows, n)`; -100 where there is none.
    """

    top_ids: np.ndarray
    top_probabilities: np.ndarray
    entropy: np.ndarray
    target_probability: np.ndarray
    target_rank: np.ndarray
    targets: np.ndarray

    @property
    def num_recurrences(self) -> int:
        """R, the last recurrence."""
        return self.entropy.shape[2]

    @property
    def is_first(self) -> np.ndarray:
        """Whether the target is the most probable token, shape `(rows, n, R)`. A tie goes to the lower id."""
        return self.top_ids[..., 0] == np.where(self.targets == IGNORED_LABEL, -1, self.targets)[..., None]

    @property
    def readable_from(self) -> np.ndarray:
        """The first recurrence at which the target is the most probable token, shape `(rows, n)`; 0: it never is."""
        return np.where(self.is_first.any(-1), self.is_first.argmax(-1) + 1, 0)

    @property
    def settled_from(self) -> np.ndarray:
        """The recurrence from which on it is so up to the last one, shape `(rows, n)`; 0: not at the last one."""
        since = self.num_recurrences - np.logical_and.accumulate(self.is_first[..., ::-1], axis=-1).sum(-1) + 1
        return np.where(self.is_first[..., -1], since, 0)

    def shares_of(self, candidates: np.ndarray) -> np.ndarray:
        """
        How often each candidate is the most probable token.

        Args:
            candidates: ids, shape `(rows, K)`; for a chain the entities that it passes through, in order.

        Returns:
            The share of rows, shape `(K, n, R)`.
        """
        return np.stack([(self.top_ids[..., 0] == ids[:, None, None]).mean(0) for ids in np.asarray(candidates).T])


def lens_by_position(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    targets: torch.Tensor | None = None,
    *,
    num_recurrences: int,
    top: int = 3,
    batch_size: int = 16,
    progress: bool = False,
) -> LensReading:
    """
    Reads the next-token distribution at every position after each of the recurrences 1..`num_recurrences`, in one
    pass.

    Args:
        model: a `RecurrentDepthForCausalLM`, on any device; its training mode is restored.
        input_ids: rows of equal length, shape `(rows, n)`.
        targets: the token to look for at each position, shape `(rows, n)`; -100 for none. By default the next token of
            the row.
        num_recurrences: R, the last recurrence that is read.
        top: how many tokens are kept at each place.
        batch_size: rows of a forward pass.
        progress: whether to show a progress bar.

    Raises:
        ValueError: a number is out of range, the shapes differ, or logits are NaN.

    Example:
        >>> from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2}
        >>> model = RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**sizes))
        >>> reading = lens_by_position(model, torch.tensor([[4, 7, 9]]), num_recurrences=5)
        >>> reading.top_ids.shape, reading.readable_from.shape
        ((1, 3, 5, 3), (1, 3))
    """
    check_run(model, input_ids, num_recurrences)
    check_int("top", top, least=1)
    check_int("batch_size", batch_size, least=1)
    if targets is None:
        targets = torch.nn.functional.pad(input_ids[:, 1:], (0, 1), value=IGNORED_LABEL)
    if targets.shape != input_ids.shape:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}, but must have that of input_ids, {tuple(input_ids.shape)}."
        )
    vocab_size = model.config.vocab_size
    if ((targets != IGNORED_LABEL) & ((targets < 0) | (targets >= vocab_size))).any():
        raise ValueError(f"targets must hold ids from 0 to {vocab_size - 1}, or {IGNORED_LABEL} where there is none.")
    pieces = []
    with evaluation_mode(model):
        starts = range(0, len(input_ids), batch_size)
        for start in tqdm(starts, desc="lens", unit="batch", disable=not progress):
            rows = slice(start, start + batch_size)
            reader = _Reader(targets[rows].to(model.device), min(top, vocab_size))
            depth = {"num_recurrences": num_recurrences, "on_recurrence": reader}
            model(input_ids[rows].to(model.device), use_cache=False, **depth)
            pieces.append(reader.arrays())
    merged = [np.concatenate(parts) for parts in zip(*pieces)]
    return LensReading(*merged, targets.cpu().numpy())


class _Reader:
    """Called by the model after every recurrence; keeps a few numbers of the logits, never the logits."""

    def __init__(self, targets, top):
        self.has_target = targets != IGNORED_LABEL
        self.targets, self.top = targets.clamp_min(0)[..., None], top
        self.read = []

    def __call__(self, recurrence, rows, logits):
        log_probs = logits.float().log_softmax(-1)
        if log_probs.isnan().any():
            raise ValueError(
                f"Logits are NaN after recurrence {recurrence}, so they mean nothing. Check the weights, use fewer "
                "recurrences, or float32."
            )
        probabilities = log_probs.exp()
        best = probabilities.topk(self.top)
        # `topk` may order equal values in any way; `argmax` takes the lower id, as decoding does.
        first = logits.argmax(-1, keepdim=True)
        ids = torch.where(best.indices == first, best.indices[..., :1], best.indices)
        ids[..., :1] = first
        target = probabilities.gather(-1, self.targets)
        rank = (probabilities > target).sum(-1) + 1
        self.read.append(
            (
                ids.cpu(),
                best.values.cpu(),
                -(probabilities * log_probs.nan_to_num(neginf=0.0)).sum(-1).cpu(),
                target[..., 0].masked_fill(~self.has_target, torch.nan).cpu(),
                rank.masked_fill(~self.has_target, 0).cpu(),
            )
        )

    def arrays(self):
        return [torch.stack(parts, dim=2).numpy() for parts in zip(*self.read)]
