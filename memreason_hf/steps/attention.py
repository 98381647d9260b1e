"""
Sparse attention between steps, for any decoder of the library with eager or SDPA attention.

    set_step_attention(model, tokenizer, "tokens")
    model.generate(...)                     # training, evaluation and saving work as before
    model = AutoModelForCausalLM.from_pretrained(folder)
    restore_step_attention(model, folder)

There are two variants, both causal. With `"own"` an ordinary token attends to its own step only, and a step token to
everything (the option of "Disentangling Memory and Reasoning Ability in Large Language Models", arXiv 2411.13504).
With `"tokens"` an ordinary token attends to the question, all earlier step tokens and its own step. The question is
the text before the first step. Other masks of a model, such as a sliding window, apply in addition.

Decoding token by token needs the steps of earlier tokens, so their ids are kept with the cache.
"""

import contextlib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from memreason_hf.files import read_json, write_json
from memreason_hf.patches import attach, attached, detach, override, remove_override
from memreason_hf.steps.cached_ids import cache_in, read_past, record_ids
from memreason_hf.steps.masks import IMPLEMENTATIONS, VARIANTS, ForwardSteps, StepTokens
from memreason_hf.steps.tokenization import token_groups
from modeling_recurrent import RecurrentDepthConfig


# The entry of a model's config, and the file in the folder of an adapter, which holds no config of the model.
STEP_ATTENTION_KEY = "step_attention"
RecurrentDepthConfig.register_key(STEP_ATTENTION_KEY)
STEP_ATTENTION_FILE = "step_attention.json"
_ATTENTION = "step_attention"


def set_step_attention(
    model: torch.nn.Module,
    tokens: PreTrainedTokenizerBase | Mapping[str, Sequence[int]],
    variant: str | None,
) -> None:
    """
    Sets the attention between the steps of a text. It replaces what was set before.

    The setting is recorded in the model's config and saved with it, also if the attention was removed again.
    `restore_step_attention` sets it after loading.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal language model, or the PEFT model around one.
        tokens ([`~transformers.PreTrainedTokenizerBase`] or `Mapping`):
            The extended tokenizer (`extend_tokenizer`), or the ids of every group of step tokens.
        variant (`str`, *optional*): `"own"`, `"tokens"`, or `None` for the model's usual attention.

    Raises:
        ValueError: an unknown variant; a scheme without tokens; ids beyond the model's embedding rows; an attention
            implementation other than eager and SDPA; a model with recurrent layers, such as Mamba. Later calls of the
            model raise it for beam search, a static cache, packed sequences, a mask for pairs of tokens,
            `inputs_embeds` without ids, and a cache that was filled in another way.

    Example:

    ```python
    >>> from memreason_hf import StepScheme, extend_tokenizer
    >>> from memreason_hf.steps.attention import get_step_attention, set_step_attention

    >>> ids = extend_tokenizer(tokenizer, StepScheme(num_prefix_tokens=1, num_step_tokens=1), model)
    >>> set_step_attention(model, tokenizer, "tokens")
    >>> get_step_attention(model)
    'tokens'
    ```
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} must be one of {', '.join(VARIANTS)}, or None.")
    model = _inner_model(model)
    if variant is None:
        recorded = getattr(model.config, STEP_ATTENTION_KEY, None)
        _remove(model)
        if isinstance(recorded, Mapping):
            # An adapter must record this, too: its base may have been saved with an attention that it removed.
            setattr(model.config, STEP_ATTENTION_KEY, {**recorded, "variant": None})
        return
    groups = token_groups(tokens)
    step_tokens = StepTokens(groups)
    kernel = _check_model(model, step_tokens)
    _remove(model)
    model.set_attn_implementation(IMPLEMENTATIONS[kernel])
    if model.config._attn_implementation != IMPLEMENTATIONS[kernel]:
        raise ValueError(
            f"{type(model).__name__} does not take its attention from the registered functions of the library."
        )
    decoder = model.get_decoder()
    attach(decoder, _ATTENTION, _StepAttention(decoder, step_tokens, variant))
    if model.can_generate():
        override(model, "_validate_generation_mode", _refuse_beams)
    setattr(model.config, STEP_ATTENTION_KEY, {"variant": variant, "tokens": step_tokens.groups})


def get_step_attention(model: torch.nn.Module) -> str | None:
    """The variant of the attention between steps, `"own"` or `"tokens"`, or `None` without it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = attached(inner.get_decoder(), _ATTENTION) if isinstance(inner, PreTrainedModel) else None
    return None if attention is None else attention.variant


