"""
Sparse attention between steps, for any decoder of the library that is computed by eager or SDPA attention.

    set_step_attention(model, tokenizer, "tokens")
    model.generate(...)                     # and training, evaluation, saving: as before
    model = AutoModelForCausalLM.from_pretrained(folder)
    restore_step_attention(model, folder)

Two variants, both causal. `"own"`: an ordinary token sees only its own step, a step token sees everything (the option
of "Disentangling Memory and Reasoning Ability in Large Language Models", arXiv 2411.13504). `"tokens"`: an ordinary
token sees the question, all earlier step tokens and its own step. The question is what stands before the first step.
Other masks of a model, such as a sliding window, hold besides.

A model that is decoded token by token has to know the steps of tokens that came before: they are kept with its cache.
"""

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from memreason_hf.files import write_json
from memreason_hf.steps.cached_ids import cache_in, read_past, record_ids
from memreason_hf.steps.masks import IMPLEMENTATIONS, VARIANTS, Sight, StepTokens
from memreason_hf.steps.tokenization import step_token_ids


# The entry of a model's config, and the file beside an adapter, whose folder holds no config of the model.
STEP_ATTENTION_KEY = "step_attention"
STEP_ATTENTION_FILE = "step_attention.json"
# Of the decoder.
_ATTRIBUTE = "_step_attention"


def set_step_attention(
    model: torch.nn.Module,
    tokens: PreTrainedTokenizerBase | Mapping[str, Sequence[int]],
    variant: str | None,
) -> None:
    """
    Sets the attention between the steps of a text; set again it replaces what was set before.

    It is noted in the model's config, and saved with it (`restore_step_attention`); also that it was taken off again.

    Args:
        model: a causal language model, or the PEFT model around one.
        tokens: the tokenizer that was extended (`extend_tokenizer`), or the ids of every group of step tokens.
        variant: `"own"`, `"tokens"`, or None for the model's usual attention.

    Raises:
        ValueError: an unknown variant; a scheme without tokens; ids beyond the model's rows; an attention
            implementation other than eager and SDPA; a model with recurrent layers, such as Mamba. Later calls refuse
            what cannot be right: beam search, a static cache, packed sequences, a mask for pairs of tokens,
            `inputs_embeds` without ids, a cache that was filled in another way.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} of attention between steps is unknown: {', '.join(VARIANTS)}, or None.")
    model = _inner_model(model)
    if variant is None:
        noted = getattr(model.config, STEP_ATTENTION_KEY, None)
        _remove(model)
        if isinstance(noted, Mapping):
            # Still to be told: the base of an adapter can have been saved with an attention that this model lacks.
            setattr(model.config, STEP_ATTENTION_KEY, {**noted, "variant": None})
        return
    groups = step_token_ids(tokens) if isinstance(tokens, PreTrainedTokenizerBase) else tokens
    step_tokens = StepTokens(groups)
    rows = model.get_input_embeddings().weight.shape[0]
    if step_tokens.ids[-1] >= rows:
        raise ValueError(
            f"The step tokens have ids up to {int(step_tokens.ids[-1])}, the model {rows} rows: extend both, "
            "extend_tokenizer(tokenizer, scheme, model)."
        )
    if model._is_stateful:
        raise ValueError(
            f"{type(model).__name__} has layers that carry a state from token to token, which no mask holds back: "
            "attention between steps needs a model that has attention alone."
        )
    names = {name: kernel for kernel, name in IMPLEMENTATIONS.items()}
    kernel = names.get(model.config._attn_implementation, model.config._attn_implementation)
    if kernel not in IMPLEMENTATIONS:
        raise ValueError(
            f"attn_implementation={kernel!r}: attention between steps is computed by {' or '.join(IMPLEMENTATIONS)} "
            "only. Load the model with one of them."
        )
    _remove(model)
    model.set_attn_implementation(IMPLEMENTATIONS[kernel])
    if model.config._attn_implementation != IMPLEMENTATIONS[kernel]:
        raise ValueError(
            f"{type(model).__name__} does not take its attention from the library's registered functions."
        )
    decoder = model.get_decoder()
    setattr(decoder, _ATTRIBUTE, _StepAttention(decoder, step_tokens, variant))
    if model.can_generate():
        model._validate_generation_mode = _NoBeams(model)
    setattr(model.config, STEP_ATTENTION_KEY, {"variant": variant, "tokens": step_tokens.groups})


def get_step_attention(model: torch.nn.Module) -> str | None:
    """The variant that is set: `"own"`, `"tokens"`, or None."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = getattr(inner.get_decoder(), _ATTRIBUTE, None) if isinstance(inner, PreTrainedModel) else None
    return None if attention is None else attention.variant


def save_step_attention(model: torch.nn.Module, folder: str | os.PathLike) -> None:
    """
    Writes what is set into the folder of an adapter, for `restore_step_attention`. A folder that holds the model's own
    config needs no such file.
    """
    config = _inner_model(model).config
    noted = getattr(config, STEP_ATTENTION_KEY, None)
    path = Path(folder) / STEP_ATTENTION_FILE
    if noted is None:
        path.unlink(missing_ok=True)
        return
    # The base model can have been saved with another attention than the adapter was trained with.
    values = noted if get_step_attention(model) else {**noted, "variant": None}
    write_json(path, values)


