"""
The fields of a request: those of OpenAI's API, those of `generate` under their own names, and a few of this server.

    fields = read_fields(CompletionFields, {"prompt": "Once", "max_tokens": 8})

A field that is not known is refused. So is a field of OpenAI's API that would change the answer and that this server
does not have, unless its value asks for nothing.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from memreason_hf.checks import shortened
from memreason_hf.serving.api.refusals import ApiError, wrong
from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.fields_recurrent import MOST_RECURRENCES
from modeling_recurrent.halting_recurrent import criterion_parameters


Fields = TypeVar("Fields", bound=BaseModel)
# Seeds are those that torch takes.
_LEAST_SEED, _GREATEST_SEED = -(2**63), 2**63 - 1
# Far beyond what the limits of any server allow; larger numbers do not fit into the integers of torch.
_MOST = 2**31 - 1
MOST_STOPS = 16
MOST_STOP_LETTERS = 256
MOST_LOGPROBS = 20
# Logits are divided by the temperature: with less than this, float32 would overflow.
LEAST_TEMPERATURE = 1e-3
# Fields of OpenAI's API that this server does not have, and the values that ask for nothing.
_WITHOUT_EFFECT = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Fields of OpenAI's API that are for its accounts and caches. They never change an answer.
_IGNORED = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
)
_WANTED = {
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "string_type": "must be a text",
    "finite_number": "must be a finite number",
    "model_type": "must be an object",
    "list_type": "must be a list",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
}


class StreamOptions(BaseModel):
    """What a stream sends beside the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(None, description="A last event holds the usage of the whole request.")
    include_obfuscation: Literal[False] | None = Field(None, description="Only false: nothing is padded.")


def _depth_fields():
    """The depth of one request, by the names of `generate`. A new criterion adds its parameters."""
    count = Field(None, ge=1, le=MOST_RECURRENCES)
    fields = {
        "num_recurrences": (int | None, count),
        "min_recurrences": (int | None, count),
        "max_recurrences": (int | None, count),
        "halting_criterion": (str | None, None),
        "halting_granularity": (Literal["token", "sequence"] | None, None),
    }
    for name in criterion_parameters():
        kind = int if RecurrentDepthConfig.__annotations__[name] is int else float
        fields[name] = (kind | None, Field(None, allow_inf_nan=False) if kind is float else Field(None, le=_MOST))
    return fields


DEPTH_FIELDS = tuple(_depth_fields())
_DepthFields = create_model(
    "_DepthFields", __config__=ConfigDict(extra="forbid", strict=True, protected_namespaces=()), **_depth_fields()
)


class RequestFields(_DepthFields):
    """The fields that both endpoints have."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1, le=_MOST)
    n: int | None = Field(None, ge=1, le=_MOST)
    stop: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    do_sample: bool | None = None
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=_MOST)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    seed: int | None = Field(None, ge=_LEAST_SEED, le=_GREATEST_SEED)
    recurrences: bool | None = Field(None, description="Adds the recurrences of each token to a choice.")
    return_token_ids: bool | None = Field(None, description="Adds the id of each token to a choice.")

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def depth(self) -> dict[str, object]:
        """The fields of depth that were given."""
        values = {name: getattr(self, name) for name in DEPTH_FIELDS}
        return {name: value for name, value in values.items() if value is not None}


class CompletionFields(RequestFields):
    """The fields of `POST /v1/completions`."""

    prompt: Any = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives whose log-probabilities are wanted for each token; None for no log-probabilities at all."""
        return self.logprobs


