"""The model of a server: what its requests take from the generation config, and what they may ask for."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

from transformers import GenerationConfig, PreTrainedTokenizerBase

from memreason_hf.messages import REPLACEMENT_CHARACTER
from memreason_hf.serving.api.fields import ChatFields, RequestFields
from memreason_hf.serving.api.limits import Limits
from memreason_hf.serving.api.prompts import Prompt
from memreason_hf.serving.api.refusals import ApiError
from memreason_hf.serving.batching import DepthBatcher, GenerationRequest
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


_DRAWS = ("temperature", "top_k", "top_p", "min_p")
_COUNTS = ("num_recurrences", "min_recurrences", "max_recurrences")
_SEEDS = 2**63
# The most tokens, and log-probabilities of other tokens, in the answers to one request: tens of megabytes.
MOST_ENTRIES = 2**17
# What decoders write for a part of a character.


class ShownTokens:
    """
    Decodes what clients see, for the decode loop and for the lists of tokens.

    The marks of steps, such as `<memory>`, and all other special tokens are a part of the text, as everywhere in this
    package. Only the tokens that begin, end or pad a text are left out.

    Args:
        tokenizer: of the model.
        ends: the ids that end a text, beside that of the tokenizer. Models of chats often have a token for the end of
            a turn.

    Example:

        >>> ids = [tokenizer.eos_token_id, *tokenizer("the").input_ids]
        >>> ShownTokens(tokenizer).decode(ids)
        'the'
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()):
        self.tokenizer = tokenizer
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.hidden_ids = {*special, *ends} - {None}
        self._tokens: dict[int, dict] = {}

    def decode(self, ids: Sequence[int], **options) -> str:
        """The text of ids. Options of the tokenizer's method have no effect."""
        kept = [token_id for token_id in ids if token_id not in self.hidden_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def token(self, token_id: int) -> dict:
        """
        A token alone as `token` and `bytes`. For a part of a character, these are its name in the vocabulary, which
        tells such parts apart, and None.
        """
        if token_id not in self._tokens:
            text = self.tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            self._tokens[token_id] = describe_token(text)
            if REPLACEMENT_CHARACTER in text:
                name = self.tokenizer.convert_ids_to_tokens(token_id) or f"<{token_id}>"
                self._tokens[token_id] = {"token": name, "bytes": None}
        return self._tokens[token_id]


def describe_token(text: str) -> dict:
    """A text as the token of a log-probability."""
    return {"token": text, "bytes": list(text.encode("utf-8"))}


@dataclass(frozen=True)
class ServedModel:
    """
    A model and what its clients can ask for.

    Attributes:
        name: what clients call it.
        model, tokenizer: loaded, in evaluation mode.
        limits: what clients can ask for.
        created: when it was loaded, in seconds since 1970.
    """

    name: str
    model: RecurrentDepthForCausalLM
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    created: int = 0

    @property
    def config(self) -> RecurrentDepthConfig:
        """The config of the model."""
        return self.model.config

    def shown_tokens(self) -> ShownTokens:
        """What clients see of a text of the model."""
        ends = self._ends()
        ends = [ends] if isinstance(ends, int) else ends or ()
        return ShownTokens(self.tokenizer, ends)

    def make_batcher(self, **options) -> DepthBatcher:
        """A decode loop without requests."""
        return DepthBatcher(self.model, self.shown_tokens(), **options)

    def warm_up(self) -> None:
        """
        Generates two tokens: the first pass of a process takes much longer than those after it.

        Raises:
            ValueError: no request can run, because of the generation config or the weights.
        """
        batcher = self.make_batcher(max_rows=1, max_cache_tokens=64)
        batcher.submit(GenerationRequest([self.tokenizer.eos_token_id or 0], max_new_tokens=2))
        for output in batcher:
            if output.error is not None:
                raise ValueError(f"The model cannot generate: {output.error}")

    def describe(self) -> dict:
        """The model as an object of OpenAI's API, with its depth."""
        depth = self.default_depth()
        criterion = depth["halting_criterion"]
        names = [] if criterion is None else [entry.name for entry in fields(HALTING_CRITERIA[criterion])]
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "memreason",
            "max_model_len": self.limits.context,
            "depth": {
                "num_recurrences": depth["num_recurrences"] if criterion is None else None,
                "halting_criterion": criterion,
                "halting_granularity": depth["halting_granularity"],
                "min_recurrences": depth["min_recurrences"],
                "max_recurrences": depth["max_recurrences"],
                "parameters": {name: depth[name] for name in names},
                "most_recurrences": self.limits.most_recurrences,
            },
        }

    def default_depth(self) -> dict:
        """The depth of a request without depth: that of the generation config, then of the config."""
        names = ("halting_criterion", "halting_granularity", *_COUNTS, *_parameters())
        generation = self.model.generation_config
        given = {name: getattr(generation, name, None) for name in names}
        depth = {name: getattr(self.config, name) if value is None else value for name, value in given.items()}
        is_fixed = isinstance(given["num_recurrences"], int) and given["halting_criterion"] is None
        if is_fixed or depth["halting_criterion"] == "none":
            depth["halting_criterion"] = None
        return depth

    def requests(self, given: RequestFields, prompts: Sequence[Prompt]) -> list[GenerationRequest]:
        """
        The requests for the decode loop: `n` for every prompt. The seed of choice i of a prompt is `seed + i`, so
        that a prompt gets the same answers whatever other prompts it was sent with.

        Raises:
            ApiError: a field is beyond the limits of the server.
        """
        count = given.n or 1
        self.check_choices(given, len(prompts))
        common = {
            **self._sampling(given),
            **self._depth(given),
            "eos_token_id": self._ends(),
            "stop_strings": given.stops,
            "top_logprobs": given.num_logprobs,
        }
        lengths = [self._new_tokens(given, len(prompt.ids)) for prompt in prompts]
        self._check_size(given, sum(lengths) * count)
        first = given.seed if given.seed is not None else secrets.randbelow(_SEEDS)
        return [
            GenerationRequest(
                prompt.ids,
                max_new_tokens=length,
                seed=_seed(first + index),
                **common,
            )
            for prompt, length in zip(prompts, lengths)
            for index in range(count)
        ]

    @staticmethod
    def _check_size(given, tokens):
        entries = tokens * (1 + (given.num_logprobs or 0))
        if entries > MOST_ENTRIES:
            message = (
                f"The answers may have {tokens:,} tokens, which with their log-probabilities are {entries:,} entries. "
                f"A request gets at most {MOST_ENTRIES:,}. Lower n or max_tokens, or send several requests."
            )
            raise ApiError(400, message, param="max_tokens", code="invalid_value")

    def check_choices(self, given: RequestFields, prompts: int) -> None:
        """
        Checks the number of answers.

        Raises:
            ApiError: there would be more than a request gets.
        """
        count = given.n or 1
        if count * prompts > self.limits.choices:
            message = (
                f"n={count} for {prompts:,} prompts makes {count * prompts:,} answers, but a request gets at most "
                f"{self.limits.choices}. Send several requests."
            )
            raise ApiError(400, message, param="n", code="invalid_value")

    def _sampling(self, given):
        """
        As `generate`, but a temperature or another field of draws asks for draws, and the temperature 0 for the most
        probable token, as in OpenAI's API.
        """
        draws = given.do_sample
        if draws is None and given.temperature is not None:
            draws = given.temperature > 0
        elif draws is None and any(getattr(given, name) is not None for name in _DRAWS):
            draws = True
        # Without draws, these have no effect: a nucleus keeps the most probable token.
        values = {name: None if draws is False else getattr(given, name) for name in _DRAWS}
        return {"do_sample": draws, "repetition_penalty": given.repetition_penalty, **values}

    def _depth(self, given):
        depth, most = given.depth, self.limits.most_recurrences
        for name in _COUNTS:
            if depth.get(name, 0) > most:
                message = f"{name}={depth[name]} must be at most {most}: the most recurrences that this server runs."
                raise ApiError(400, message, param=name, code="invalid_value")
        default = self.default_depth()
        otherwise = None if "num_recurrences" in depth else default["halting_criterion"]
        criterion = depth.get("halting_criterion", otherwise)
        if criterion not in (None, "none"):
            if "max_recurrences" not in depth and default["max_recurrences"] > most:
                depth["max_recurrences"] = most
        elif depth.get("num_recurrences", default["num_recurrences"]) > most:
            message = (
                f"num_recurrences is not given, and the model's own {default['num_recurrences']} are more than the "
                f"{most} that this server runs. Send num_recurrences or a halting criterion."
            )
            raise ApiError(400, message, param="num_recurrences", code="invalid_value")
        return depth

    def _ends(self):
        """A model that was trained without a generation config ends its texts as its tokenizer does."""
        ends = self.model.generation_config.eos_token_id
        return self.tokenizer.eos_token_id if ends is None else ends

    def _new_tokens(self, given, prompt):
        # The last new token is not fed back.
        room = self.limits.context - prompt + 1
        names = ("max_completion_tokens", "max_tokens") if isinstance(given, ChatFields) else ("max_tokens",)
        name = next((name for name in names if getattr(given, name) is not None), None)
        if name is None:
            return min(self._default_tokens(given, prompt), room)
        wanted = getattr(given, name)
        if wanted > room:
            message = (
                f"{name}={wanted} after a prompt of {prompt:,} tokens needs {prompt + wanted - 1:,} positions, but "
                f"this server has {self.limits.context:,}. Shorten the prompt, or lower {name}."
            )
            raise ApiError(400, message, param=name, code="context_length_exceeded")
        return wanted

    def _default_tokens(self, given, prompt):
        """As `generate`: max_length counts the prompt, and has no effect where it has its default."""
        generation = self.model.generation_config
        if generation.max_new_tokens is not None:
            return generation.max_new_tokens
        if generation.max_length in (None, GenerationConfig().max_length):
            return self.limits.new_tokens
        if prompt >= generation.max_length:
            message = (
                f"The prompt has {prompt:,} tokens, and max_length={generation.max_length} of generation_config.json "
                "leaves none for the answer. Shorten the prompt, or send max_tokens."
            )
            param = "messages" if isinstance(given, ChatFields) else "prompt"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        return generation.max_length - prompt


def _parameters():
    return dict.fromkeys(entry.name for criterion in HALTING_CRITERIA.values() for entry in fields(criterion))


def _seed(value):
    """A seed that torch takes: those above the greatest begin again with the least."""
    return (value + _SEEDS) % (2 * _SEEDS) - _SEEDS