def restore_step_attention(model: torch.nn.Module, folder: str | os.PathLike | None = None) -> str | None:
    """
    Sets the attention that a model was saved with.

    Args:
        model: as it was loaded.
        folder: of the model or adapter, or its name on the Hub; None if the model's config is enough, as it is where
            no adapter was loaded.

    Returns:
        The variant, None if there was none.

    Raises:
        ValueError: a note that cannot be read.
    """
    noted, where = getattr(_inner_model(model).config, STEP_ATTENTION_KEY, None), "the config"
    path = None
    if folder is not None:
        path = cached_file(
            os.fspath(folder),
            STEP_ATTENTION_FILE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
        )
    if path is not None:
        where = path
        try:
            noted = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON ({error}). Take the file that was saved with the adapter.") from None
    if noted is None:
        return None
    if not isinstance(noted, Mapping) or {"variant", "tokens"} - noted.keys():
        raise ValueError(f"{STEP_ATTENTION_KEY}={noted!r} in {where} lacks 'variant' or 'tokens'.")
    set_step_attention(model, noted["tokens"], noted["variant"])
    return noted["variant"]


def _inner_model(model) -> PreTrainedModel:
    """The model of the library inside of PEFT's."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"{type(inner).__name__} is no model of the library (PreTrainedModel).")
    return inner


def _remove(model):
    decoder = model.get_decoder()
    attention = getattr(decoder, _ATTRIBUTE, None)
    if attention is not None:
        attention.remove()
        delattr(decoder, _ATTRIBUTE)
        kernels = {name: kernel for kernel, name in IMPLEMENTATIONS.items()}
        if model.config._attn_implementation in kernels:
            model.set_attn_implementation(kernels[model.config._attn_implementation])
    model.__dict__.pop("_validate_generation_mode", None)
    if hasattr(model.config, STEP_ATTENTION_KEY):
        delattr(model.config, STEP_ATTENTION_KEY)


class _NoBeams:
    """Refuses beam search before `generate` starts; in the place of the model's own check, which it asks then."""

    def __init__(self, model):
        self.model = model

    def __call__(self, generation_mode, generation_config, *args, **kwargs):
        if generation_config.num_beams > 1:
            raise ValueError(
                f"num_beams={generation_config.num_beams}: beam search does not go with attention between steps. Use "
                "num_beams=1, or set_step_attention(model, tokenizer, None)."
            )
        return type(self.model)._validate_generation_mode(
            self.model, generation_mode, generation_config, *args, **kwargs
        )


class _StepAttention:
    """
    Watches the forwards of one decoder: shows the ids to the mask function, and keeps those of a cache with it.

    The decoder and not the model with its head, because that is where masks are made, whatever wraps it.
    """

    def __init__(self, decoder, tokens: StepTokens, variant: str):
        self.tokens = tokens
        self.variant = variant
        self.handles = [
            decoder.register_forward_pre_hook(self.before, with_kwargs=True),
            # Also after an error, so that no later forward finds what is left of this one.
            decoder.register_forward_hook(self.after, always_call=True),
        ]

    def remove(self):
        for handle in self.handles:
            handle.remove()

    def before(self, decoder, args, kwargs):
        given = kwargs
        if args:
            given = {**inspect.signature(decoder.forward).bind_partial(*args).arguments, **kwargs}
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        self._check(decoder, ids, cache, given)
        past = read_past(cache, len(ids))
        ids = ids if past is None else torch.cat((past.to(ids.device), ids), dim=1)
        real = given.get("attention_mask")
        real = real.to(ids.device).bool() if isinstance(real, torch.Tensor) and real.ndim == 2 else None
        if real is not None and real.shape != ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(real.shape)}, the input with its past {tuple(ids.shape)}: one entry "
                "is needed for each token."
            )
        is_step_token, step = self.tokens.read(ids, real)
        Sight(
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
        sight = Sight.leave(self)
        if sight is None or output is None:
            return
        cache = sight.cache if sight.cache is not None else cache_in(output)
        if cache is not None:
            record_ids(cache, sight.ids)

    def _check(self, decoder, ids, cache, given):
        implementation = decoder.config._attn_implementation
        if implementation not in IMPLEMENTATIONS.values():
            raise ValueError(
                f"attn_implementation={implementation!r} was set after the attention between steps, which is computed "
                f"by {' or '.join(IMPLEMENTATIONS)} only. Set one of them, then set_step_attention again; or remove "
                "it first: set_step_attention(model, tokenizer, None)."
            )
        if ids is None:
            raise ValueError(
                "Attention between steps reads them off input_ids, which are not given: inputs_embeds do."
            )
        if getattr(cache, "is_compileable", False):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}: attention between steps does not go with a static "
                "cache. Use a DynamicCache, or the model's own."
            )
        mask = given.get("attention_mask")
        if mask is not None and getattr(mask, "ndim", None) != 2:
            # The library would take it as it is, for the only one.
            shown = f"has shape {tuple(mask.shape)}" if hasattr(mask, "shape") else f"is a {type(mask).__name__}"
            raise ValueError(
                f"attention_mask {shown}: attention between steps makes the mask of who sees whom itself. Give one "
                "of shape (batch, tokens), 0 on padding; or remove it: set_step_attention(model, tokenizer, None)."
            )
        positions = given.get("position_ids")
        alone = cache is None and given.get("attention_mask") is None and positions is not None
        if alone and (positions.diff(dim=-1) != 1).any():
            raise ValueError(
                "position_ids start anew within a row: attention between steps takes a row for one text. Give each "
                "text a row, with an attention_mask."
            )