def save_step_attention(model: torch.nn.Module, folder: str | os.PathLike) -> None:
    """
    Writes the setting into the folder of an adapter, for `restore_step_attention`.

    The folder of a whole model needs no such file, because it holds the model's config.
    """
    config = _inner_model(model).config
    recorded = getattr(config, STEP_ATTENTION_KEY, None)
    path = Path(folder) / STEP_ATTENTION_FILE
    if recorded is None:
        path.unlink(missing_ok=True)
        return
    # The base may have been saved with another attention than the adapter was trained with.
    values = recorded if get_step_attention(model) else {**recorded, "variant": None}
    write_json(path, values)


def restore_step_attention(model: torch.nn.Module, folder: str | os.PathLike | None = None) -> str | None:
    """
    Sets the attention between steps that a model was saved with.

    Args:
        model ([`~transformers.PreTrainedModel`]): The loaded model, or the PEFT model around it.
        folder (`str` or `os.PathLike`, *optional*):
            The folder of the model or the adapter, or its name on the Hub. Without an adapter the model's config is
            enough.

    Returns:
        The variant, or `None` if there is none.

    Raises:
        ValueError: the setting cannot be read.
    """
    recorded, where = getattr(_inner_model(model).config, STEP_ATTENTION_KEY, None), "the config"
    path = None
    if folder is not None:
        # A model without this attention has no such file.
        with contextlib.suppress(OSError):
            path = cached_file(os.fspath(folder), STEP_ATTENTION_FILE)
    if path is not None:
        where = path
        try:
            recorded = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error} Restore the file that was saved with the adapter.") from None
    if recorded is None:
        return None
    if not isinstance(recorded, Mapping) or {"variant", "tokens"} - recorded.keys():
        raise ValueError(f"{STEP_ATTENTION_KEY}={recorded!r} in {where} lacks 'variant' or 'tokens'.")
    set_step_attention(model, recorded["tokens"], recorded["variant"])
    return recorded["variant"]


def _inner_model(model) -> PreTrainedModel:
    """The library's model inside PEFT's."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"model must be a PreTrainedModel of transformers, got {type(inner).__name__}.")
    return inner


def _check_model(model, step_tokens) -> str:
    """Returns the kernel that computes the model's attention."""
    rows = model.get_input_embeddings().weight.shape[0]
    if step_tokens.ids[-1] >= rows:
        raise ValueError(
            f"The step tokens have ids up to {int(step_tokens.ids[-1])}, but the model's embedding has {rows} rows. "
            "Extend both: extend_tokenizer(tokenizer, scheme, model)."
        )
    if model._is_stateful:
        raise ValueError(
            f"{type(model).__name__} has layers that carry a state from token to token, which no mask can hide. "
            "Attention between steps needs a model with attention layers only."
        )
    kernels = {name: kernel for kernel, name in IMPLEMENTATIONS.items()}
    kernel = kernels.get(model.config._attn_implementation, model.config._attn_implementation)
    if kernel not in IMPLEMENTATIONS:
        raise ValueError(
            f"attn_implementation={kernel!r}: attention between steps needs {' or '.join(IMPLEMENTATIONS)}. Load the "
            "model with one of them."
        )
    return kernel


def _remove(model):
    decoder = model.get_decoder()
    attention = attached(decoder, _ATTENTION)
    if attention is not None:
        attention.remove()
        detach(decoder, _ATTENTION)
        kernels = {name: kernel for kernel, name in IMPLEMENTATIONS.items()}
        if model.config._attn_implementation in kernels:
            model.set_attn_implementation(kernels[model.config._attn_implementation])
    remove_override(model, "_validate_generation_mode")
    if hasattr(model.config, STEP_ATTENTION_KEY):
        delattr(model.config, STEP_ATTENTION_KEY)


