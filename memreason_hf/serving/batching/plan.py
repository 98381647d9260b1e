"""Turns a request into a row: what `generate` would read, checked, and what cannot run refused."""

import copy
from collections.abc import Sequence

import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMode, LogitsProcessorList

from memreason_hf.checks import check_int, shortened
from modeling_recurrent.arguments_recurrent import DEPTH_ARGUMENTS

from .core import fixed_positions
from .depth import RequestDepth
from .requests import GENERATION_FIELDS, GenerationRequest
from .rows import Row
from .text import TextStream


# Fields of a generation config that change the texts of `generate` and that this loop does not have, with the values
# that leave them off.
_OFF = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "guidance_scale": (None, 1, 1.0),
    "max_time": (None,),
    "token_healing": (None, False),
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
    "assistant_early_exit": (None,),
    "prompt_lookup_num_tokens": (None,),
    "draft_recurrences": (None,),
    "draft_tokens": (None,),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "output_scores": (None, False),
    "output_logits": (None, False),
}


class RequestPlanner:
    """
    Makes rows of requests.

    Args:
        model (`RecurrentDepthForCausalLM`): The model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed for text and stop strings.
    """

    def __init__(self, model, tokenizer=None):
        self.model, self.tokenizer = model, tokenizer

    def plan(self, request: GenerationRequest, request_id: str) -> Row:
        """
        The row of a request.

        Raises:
            `ValueError`, `TypeError`: The request holds what cannot run. The message names the field.
        """
        tokens = self._tokens(request.prompt_ids)
        _whole("max_new_tokens", request.max_new_tokens, 1)
        _as_ids(request.eos_token_id)
        config, depth_arguments = self._generation_config(request)
        ends = frozenset(_as_ids(config.eos_token_id))
        max_new_tokens = self._new_tokens(request, config, len(tokens))
        self._check_length(len(tokens), max_new_tokens)
        prompt = torch.tensor([tokens], device=self.model.device)
        # Processors such as that of `forced_eos_token_id` read it.
        config.max_length = len(tokens) + max_new_tokens
        processors = self._processors(config, prompt)
        return Row(
            request_id=request_id,
            tokens=tokens,
            max_new_tokens=max_new_tokens,
            ends=ends,
            depth=RequestDepth(self.model, prompt, depth_arguments, request.depth_schedule),
            processors=processors,
            generator=self._generator(request.seed) if config.do_sample else None,
            text=self._text(request, config),
            top_logprobs=_whole("top_logprobs", request.top_logprobs, 0),
            state_seed=depth_arguments.get("state_seed", self.model.config.state_seed),
        )

    def _tokens(self, prompt_ids):
        if isinstance(prompt_ids, torch.Tensor):
            prompt_ids = prompt_ids.tolist()
        is_list = isinstance(prompt_ids, Sequence) and not isinstance(prompt_ids, str | bytes)
        if not is_list or not all(isinstance(token, int) and not isinstance(token, bool) for token in prompt_ids):
            raise TypeError(f"prompt_ids must be a list of token ids, got {shortened(prompt_ids)}.")
        if not prompt_ids:
            raise ValueError("prompt_ids is empty, but a text needs at least one token to continue from.")
        vocabulary = self.model.config.vocab_size
        wrong = next((token for token in prompt_ids if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise ValueError(f"prompt_ids holds {wrong}, but the vocabulary has {vocabulary} tokens.")
        return list(prompt_ids)

    def _generation_config(self, request):
        given = {name: getattr(request, name) for name in GENERATION_FIELDS}
        depth = {name: getattr(request, name) for name in (*DEPTH_ARGUMENTS, "state_seed")}
        given, depth = ({k: v for k, v in values.items() if v is not None} for values in (given, depth))
        counts = depth.get("num_recurrences")
        if counts is not None and not isinstance(counts, int):
            # `generate` tells a fixed depth from counts by the type.
            depth["num_recurrences"] = torch.as_tensor(counts)
        config = request.generation_config
        if config is not None:
            config = copy.deepcopy(config)
            config.update(**given)
            given = {}
        config, model_arguments = self.model._prepare_generation_config(config, **given, **depth)
        self._refuse(config, model_arguments)
        return config, model_arguments

    def _refuse(self, config: GenerationConfig, model_arguments):
        for name, off in _OFF.items():
            value = getattr(config, name, None)
            if value not in off:
                raise ValueError(f"{name}={value!r} cannot be batched by depth. Leave it out, or use generate.")
        mode = config.get_generation_mode()
        if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise ValueError(f"{mode.value} cannot be batched by depth. Use generate.")
        if model_arguments.get("cache_recurrences") not in (None, "all"):
            raise ValueError(
                f"cache_recurrences={model_arguments['cache_recurrences']!r} cannot be batched by depth, which keeps "
                "the keys and values of every recurrence. Leave it out, or use generate."
            )

    def _new_tokens(self, request, config, prompt_length):
        value = config.max_new_tokens
        if value is None:
            # As in `generate`: `max_length` counts the prompt, unless it has its default.
            default = config.max_length is None or config.max_length == GenerationConfig().max_length
            value = 20 if default else config.max_length - prompt_length
        return _whole("max_new_tokens", value, 1)

    def _check_length(self, prompt_length, max_new_tokens):
        config, total = self.model.config, prompt_length + max_new_tokens - 1
        # Positions without a learned embedding have no end, as in `generate`.
        room, fixed = config.max_position_embeddings, fixed_positions(self.model.model.rotary_emb)
        reason = None
        if config.position_embedding_type == "learned" and total > room:
            reason = f"max_position_embeddings={room} learned positions exist"
        elif fixed is not None and total > fixed:
            reason = f"beyond {fixed} positions the rotation angles of a row would depend on the other rows"
        if reason is not None:
            raise ValueError(
                f"prompt_ids has {prompt_length} tokens and max_new_tokens={max_new_tokens}, but {reason}. Shorten "
                "the prompt or lower max_new_tokens."
            )

    def _processors(self, config, prompt):
        self.model._prepare_special_tokens(config, False, device=self.model.device)
        return self.model._get_logits_processor(
            config,
            input_ids_seq_length=prompt.shape[1],
            encoder_input_ids=prompt,
            prefix_allowed_tokens_fn=None,
            logits_processor=LogitsProcessorList(),
            device=self.model.device,
            model_kwargs={},
        )

    def _generator(self, seed):
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        check_int("seed", seed, -(2**63), 2**64 - 1, "the bits of a seed")
        return torch.Generator(self.model.device).manual_seed(seed)

    def _text(self, request, config):
        stop = config.stop_strings or ()
        stop = (*request.stop_strings, *((stop,) if isinstance(stop, str) else stop))
        wrong = next((text for text in stop if not isinstance(text, str) or not text), None)
        if wrong is not None:
            raise ValueError(f"stop_strings holds {wrong!r}, but must hold strings of at least one character.")
        if self.tokenizer is None:
            if stop:
                raise ValueError(
                    f"stop_strings={shortened(stop)} needs text: create the DepthBatcher with a tokenizer."
                )
            return None
        return TextStream(self.tokenizer, stop)


def _as_ids(value):
    if value is None:
        return ()
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    ids = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise TypeError(f"eos_token_id={shortened(value)} must be a token id or a list of token ids.")
    return tuple(ids)


def _whole(name, value, least):
    if value is not None:
        check_int(name, value, least)
    return value


__all__ = ["RequestPlanner"]
