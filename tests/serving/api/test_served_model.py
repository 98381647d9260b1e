"""What a request takes from the generation config, and what `/v1/models` and `/metrics` say."""

import pytest
from api_servers import HALTING, NAME, reference, running, served_model
from small_tokenizers import byte_level

from memreason_hf.serving.api.fields import ChatFields, CompletionFields, read_fields
from memreason_hf.serving.api.prompts import Prompt
from memreason_hf.serving.api.refusals import ApiError
from memreason_hf.serving.api.served_model import ShownTokens


def with_generation_config(served, **values):
    """Sets fields of the generation config, as a saved `generation_config.json` does."""
    for name, value in values.items():
        setattr(served.model.generation_config, name, value)
    return served


def planned(served, length=4, kind=CompletionFields, **fields):
    (request,) = served.requests(read_fields(kind, fields), [Prompt(tuple(range(3, 3 + length)))])
    return request


@pytest.mark.parametrize(
    "values",
    [
        {"num_recurrences": 7},
        {"halting_criterion": "kl", "kl_threshold": 0.3},
        {"repetition_penalty": 1.5},
        {"do_sample": True, "top_k": 5, "temperature": 0.7},
        {"max_new_tokens": 9},
    ],
    ids=str,
)
def test_what_a_request_leaves_out_is_that_of_the_generation_config(values):
    served = with_generation_config(served_model(), **values)
    length = values.get("max_new_tokens", 6)
    with running(served) as server:
        found = server.complete(prompt="the cat", seed=3, recurrences=True).body["choices"][0]
        # `generate` reads the same generation config.
        text, _, depths = reference(served, "the cat", length, **({"seed": 3} if "do_sample" in values else {}))
        assert found["text"] == text and found["recurrences"] == depths
        # Control: the request wins.
        greedy = server.complete(prompt="the cat", num_recurrences=2, repetition_penalty=1.0, temperature=0).body
        plain = reference(served_model(), "the cat", length, num_recurrences=2)[0]
        assert greedy["choices"][0]["text"] == plain != text


def test_the_length_of_an_answer():
    served = served_model()
    assert planned(served).max_new_tokens == 6
    assert planned(served, max_tokens=20).max_new_tokens == 20
    assert planned(served, kind=ChatFields, max_completion_tokens=20).max_new_tokens == 20
    # The last token needs no position.
    assert planned(served, length=256).max_new_tokens == 1
    assert planned(served, length=250, max_tokens=7).max_new_tokens == 7
    for kind, name in ((CompletionFields, "max_tokens"), (ChatFields, "max_completion_tokens")):
        with pytest.raises(ApiError, match=f"{name}=8 after a prompt of 250 tokens needs 257 positions") as refused:
            planned(served, length=250, kind=kind, **{name: 8})
        assert refused.value.code == "context_length_exceeded" and refused.value.param == name
    # As in `generate`, max_length counts the prompt.
    assert planned(with_generation_config(served, max_length=14)).max_new_tokens == 10
    assert planned(served, length=14, max_tokens=5).max_new_tokens == 5
    with pytest.raises(ApiError, match="14 tokens, and max_length=14 of generation_config") as refused:
        planned(served, length=14)
    assert refused.value.param == "prompt"
    assert planned(with_generation_config(served, max_new_tokens=3)).max_new_tokens == 3


def test_a_text_ends_as_the_generation_config_says_or_else_the_tokenizer():
    served = served_model()
    assert planned(with_generation_config(served, eos_token_id=[1, 5])).eos_token_id == [1, 5]
    end = served.tokenizer.eos_token_id
    assert planned(with_generation_config(served, eos_token_id=None)).eos_token_id == end


def test_draws_are_asked_for_as_in_openais_api():
    served = served_model()
    assert planned(served).do_sample is None
    assert planned(served, temperature=0.5).do_sample is True
    assert planned(served, top_p=0.5).do_sample is True
    greedy = planned(served, temperature=0, top_p=0.5, top_k=3)
    assert (greedy.do_sample, greedy.temperature, greedy.top_p, greedy.top_k) == (False, None, None, None)
    assert planned(served, do_sample=False, top_p=0.5).do_sample is False
    seeds = {planned(served, temperature=1).seed for _ in range(5)}
    assert len(seeds) == 5 and planned(served, seed=-7).seed == -7


