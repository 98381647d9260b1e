"""EndpointChat against a server on this machine: what arrives, what is tried again, and what is not."""

import asyncio
import random
import secrets
import threading
import time

import pytest
from chat_servers import FAULTS, HTML, Fault, chat_server, mixed_faults, rate_limited

from memreason_hf.chat import ChatError, ChatReply, EndpointChat, ask_all
from memreason_hf.chat.endpoint import KEY_VARIABLE, shown_address
from memreason_hf.command_line.chat_flags import ChatFlags
from memreason_hf.command_line.judge_flags import given_chat_flags, refuse_unused


def user(text):
    return [{"role": "user", "content": text}]


def endpoint(server, **options):
    return EndpointChat("any/model", server.url, **{"first_wait": 0.01, "timeout": 20, **options})


def ask(chat, text="Is the sky blue?", **options):
    async def once():
        try:
            return await chat.ask(user(text), **{"max_tokens": 5, **options})
        finally:
            await chat.close()

    return asyncio.run(once())


def echo(request):
    return f"You said {request.prompt}."


def test_the_request_and_the_reply_arrive_unchanged():
    text = f"“Ünïcode”\n\t{secrets.token_hex(4)} 🙂"
    with chat_server(echo) as server:
        reply = ask(endpoint(server), text, max_tokens=17, temperature=0.25, seed=11)
    assert reply == ChatReply(f"You said {text}.", len(text.split()), len(f"You said {text}.".split()), "stop")
    (call,) = server.calls
    assert call.path == "/v1/chat/completions" and call.messages == user(text)
    assert {name: call.body[name] for name in ("model", "max_tokens", "temperature", "seed")} == {
        "model": "any/model",
        "max_tokens": 17,
        "temperature": 0.25,
        "seed": 11,
    }


