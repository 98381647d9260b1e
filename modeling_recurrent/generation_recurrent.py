"""`generate` at depth: the right cache, counts carried from call to call, and a depth for every token."""

import inspect
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers.generation import (
    GenerationMixin,
    GenerationMode,
    StoppingCriteriaList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.masking_utils import create_causal_mask
from transformers.utils import ModelOutput

from .cache_recurrent import RecurrentDepthCache
from .halting_recurrent import criterion_parameters, last_real
from .masks_recurrent import create_window_mask
from .schedule_recurrent import DepthSchedule
from .speculation_recurrent import Speculation, decode, pads_ends
from .static_cache_recurrent import RecurrentDepthStaticCache


# What a call says to this model alone: an assistant has a depth of its own.
_OF_THIS_MODEL = (
    "num_recurrences",
    "min_recurrences",
    "max_recurrences",
    "halting_criterion",
    "halting_granularity",
    *criterion_parameters(),
    "cache_recurrences",
    "on_recurrence",
    "state_init",
    "state_seed",
)


class _Ends(StoppingCriteriaList):
    """The criteria of a call, which remember whose text has ended."""

    ended: torch.Tensor | None = None

    def __call__(self, input_ids, scores, **kwargs):
        done = super().__call__(input_ids, scores, **kwargs)
        self.ended = done if self.ended is None else self.ended | done
        return done


@dataclass
class _DepthLog:
    """
    The depths that one call of `generate` sees: of the prompt, and of every position whose logits gave a token.

    Attributes:
        start (`int`): Tokens of the prompt in the text that is returned; none where it was given as embeddings.
        prompt_length (`int`): Tokens in front of the first new one, with those that were in the cache.
        last (`(rows,)`, *optional*): The last real token of each prompt, where padding stands on the right.
        by_row (`bool`): Whether a criterion decides one count for a row and call.
        new_count (`int` or `(rows, 1)` tensor): The count of a token behind a prompt whose counts were given.
        ends (`_Ends`, *optional*): Knows the rows that get nothing but padding any more.
    """

    model: torch.nn.Module
    streamer: object
    speculation: Speculation | None = None
    schedule: DepthSchedule | None = None
    start: int = 0
    prompt_length: int = 0
    positions: int = 0
    last: torch.Tensor | None = None
    by_row: bool = False
    new_count: int | torch.Tensor = 0
    ends: _Ends | None = None
    prompt: torch.Tensor | None = None
    steps: list = field(default_factory=list)

    def add(self, counts, new_tokens):
        """`counts`: of all positions so far, `(rows, positions)`; the last `new_tokens` of them gave new tokens."""
        step = counts[:, -new_tokens:]
        if self.prompt is None:
            self.prompt = counts[:, : counts.shape[1] - new_tokens + 1].clone()
            step = step if self.last is None else counts.gather(1, self.last[:, None])
        if self.ends is not None and self.ends.ended is not None:
            step = step.masked_fill(self.ends.ended.to(step.device)[:, None], 0)
        self.add_step(step.clone())

    def add_step(self, counts):
        """`counts`: `(rows, new tokens)`, of the positions whose logits gave them."""
        self.steps.append(counts)
        if hasattr(self.streamer, "put_recurrences"):
            self.streamer.put_recurrences(counts.cpu())

    def with_new(self, counts, new_tokens):
        """`counts` (`(rows, tokens)`), and those of so many new tokens behind them."""
        new = counts.new_zeros((len(counts), new_tokens)) + self.new_count
        return torch.cat((counts, new), dim=1)

    def report(self, output):
        """Adds `num_recurrences` and `prompt_recurrences` to what `generate` returns."""
        steps, prompt = torch.cat(self.steps, dim=1), self.prompt
        new = output.sequences.shape[1] - self.start
        steps = steps[:, :new]
        beams = getattr(output, "beam_indices", None)
        if beams is not None:
            beams = beams[:, :new].to(steps.device)
            prompt = prompt[beams[:, 0]]
            steps = steps.gather(0, beams.clamp_min(0)).masked_fill(beams < 0, 0)
        output["num_recurrences"], output["prompt_recurrences"] = steps, prompt


# Per thread and task, so that servers may generate with one model side by side.
_DEPTH_LOG: ContextVar[_DepthLog | None] = ContextVar("depth_log", default=None)


class RecurrentDepthGenerationMixin(GenerationMixin):
    """What a looped decoder needs beside the library's `generate`."""

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
        The library's `generate`, with every argument of depth and halting that `forward` takes.

        `draft_recurrences` turns on self-speculation: up to `draft_tokens` tokens (4 by default) are drafted with so
        few recurrences and verified together with the fixed count of the call. Greedy texts stay the same, samples
        keep their distribution. The output then holds `drafted_tokens` and `accepted_drafts` (`(rows,)`).

        `depth_schedule` is a function of the ids of the text so far that says how deep each token goes: see
        `DepthSchedule`.

        With `return_dict_in_generate=True` the output also holds `num_recurrences` (`(rows, new tokens)`: the
        recurrences of the position whose logits gave each new token; 0 behind the end of a text) and
        `prompt_recurrences` (`(rows, prompt)`; 0 on padding), the prompt being all tokens in front of the first new
        one: given as ids or as embeddings, and those of a live cache. A streamer with a method `put_recurrences`
        receives the depths of the tokens that come next.

        Prompts may be padded on either side, and give the same texts (the library's warning about right padding is
        meant for models whose caches have no holes); a logits processor that looks at the tokens before, or a stopping
        criterion, sees the padding where it stands. A `num_recurrences` of one count a token covers the prompt, or
        what of it is not in the cache yet; new tokens take what the criterion or the config says.
        """
        for name in ("num_recurrences", "min_recurrences", "max_recurrences"):
            count = kwargs.get(name)
            if isinstance(count, torch.Tensor) and count.ndim == 0:
                # Beams repeat tensors along their first dimension, which this one does not have.
                kwargs[name] = count.item()
        speculation = None
        if draft_recurrences is not None:
            speculation = Speculation(draft_recurrences, draft_tokens)
            speculation.check_arguments(kwargs)
        elif draft_tokens is not None:
            raise ValueError(f"draft_tokens={draft_tokens} needs draft_recurrences, the recurrences of a draft.")
        schedule = None
        if depth_schedule is not None:
            schedule = DepthSchedule(depth_schedule)
            schedule.check_arguments({**kwargs, "draft_recurrences": draft_recurrences})
        # It may be given by its place, too.
        streamer = inspect.signature(super().generate).bind_partial(*args, **kwargs).arguments.get("streamer")
        log = _DepthLog(self, streamer, speculation, schedule)
        token = _DEPTH_LOG.set(log)
        try:
            output = super().generate(*args, **kwargs)
        finally:
            _DEPTH_LOG.reset(token)
        if isinstance(output, ModelOutput) and log.steps:
            log.report(output)
        return output

    def init_continuous_batching(self, *args, **kwargs):
        """
        The library's continuous batching (`generate_batch`, `transformers serve --continuous-batching`).

        Its paged cache has one slot a layer, so that it decodes as with `cache_recurrences="last"`: refused unless the
        config says so. Rows are packed into one, so that a row cannot halt for itself.
        """
        if self.config.cache_recurrences != "last":
            raise ValueError(
                f"cache_recurrences={self.config.cache_recurrences!r}: continuous batching keeps one slot a layer. "
                "Set model.config.cache_recurrences='last' to accept that approximation, or call generate."
            )
        if self._halts_by_row({}):
            raise ValueError(
                "halting_granularity='sequence': continuous batching packs rows into one. Set "
                "model.config.halting_granularity='token', or call generate."
            )
        return super().init_continuous_batching(*args, **kwargs)

    def _depth_log(self):
        log = _DEPTH_LOG.get()
        return log if log is not None and log.model is self else None

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        if (log := self._depth_log()) is not None and log.speculation is not None:
            log.speculation.check_mode(generation_config, generation_mode)
        if log is not None and log.schedule is not None:
            log.schedule.check_mode(generation_config)
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _sample(self, input_ids, logits_processor, stopping_criteria, *args, **kwargs):
        log = self._depth_log()
        if log is not None and log.speculation is not None:
            return decode(self, log.speculation, log, input_ids, logits_processor, stopping_criteria, *args, **kwargs)
        if log is not None and pads_ends(stopping_criteria):
            log.ends = stopping_criteria = _Ends(stopping_criteria)
        return super()._sample(input_ids, logits_processor, stopping_criteria, *args, **kwargs)

    def _get_candidate_generator(self, *args, input_ids, model_kwargs, target_tokenizer=None, **kwargs):
        model_kwargs = {name: value for name, value in model_kwargs.items() if name not in _OF_THIS_MODEL}
        if target_tokenizer is None and model_kwargs.get("attention_mask") is None:
            # The library drops a mask of ones; without one, an assistant would take what was written for padding.
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
        log = self._depth_log()
        for processor in processors:
            if not isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor) or log is None:
                continue
            if any(processor is given for given in logits_processor or ()):
                continue
            self._refuse_guidance(generation_config, negative_prompt_ids, model_kwargs, log)
            # It runs the model on a second text: as deep as on the first, new tokens of which have no counts either.
            depth = {name: model_kwargs.get(name) for name in _OF_THIS_MODEL if name != "on_recurrence"}
            count = depth["num_recurrences"]
            if isinstance(count, torch.Tensor) and count.ndim == 2:
                del depth["num_recurrences"]
            processor.model = partial(self, **depth)
        return processors

    @staticmethod
    def _refuse_guidance(generation_config, negative_prompt_ids, model_kwargs, log):
        reason = None
        if log.schedule is not None:
            reason = "depth_schedule, which reads one text: guidance runs a second one"
        elif negative_prompt_ids is None and _ends_in_padding(model_kwargs.get("attention_mask")):
            reason = "padding on the right: its second text starts from the last token. Pad on the left"
        if reason is not None:
            raise ValueError(f"guidance_scale={generation_config.guidance_scale} does not go with {reason}.")

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        if (log := self._depth_log()) is not None:
            log.start = input_ids_length
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)

    # The names are looked at: `generate` accepts what stands here.
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
        log = self._depth_log()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        whole = log is not None and inputs_embeds is None and 0 < log.prompt_length <= input_ids.shape[1]
        if past and whole and is_first_iteration and next_sequence_length is None:
            # Assisted decoding hands over the whole text, also what a live cache holds already.
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
        if log is not None:
            tokens = model_inputs["input_ids"]
            log.positions = (model_inputs["inputs_embeds"] if tokens is None else tokens).shape[1]
            model_inputs["num_recurrences"] = _counts_of(model_inputs.get("num_recurrences"), past, log)
            if log.schedule is not None:
                halts = self._criterion(model_inputs) is not None
                model_inputs |= log.schedule.arguments(input_ids, log.positions, int(past), halts)
        return model_inputs

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        mask = model_kwargs.get("attention_mask")
        if not _ends_in_padding(mask):
            return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
        # Padding on the right: logits are those of each row's last real token, and positions go on from there.
        log, cache = self._depth_log(), model_kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        empty = (mask[:, past:] == 0).all(-1)
        if empty.any():
            raise ValueError(
                f"attention_mask shows row {int(empty.nonzero()[0])} no real token behind the {past} of "
                "past_key_values: every row needs one to go on from."
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
        if log is not None:
            log.last = last
        return outputs

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask, past_key_values, position_ids=None, **kwargs):
        """Masks over a static cache, made outside of the compiled forward: only looped layers have the window."""
        inputs = {
            "config": config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        full = create_causal_mask(**inputs)
        if config.sliding_window is None:
            return full
        return {"full_attention": full, "sliding_attention": create_window_mask(**inputs)}

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
        if model_kwargs.get("state_init") is not None:
            self._refuse_for_states(generation_config, generation_mode)
        cache = model_kwargs.get("past_key_values")
        if cache is not None and not isinstance(cache, RecurrentDepthCache):
            raise TypeError(
                f"past_key_values is a {type(cache).__name__}: slots belong to recurrences here, give a "
                "RecurrentDepthCache or None."
            )
        if (log := self._depth_log()) is not None:
            log.prompt_length = self._prompt_length(log.start, generation_config, model_kwargs)
            log.by_row = self._halts_by_row(model_kwargs)
            log.new_count = self.config.num_recurrences if self._criterion(model_kwargs) is None else 0
            given = model_kwargs.get("num_recurrences")
            if isinstance(given, torch.Tensor) and given.ndim == 1:
                log.new_count = given[:, None]
            if cache is not None and cache.is_compileable:
                self._check_room(cache, log.prompt_length, generation_config.max_length - log.start)
        if cache is not None:
            cache._is_user_defined = True
            return
        if generation_config.use_cache is False:
            return
        kept = model_kwargs.get("cache_recurrences")
        if generation_config.cache_implementation == "static":
            depth = model_kwargs.get("num_recurrences")
            depth = self.config.num_recurrences if depth is None else depth
            model_kwargs["past_key_values"] = RecurrentDepthStaticCache(
                self.config,
                max_batch_size=batch_size * max(generation_config.num_beams, generation_config.num_return_sequences),
                max_cache_len=max_cache_length,
                num_recurrences=depth if isinstance(depth, int) else None,
                dtype=self.dtype,
                device=self.device,
                cache_recurrences=kept,
            )
            return
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: it has one slot for each layer, a "
                "loop needs one for each recurrence. Leave it out, or use 'static'."
            )
        model_kwargs["past_key_values"] = RecurrentDepthCache(self.config, cache_recurrences=kept)

    @staticmethod
    def _check_room(cache, prompt_length, new_tokens):
        # The last new token is not read. On a GPU a write behind the end would cost the process.
        room, needed = cache.get_max_length(), prompt_length + new_tokens - 1
        if needed > room:
            raise ValueError(
                f"past_key_values has room for {room} tokens, but a prompt of {prompt_length} and {new_tokens} new "
                f"ones need {needed}: make the {type(cache).__name__} with max_cache_len={needed}, or ask for fewer."
            )

    @staticmethod
    def _prompt_length(width, generation_config, model_kwargs):
        """Tokens in front of the first new one; `width` ids of them are given. By the library's rule in `_prefill`."""
        if (embeds := model_kwargs.get("inputs_embeds")) is not None:
            return embeds.shape[1]
        cache, mask = model_kwargs.get("past_key_values"), model_kwargs.get("attention_mask")
        past = 0 if cache is None else int(cache.get_seq_length())
        seen = getattr(generation_config, "_mask_length", -1) if mask is None else mask.shape[1]
        if past and seen not in (-1, width, past + width):
            raise ValueError(
                f"attention_mask has {seen} columns, past_key_values holds {past} tokens and the input {width}: one "
                "column is needed for each token of both. The last token of a text is not in its cache yet."
            )
        if not past or seen != width:
            return past + width
        if width <= past:
            raise ValueError(
                f"The input has {width} tokens and past_key_values holds {past}: give the whole text, or new tokens "
                "with an attention_mask over both."
            )
        return width

    def _refuse_for_inputs(self, generation_config, generation_mode, model_kwargs):
        assisted = generation_mode == GenerationMode.ASSISTED_GENERATION
        chunk, mask = generation_config.prefill_chunk_size, model_kwargs.get("attention_mask")
        for name in _OF_THIS_MODEL:
            if getattr(generation_config, name, None) is not None:
                raise ValueError(
                    f"generation_config holds {name}={getattr(generation_config, name)!r}, which would not be heard: "
                    "give it to generate itself, or set it in the model's config."
                )
        if generation_config.assistant_early_exit is not None:
            raise ValueError(
                f"assistant_early_exit={generation_config.assistant_early_exit}: the layers here are looped. Use "
                "draft_recurrences, which drafts with fewer recurrences."
            )
        if generation_config.use_cache is False and model_kwargs.get("past_key_values") is not None:
            raise ValueError("use_cache=False with past_key_values: the whole text would be read behind it. Drop one.")
        if model_kwargs.get("inputs_embeds") is not None and (assisted or chunk is not None):
            what = "assisted generation" if assisted else f"prefill_chunk_size={chunk}"
            raise ValueError(f"inputs_embeds does not go with {what}, which cuts the prompt's ids: give input_ids.")
        if (assisted or chunk is not None) and _ends_in_padding(mask):
            what = "assisted generation" if assisted else f"prefill_chunk_size={chunk}"
            raise ValueError(f"attention_mask shows padding on the right, which {what} cannot serve: pad on the left.")

    def _refuse_for_rows(self, generation_config, generation_mode):
        reason = None
        if generation_config.prefill_chunk_size is not None:
            reason = f"prefill_chunk_size={generation_config.prefill_chunk_size}"
        elif generation_mode == GenerationMode.ASSISTED_GENERATION:
            reason = "assisted generation"
        elif generation_config.num_beams > 1 and generation_config.use_cache is False:
            reason = f"num_beams={generation_config.num_beams} with use_cache=False"
        elif self.config.num_coda_layers and generation_config.use_cache is False:
            # The coda would look at earlier tokens that are computed again and still provisional.
            reason = f"use_cache=False with num_coda_layers={self.config.num_coda_layers}"
        if reason is not None:
            raise ValueError(
                "One count for a row and call (halting_granularity='sequence', or a row with 0 in num_recurrences) is "
                f"nothing that {reason} can carry: use the cache, halting_granularity='token', or a fixed "
                "num_recurrences."
            )

    def _refuse_for_states(self, generation_config, generation_mode):
        reason = None
        if generation_config.prefill_chunk_size is not None:
            reason = f"prefill_chunk_size={generation_config.prefill_chunk_size}: a text would depend on it"
        elif generation_mode == GenerationMode.ASSISTED_GENERATION:
            reason = "assisted generation, which looks at several tokens side by side"
        if reason is not None:
            raise ValueError(f"state_init='previous_token' does not go with {reason}.")

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, is_encoder_decoder=False, num_new_tokens=1):
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        cache = outputs.past_key_values
        counts = outputs.num_recurrences if cache is None else cache.counts
        log = self._depth_log()
        if log is None:
            return model_kwargs
        counts = counts.to(outputs.logits.device)
        counts = counts[:, None].expand(-1, log.positions) if counts.ndim == 1 else counts
        if log.prompt is None and (mask := model_kwargs.get("attention_mask")) is not None:
            # Also what was a token when the cache read it: a turn may hide what padded the texts of the one before.
            counts = counts.masked_fill(mask[:, : counts.shape[1]].to(counts.device) == 0, 0)
        log.add(counts, num_new_tokens)
        given = model_kwargs.get("num_recurrences")
        by_token = isinstance(given, torch.Tensor) and given.ndim == 2
        if cache is not None and by_token:
            # Counts were given for the prompt; what is new decides for itself.
            model_kwargs["num_recurrences"] = None
        elif cache is None and (by_token or log.by_row):
            # Without a cache the past is computed again. Counts of a call are those that it had; a token's own are
            # decided again, beams having changed places.
            past = counts if log.by_row else given
            model_kwargs["num_recurrences"] = log.with_new(past, num_new_tokens)
        return model_kwargs


def _ends_in_padding(mask):
    return mask is not None and mask.ndim == 2 and not mask[:, -1].all()


def _counts_of(count, past, log):
    """The part of counts a token that belongs to the tokens of a forward behind `past` others; all else as it is."""
    if not isinstance(count, torch.Tensor) or count.ndim != 2 or count.shape[1] == log.positions:
        return count
    first = int(past) - (log.prompt_length - count.shape[1])
    if first < 0 or count.shape[1] > log.prompt_length:
        raise ValueError(
            f"num_recurrences has shape {tuple(count.shape)}, the prompt {log.prompt_length} tokens, of which "
            f"{int(past)} are in the cache: one count is needed for each of the others, or for all."
        )
    count = count[:, first : first + log.positions]
    return log.with_new(count, log.positions - count.shape[1])


__all__ = ["RecurrentDepthGenerationMixin"]