class TestDepthBeyondTheLimit:
    def test_what_is_asked_for_is_refused(self):
        served = served_model(limits={"most_recurrences": 5})
        for name in ("num_recurrences", "min_recurrences", "max_recurrences"):
            with pytest.raises(ApiError, match=f"{name}=6 must be at most 5") as refused:
                planned(served, **{name: 6})
            assert refused.value.param == name
        assert planned(served, num_recurrences=5).num_recurrences == 5

    def test_a_criterion_halts_at_the_limit_of_the_server(self):
        served = served_model(limits={"most_recurrences": 5})
        assert planned(served, **HALTING).max_recurrences == 5
        assert planned(served, **HALTING, max_recurrences=3).max_recurrences == 3
        assert planned(served, num_recurrences=2).max_recurrences is None
        assert planned(served, halting_criterion="none").max_recurrences is None
        assert planned(served_model(), **HALTING).max_recurrences is None
        assert planned(with_generation_config(served, **HALTING)).max_recurrences == 5

    def test_the_depth_of_the_model_cannot_be_asked_for_without_its_number(self):
        """A server whose requests halt may have a model with more recurrences than it runs."""
        served = served_model(limits={"most_recurrences": 4}, num_recurrences=9, **HALTING)
        assert planned(served).max_recurrences == 4
        with pytest.raises(ApiError, match="the model's own 9 are more than the 4 that this server runs") as refused:
            planned(served, halting_criterion="none")
        assert refused.value.param == "num_recurrences"
        assert planned(served, halting_criterion="none", num_recurrences=4).num_recurrences == 4


def test_the_model_says_its_depth():
    fixed = served_model().describe()
    assert fixed["id"] == NAME and fixed["max_model_len"] == 256
    assert fixed["depth"] == {
        "num_recurrences": 4,
        "halting_criterion": None,
        "halting_granularity": "token",
        "min_recurrences": 1,
        "max_recurrences": 9,
        "parameters": {},
        "most_recurrences": 9,
    }
    halting = served_model(halting_criterion="kl", kl_threshold=0.25)
    assert halting.describe()["depth"]["parameters"] == {"kl_threshold": 0.25}
    assert halting.describe()["depth"]["num_recurrences"] is None
    # A generation config comes before the config, as in `generate`.
    other = with_generation_config(halting, num_recurrences=3).describe()["depth"]
    assert (other["num_recurrences"], other["halting_criterion"]) == (3, None)


def test_only_the_tokens_that_begin_end_or_pad_a_text_are_hidden():
    tokenizer = byte_level()
    tokenizer.add_tokens(["<memory>"], special_tokens=True)
    ids = tokenizer("<s><memory>the<pad></s>")["input_ids"]
    assert len(ids) == 5
    shown = ShownTokens(tokenizer).decode(ids, skip_special_tokens=True)
    assert shown == "<memory>the"


def test_no_text_ends_with_the_token_that_ends_a_turn():
    served = served_model()
    _, ids, _ = reference(served, "user: the cat\nassistant:")
    turn = ids[-1]
    length = ids.index(turn)
    with_generation_config(served, eos_token_id=[served.tokenizer.eos_token_id, turn])
    expected = served.tokenizer.decode(ids[:length])
    with running(served) as server:
        choice = server.chat("the cat", max_tokens=6, return_token_ids=True).body["choices"][0]
        assert choice["finish_reason"] == "stop" and choice["token_ids"] == ids[: length + 1]
        assert choice["message"]["content"] == expected
        events = server.chat("the cat", max_tokens=6, stream=True).events
        assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == expected


COUNTED = (
    "memreason_generated_tokens_total",
    "memreason_recurrences_total",
    "memreason_prompt_tokens_total",
    'memreason_requests_total{endpoint="/v1/completions",status="200"}',
    'memreason_request_seconds_count{endpoint="/v1/completions"}',
    'memreason_first_token_seconds_count{endpoint="/v1/completions"}',
)


def test_metrics_count_what_was_done(server):
    fields = {"prompt": ["the cat", "the dog ran"], "max_tokens": 5, **HALTING}
    usage = server.complete(**fields).body["usage"]
    before = [server.metric(name) for name in COUNTED]
    assert server.complete(**fields).body["usage"] == usage
    added = [server.metric(name) - old for name, old in zip(COUNTED, before)]
    spent = (usage["completion_tokens"], usage["recurrences"]["total"], usage["prompt_tokens"])
    assert added == [*spent, 1, 1, 1]
    assert server.metric("memreason_mean_recurrences") == pytest.approx(
        server.metric("memreason_recurrences_total") / server.metric("memreason_generated_tokens_total")
    )
    assert server.metric("memreason_tokens_per_second") > 0
    assert server.metric("memreason_slot_occupancy") == server.metric("memreason_slots_used") == 0
    assert server.metric("memreason_slots") > 0 and server.metric("memreason_engine_up") == 1


def test_metrics_show_what_runs(server):
    connection = server.raw()
    body = b'{"prompt": ["the cat", "a", "b", "c", "d", "e", "f", "g", "h", "i"], "max_tokens": 250}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    server.wait_until(lambda: server.metric("memreason_running_requests") == 8)
    assert server.metric("memreason_waiting_requests") == 2
    assert 0 < server.metric("memreason_slot_occupancy") < 1
    assert server.metric("memreason_open_requests") == 2
    connection.close()
    server.wait_until_idle()


def test_health_and_the_description_of_the_api(server):
    assert server.get("/health").body == {"status": "ok", "model": NAME}
    described = server.get("/openapi.json").body
    for path in ("/v1/completions", "/v1/chat/completions"):
        schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert {"num_recurrences", "kl_threshold", "seed", "stream"} <= set(schema["properties"])
    # No page that loads scripts of other servers.
    assert server.get("/docs").status == server.get("/redoc").status == 404
