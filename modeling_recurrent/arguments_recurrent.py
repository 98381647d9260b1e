"""Keyword arguments of a call that set its depth and report its recurrences."""

import difflib
from collections.abc import Callable, Collection
from typing import TypedDict

import torch
from transformers.utils import TransformersKwargs, logging


logger = logging.get_logger(__name__)


class DepthKwargs(TypedDict, total=False):
    """
    Keyword arguments that set the depth of `forward` and `generate`. All of them are also fields of
    `RecurrentDepthConfig`. The value of a call takes precedence over the config's.

    Attributes:
        num_recurrences (`int`, or `torch.LongTensor` of shape `()`, `(batch,)` or `(batch, sequence)`, *optional*):
            The number of recurrences of all tokens, of each row or of each token. In a tensor, 0 leaves the row or
            token to the halting criterion.
        min_recurrences (`int`, *optional*):
            The first recurrence at which a row or token may halt.
        max_recurrences (`int`, or `torch.LongTensor` of shape `()`, `(batch,)` or `(batch, sequence)`, *optional*):
            The recurrence at which every row or token halts at the latest.
        halting_criterion (`str`, *optional*):
            The name of a halting criterion, or `"none"` to switch the config's off.
        halting_granularity (`"token"` or `"sequence"`, *optional*):
            Whether each token halts on its own, or a row as a whole.
        kl_threshold, entropy_threshold (`float`, *optional*): In nats.
        confidence_threshold, exit_gate_threshold (`float`, *optional*): Probabilities.
        margin_threshold (`float`, *optional*): A difference of logits.
        state_difference_threshold, acceleration_threshold (`float`, *optional*): Relative to the norm of the state.
        argmax_patience (`int`, *optional*): In recurrences.
    """

    num_recurrences: int | torch.LongTensor | None
    min_recurrences: int | None
    max_recurrences: int | torch.LongTensor | None
    halting_criterion: str | None
    halting_granularity: str | None
    kl_threshold: float | None
    entropy_threshold: float | None
    confidence_threshold: float | None
    margin_threshold: float | None
    exit_gate_threshold: float | None
    state_difference_threshold: float | None
    acceleration_threshold: float | None
    argmax_patience: int | None


class RecurrentDepthKwargs(DepthKwargs, TransformersKwargs, total=False):
    """
    Keyword arguments of the forward pass of a recurrent-depth model.

    Attributes:
        cache_recurrences (`"all"` or `"last"`, *optional*):
            Which recurrences a new cache keeps; see `RecurrentDepthCache`.
        on_recurrence (`Callable`, *optional*):
            Called after each recurrence with its index (from 1), the indices of the rows that are still computed
            (`None` for all rows) and what the model would return if it stopped there: logits of shape
            `(rows, kept positions, vocab)`, or, from `RecurrentDepthModel`, the state before the last norm.
        recurrences_to_show (`Collection[int]`, *optional*):
            The recurrences after which `on_recurrence` is called, counted from 1. Coda and head do not run after the
            others. `None`: all of them.
        backprop_from (`Collection[int]`, *optional*):
            With `backprop_recurrences` in the config: the recurrences from which gradients flow back in addition to
            the last one, each through the `backprop_recurrences` that end there.
        state_seed (`int`, *optional*):
            The seed of the noise of `state_init="normal"` and `"truncated_normal"`.
        initial_state (`torch.FloatTensor` of shape `(batch, sequence, hidden)`, *optional*):
            The state before the first recurrence, in place of that of `state_init`. Not for `generate`.
    """

    cache_recurrences: str | None
    on_recurrence: Callable | None
    recurrences_to_show: Collection[int] | None
    backprop_from: Collection[int] | None
    state_seed: int | None
    initial_state: torch.FloatTensor | None


DEPTH_ARGUMENTS = tuple(DepthKwargs.__annotations__)
# The arguments that the library itself does not define.
OWN_ARGUMENTS = tuple(
    name for name in RecurrentDepthKwargs.__annotations__ if name not in TransformersKwargs.__annotations__
)
# The arguments that `generate` has in addition.
GENERATE_ARGUMENTS = ("draft_recurrences", "draft_tokens", "depth_schedule")
# The other arguments of `forward`.
_LIBRARY_ARGUMENTS = (
    *TransformersKwargs.__annotations__,
    "attention_mask",
    "input_ids",
    "inputs_embeds",
    "labelled_logits_only",
    "labels",
    "logits_to_keep",
    "past_key_values",
    "position_ids",
    "recurrence_loss",
    "recurrence_loss_weights",
    "return_dict",
    "shift_labels",
    "use_cache",
)
# What the model passes to its decoder, and inference engines to their attention functions.
_ENGINE_ARGUMENTS = (
    "attention_instances",
    "block_table",
    "cache",
    "cache_position",
    "head",
    "logits_indices",
    "logits_processor_args",
    "max_seqlen_k",
    "max_seqlen_q",
    "on_gate",
    "read_index",
    "resume",
    "separation",
    "write_index",
)
# Names with these words are meant for this model, even if they are far from those of its arguments.
_OWN_WORDS = ("recur", "halt", "criteri", "threshold")


def take_depth(kwargs: dict) -> dict:
    """
    Removes the depth arguments from `kwargs` and returns them. Arguments that are not given are `None`.

    Raises:
        `TypeError`: As `refuse_misspelt`.
    """
    depth = {name: kwargs.pop(name, None) for name in DEPTH_ARGUMENTS}
    refuse_misspelt(kwargs, "forward")
    return depth


def refuse_misspelt(kwargs: dict, function: str, *, known: tuple[str, ...] = (), warns: bool = True) -> None:
    """
    Refuses names that look like misspelt arguments of a recurrent-depth model.

    Arguments that the model does not know go to the attention function, which ignores most of them. So names like
    those of arguments are refused, and all others cause a warning.

    Args:
        kwargs (`dict`): Arguments by name. Those that the model knows are skipped.
        function (`str`): What messages call the function.
        known (`tuple` of `str`): Further arguments of the function.
        warns (`bool`, defaults to `True`): Whether other unknown names cause a warning.

    Raises:
        `TypeError`: A name is close to that of an argument, or speaks of recurrences or halting.
    """
    if torch.compiler.is_compiling():  # `difflib` cannot be compiled
        return
    own = (*OWN_ARGUMENTS, *known)
    for name in kwargs:
        if name in own or name in _LIBRARY_ARGUMENTS or name in _ENGINE_ARGUMENTS:
            continue
        close = difflib.get_close_matches(name, own, n=1, cutoff=0.8)
        close = close or difflib.get_close_matches(name, _LIBRARY_ARGUMENTS, n=1, cutoff=0.85)
        if close or any(word in name for word in _OWN_WORDS):
            hint = f"Did you mean {close[0]!r}?" if close else f"It has {', '.join(own)}."
            raise TypeError(f"{name}={kwargs[name]!r}: {function} has no such argument. {hint}")
        if warns:
            logger.warning_once(
                f"{function} has no argument {name!r}. It is passed on to the attention function, which may ignore it."
            )


__all__ = [
    "DEPTH_ARGUMENTS",
    "GENERATE_ARGUMENTS",
    "OWN_ARGUMENTS",
    "DepthKwargs",
    "RecurrentDepthKwargs",
    "refuse_misspelt",
    "take_depth",
]
