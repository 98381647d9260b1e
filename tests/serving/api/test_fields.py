"""What a request may say, and what is refused with the name of its field."""

import json

import pytest

from memreason_hf.serving.api.fields import ChatFields, CompletionFields, read_fields, schema
from memreason_hf.serving.api.refusals import ApiError
from modeling_recurrent.arguments_recurrent import DEPTH_ARGUMENTS


REFUSED = [
    ({"temprature": 1}, "temprature", "Did you mean 'temperature'?"),
    ({"quux": 1}, "quux", "is not a field"),
    ({"n": 0}, "n", "n=0 must be at least 1"),
    ({"n": -1}, "n", "n=-1 must be at least 1"),
    ({"n": True}, "n", "n=True must be a whole number"),
    ({"n": 2.0}, "n", "n=2.0 must be a whole number"),
    ({"n": "2"}, "n", "n='2' must be a whole number"),
    ({"n": 10**4000}, "n", None),
    ({"max_tokens": 0}, "max_tokens", "must be at least 1"),
    ({"temperature": -0.1}, "temperature", "temperature=-0.1 must be at least 0"),
    ({"temperature": float("inf")}, "temperature", "must be a finite number"),
    ({"temperature": 1e-30}, "temperature", "must be 0 or at least 0.001"),
    ({"temperature": 0.5, "do_sample": False}, "do_sample", "contradicts temperature=0.5"),
    ({"temperature": 0, "do_sample": True}, "do_sample", "contradicts"),
    ({"top_p": 0}, "top_p", "must be above 0"),
    ({"top_p": 1.1}, "top_p", "must be at most 1"),
    ({"top_k": -1}, "top_k", "must be at least 0"),
    ({"min_p": 2}, "min_p", "must be at most 1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "must be above 0"),
    ({"seed": 2**63}, "seed", "must be at most 9223372036854775807"),
    ({"seed": 1.5}, "seed", "whole number"),
    ({"stream": "yes"}, "stream", "must be true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "send stream=true"),
    ({"stream": True, "stream_options": {"usage": True}}, "stream_options", "stream_options.usage is not a field"),
    ({"stream": True, "stream_options": []}, "stream_options", "must be an object"),
    ({"stop": ["x"] * 10_000}, "stop", "stop has 10,000 texts, but this server takes at most 16"),
    ({"stop": ""}, "stop", "must be a text of 1 to 256 characters"),
    ({"stop": ["a", 5]}, "stop", "stop=5 must be a text"),
    ({"stop": {"a": 1}}, "stop", "must be a text or a list"),
    ({"stop": "x" * 257}, "stop", "1 to 256"),
    ({"num_recurrences": 0}, "num_recurrences", "at least 1"),
    ({"num_recurrences": 10**9}, "num_recurrences", "at most 10000"),
    ({"num_recurrences": [1, 2]}, "num_recurrences", "whole number"),
    ({"kl_threshold": float("nan")}, "kl_threshold", "finite"),
    ({"kl_threshold": "low"}, "kl_threshold", "must be a number"),
    ({"halting_granularity": "word"}, "halting_granularity", "'token' or 'sequence'"),
    # What OpenAI has and this server does not have.
    ({"tools": [{"type": "function"}]}, "tools", "does not have this field of OpenAI's API"),
    ({"response_format": {"type": "json_object"}}, "response_format", "does not have this field"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "does not have"),
    ({"presence_penalty": 0.5}, "presence_penalty", "send 0"),
    ({"best_of": 2}, "best_of", "send 1"),
    ({"best_of": True}, "best_of", "send 1"),
    ({"suffix": "x"}, "suffix", "does not have"),
]
ACCEPTED = [
    {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "x"},
    {"tools": [], "tool_choice": "none", "logit_bias": {}, "presence_penalty": 0.0, "best_of": 1, "store": False},
    {"response_format": {"type": "text"}, "functions": None, "suffix": None},
    {"temperature": None, "n": None, "stop": None, "seed": None, "stream": None, "num_recurrences": None},
    {"stop": ["x"] * 16, "temperature": 2, "top_p": 1, "seed": -(2**63)},
]


@pytest.mark.parametrize("kind", [CompletionFields, ChatFields])
@pytest.mark.parametrize(("content", "param", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused_names_its_field(kind, content, param, said):
    with pytest.raises(ApiError) as refused:
        read_fields(kind, content)
    error = refused.value.body()["error"]
    assert refused.value.status == 400 and error["param"] == param and error["type"] == "invalid_request_error"
    assert len(error["message"]) < 300
    assert said is None or said in error["message"]
    json.dumps(error).encode("utf-8")


@pytest.mark.parametrize("kind", [CompletionFields, ChatFields])
@pytest.mark.parametrize("content", ACCEPTED, ids=lambda value: ",".join(value)[:40])
def test_what_asks_for_nothing_is_accepted(kind, content):
    read_fields(kind, content)


def test_every_argument_of_depth_is_a_field():
    """A criterion that is added to the model must not be refused here."""
    assert set(DEPTH_ARGUMENTS) <= set(CompletionFields.model_fields)
    fields = read_fields(CompletionFields, {"halting_criterion": "kl", "kl_threshold": 1, "argmax_patience": 2})
    assert fields.depth == {"halting_criterion": "kl", "kl_threshold": 1.0, "argmax_patience": 2}


def test_fields_of_one_endpoint_are_not_those_of_the_other():
    for kind, name in ((CompletionFields, "messages"), (ChatFields, "prompt"), (ChatFields, "echo")):
        with pytest.raises(ApiError, match=f"{name} is not a field"):
            read_fields(kind, {name: None})


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        (CompletionFields, {"echo": True, "logprobs": 1}, "not computed for the prompt"),
        (CompletionFields, {"logprobs": True}, "whole number"),
        (CompletionFields, {"logprobs": 21}, "at most 20"),
        (ChatFields, {"logprobs": 3}, "true or false"),
        (ChatFields, {"top_logprobs": 3}, "needs logprobs=true"),
        (ChatFields, {"max_tokens": 3, "max_completion_tokens": 4}, "the same field"),
    ],
)
def test_fields_that_do_not_go_together(kind, content, said):
    with pytest.raises(ApiError, match=said):
        read_fields(kind, content)


def test_how_log_probabilities_are_asked_for():
    assert read_fields(CompletionFields, {}).num_logprobs is None
    assert read_fields(CompletionFields, {"logprobs": 0}).num_logprobs == 0
    assert read_fields(ChatFields, {"logprobs": True}).num_logprobs == 0
    assert read_fields(ChatFields, {"logprobs": True, "top_logprobs": 2}).num_logprobs == 2
    assert read_fields(ChatFields, {"logprobs": False}).num_logprobs is None


@pytest.mark.parametrize("kind", [CompletionFields, ChatFields])
def test_the_schema_lists_the_fields(kind):
    described = schema(kind)
    assert set(described["properties"]) == set(kind.model_fields)
    assert "$ref" not in json.dumps(described) and described["additionalProperties"] is False