def _refuse_beams(model, generation_mode, generation_config, *args, **kwargs):
    """Replaces the check that `generate` makes before it starts, and makes that check afterwards."""
    if generation_config.num_beams > 1:
        raise ValueError(
            f"num_beams={generation_config.num_beams}: attention between steps does not support beam search. Use "
            "num_beams=1, or set_step_attention(model, tokenizer, None)."
        )
    return type(model)._validate_generation_mode(model, generation_mode, generation_config, *args, **kwargs)


class _StepAttention:
    """
    Hooks around the forward pass of a decoder: they pass the ids to the mask function, and keep them with the cache.

    The hooks are on the decoder, because every model around it creates its masks there.

    Args:
        decoder (`torch.nn.Module`): The decoder of a model.
        tokens (`StepTokens`): The step tokens.
        variant (`str`): One of `VARIANTS`.
    """

    def __init__(self, decoder, tokens: StepTokens, variant: str):
        self.tokens = tokens
        self.variant = variant
        self.handles = [
            decoder.register_forward_pre_hook(self.before, with_kwargs=True),
            # Called after an error, too, so that the next forward pass does not find the steps of this one.
            decoder.register_forward_hook(self.after, always_call=True),
        ]

    def remove(self):
        """Removes the hooks."""
        for handle in self.handles:
            handle.remove()

    def before(self, decoder, args, kwargs):
        """Reads the steps of the past and the new tokens."""
        inputs = kwargs
        if args:
            inputs = {**inspect.signature(decoder.forward).bind_partial(*args).arguments, **kwargs}
        ids, cache = inputs.get("input_ids"), inputs.get("past_key_values")
        self._check(decoder, ids, cache, inputs)
        past = read_past(cache, len(ids))
        ids = ids if past is None else torch.cat((past.to(ids.device), ids), dim=1)
        real = inputs.get("attention_mask")
        real = real.to(ids.device).bool() if isinstance(real, torch.Tensor) and real.ndim == 2 else None
        if real is not None and real.shape != ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(real.shape)}, but the input with its past has shape "
                f"{tuple(ids.shape)}. It needs one entry for each token."
            )
        is_step_token, step = self.tokens.read(ids, real)
        ForwardSteps(
            owner=self,
            config=decoder.config,
            variant=self.variant,
            ids=ids,
            is_step_token=is_step_token,
            step=step,
            cache=cache,
            rows=getattr(decoder, "masked_rows", None),
        ).enter()

    def after(self, decoder, args, output):
        """Keeps the ids with the cache."""
        steps = ForwardSteps.leave(self)
        if steps is None or output is None:
            return
        cache = steps.cache if steps.cache is not None else cache_in(output)
        if cache is not None:
            record_ids(cache, steps.ids)

    def _check(self, decoder, ids, cache, inputs):
        implementation = decoder.config._attn_implementation
        if implementation not in IMPLEMENTATIONS.values():
            raise ValueError(
                f"attn_implementation={implementation!r} was set after the attention between steps, which needs "
                f"{' or '.join(IMPLEMENTATIONS)}. Set one of them and call set_step_attention again, or remove it "
                "first: set_step_attention(model, tokenizer, None)."
            )
        if ids is None:
            raise ValueError(
                "Step attention finds the steps in input_ids, but only inputs_embeds was given. Pass input_ids."
            )
        if getattr(cache, "is_compileable", False):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}: attention between steps does not support a static "
                "cache. Use a DynamicCache, or the model's own cache."
            )
        mask = inputs.get("attention_mask")
        if mask is not None and getattr(mask, "ndim", None) != 2:
            # The library would use such a mask unchanged, in place of all others.
            shown = f"has shape {tuple(mask.shape)}" if hasattr(mask, "shape") else f"is a {type(mask).__name__}"
            raise ValueError(
                f"attention_mask {shown}: attention between steps makes the mask between pairs of tokens itself. Pass "
                "one of shape (batch, tokens), 0 on padding, or call set_step_attention(model, tokenizer, None)."
            )
        positions = inputs.get("position_ids")
        could_be_packed = cache is None and mask is None and positions is not None
        if could_be_packed and (positions.diff(dim=-1) != 1).any():
            raise ValueError(
                "position_ids restart within a row, but attention between steps treats a row as one text. Put "
                "each text into a row of its own, with an attention_mask."
            )
