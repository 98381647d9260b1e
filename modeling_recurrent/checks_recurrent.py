"""
Checks of the arguments of a call that only it can see: shapes, types, and what a value may be.

A check that reads the values of a tensor runs on a CPU alone: on a GPU it would make the host wait for the device. A
compiled call is not checked.
"""

from collections.abc import Callable, Collection

import torch

from .cache_recurrent import RecurrentDepthCache


def check_inputs(config, input_ids, inputs_embeds, attention_mask, position_ids, use_cache) -> None:
    """
    Checks the inputs of a forward pass.

    Args:
        config (`RecurrentDepthConfig`): `hidden_size` is read.
        input_ids … use_cache: As in `RecurrentDepthModel.forward`.

    Raises:
        `TypeError`, `ValueError`: An argument has the wrong type, shape or values. The message names it.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("Give either input_ids or inputs_embeds.")
    if torch.compiler.is_compiling():
        return
    if input_ids is not None:
        check_ids("input_ids", input_ids)
        shape = input_ids.shape
    else:
        _check_embeddings(inputs_embeds, config.hidden_size)
        shape = inputs_embeds.shape[:2]
    _check_mask(attention_mask)
    if position_ids is not None:
        _check_integers("position_ids", position_ids)
        if position_ids.shape not in (shape, (1, shape[1])):
            raise ValueError(
                f"position_ids has shape {tuple(position_ids.shape)}, but must have {tuple(shape)}, or "
                f"{(1, shape[1])} for all rows."
            )
    if not isinstance(use_cache, bool | None):
        raise TypeError(f"use_cache must be True, False or None, got {use_cache!r}.")


def check_ids(name: str, ids) -> None:
    """
    Checks the type and the shape of token ids.

    Raises:
        `TypeError`, `ValueError`: `ids` is not an integer tensor of shape `(batch, sequence)` with at least one row
            and one token.
    """
    _check_integers(name, ids)
    if ids.ndim != 2:
        hint = f" For a single row, pass {name}[None]." if ids.ndim == 1 else ""
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, but must have two axes, (batch, sequence).{hint}")
    if ids.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, but needs at least one row and one token.")


def _check_integers(name, values):
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"{name} must be a torch.LongTensor, got {_kind(values)}.")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got dtype {values.dtype}.")


def _check_embeddings(embeds, width):
    if not isinstance(embeds, torch.Tensor) or not embeds.is_floating_point():
        raise TypeError(f"inputs_embeds must be a torch.FloatTensor, got {_kind(embeds)}.")
    if embeds.ndim != 3 or embeds.shape[-1] != width or 0 in embeds.shape:
        raise ValueError(
            f"inputs_embeds has shape {tuple(embeds.shape)}, but must have (batch, sequence, {width}), with at least "
            "one row and one token."
        )


def _check_mask(mask):
    # A dictionary holds masks prepared for a static cache; flex attention has masks of its own class.
    if mask is None or isinstance(mask, dict):
        return
    if isinstance(mask, list | tuple | int | float | str):
        raise TypeError(f"attention_mask must be a tensor, got {_kind(mask)}.")
    if not isinstance(mask, torch.Tensor):
        return
    if mask.ndim not in (2, 4):
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, but must have two axes, (batch, tokens), or be a prepared "
            "mask of four."
        )
    if mask.ndim == 2 and mask.device.type == "cpu" and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "attention_mask of two axes must hold 1 for real tokens and 0 for padding, got other values. A mask that "
            "is added to the scores needs four axes."
        )


def embed_tokens(embedding: Callable, input_ids: torch.LongTensor, vocab_size: int) -> torch.Tensor:
    """
    The embeddings of `input_ids`.

    Raises:
        `ValueError`: On a CPU, an id is not in the vocabulary. A GPU reports a device-side assertion.
    """
    return _look_up(embedding, input_ids, vocab_size, "input_ids", "vocab_size")


def embed_positions(embedding: Callable, position_ids: torch.LongTensor, room: int) -> torch.Tensor:
    """
    The learned embeddings of `position_ids`.

    Raises:
        `ValueError`: On a CPU, there is no such position. A GPU reports a device-side assertion.
    """
    return _look_up(embedding, position_ids, room, "position_ids", "max_position_embeddings")


def _look_up(embedding, ids, rows, name, limit):
    if torch.compiler.is_compiling():
        return embedding(ids)
    try:
        return embedding(ids)
    except IndexError:
        low, high = int(ids.min()), int(ids.max())
        if low >= 0 and high < rows:
            raise
        wrong = low if low < 0 else high
        raise ValueError(
            f"{name} holds {wrong}, but {limit}={rows}: it must hold values from 0 to {rows - 1}."
        ) from None


def check_labels(config, labels, shift_labels, input_ids, inputs_embeds, logits_to_keep) -> None:
    """
    Checks what chooses and judges the logits of a call.

    Args:
        config (`RecurrentDepthConfig`): `vocab_size` is read.
        labels … logits_to_keep: As in `RecurrentDepthForCausalLM.forward`.

    Raises:
        `TypeError`, `ValueError`: Labels have another type than the ids, or another shape than the input; on a CPU,
            they hold an id that is not in the vocabulary. Or `logits_to_keep` is neither a number nor indices.
    """
    if torch.compiler.is_compiling():
        return
    if isinstance(logits_to_keep, torch.Tensor):
        _check_integers("logits_to_keep", logits_to_keep)
        length = (input_ids if input_ids is not None else inputs_embeds).shape[1]
        if logits_to_keep.device.type == "cpu" and ((logits_to_keep >= length) | (logits_to_keep < -length)).any():
            raise ValueError(f"logits_to_keep holds {logits_to_keep.max()}, but must be below {length}, the tokens.")
    elif isinstance(logits_to_keep, bool) or not isinstance(logits_to_keep, int):
        raise TypeError(f"logits_to_keep must be an int or a tensor of indices, got {logits_to_keep!r}.")
    elif logits_to_keep < 0:
        raise ValueError(f"logits_to_keep={logits_to_keep} must be at least 0. With 0 all logits are computed.")
    inputs = input_ids if inputs_embeds is None else inputs_embeds
    keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
    shape = inputs.shape[:2] if keeps_all and isinstance(inputs, torch.Tensor) else None
    for name, given in (("labels", labels), ("shift_labels", shift_labels)):
        if given is not None:
            _check_labels(name, given, shape, config.vocab_size)


def _check_labels(name, labels, shape, vocab_size):
    _check_integers(name, labels)
    if shape is not None and labels.shape != shape:
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}, but must have {tuple(shape)}: one label for each token of the "
            "input, -100 where there is none."
        )
    if labels.device.type == "cpu" and labels.numel():
        wrong = labels[(labels >= vocab_size) | ((labels < 0) & (labels != -100))]
        if wrong.numel():
            raise ValueError(
                f"{name} holds {int(wrong[0])}, but vocab_size={vocab_size}: it must hold values from 0 to "
                f"{vocab_size - 1}, and -100 where there is no label."
            )


def check_resume(resume, depth, cache) -> None:
    """Raises a `ValueError` if a call cannot continue from the recurrence of `resume`."""
    if resume is None:
        return
    has_keys = cache is None or isinstance(cache, RecurrentDepthCache)
    if not isinstance(depth, int) or not has_keys or resume[0] >= depth:
        raise ValueError(
            f"resume needs an int num_recurrences above its {resume[0]} recurrences, and either a RecurrentDepthCache "
            "or use_cache=False with the whole text."
        )


def check_hooks(arguments: dict) -> None:
    """
    Checks arguments of a forward pass that few calls have.

    Raises:
        `TypeError`: `on_recurrence`, `recurrences_to_show`, `backprop_from`, `state_seed` or `initial_state` has the
            wrong type.
    """
    if (given := arguments.get("on_recurrence")) is not None and not callable(given):
        raise TypeError(f"on_recurrence must be a function, got {given!r}.")
    for name in ("recurrences_to_show", "backprop_from"):
        given = arguments.get(name)
        if given is not None and (not isinstance(given, Collection) or isinstance(given, str | bytes)):
            raise TypeError(f"{name} must be a collection of recurrences, such as {{1, 2}}, got {given!r}.")
        for recurrence in given or ():
            if isinstance(recurrence, bool) or not isinstance(recurrence, int) or recurrence < 1:
                raise ValueError(f"{name} must hold recurrences, counted from 1, got {recurrence!r}.")
    if arguments.get("recurrences_to_show") is not None and arguments.get("on_recurrence") is None:
        shown = arguments["recurrences_to_show"]
        raise ValueError(f"recurrences_to_show={shown!r} needs on_recurrence, the function that is called.")
    seed, state = arguments.get("state_seed"), arguments.get("initial_state")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | torch.Tensor)):
        raise TypeError(f"state_seed must be an int, got {seed!r}.")
    if state is not None and not isinstance(state, torch.Tensor):
        raise TypeError(f"initial_state must be a torch.FloatTensor, got {_kind(state)}.")


def _kind(value):
    return f"dtype {value.dtype}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


__all__ = [
    "check_hooks",
    "check_ids",
    "check_inputs",
    "check_labels",
    "check_resume",
    "embed_positions",
    "embed_tokens",
]
