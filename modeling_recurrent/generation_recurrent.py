"""`generate` at depth: the right cache, counts carried from call to call, and a depth for every token."""

from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from transformers.generation import GenerationMixin, GenerationMode
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.utils import ModelOutput

from .cache_recurrent import RecurrentDepthCache
from .schedule_recurrent import DepthSchedule
from .speculation_recurrent import Speculation, decode
from .static_cache_recurrent import RecurrentDepthStaticCache


@dataclass
class _DepthLog:
    """The depths that one call of `generate` sees: of the prompt, and of every position whose logits gave a token."""

    model: torch.nn.Module
    streamer: object
    speculation: Speculation | None = None
    schedule: DepthSchedule | None = None
    positions: int = 0
    prompt: torch.Tensor | None = None
    steps: list = field(default_factory=list)

    def add(self, counts, new_tokens):
        """`counts`: of all positions so far, `(rows, positions)`; the last `new_tokens` of them gave new tokens."""
        if self.prompt is None:
            self.prompt = counts[:, : counts.shape[1] - new_tokens + 1].clone()
        self.add_step(counts[:, -new_tokens:].clone())

    def add_step(self, counts):
        """`counts`: `(rows, new tokens)`, of the positions whose logits gave them."""
        self.steps.append(counts)
        if hasattr(self.streamer, "put_recurrences"):
            self.streamer.put_recurrences(counts.cpu())

    def report(self, output):
        """Adds `num_recurrences` and `prompt_recurrences` to what `generate` returns."""
        steps, prompt = torch.cat(self.steps, dim=1), self.prompt
        new = output.sequences.shape[1] - prompt.shape[1]
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
        recurrences of the position whose logits gave each new token; 0 behind the end of a beam) and
        `prompt_recurrences` (`(rows, prompt)`; 0 on padding). A streamer with a method `put_recurrences` receives the
        depths of the tokens that come next.
        """
        count = kwargs.get("num_recurrences")
        if isinstance(count, torch.Tensor) and count.ndim == 0:
            # Beams repeat tensors along their first dimension, which this one does not have.
            kwargs["num_recurrences"] = count.item()
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
        log = _DepthLog(self, kwargs.get("streamer"), speculation, schedule)
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

    def _sample(self, input_ids, *args, **kwargs):
        log = self._depth_log()
        if log is None or log.speculation is None:
            return super()._sample(input_ids, *args, **kwargs)
        return decode(self, log.speculation, log, input_ids, *args, **kwargs)

    def prepare_inputs_for_generation(self, *args, **kwargs):
        model_inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if (log := self._depth_log()) is not None:
            tokens = model_inputs["input_ids"]
            log.positions = (model_inputs["inputs_embeds"] if tokens is None else tokens).shape[1]
            if log.schedule is not None:
                model_inputs |= self._scheduled(log, args[0] if args else kwargs["input_ids"], model_inputs)
        return model_inputs

    def _scheduled(self, log, input_ids, model_inputs):
        criterion, cache = model_inputs.get("halting_criterion"), model_inputs.get("past_key_values")
        criterion = self.config.halting_criterion if criterion is None else criterion
        past = 0 if cache is None else int(cache.get_seq_length())
        return log.schedule.arguments(input_ids, log.positions, past, halts=criterion not in (None, "none"))

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
        return {"full_attention": full, "sliding_attention": create_sliding_window_causal_mask(**inputs)}

    def _halts_by_row(self, model_kwargs) -> bool:
        count = model_kwargs.get("num_recurrences")
        criterion = model_kwargs.get("halting_criterion") or (None if isinstance(count, int) else "config")
        criterion = self.config.halting_criterion if criterion == "config" else criterion
        granularity = model_kwargs.get("halting_granularity") or self.config.halting_granularity
        return criterion not in (None, "none") and granularity == "sequence"

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        if self._halts_by_row(model_kwargs):
            self._refuse_for_rows(generation_config, generation_mode)
        if model_kwargs.get("state_init") is not None:
            self._refuse_for_states(generation_config, generation_mode)
        cache = model_kwargs.get("past_key_values")
        if cache is not None:
            if not isinstance(cache, RecurrentDepthCache):
                raise TypeError(
                    f"past_key_values is a {type(cache).__name__}: slots belong to recurrences here, give a "
                    "RecurrentDepthCache or None."
                )
            cache._is_user_defined = True
            return
        if generation_config.use_cache is False:
            return
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
            )
            return
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: it has one slot for each layer, a "
                "loop needs one for each recurrence. Leave it out, or use 'static'."
            )
        kept = model_kwargs.get("cache_recurrences") or self.config.cache_recurrences
        model_kwargs["past_key_values"] = RecurrentDepthCache(self.config, cache_recurrences=kept)

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
                f"halting_granularity='sequence' decides one count for a row and call, which {reason} cannot carry: "
                "use the cache, halting_granularity='token', or a fixed num_recurrences."
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
        if counts.ndim == 1 or isinstance(cache, RecurrentDepthStaticCache):
            counts = counts.to(outputs.logits.device)
            counts = counts[:, None].expand(-1, log.positions) if counts.ndim == 1 else counts
            if (mask := model_kwargs.get("attention_mask")) is not None:
                counts = counts.masked_fill(mask[:, : counts.shape[1]] == 0, 0)
        log.add(counts, num_new_tokens)
        given = model_kwargs.get("num_recurrences")
        by_token = isinstance(given, torch.Tensor) and given.ndim == 2
        if cache is not None and by_token:
            # Counts were given for the prompt; what is new decides for itself.
            model_kwargs["num_recurrences"] = None
        elif cache is None and (by_token or self._halts_by_row(model_kwargs)):
            # Without a cache the past is computed again: at the depths that it had.
            decides = model_kwargs.get("halting_criterion") or self.config.halting_criterion
            new = counts.new_full((counts.shape[0], num_new_tokens), 0 if decides else self.config.num_recurrences)
            model_kwargs["num_recurrences"] = torch.cat((counts, new), dim=1)
        return model_kwargs


__all__ = ["RecurrentDepthGenerationMixin"]