@pytest.mark.parametrize("ending", ["", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_address_may_end_in_any_usual_way(ending):
    with chat_server(echo) as server:
        base = server.url.removesuffix("/v1") + ending
        assert ask(EndpointChat("m", base)).text == "You said Is the sky blue?."
    assert server.calls[0].path == "/v1/chat/completions"


def test_without_a_seed_none_is_sent():
    with chat_server(echo) as server:
        ask(endpoint(server))
    assert "seed" not in server.calls[0].body


def test_the_key_comes_from_the_environment_and_the_token_of_the_hub_goes_nowhere_else(monkeypatch):
    hub_token, key = f"hf_{secrets.token_hex(8)}", secrets.token_hex(8)
    monkeypatch.setenv("HF_TOKEN", hub_token)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with chat_server(echo) as server:
        ask(endpoint(server))
        assert "authorization" not in server.calls[-1].headers
        monkeypatch.setenv(KEY_VARIABLE, key)
        ask(endpoint(server))
        assert server.calls[-1].headers["authorization"] == f"Bearer {key}"
        monkeypatch.setenv("ANOTHER_KEY", "other")
        ask(endpoint(server, key_variable="ANOTHER_KEY"))
        assert server.calls[-1].headers["authorization"] == "Bearer other"
    assert all(hub_token not in str(call.headers) for call in server.calls)


def test_a_key_that_an_endpoint_repeats_is_not_shown(monkeypatch):
    key = secrets.token_hex(8)
    monkeypatch.setenv(KEY_VARIABLE, key)
    refusal = Fault(401, body={"error": {"message": f"Incorrect key: {key}"}})
    with chat_server(lambda _: refusal) as server, pytest.raises(ChatError) as caught:
        ask(endpoint(server))
    assert key not in str(caught.value) and "Incorrect key" in caught.value.reason and caught.value.is_fatal


@pytest.mark.parametrize("name", FAULTS)
def test_what_may_pass_is_tried_again(name):
    faults = [FAULTS[name], FAULTS[name], None]
    with chat_server(echo, fault=lambda call, number: faults[number]) as server:
        reply = ask(endpoint(server))
    assert reply.text == "You said Is the sky blue?." and len(server.calls) == 3


def test_a_request_that_only_fails_ends_after_its_tries():
    words = r"status 500: 'oops' \(3 tries\)"
    with chat_server(lambda _: FAULTS["500"]) as server, pytest.raises(ChatError, match=words) as caught:
        ask(endpoint(server, max_tries=3))
    assert len(server.calls) == 3
    assert not caught.value.is_final and not caught.value.is_fatal


@pytest.mark.parametrize(
    "fault, words, is_fatal",
    [
        (Fault(400, body={"error": {"message": "maximum context length is 512"}}), "maximum context length", False),
        (Fault(422, body={"detail": "bad field"}), "bad field", False),
        (Fault(501, body="no"), "501", False),
        (Fault(401, body={"error": "no key"}), "Check the key", True),
        (Fault(403, body={"error": "no"}), "403", True),
        (Fault(404, body={"error": {"message": "model any/model does not exist"}}), "does not exist", True),
        (Fault(200, {"Content-Type": "text/html"}, HTML), "a web page with the title 'Please log in'", True),
        (Fault(404, {"Content-Type": "text/html"}, HTML), "404 and a web page", True),
    ],
)
def test_what_is_refused_is_not_tried_again(fault, words, is_fatal):
    with chat_server(lambda _: fault) as server, pytest.raises(ChatError, match=words) as caught:
        ask(endpoint(server))
    assert len(server.calls) == 1 and "\n" not in str(caught.value)
    assert caught.value.is_final and caught.value.is_fatal == is_fatal
    # An error that ends the run says who answered so.
    assert (server.url in str(caught.value)) == is_fatal


def test_once_it_has_answered_one_refusal_does_not_end_the_others():
    requests = {number: user(f"number {number}") for number in range(12)}
    odd = Fault(403, body={"error": "flagged"})
    with chat_server(lambda call: odd if call.prompt == "number 5" else "fine") as server:
        replies = dict(ask_all(endpoint(server, concurrency=1), requests, max_tokens=5))
    assert [key for key, reply in replies.items() if isinstance(reply, ChatError)] == [5]
    assert len(replies) == 12 and "flagged" in replies[5].reason


def test_a_server_that_is_gone_ends_the_others():
    """Otherwise each of thousands of items would wait for all its tries."""
    requests = {number: user(f"number {number}") for number in range(300)}
    with chat_server() as server:
        pass
    with pytest.raises(ChatError, match=r"llm='any/model' at http.*the connection failed") as caught:
        list(ask_all(endpoint(server, max_tries=2, concurrency=2), requests, max_tokens=5))
    assert caught.value.is_fatal


def test_the_wait_that_an_endpoint_asks_for_holds_all_requests_back():
    """A control is in the first requests: they arrive at once."""
    requests = {number: user(f"number {number}") for number in range(8)}
    with chat_server("ok", fault=lambda call, number: rate_limited(0.6) if number == 0 else None) as server:
        replies = dict(ask_all(endpoint(server, concurrency=2), requests, max_tokens=5))
    assert {reply.text for reply in replies.values()} == {"ok"}
    limited = server.calls[0].ended
    # The second request was under way already; a third may have been on its way.
    later = [call.began - limited for call in server.calls[3:]]
    assert len(later) >= 5 and min(later) > 0.5


def test_a_wait_of_hours_is_not_waited_for():
    limit, words = Fault(429, {"Retry-After": "7200"}), "asks to wait for 7,200 seconds"
    with chat_server(lambda _: limit) as server, pytest.raises(ChatError, match=words):
        ask(endpoint(server))
    assert len(server.calls) == 1


def test_an_answer_that_does_not_come_in_time_is_asked_for_again():
    waits = [Fault(seconds=9), None]
    with chat_server("ok", fault=lambda call, number: waits[number]) as server:
        began = time.monotonic()
        assert ask(endpoint(server, timeout=0.3)).text == "ok"
    assert len(server.calls) == 2 and time.monotonic() - began < 8


def test_as_many_requests_as_allowed_are_under_way_and_no_more():
    requests = {number: user(f"number {number}") for number in range(40)}
    together = threading.Barrier(25)

    def answer(request):
        # The first 25 are answered when all of them have come.
        if request in server.calls[:25]:
            together.wait(20)
        return echo(request)

    with chat_server(answer) as server:
        replies = dict(ask_all(endpoint(server, concurrency=25), requests, max_tokens=5))
        assert server.most_at_once() == 25
    assert {key: reply.text for key, reply in replies.items()} == {
        number: f"You said number {number}." for number in range(40)
    }


def test_no_reply_is_lost_or_swapped_among_faults_and_delays():
    requests = {secrets.token_hex(4): None for _ in range(60)}
    requests = {key: user(key) for key in requests}

    def answer(request):
        time.sleep(random.random() * 0.02)
        return echo(request)

    with chat_server(answer, fault=mixed_faults(0.4)) as server:
        replies = dict(ask_all(endpoint(server, concurrency=8, max_tries=30), requests, max_tokens=5))
        bad = [call.status for call in server.calls if call.text is None]
    assert {key: reply.text for key, reply in replies.items()} == {key: f"You said {key}." for key in requests}
    # What was answered properly was not asked again.
    assert len(server.answered) == 60 and len(bad) > 5


def test_answers_of_other_forms_are_read_or_refused():
    bodies = {
        "no usage": ({"choices": [{"message": {"content": "Yes"}}]}, ChatReply("Yes")),
        "no text": (
            {"choices": [{"message": {"role": "assistant", "content": None}, "finish_reason": "length"}]},
            ChatReply("", finish_reason="length"),
        ),
        "a number": ({"choices": [{"message": {"content": 5}}]}, None),
        "numbers": ([1, 2], None),
        "a text": ("hello", None),
        "deep": ("[" * 5000 + "]" * 5000, None),
        "choices in a mapping": ({"choices": {"message": "x"}}, None),
        "a message in a list": ({"choices": [{"message": ["x"]}]}, None),
    }
    for name, (body, expected) in bodies.items():
        with chat_server(lambda _, body=body: Fault(200, {}, body)) as server:
            if expected is not None:
                assert ask(endpoint(server)) == expected, name
                continue
            with pytest.raises(ChatError, match="not a chat completion") as caught:
                ask(endpoint(server, max_tries=2))
            assert len(server.calls) == 2 and len(str(caught.value)) < 250, name


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"model": " "}, "model"),
        ({"base_url": "127.0.0.1:8000"}, "base_url='127.0.0.1:8000'"),
        ({"base_url": "http://a:b@host/v1"}, "a name or a password"),
        ({"base_url": "http://127.0.0.1:99999/v1"}, "base_url"),
        ({"provider": "together"}, "provider='together'"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"max_tries": 0}, "max_tries=0"),
        ({"timeout": 0}, "timeout=0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        EndpointChat(**{"model": "m", "base_url": "http://127.0.0.1:1/v1", **arguments})


SECRET = "pAss%word1"


@pytest.mark.parametrize(
    "address",
    [
        f"http://127.0.0.1:1/v1?api_key={SECRET}",
        f"http://127.0.0.1:1/v1#{SECRET}",
        f"http://me:{SECRET}@127.0.0.1:1/v1",
        f"http://{SECRET}@127.0.0.1:1/v1",
        f"http://me:{SECRET}@127.0.0.1:99999/v1",
        f"http://me:{SECRET}@[broken/v1",
        f"htp:/me:{SECRET}@host/v1",
        f"me:{SECRET}@host/v1",
        f"http://me:a@{SECRET}@host?key={SECRET}",
        f"127.0.0.1:1?key={SECRET}",
    ],
)
def test_a_key_in_an_address_is_refused_and_not_shown(address):
    assert "[...]" in shown_address(address) and SECRET not in shown_address(address)
    with pytest.raises(ValueError) as caught:
        EndpointChat("m", address)
    assert SECRET not in str(caught.value) and "base_url" in str(caught.value)
    for flags in (ChatFlags("m", endpoint=address), ChatFlags("m", endpoint=address, provider="together")):
        with pytest.raises(ValueError, match="endpoint") as caught:
            flags.check()
        assert SECRET not in str(caught.value)
    with pytest.raises(ValueError, match="endpoint=") as caught:
        refuse_unused(given_chat_flags(ChatFlags(endpoint=address)), "Add --judge llm")
    assert SECRET not in str(caught.value)


def test_addresses_without_a_key_are_shown_as_they_are():
    for address in ("http://127.0.0.1:8000/v1", "https://host/a-b/v1/chat/completions"):
        assert shown_address(address) == address == EndpointChat("m", address).place
    assert EndpointChat("m", provider="together").place == "the provider 'together' of the Hub"


def test_wrong_requests_are_refused_before_they_are_sent():
    with chat_server() as server:
        for options in ({"max_tokens": 0}, {"temperature": -1.0}, {"seed": -1}):
            with pytest.raises(ValueError, match=next(iter(options))):
                ask(endpoint(server), **options)
    assert server.calls == []


def test_a_provider_needs_the_network(monkeypatch):
    """`HF_HUB_OFFLINE`, which tests set, concerns the Hub's providers, but not one's own address."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 10)
    with pytest.raises(ChatError, match="HF_HUB_OFFLINE is set") as caught:
        ask(EndpointChat("owner/name", provider="auto"))
    assert caught.value.is_fatal