class ChatFields(RequestFields):
    """The fields of `POST /v1/chat/completions`."""

    messages: Any = None
    max_completion_tokens: int | None = Field(None, ge=1, le=_MOST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives whose log-probabilities are wanted for each token; None for no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


def read_fields(kind: type[Fields], content: Mapping[str, object]) -> Fields:
    """
    The fields of a request, checked one by one.

    Args:
        kind: `CompletionFields` or `ChatFields`.
        content: the JSON object of the body.

    Raises:
        ApiError: names the field, its value and what it must be.

    Example:

        >>> read_fields(CompletionFields, {"prompt": "a", "temprature": 1})
        Traceback (most recent call last):
        memreason_hf.serving.api.refusals.ApiError: temprature is not a field. Did you mean 'temperature'?
    """
    known = {}
    for name, value in content.items():
        if name in kind.model_fields:
            known[name] = value
        elif name in _WITHOUT_EFFECT:
            _check_without_effect(name, value)
        elif name not in _IGNORED:
            raise _unknown(name, (*kind.model_fields, *_WITHOUT_EFFECT, *_IGNORED))
    try:
        fields = kind.model_validate(known)
    except ValidationError as error:
        raise _describe(error.errors(include_url=False)[0]) from None
    _check_stops(fields)
    _check_together(fields)
    return fields


def _check_without_effect(name, value):
    neutral = _WITHOUT_EFFECT[name]
    # True would count as 1.
    if value is None or any(type(value) in _alike(choice) and value == choice for choice in neutral):
        return
    hint = f" Leave it out, or send {' or '.join(map(repr, neutral))}." if neutral else " Leave it out."
    message = f"{name}={shortened(value)}: this server does not have this field of OpenAI's API.{hint}"
    raise ApiError(400, message, param=name, code="unsupported_field")


def _alike(choice):
    return (int, float) if type(choice) is int else (type(choice),)


def _unknown(name, known):
    close = difflib.get_close_matches(name[:64], known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else "GET /openapi.json lists the fields."
    shown = name if name.isidentifier() and len(name) <= 64 else shortened(name)
    return ApiError(400, f"{shown} is not a field. {hint}", param=name[:64], code="unknown_field")


def _describe(error):
    name = str(error["loc"][0])
    within = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return ApiError(400, f"{within} is not a field.", param=name, code="unknown_field")
    if error["type"] == "literal_error":
        return wrong(within, error["input"], f"must be {error['ctx']['expected']}")
    wanted = _WANTED.get(error["type"])
    if wanted is None:
        return wrong(within, error["input"], f"is refused: {error['msg']}")
    return wrong(within, error["input"], wanted.format(**error.get("ctx", {})))


def _check_stops(fields):
    given = fields.stop
    if given is None:
        return
    if isinstance(given, list):
        if len(given) > MOST_STOPS:
            message = f"stop has {len(given):,} texts, but this server takes at most {MOST_STOPS}."
            raise ApiError(400, message, param="stop", code="invalid_value")
    elif not isinstance(given, str):
        raise wrong("stop", given, "must be a text or a list of texts")
    for text in fields.stops:
        if not isinstance(text, str) or not 0 < len(text) <= MOST_STOP_LETTERS:
            raise wrong("stop", text, f"must be a text of 1 to {MOST_STOP_LETTERS} characters")


def _check_together(fields):
    if fields.stream_options is not None and not fields.stream:
        message = "stream_options is for streams. Leave it out, or send stream=true."
        raise ApiError(400, message, param="stream_options", code="invalid_value")
    if fields.temperature is not None and 0 < fields.temperature < LEAST_TEMPERATURE:
        raise wrong("temperature", fields.temperature, f"must be 0 or at least {LEAST_TEMPERATURE}")
    contradicts = None not in (fields.do_sample, fields.temperature) and fields.do_sample != (fields.temperature > 0)
    if contradicts:
        message = f"do_sample={fields.do_sample} contradicts temperature={fields.temperature:g}. Leave one out."
        raise ApiError(400, message, param="do_sample", code="invalid_value")
    if isinstance(fields, ChatFields):
        _check_chat(fields)
    elif fields.echo and fields.logprobs is not None:
        message = "echo=true: log-probabilities are not computed for the prompt. Leave logprobs or echo out."
        raise ApiError(400, message, param="echo", code="invalid_value")


def _check_chat(fields):
    if fields.top_logprobs and not fields.logprobs:
        raise wrong("top_logprobs", fields.top_logprobs, "needs logprobs=true")
    both = (fields.max_tokens, fields.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        message = f"max_tokens={both[0]} and max_completion_tokens={both[1]} are the same field. Send one of them."
        raise ApiError(400, message, param="max_tokens", code="invalid_value")


def schema(kind: type[RequestFields]) -> dict:
    """The JSON schema of the fields of a request, for the description of the API."""
    described = kind.model_json_schema()
    inner = described.pop("$defs", {})

    def whole(part):
        if isinstance(part, dict):
            if "$ref" in part:
                return whole(inner[part["$ref"].rpartition("/")[2]])
            return {key: whole(value) for key, value in part.items()}
        return [whole(item) for item in part] if isinstance(part, list) else part

    return whole(described) | {"additionalProperties": False}
