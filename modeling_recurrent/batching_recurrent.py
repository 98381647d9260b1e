"""What the library's continuous batching would ignore, or compute otherwise than `generate`."""

import functools
import inspect

import torch
from transformers import GenerationConfig

from .arguments_recurrent import GENERATE_ARGUMENTS, OWN_ARGUMENTS, refuse_misspelt
from .attention_recurrent import batches_bounded_scores, bounds_scores
from .halting_recurrent import applies
from .positions_recurrent import ROPE_BY_LENGTH, rope_types


# The arguments that continuous batching follows, because it must have the values of the model's config.
_OF_CONFIG = ("num_recurrences", "halting_criterion", "cache_recurrences", "state_seed")


def check_continuous_batching(config, *generation_configs) -> None:
    """
    Checks that continuous batching gives the texts of `generate`.

    Args:
        config (`RecurrentDepthConfig`): The config of the model, which sets the depth of continuous batching.
        generation_configs (`GenerationConfig` or `None`): What `generate` would follow, the first one first; also
            the arguments of a call, as an object.

    Raises:
        `ValueError`: `generate` would follow other arguments, or the texts would change for another reason.
        `TypeError`: As `refuse_misspelt`.
    """
    reason = _reason(config) or _ignored(config, _merge(generation_configs))
    if reason is not None:
        raise ValueError(f"Continuous batching would change the texts of this model: {reason}, or use generate.")


def _merge(generation_configs):
    """What `generate` does not share with other models, from all objects; the first one that has a value counts."""
    fields = [vars(generation_config) for generation_config in generation_configs if generation_config is not None]
    shared = vars(GenerationConfig())
    own = {}
    for values in reversed(fields):
        own |= {name: value for name, value in values.items() if name not in shared and value is not None}
    refuse_misspelt(own, "generate_batch", known=GENERATE_ARGUMENTS, warns=False)
    return own


def _ignored(config, given):
    """An argument that `generate` would follow or refuse."""
    for name in (*OWN_ARGUMENTS, "depth_schedule"):
        value = given.get(name)
        if value is None or (name == "halting_criterion" and value == "none"):
            continue
        ignored = f"it ignores {name}={value!r} of the call or its generation_config"
        if name not in _OF_CONFIG:
            if applies(name, given):
                return f"{ignored}. Leave it out"
        elif isinstance(value, torch.Tensor) or value != getattr(config, name):
            return f"{ignored}. Set it in the model's config"
    return None


def _reason(config):
    if config.halting_criterion is not None:
        return (
            f"it runs every token through all recurrences, but the model's config has halting_criterion="
            f"{config.halting_criterion!r}. Set it to None"
        )
    if config.cache_recurrences != "all":
        return "it keeps all recurrences, but the model's config has cache_recurrences='last'. Set it to 'all'"
    kinds = rope_types(config) & set(ROPE_BY_LENGTH)
    if kinds:
        return (
            f"with rope_type={min(kinds)!r} positions depend on the longest text of a batch, in which other requests "
            "run, too. Serve it with `memreason serve`"
        )
    if bounds_scores(config) and not batches_bounded_scores(config._attn_implementation):
        return (
            f"with attn_implementation={config._attn_implementation!r} it does not bound the scores of attention, but "
            f"the layers have attn_logit_softcapping={config.attn_logit_softcapping}. Use a flash attention"
        )
    return None


def check_positions(config, name: str, prompt, max_new_tokens: int | None) -> None:
    """
    Raises a `ValueError` if a text needs more learned positions than there are. In a batch it would fail all others.

    Args:
        config (`RecurrentDepthConfig`): The config of the model.
        name (`str`): What the message calls the prompt.
        prompt (`list` of `int`): The ids of the prompt.
        max_new_tokens (`int`, *optional*): The number of new tokens. The last one is not read.
    """
    if config.position_embedding_type != "learned":
        return
    new, room = max_new_tokens or 1, config.max_position_embeddings
    if len(prompt) + new - 1 > room:
        raise ValueError(
            f"{name} has {len(prompt)} tokens, and with max_new_tokens={max_new_tokens} the text needs "
            f"{len(prompt) + new - 1} positions, but only max_position_embeddings={room} learned positions exist. "
            "Shorten the prompt, or lower max_new_tokens."
        )


def check_requests(manager, config) -> None:
    """
    Makes a `ContinuousBatchingManager` refuse requests as `check_positions` does.

    Args:
        manager (`ContinuousBatchingManager`): The manager, which may have been kept from an earlier call.
        config (`RecurrentDepthConfig`): The config of the model.
    """
    if config.position_embedding_type != "learned" or "add_request" in vars(manager):
        return
    add_request = manager.add_request
    signature = inspect.signature(add_request)

    @functools.wraps(add_request)
    def add_checked_request(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        new = given.get("max_new_tokens")
        new = manager.generation_config.max_new_tokens if new is None else new
        check_positions(config, f"The request {given.get('request_id')!r}", given["input_ids"], new)
        return add_request(*args, **kwargs)

    manager.add_request = add_checked_request


__all__ = ["check_continuous_batching", "check_positions", "check_requests"]
