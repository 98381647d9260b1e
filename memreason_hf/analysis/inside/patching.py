"""
Activation patching between two texts of equal length: at which recurrence and position does the answer hang.

The model runs on the first text. After recurrence t, what it holds at one position is replaced by what it holds there
in its run on the second text, and the run goes on. The effect of the patch is how far the answer moves:

    (m_patched - m_first) / (m_second - m_first),    m = logit(second answer) - logit(first answer)

which is 0 if nothing changes and 1 if the model answers as for the second text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm

from memreason_hf.analysis.inside.runs import check_run, continue_run, record_run
from memreason_hf.checks import check_choice, check_int
from memreason_hf.evaluation.mode import evaluation_mode


PARTS = ("state", "input", "both")


@dataclass(frozen=True, eq=False)
class PatchEffects:
    """
    The effects of patches in P pairs of texts of n tokens, after each of the recurrences 0..R - 1; 0 is before the
    first recurrence.

    Attributes:
        effect: of a patch at one position, shape `(P, R, n)`.
        flipped: whether the most probable token then is the answer to the second text, same shape.
        whole_effect: of a patch at all positions at once, shape `(P, R)`.
        whole_flipped: same shape.
        margins: m of the two texts without a patch, shape `(P, 2)`.
    """

    effect: np.ndarray
    flipped: np.ndarray
    whole_effect: np.ndarray
    whole_flipped: np.ndarray
    margins: np.ndarray


def top_answers(
    model: torch.nn.Module, input_ids: torch.Tensor, num_recurrences: int, batch_size: int = 16
) -> torch.Tensor:
    """
    The most probable next token of each row at a fixed depth, shape `(rows,)`, on the CPU.

    Example:
        >>> from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2}
        >>> model = RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**sizes))
        >>> top_answers(model, torch.tensor([[4, 7, 9]]), 4).shape
        torch.Size([1])
    """
    check_run(model, input_ids, num_recurrences)
    found = []
    with evaluation_mode(model):
        for rows in input_ids.split(batch_size):
            depth = {"num_recurrences": num_recurrences, "use_cache": False, "logits_to_keep": 1}
            found.append(model(rows.to(model.device), **depth).logits[:, -1].argmax(-1).cpu())
    return torch.cat(found)


def patch_effects(
    model: torch.nn.Module,
    first_ids: torch.Tensor,
    second_ids: torch.Tensor,
    *,
    num_recurrences: int,
    part: str = "state",
    batch_size: int = 64,
    progress: bool = False,
) -> PatchEffects:
    """
    Patches every position after every recurrence, in each pair of texts.

    Args:
        model: a `RecurrentDepthForCausalLM`, on any device; its training mode is restored.
        first_ids: the texts that the model runs on, shape `(P, n)`.
        second_ids: the texts that patches come from, same shape.
        num_recurrences: R, the last recurrence, at which the answer is read. The answer to a text is the token that
            the model then finds most probable.
        part: what is replaced. `"state"`: the state. `"input"`: the input that the loop adds to the state again, in
            all later recurrences. `"both"`.
        batch_size: patched runs in a forward pass.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the shapes differ, a pair has the same answer, there is no input to replace
            (`input_injection="none"`), or a number is out of range.

    Example:
        >>> from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
        >>> _ = torch.manual_seed(0)
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "initializer_range": 0.5}
        >>> model = RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**sizes))
        >>> found = patch_effects(model, torch.tensor([[4, 7, 9]]), torch.tensor([[5, 6, 8]]), num_recurrences=4)
        >>> found.effect.shape, found.whole_flipped.all()
        ((1, 4, 3), np.True_)
    """
    check_run(model, first_ids, num_recurrences)
    check_run(model, second_ids, num_recurrences)
    check_choice("part", part, PARTS)
    check_int("batch_size", batch_size, least=1)
    if first_ids.shape != second_ids.shape:
        raise ValueError(
            f"The first texts have shape {tuple(first_ids.shape)}, the second ones {tuple(second_ids.shape)}: a patch "
            "needs two texts with the same number of tokens."
        )
    if part == "input" and model.config.input_injection == "none":
        raise ValueError(
            "part='input': the model has input_injection='none', so that the loop reads its input only once. Use "
            "part='state'."
        )
    shape = (len(first_ids), num_recurrences, first_ids.shape[1] + 1)
    effects, flipped, margins = np.zeros(shape), np.zeros(shape, dtype=bool), np.zeros((len(first_ids), 2))
    with evaluation_mode(model), tqdm(total=shape[0] * shape[1], unit="patch", disable=not progress) as bar:
        for pair, rows in enumerate(zip(first_ids, second_ids)):
            patcher = _Patcher(model, *(row[None].to(model.device) for row in rows), num_recurrences, part)
            if patcher.answers[0] == patcher.answers[1]:
                raise ValueError(
                    f"Pair {pair}: after {num_recurrences} recurrences the model has the same answer to both texts, "
                    f"token {patcher.answers[0]}, so a patch cannot show where it comes from. Choose other texts."
                )
            margins[pair] = patcher.margins
            for recurrence in range(num_recurrences):
                effects[pair, recurrence], flipped[pair, recurrence] = patcher.patch(recurrence, batch_size)
                bar.update()
    return PatchEffects(effects[..., :-1], flipped[..., :-1], effects[..., -1], flipped[..., -1], margins)


class _Patcher:
    """Patches one pair of texts, each of shape `(1, n)`."""

    def __init__(self, model, first_ids, second_ids, num_recurrences, part):
        self.model, self.ids, self.num_recurrences, self.part = model, first_ids, num_recurrences, part
        self.records = [record_run(model, ids, num_recurrences) for ids in (first_ids, second_ids)]
        if not all(record.logits.isfinite().all() for record in self.records):
            raise ValueError(
                f"Logits are NaN or infinite after {num_recurrences} recurrences. Check the weights, use fewer "
                "recurrences, or float32."
            )
        self.answers = [int(record.logits[0].argmax()) for record in self.records]
        self.margins = [float(self._margin(record.logits)) for record in self.records]

    def patch(self, recurrence: int, batch_size: int) -> tuple[Sequence[float], Sequence[bool]]:
        """The effects at each position and, last, at all of them; and whether the answer is that of the second."""
        length = self.ids.shape[1]
        # Row i replaces position i; the last row replaces all.
        chosen = torch.cat((torch.eye(length), torch.ones(1, length))).bool()[..., None].to(self.ids.device)
        first, second = self.records
        logits = []
        for places in chosen.split(batch_size):
            state, inputs = first.states[recurrence], first.inputs
            if self.part != "input":
                state = torch.where(places, second.states[recurrence], state)
            if self.part != "state":
                inputs = torch.where(places, second.inputs, inputs)
            count = len(places)
            logits.append(
                continue_run(
                    self.model,
                    self.ids.expand(count, -1),
                    state.expand(count, -1, -1),
                    recurrence,
                    self.num_recurrences,
                    inputs.expand(count, -1, -1),
                )
            )
        logits = torch.cat(logits)
        low, high = self.margins
        effect = (self._margin(logits) - low) / (high - low)
        return effect.cpu().numpy(), (logits.argmax(-1) == self.answers[1]).cpu().numpy()

    def _margin(self, logits):
        first, second = self.answers
        return logits[:, second].double() - logits[:, first].double()
