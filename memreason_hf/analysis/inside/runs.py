"""
Runs that keep what the loop computes, and runs that continue from a given state.

A run that continues from the state after recurrence t computes the recurrences t + 1, t + 2, ... only. If the state is
unchanged, it gives the logits of the whole run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from memreason_hf.checks import check_int, check_type
from memreason_hf.evaluation.mode import MOST_RECURRENCES
from modeling_recurrent import RecurrentDepthConfig


@dataclass(frozen=True)
class LoopRecord:
    """
    What a run computed.

    Attributes:
        states: the state before the first recurrence and after each, shape `(recurrences + 1, rows, tokens, hidden)`.
        inputs: the input of the loop, which `input_injection` adds again, shape `(rows, tokens, hidden)`.
        logits: at the last token, shape `(rows, vocab)`.
    """

    states: torch.Tensor
    inputs: torch.Tensor
    logits: torch.Tensor


def check_run(model: torch.nn.Module, input_ids: torch.Tensor, num_recurrences: int) -> None:
    """
    Checks what an analysis is called with.

    Raises:
        TypeError: the model is not a recurrent-depth language model, or the ids are not a tensor of integers.
        ValueError: the ids are not of shape `(rows, tokens)`, there are none or one is outside the vocabulary, or
            `num_recurrences` is below 1.
    """
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) != RecurrentDepthConfig.model_type or not hasattr(model, "compute_logits"):
        raise TypeError(f"model must be a RecurrentDepthForCausalLM, got {type(model).__name__}.")
    check_type("input_ids", input_ids, torch.Tensor, "a tensor of token ids")
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids has dtype {input_ids.dtype}, but must hold token ids (torch.int64).")
    if input_ids.ndim != 2 or not input_ids.numel():
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, but must be (rows, tokens), with tokens.")
    least, most = int(input_ids.min()), int(input_ids.max())
    if least < 0 or most >= config.vocab_size:
        raise ValueError(
            f"input_ids holds ids from {least} to {most}, but the model's vocab_size is {config.vocab_size}. Use the "
            "tokenizer that the model was trained with."
        )
    check_int("num_recurrences", num_recurrences, least=1, most=MOST_RECURRENCES)


def record_run(model: torch.nn.Module, input_ids: torch.Tensor, num_recurrences: int) -> LoopRecord:
    """
    Runs the model and keeps the states.

    Args:
        model: in evaluation mode (see `evaluation_mode`), without gradients.
        input_ids: rows of equal length, shape `(rows, tokens)`, on the model's device.
        num_recurrences: how many recurrences run.
    """
    with _watched_input(model) as seen:
        outputs = model(
            input_ids,
            num_recurrences=num_recurrences,
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
    return LoopRecord(torch.stack(outputs.hidden_states), seen[-1], outputs.logits[:, -1])


def continue_run(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    state: torch.Tensor,
    recurrence: int,
    num_recurrences: int,
    inputs: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The logits at the last token of a run that continues from the state after `recurrence`.

    Args:
        model: as for `record_run`.
        input_ids: the tokens, shape `(rows, tokens)`.
        state: shape `(rows, tokens, hidden)`.
        recurrence: how many recurrences the state has taken, from 0.
        num_recurrences: the last recurrence, above `recurrence`.
        inputs: the input of the loop in the recurrences that run, in place of that of the tokens.

    Returns:
        Shape `(rows, vocab)`.
    """
    with _watched_input(model, inputs):
        outputs = model(
            input_ids,
            resume=(recurrence, state),
            num_recurrences=num_recurrences,
            use_cache=False,
            logits_to_keep=1,
        )
    return outputs.logits[:, -1]


@contextmanager
def _watched_input(model, replacement: torch.Tensor | None = None) -> Iterator[list[torch.Tensor]]:
    """Collects the input of the loop in every call; `replacement` takes its place."""
    decoder = model.model
    last = decoder.prelude_layers[-1] if decoder.prelude_layers else decoder.embedding_dropout
    seen = []

    def watch(module, arguments, output):
        # Our own blocks return their attention weights, too.
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        hidden = hidden if replacement is None else replacement
        seen.append(hidden)
        return (hidden, *rest) if isinstance(output, tuple) else hidden

    handle = last.register_forward_hook(watch)
    try:
        yield seen
    finally:
        handle.remove()
