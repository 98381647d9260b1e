"""`generate` with recurrent depth: its cache, the counts of its forward passes, and the depth of every token."""

import inspect
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace

import torch
from transformers.generation import (
    GenerationConfig,
    GenerationMixin,
    GenerationMode,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.utils import ModelOutput

from .arguments_recurrent import DEPTH_ARGUMENTS, GENERATE_ARGUMENTS, OWN_ARGUMENTS, refuse_misspelt
from .batching_recurrent import check_continuous_batching, check_positions, check_requests
from .cache_recurrent import RecurrentDepthCache, check_cache_type
from .checks_recurrent import check_ids
from .depth_record_recurrent import DepthRecord, GenerationCall, Prompt, RememberedEnds
from .halting_recurrent import applies, last_real
from .masks_recurrent import create_mask
from .parallel_recurrent import check_paged_cache, heads_of_process
from .schedule_recurrent import DepthSchedule
from .speculation_recurrent import Speculation, decode, pads_ends
from .static_cache_recurrent import RecurrentDepthStaticCache
from .stock_caches_recurrent import STOCK_IMPLEMENTATIONS, config_at, is_stock, keeps_windows, make_stock_cache
from .watch_recurrent import FiniteLogits


# The depth arguments that a generation config may hold.
_IN_GENERATION_CONFIG = (*DEPTH_ARGUMENTS, "cache_recurrences", "state_seed")
_DRAFTS = ("draft_recurrences", "draft_tokens")

# One value for each thread and task, so that a server can run several generations with one model at the same time.
_CALL: ContextVar[GenerationCall | None] = ContextVar("generation_call", default=None)


def holds_depth(generation_config) -> bool:
    """Whether a generation config sets the depth of `generate`."""
    return any(getattr(generation_config, name, None) is not None for name in (*_IN_GENERATION_CONFIG, *_DRAFTS))


class RecurrentDepthGenerationMixin(GenerationMixin):
    """The parts of `generate` that a looped decoder adds to the library's."""

    @torch.no_grad()
    def generate(
        self,
        *args,
        draft_recurrences: int | None = None,
        draft_tokens: int | None = None,
        depth_schedule=None,
        **kwargs,
    ):
        """
        The library's `generate`, with all arguments of depth and halting that `forward` takes (see `DepthKwargs`).

        Depth can be set in the call, in a `GenerationConfig` (and so in `generation_config.json`), or in the model's
        config; the first of these that sets a value takes precedence. A fixed `num_recurrences` of the call replaces a
        criterion of the generation config, and a criterion replaces its `num_recurrences`. Generation counts as
        inference even if the model is in training mode: no depth is drawn. As in the library, dropout stays on until
        `model.eval()` is called.

        Args:
            draft_recurrences (`int`, *optional*), draft_tokens (`int`, *optional*, defaults to 4):
                Turns on self-speculation: up to `draft_tokens` tokens are drafted with `draft_recurrences` recurrences
                and verified together with the fixed count of the call. Greedy texts stay the same, samples keep their
                distribution. The output then holds `drafted_tokens` and `accepted_drafts`, each of shape `(rows,)`.
            depth_schedule (`Callable`, *optional*):
                Maps the ids of the text so far to the depth of each token; see `DepthSchedule`.

        Returns:
            What the library's `generate` returns. With `return_dict_in_generate=True` the output also holds
            `num_recurrences` (`(rows, new tokens)`: the recurrences of the position whose logits gave each new token;
            0 after the end of a text) and `prompt_recurrences` (`(rows, prompt)`; 0 on padding). The prompt is
            everything before the first new token: ids or embeddings, and the tokens that the cache already holds. A
            streamer with a method `put_recurrences` receives the depths of the tokens that come next.

        Prompts may be padded on either side and give the same texts, so the library's warning about right padding does
        not apply. Only stopping criteria and logits processors that look at earlier tokens see the padding. If
        `num_recurrences` has one count for each token, it covers the prompt, or the part of it that is not in the
        cache yet; the depth of new tokens then follows from the criterion or the config.

        Example:

        ```python
        >>> output = model.generate(
        ...     ids, max_new_tokens=8, halting_criterion="state_difference", return_dict_in_generate=True
        ... )
        >>> output.num_recurrences.shape
        torch.Size([1, 8])
        ```
        """
        for name in ("num_recurrences", "min_recurrences", "max_recurrences"):
            count = kwargs.get(name)
            if isinstance(count, torch.Tensor) and count.ndim == 0:
                # Beam search repeats tensors along their first dimension, which a 0-d tensor does not have.
                kwargs[name] = count.item()
        # Both may also be positional arguments.
        bound = inspect.signature(super().generate).bind_partial(*args, **kwargs).arguments
        self._check_prompt(bound.get("inputs", kwargs.get("input_ids")), kwargs)
        # As for other fields, a generation config that is passed comes before that of the model.
        for config in (bound.get("generation_config"), self.generation_config):
            if draft_recurrences is None:
                draft_recurrences = getattr(config, "draft_recurrences", None)
            if draft_tokens is None:
                draft_tokens = getattr(config, "draft_tokens", None)
        limits = kwargs.get("max_recurrences")
        if isinstance(limits, torch.Tensor) and limits.ndim == 2:
            raise ValueError(
                f"max_recurrences has shape {tuple(limits.shape)}, but generate takes an int or one number per row. "
                "For other numbers per token, pass depth_schedule."
            )
        if kwargs.get("cache_implementation") == "paged":
            # The library calls `generate_batch` with a generation config from which the depth was taken.
            check_continuous_batching(self.config, bound.get("generation_config"))
        call = GenerationCall(self, DepthRecord(bound.get("streamer")))
        if draft_recurrences is not None:
            call.speculation = Speculation(draft_recurrences, draft_tokens)
            call.speculation.check_arguments(kwargs)
        elif draft_tokens is not None:
            raise ValueError(f"draft_tokens={draft_tokens} needs draft_recurrences, the recurrences of a draft.")
        if depth_schedule is not None:
            call.schedule = DepthSchedule(depth_schedule)
            call.schedule.check_arguments({**kwargs, "draft_recurrences": draft_recurrences})
        token = _CALL.set(call)
        try:
            output = super().generate(*args, **kwargs)
        finally:
            _CALL.reset(token)
        if call.watch is not None:
            call.watch.look()
        if isinstance(output, ModelOutput) and call.record.steps:
            call.record.report(output, call.prompt_ids)
        return output

    @staticmethod
    def _check_prompt(ids, kwargs):
        """Checks ids and mask of the prompt, which the library would use before `forward` can."""
        embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        if ids is not None and embeds is None:
            check_ids("input_ids", ids)
            if isinstance(mask, torch.Tensor) and kwargs.get("past_key_values") is None and mask.shape != ids.shape:
                raise ValueError(
                    f"attention_mask has shape {tuple(mask.shape)}, but must have {tuple(ids.shape)}: one entry for "
                    "each token of input_ids."
                )

    def init_continuous_batching(self, generation_config=None, *args, **kwargs):
        """
        The library's continuous batching (`generate_batch`, `transformers serve --continuous-batching`).

        It runs every token through the `num_recurrences` of the model's config, and gives the texts of `generate`.

        Raises:
            `ValueError`: `generate` would use another depth, or continuous batching would change the texts.
        """
        check_continuous_batching(self.config, generation_config, self.generation_config)
        check_paged_cache(self)
        if self.model.match_slots():
            # A persistent manager has a cache of the former depth.
            self.destroy_cached_continuous_batching_manager()
        manager = super().init_continuous_batching(generation_config, *args, **kwargs)
        check_requests(manager, self.config)
        return manager

    def generate_batch(self, inputs, generation_config=None, *args, **kwargs):
        """
        The library's `generate_batch`, which ignores arguments that it does not know.

        Raises:
            `ValueError`: As `init_continuous_batching`, also for arguments of the call; `attention_mask` has padding;
                or a text needs more learned positions than there are.
        """
        check_continuous_batching(self.config, SimpleNamespace(**kwargs), generation_config, self.generation_config)
        mask, call = kwargs.get("attention_mask"), self._current_call()
        if mask is not None and not mask.all():
            raise ValueError(
                "attention_mask has padding, which continuous batching would read as text. Pass a list of prompts of "
                "different lengths to generate_batch."
            )
        if call is not None and call.schedule is not None:
            raise ValueError("depth_schedule cannot be combined with cache_implementation='paged'. Leave it out.")
        new = kwargs.get("max_new_tokens")
        new = (generation_config or self.generation_config).max_new_tokens if new is None else new
        for index, prompt in enumerate(inputs):
            check_positions(self.config, f"inputs[{index}]", prompt, new)
        return super().generate_batch(inputs, generation_config, *args, **kwargs)

    def _current_call(self):
        call = _CALL.get()
        return call if call is not None and call.model is self else None

    def _prepare_generation_config(self, generation_config, *args, **kwargs):
        call = {name: kwargs[name] for name in DEPTH_ARGUMENTS if kwargs.get(name) is not None}
        kwargs = {name: value for name, value in kwargs.items() if name not in DEPTH_ARGUMENTS or value is not None}
        # The library merges the generation config of the model into the one that was passed, which comes before it.
        passed = {name: getattr(generation_config, name, None) for name in DEPTH_ARGUMENTS}
        given = {name: value for name, value in passed.items() if value is not None and applies(name, call)} | call
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, *args, **kwargs)
        merged = generation_config.__dict__
        others = merged.keys() - GenerationConfig().__dict__.keys() - set(_DRAFTS)
        refuse_misspelt({name: merged[name] for name in others}, "generate", known=_DRAFTS, warns=False)
        is_fixed = isinstance(merged.get("num_recurrences"), int) or self.config.halting_criterion is None
        if is_fixed and merged.get("halting_criterion") is None:
            # Parameters in a generation config may wait for a criterion, as those of the model's config do.
            given.setdefault("halting_criterion", "none")
        # A generation config also keeps fields that it does not define, and then takes the arguments of the call with
        # the same names. These are arguments of `forward`, so they are moved to `model_kwargs`.
        for name in _IN_GENERATION_CONFIG:
            value = merged.pop(name, None)
            if model_kwargs.get(name) is None and value is not None and (name in given or applies(name, given)):
                model_kwargs[name] = value
        return generation_config, model_kwargs

    def _validate_model_kwargs(self, model_kwargs):
        # `forward` takes these as `**kwargs`, which the library's check does not know.
        if model_kwargs.get("initial_state") is not None:
            raise ValueError(
                "initial_state is for `forward`: the tokens that `generate` adds have states of their own. Choose the "
                "noise of all tokens with state_seed."
            )
        try:
            super()._validate_model_kwargs({k: v for k, v in model_kwargs.items() if k not in OWN_ARGUMENTS})
        except ValueError:
            # The library's message has no suggestion.
            refuse_misspelt(model_kwargs, "generate", known=GENERATE_ARGUMENTS, warns=False)
            raise

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        if (call := self._current_call()) is not None and call.speculation is not None:
            call.speculation.check_mode(generation_config, generation_mode)
        if call is not None and call.schedule is not None:
            call.schedule.check_mode(generation_config)
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _sample(self, input_ids, logits_processor, stopping_criteria, *args, **kwargs):
        call = self._current_call()
        if call is not None and call.speculation is not None:
            return decode(
                self, call.speculation, call.record, input_ids, logits_processor, stopping_criteria, *args, **kwargs
            )
        if call is not None and pads_ends(stopping_criteria):
            call.record.ends = stopping_criteria = RememberedEnds(stopping_criteria)
        return super()._sample(input_ids, logits_processor, stopping_criteria, *args, **kwargs)

    def _get_candidate_generator(self, *args, input_ids, model_kwargs, target_tokenizer=None, **kwargs):
        model_kwargs = {name: value for name, value in model_kwargs.items() if name not in OWN_ARGUMENTS}
        if target_tokenizer is None and model_kwargs.get("attention_mask") is None:
            # The library drops a mask of ones; without a mask, an assistant would take generated tokens for padding.
            model_kwargs["attention_mask"] = torch.ones_like(input_ids)
        return super()._get_candidate_generator(
            *args, input_ids=input_ids, model_kwargs=model_kwargs, target_tokenizer=target_tokenizer, **kwargs
        )

    def _get_logits_processor(
        self, generation_config, *args, logits_processor=None, model_kwargs=None, negative_prompt_ids=None, **kwargs
    ):
        processors = super()._get_logits_processor(
            generation_config,
            *args,
            logits_processor=logits_processor,
            model_kwargs=model_kwargs,
            negative_prompt_ids=negative_prompt_ids,
            **kwargs,
        )
        call = self._current_call()
        if call is not None:
            call.watch = FiniteLogits(self, (model_kwargs or {}).get("num_recurrences"))
            processors.insert(0, call.watch)
        for processor in processors:
            if not isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor) or call is None:
                continue
            if any(processor is given for given in logits_processor or ()):
                continue
            self._refuse_guidance(generation_config, negative_prompt_ids, model_kwargs, call)
            # Guidance runs the model on a second text, which gets the depth of the first.
            depth = {name: model_kwargs.get(name) for name in _IN_GENERATION_CONFIG}
            count = depth["num_recurrences"]
            if isinstance(count, torch.Tensor) and count.ndim == 2:
                del depth["num_recurrences"]
            processor.model = partial(self, **depth)
        return processors

    @staticmethod
    def _refuse_guidance(generation_config, negative_prompt_ids, model_kwargs, call):
        reason = None
        if call.schedule is not None:
            reason = "depth_schedule, which reads one text: guidance runs a second one"
        elif negative_prompt_ids is None and _ends_in_padding(model_kwargs.get("attention_mask")):
            reason = "padding on the right: its second text starts from the last token. Pad on the left"
        if reason is not None:
            raise ValueError(f"guidance_scale={generation_config.guidance_scale} cannot be combined with {reason}.")

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        if (call := self._current_call()) is not None:
            call.prompt_ids = input_ids_length
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)

    # `generate` accepts the arguments that are named here.
    def prepare_inputs_for_generation(
        self,
        input_ids,
        next_sequence_length=None,
        past_key_values=None,
        attention_mask=None,
        inputs_embeds=None,
        is_first_iteration=False,
        **kwargs,
    ):
        call = self._current_call()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = call.prompt.length if call is not None and call.prompt is not None else 0
        whole = inputs_embeds is None and 0 < length <= input_ids.shape[1]
        if past and whole and is_first_iteration and next_sequence_length is None:
            # Assisted decoding passes the whole text, including the part that a live cache holds already.
            next_sequence_length = input_ids.shape[1] - int(past)
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if call is not None:
            tokens = model_inputs["input_ids"]
            call.positions = (model_inputs["inputs_embeds"] if tokens is None else tokens).shape[1]
            counts = model_inputs.get("num_recurrences")
            model_inputs["num_recurrences"] = call.prompt.counts_of(counts, int(past), call.positions)
            if call.schedule is not None:
                halts = self._criterion(model_inputs) is not None
                model_inputs |= call.schedule.arguments(input_ids, call.positions, int(past), halts)
        return model_inputs

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        mask = model_kwargs.get("attention_mask")
        if not _ends_in_padding(mask):
            return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
        # With padding on the right, the logits of each row's last real token count, and positions continue from it.
        call, cache = self._current_call(), model_kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        empty = (mask[:, past:] == 0).all(-1)
        if empty.any():
            raise ValueError(
                f"attention_mask has no real token for row {int(empty.nonzero()[0])} after the {past} tokens of "
                "past_key_values. Every row needs one to continue from."
            )
        last = last_real(mask != 0)
        places, of_row = (last - past).unique(return_inverse=True)
        outputs = super()._prefill(
            input_ids, generation_config, {**model_kwargs, "logits_to_keep": places}, *args, **kwargs
        )
        rows = torch.arange(len(mask), device=mask.device)
        outputs.logits = outputs.logits[rows.to(outputs.logits.device), of_row.to(outputs.logits.device)][:, None]
        positions = model_kwargs["position_ids"].expand(len(mask), -1).clone()
        positions[:, -1] = positions[rows, last - mask.shape[1]]
        model_kwargs["position_ids"] = positions
        if call is not None:
            call.record.last = last
        return outputs

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask, past_key_values, position_ids=None, **kwargs):
        """The masks for a static cache, created outside the compiled forward. Only looped layers use the window."""
        inputs = {
            "config": config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
        }
        full = create_mask(**inputs)
        if config.sliding_window is None:
            return full
        return {"full_attention": full, "sliding_attention": create_mask(**inputs, window=True)}

    def _criterion(self, model_kwargs) -> str | None:
        name = model_kwargs.get("halting_criterion")
        if name is None and not isinstance(model_kwargs.get("num_recurrences"), int):
            name = self.config.halting_criterion
        return None if name == "none" else name

    def _halts_by_row(self, model_kwargs) -> bool:
        count = model_kwargs.get("num_recurrences")
        if self._criterion(model_kwargs) is None:
            return False
        if isinstance(count, torch.Tensor) and count.ndim == 1:
            # A 0 leaves its row to the criterion, whatever the granularity.
            return bool((count == 0).any())
        return (model_kwargs.get("halting_granularity") or self.config.halting_granularity) == "sequence"

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        self._refuse_for_inputs(generation_config, generation_mode, model_kwargs)
        if self._halts_by_row(model_kwargs):
            self._refuse_for_rows(generation_config, generation_mode)
        cache = model_kwargs.get("past_key_values")
        check_cache_type(cache)
        implementation = generation_config.cache_implementation
        if cache is not None and implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={implementation!r} asks for a new cache, but past_key_values is one already. "
                "Drop one of them."
            )
        if is_stock(cache) or (cache is None and implementation in STOCK_IMPLEMENTATIONS):
            self._refuse_for_stock(implementation if cache is None else type(cache).__name__, model_kwargs)
        if (call := self._current_call()) is not None:
            call.prompt = self._describe_prompt(call.prompt_ids, generation_config, model_kwargs)
            if cache is not None and cache.is_compileable and not keeps_windows(cache, self.config):
                self._check_room(cache, call.prompt.length, generation_config.max_length - call.prompt_ids)
        if cache is not None:
            cache._is_user_defined = True
        elif generation_config.use_cache is not False:
            rows = batch_size * max(generation_config.num_beams, generation_config.num_return_sequences)
            model_kwargs["past_key_values"] = self._make_cache(generation_config, model_kwargs, rows, max_cache_length)

    def _make_cache(self, generation_config, model_kwargs, rows, max_cache_length):
        """The cache of a call that does not pass one."""
        implementation, kept = generation_config.cache_implementation, model_kwargs.get("cache_recurrences")
        depth = self._depth(model_kwargs)
        if implementation in (None, "dynamic"):
            return RecurrentDepthCache(self.config, cache_recurrences=kept)
        if implementation == "static":
            return RecurrentDepthStaticCache(
                self.config,
                max_batch_size=rows,
                max_cache_len=max_cache_length,
                num_recurrences=depth if isinstance(depth, int) else None,
                dtype=self.dtype,
                device=self.device,
                cache_recurrences=kept,
                num_key_value_heads=heads_of_process(self),
            )
        if implementation not in STOCK_IMPLEMENTATIONS:
            raise ValueError(
                f"cache_implementation={implementation!r} is not supported. Leave it out, or use one of 'static', "
                f"{', '.join(map(repr, STOCK_IMPLEMENTATIONS))}."
            )
        if implementation.startswith("offloaded") and self.device.type == "cpu":
            raise ValueError(
                f"cache_implementation={implementation!r} moves keys and values from an accelerator to the CPU, but "
                "the model is on the CPU. Leave it out."
            )
        cache = make_stock_cache(
            implementation, config_at(self.config, depth), max_cache_length, generation_config.cache_config
        )
        if generation_config.is_assistant:
            cache.activate_past_recording()
        return cache

    def _depth(self, model_kwargs):
        depth = model_kwargs.get("num_recurrences")
        return self.config.num_recurrences if depth is None else depth

    def _refuse_for_stock(self, name, model_kwargs):
        """Refuses the library's caches for calls without a fixed depth, before the prompt is computed."""
        criterion, depth = self._criterion(model_kwargs), self._depth(model_kwargs)
        if criterion is not None or not isinstance(depth, int):
            what = f"halting_criterion={criterion!r}" if criterion is not None else "counts that differ"
            raise ValueError(
                f"The cache {name!r} keeps all recurrences of a fixed depth and cannot be combined with {what}. Leave "
                "it out, or give an int num_recurrences without a criterion."
            )

    def _describe_prompt(self, prompt_ids, generation_config, model_kwargs):
        given = model_kwargs.get("num_recurrences")
        new_count = self.config.num_recurrences if self._criterion(model_kwargs) is None else 0
        if isinstance(given, torch.Tensor) and given.ndim == 1:
            new_count = given[:, None]
        length = self._prompt_length(prompt_ids, generation_config, model_kwargs)
        return Prompt(length, self._halts_by_row(model_kwargs), new_count)

    @staticmethod
    def _check_room(cache, prompt_length, new_tokens):
        # The last new token is not read. On a GPU, a write beyond the end would abort the process.
        room, needed = cache.get_max_length(), prompt_length + new_tokens - 1
        if needed > room:
            raise ValueError(
                f"past_key_values has room for {room} tokens, but a prompt of {prompt_length} tokens and {new_tokens} "
                f"new ones need {needed}. Create the {type(cache).__name__} with max_cache_len={needed}, or lower "
                "max_new_tokens."
            )

    @staticmethod
    def _prompt_length(width, generation_config, model_kwargs):
        """The number of tokens before the first new one, as the library's `_prefill` counts them; `width` are ids."""
        if (embeds := model_kwargs.get("inputs_embeds")) is not None:
            return embeds.shape[1]
        cache, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
        past = 0 if cache is None else int(cache.get_seq_length())
        seen = getattr(generation_config, "_mask_length", -1) if mask is None else mask.shape[1]
        if past and seen not in (-1, width, past + width):
            raise ValueError(
                f"attention_mask has {seen} columns, but past_key_values holds {past} tokens and the input {width}: "
                "it needs one column for each. The last token of a text is not in its cache yet."
            )
        if not past or seen != width:
            return past + width
        if width <= past:
            raise ValueError(
                f"The input has {width} tokens and past_key_values holds {past}. Pass the whole text, or new tokens "
                "with an attention_mask over both."
            )
        return width

    def _refuse_for_inputs(self, generation_config, generation_mode, model_kwargs):
        assisted = generation_mode == GenerationMode.ASSISTED_GENERATION
        chunk, mask = generation_config.prefill_chunk_size, model_kwargs.get("attention_mask")
        if generation_config.assistant_early_exit is not None:
            raise ValueError(
                f"assistant_early_exit={generation_config.assistant_early_exit} is not supported for looped layers. "
                "Use draft_recurrences, which drafts with fewer recurrences."
            )
        if generation_config.use_cache is False and model_kwargs.get("past_key_values") is not None:
            raise ValueError(
                "use_cache=False with past_key_values: the whole text would be appended to it. Drop one of them."
            )
        if model_kwargs.get("inputs_embeds") is not None and (assisted or chunk is not None):
            what = "assisted generation" if assisted else f"prefill_chunk_size={chunk}"
            raise ValueError(
                f"inputs_embeds cannot be combined with {what}, which splits the ids of the prompt. Pass input_ids."
            )
        if (assisted or chunk is not None) and _ends_in_padding(mask):
            what = "assisted generation" if assisted else f"prefill_chunk_size={chunk}"
            raise ValueError(
                f"attention_mask has padding on the right, which {what} does not support. Pad on the left."
            )

    def _refuse_for_rows(self, generation_config, generation_mode):
        reason = None
        if generation_config.prefill_chunk_size is not None:
            reason = f"prefill_chunk_size={generation_config.prefill_chunk_size}"
        elif generation_mode == GenerationMode.ASSISTED_GENERATION:
            reason = "assisted generation"
        elif generation_config.num_beams > 1 and generation_config.use_cache is False:
            reason = f"num_beams={generation_config.num_beams} with use_cache=False"
        elif self.config.num_coda_layers and generation_config.use_cache is False:
            # The coda would attend to earlier tokens that are recomputed and still provisional.
            reason = f"use_cache=False with num_coda_layers={self.config.num_coda_layers}"
        if reason is not None:
            raise ValueError(
                "One count for a row and call (halting_granularity='sequence', or a row with 0 in num_recurrences) "
                f"cannot be carried through {reason}. Use the cache, halting_granularity='token', or a fixed "
                "num_recurrences."
            )

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, is_encoder_decoder=False, num_new_tokens=1):
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        cache = outputs.past_key_values
        call = self._current_call()
        if call is None:
            return model_kwargs
        own = cache is not None and not is_stock(cache)
        counts = (cache.counts if own else outputs.num_recurrences).to(outputs.logits.device)
        if counts.ndim == 1:
            # All tokens in a cache of the library have the depth of this call.
            tokens = call.positions if cache is None else int(cache.get_seq_length())
            counts = counts[:, None].expand(-1, tokens)
        if call.record.prompt is None and (mask := model_kwargs.get("attention_mask")) is not None:
            # A later turn may mask tokens that are in the cache, such as the padding of an earlier turn.
            counts = counts.masked_fill(mask[:, : counts.shape[1]].to(counts.device) == 0, 0)
        call.record.add(counts, num_new_tokens)
        given = model_kwargs.get("num_recurrences")
        by_token = isinstance(given, torch.Tensor) and given.ndim == 2
        if cache is not None and by_token:
            # The counts were given for the prompt only. The config or the criterion sets the depth of new tokens.
            model_kwargs["num_recurrences"] = None
        elif cache is None and (by_token or call.prompt.halts_by_row):
            # Without a cache the past is computed again. Counts that a row decided are those of the earlier forward
            # passes. Counts of tokens are taken from the arguments again, because beams may have been reordered.
            past = counts if call.prompt.halts_by_row else given
            model_kwargs["num_recurrences"] = call.prompt.with_new(past, num_new_tokens)
        return model_kwargs


def _ends_in_padding(mask):
    return mask is not None and mask.ndim == 2 and not mask[:, -1].all()


__all__ = ["RecurrentDepthGenerationMixin", "holds_depth"]
