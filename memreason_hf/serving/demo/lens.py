"""
What a model would say after each recurrence, at one position of a text.

    lens = read_lens(model, ids, position=3, num_recurrences=16)
    lens.steps[0].tokens        # the most probable tokens after one recurrence
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from memreason_hf.evaluation.mode import evaluation_mode
from modeling_recurrent import RecurrentDepthForCausalLM


@dataclass(frozen=True)
class LensStep:
    """
    The prediction after one recurrence.

    Attributes:
        recurrence: counted from 1.
        ids: the most probable tokens, the first one first.
        probabilities: of these tokens.
        of_answer: the probability of the token that the text has there; None after the end of the text.
        rank_of_answer: how many tokens are more probable than it, plus 1; None after the end of the text.
        entropy: of the whole distribution, in nats.
    """

    recurrence: int
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    of_answer: float | None
    rank_of_answer: int | None
    entropy: float


@dataclass(frozen=True)
class Lens:
    """
    The predictions at one position.

    Attributes:
        position: index in the text of the token that is predicted, from the tokens before it.
        token_id: the token that the text has there; None after the end of the text.
        steps: one for each recurrence.
        leaders: the tokens that are the most probable one after some recurrence, that of the last one first.
        curves: the probabilities of each leader, after each recurrence.
    """

    position: int
    token_id: int | None
    steps: tuple[LensStep, ...]
    leaders: tuple[int, ...]
    curves: tuple[tuple[float, ...], ...]


def read_lens(
    model: RecurrentDepthForCausalLM, ids: Sequence[int], position: int, num_recurrences: int, top: int = 5
) -> Lens:
    """
    Reads the next-token probabilities after each of the recurrences 1 to `num_recurrences`, in one pass.

    After recurrence r they are those of a run with `num_recurrences=r`: in both, every token before the position takes
    exactly r recurrences. Where a criterion halts tokens at different depths, the answer itself saw other states.

    Args:
        model: in any mode, which is restored.
        ids: a text.
        position: index of the token to predict, from 1 to `len(ids)`.
        num_recurrences: the last recurrence that is read.
        top: how many tokens are read after each recurrence.

    Raises:
        ValueError: the position or a number is out of range.

    Example:
        >>> from modeling_recurrent import RecurrentDepthConfig
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2}
        >>> model = RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**sizes))
        >>> [step.recurrence for step in read_lens(model, [1, 2, 3], position=3, num_recurrences=4).steps]
        [1, 2, 3, 4]
    """
    if not 1 <= position <= len(ids):
        raise ValueError(f"position={position} must be from 1 to {len(ids)}: it is predicted from the tokens before.")
    if num_recurrences < 1 or top < 1:
        raise ValueError(f"num_recurrences={num_recurrences} and top={top} must be at least 1.")
    token_id = ids[position] if position < len(ids) else None
    # Which tokens lead is known at the end only.
    read_out: list[torch.Tensor] = []

    def read(recurrence, rows, logits):
        read_out.append(logits[0, -1].float().softmax(-1).cpu())

    inputs = torch.tensor([list(ids[:position])], device=model.device)
    with evaluation_mode(model):
        model(inputs, logits_to_keep=1, use_cache=False, num_recurrences=num_recurrences, on_recurrence=read)
    probabilities = torch.stack(read_out)
    leaders = tuple(dict.fromkeys(probabilities.argmax(-1).flip(0).tolist()))
    return Lens(
        position,
        token_id,
        tuple(_step(recurrence, row, token_id, top) for recurrence, row in enumerate(probabilities, 1)),
        leaders,
        tuple(tuple(probabilities[:, leader].tolist()) for leader in leaders),
    )


def _step(recurrence, probabilities, token_id, top):
    best = probabilities.topk(min(top, len(probabilities)))
    of_answer = None if token_id is None else float(probabilities[token_id])
    return LensStep(
        recurrence,
        tuple(best.indices.tolist()),
        tuple(best.values.tolist()),
        of_answer,
        None if token_id is None else int((probabilities > probabilities[token_id]).sum()) + 1,
        float(torch.special.entr(probabilities).sum()),
    )
