"""Streams of events: their shape, their text, and clients that go or read nothing."""

import json
import socket
import struct
import threading

import pytest
from api_servers import HALTING, reference, running, served_model
from demo_models import demo_model

from memreason_hf.serving.api.limits import Limits
from memreason_hf.serving.api.served_model import ServedModel
from memreason_hf.steps.tokenization import encode_prompt


def streamed(server, **fields):
    return server.complete(stream=True, **fields)


def request_bytes(path="/v1/completions", **fields):
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def vanish(connection):
    """Resets a connection, as when a process is killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_the_events_of_a_completion(server):
    fields = {"prompt": "the cat", "max_tokens": 10, **HALTING}
    text, ids, depths = reference(server.served, "the cat", 10, **HALTING)
    answer = streamed(server, recurrences=True, return_token_ids=True, **fields)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    events = answer.events
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == text
    assert [one for choice in choices for one in choice["token_ids"]] == ids
    assert [one for choice in choices for one in choice["recurrences"]] == depths
    assert len(set(depths)) > 1
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] in ("stop", "length")
    assert {event["object"] for event in events} == {"text_completion"} and len({e["id"] for e in events}) == 1
    assert not any("usage" in event for event in events)


def test_usage_comes_last_where_it_is_asked_for(server):
    fields = {"prompt": "the cat", "max_tokens": 5, "stream_options": {"include_usage": True}}
    *events, last = streamed(server, **fields).events
    assert last["choices"] == [] and last["usage"] == server.complete(prompt="the cat", max_tokens=5).body["usage"]
    assert all(event["usage"] is None for event in events)


def test_the_events_of_a_chat(server):
    text, _, _ = reference(server.served, "user: the cat\nassistant:", 8)
    whole = server.chat("the cat", max_tokens=8)
    assert whole.body["object"] == "chat.completion"
    (choice,) = whole.body["choices"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    events = server.chat("the cat", max_completion_tokens=8, stream=True, n=2).events
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    for index in (0, 1):
        deltas = [c["delta"] for event in events for c in event["choices"] if c["index"] == index]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == text


def test_a_chat_with_a_model_of_steps():
    """Its question is what the user says, and the marks of its steps are in the answer."""
    demo = demo_model("steps", seed=1)
    served = ServedModel("tests/steps", demo.model, demo.tokenizer, Limits(context=200, most_recurrences=8))
    question = "Is the memory a step?"
    text, _, _ = reference(served, encode_prompt(demo.tokenizer, question), 30)
    with running(served) as server:
        answer = server.chat(question, max_tokens=30).body
        assert answer["choices"][0]["message"]["content"] == text
        events = server.chat(question, max_tokens=30, stream=True).events
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == text


def test_log_probabilities_of_a_chat(server):
    fields = {"max_tokens": 5, "logprobs": True, "top_logprobs": 2}
    found = server.chat("the cat", **fields).body["choices"][0]["logprobs"]["content"]
    same = server.complete(prompt="user: the cat\nassistant:", max_tokens=5, logprobs=2).body["choices"][0]["logprobs"]
    assert [entry["logprob"] for entry in found] == same["token_logprobs"]
    assert [entry["token"] for entry in found] == same["tokens"]
    for entry in found:
        assert bytes(entry["bytes"]).decode() == entry["token"] and len(entry["top_logprobs"]) == 2
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}


def test_a_stop_string_is_never_seen(server):
    text, _, _ = reference(server.served, "the cat", 24)
    stop = text[4:9]
    events = streamed(server, prompt="the cat", max_tokens=24, stop=stop).events
    assert "".join(event["choices"][0]["text"] for event in events) == text[: text.index(stop)]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leave", [vanish, socket.socket.close, lambda one: one.shutdown(socket.SHUT_WR)])
def test_a_client_that_goes_frees_its_memory(server, stream, leave):
    counters = server.server.engine.counters
    before, gone = counters.tokens, server.metric("memreason_cancelled_requests_total")
    connection = server.raw()
    connection.sendall(request_bytes(prompt=["the cat"] * 8, max_tokens=254, stream=stream))
    server.wait_until(lambda: counters.tokens > before)
    leave(connection)
    server.wait_until_idle()
    connection.close()
    # Control: the whole answer would have had eight times as many tokens.
    assert counters.tokens - before < 8 * 200
    server.wait_until(lambda: server.metric("memreason_cancelled_requests_total") == gone + 1)


def test_a_client_that_goes_while_it_waits_for_a_place():
    with running(batcher_options={"max_rows": 1, "max_waiting": 8}) as server:
        first, second = server.raw(), server.raw()
        first.sendall(request_bytes(prompt="the cat", max_tokens=254, stream=True))
        server.wait_until(lambda: server.stats.running == 1)
        second.sendall(request_bytes(prompt="the dog", max_tokens=254))
        server.wait_until(lambda: server.stats.waiting == 1)
        vanish(second)
        server.wait_until(lambda: server.stats.waiting == 0)
        vanish(first)
        server.wait_until_idle()
        assert server.server.engine.counters.tokens < 254


def test_a_client_that_reads_nothing_holds_up_nobody():
    """Its answer waits in bounded memory, its tokens leave the cache, and at last it is cut off."""
    with running(served_model(limits={"stall_seconds": 1.0}), send_buffer=2**16) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request_bytes(prompt="the cat", max_tokens=250, n=3, logprobs=20, stream=True))
        server.wait_until(lambda: server.stats.running > 0)
        texts = []
        others = [
            threading.Thread(target=lambda: texts.append(server.complete(prompt="the dog").body["choices"][0]["text"]))
            for _ in range(4)
        ]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join(30)
        assert texts == [reference(server.served, "the dog")[0]] * 4
        server.wait_until_idle()
        connections = server.server.server_state.connections
        # It has been sent a part only, and is closed without having read it.
        server.wait_until(lambda: not connections)
        received = b""
        while part := connection.recv(65536):
            received += part
        connection.close()
        assert received.startswith(b"HTTP/1.1 200") and b"[DONE]" not in received
        assert server.complete(prompt="the dog").status == 200


def test_an_error_after_the_first_event_is_an_event(monkeypatch):
    with running() as server:
        batcher = server.server.engine._batcher
        steps = iter(range(10**9))
        step = batcher.step

        def fails():
            if next(steps) == 5:
                raise RuntimeError("out of luck")
            return step()

        monkeypatch.setattr(batcher, "step", fails)
        answer = streamed(server, prompt="the cat", max_tokens=200)
        assert answer.status == 200
        *events, last, end = answer.text.split("\n\n")
        assert end == "" and len(events) >= 1
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["type"] == "server_error" and "out of luck" in error["message"]
        assert "[DONE]" not in answer.text
        assert server.metric('memreason_errors_total{kind="engine_error"}') == 1
        assert server.complete(prompt="the cat").body["choices"][0]["text"] == reference(server.served, "the cat")[0]
