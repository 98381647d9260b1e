"""Clients that mean harm: slow, endless, malformed. Others are answered meanwhile, and nothing is left behind."""

import contextlib
import json
import os
import resource
import time
from pathlib import Path

import pytest
from api_servers import reference, running, served_model


@pytest.fixture(scope="module")
def server():
    with running(served_model(limits={"read_seconds": 1.0, "stall_seconds": 1.0})) as asked:
        yield asked


@pytest.fixture(autouse=True)
def nothing_is_left(server):
    yield
    assert server.complete(prompt="the cat").body["choices"][0]["text"] == reference(server.served, "the cat")[0]
    server.wait_until_idle()
    server.wait_until(lambda: not server.server.server_state.connections)
    assert not server.server.server_state.tasks
    assert server.metric("memreason_open_requests") == 1  # this very request
    assert server.server.engine.counters.failures == 0


def read_all(connection):
    """What comes until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def resident():
    """Bytes of memory of this process, in which the server runs."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


BODY = HEAD + b"Content-Length: 100\r\n\r\n{"
WHOLE = HEAD + b"Content-Length: 2\r\n\r\n{}"  # is refused at once: the prompt is missing


@pytest.mark.parametrize(
    "start",
    [b"", b"P", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n", BODY, WHOLE + BODY],
    ids=["nothing", "one byte", "headers", "a body", "a body after a request"],
)
def test_requests_that_never_end_are_closed(server, start):
    slow = [server.raw() for _ in range(20)]
    started = time.monotonic()
    try:
        for connection in slow:
            connection.sendall(start)
        assert server.complete(prompt="the dog").status == 200
        for connection in slow:
            answer = read_all(connection)
            assert answer.count(b"HTTP/1.1 400") == (1 if start.startswith(WHOLE) else 0) == bool(answer)
        assert time.monotonic() - started < 5
    finally:
        for connection in slow:
            connection.close()


def test_a_byte_now_and_then_does_not_keep_a_connection(server):
    with server.raw() as connection:
        started = time.monotonic()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            for _ in range(50):
                connection.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() - started < 4


def send_until_closed(connection, chunk, count):
    sent = 0
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for _ in range(count):
            connection.sendall(chunk)
            sent += len(chunk)
    return sent


@pytest.mark.parametrize("is_chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize(
    "megabytes", [32, pytest.param(1000, marks=pytest.mark.slow)], ids=["32 MB", "1 GB"]
)  # fmt: skip
def test_a_huge_body_is_refused_without_being_held(server, is_chunked, megabytes):
    piece = b"x" * 2**20
    head = (
        b"Transfer-Encoding: chunked\r\n\r\n" if is_chunked else f"Content-Length: {megabytes << 20}\r\n\r\n".encode()
    )
    chunk = b"100000\r\n" + piece + b"\r\n" if is_chunked else piece
    server.complete(prompt="the cat")
    before = resident()
    with server.raw() as connection:
        connection.sendall(HEAD + head)
        send_until_closed(connection, chunk, megabytes)
        grown = resident() - before
        with contextlib.suppress(OSError):
            connection.settimeout(5)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 413") and b"body_too_large" in answer
    assert grown < 24 * 2**20
    server.wait_until(lambda: server.metric('memreason_errors_total{kind="body_too_large"}') > 0)


def test_a_client_that_asks_first_is_refused_before_it_sends(server):
    with server.raw() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n")
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200),  # its first 11 bytes name the test
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"\r\n" * 10 + b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Flood: y\r\n" * 100_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"y" * 500_000,
        b"\x00" * 100_000,
    ],
    ids=lambda sent: str(sent[:11]),
)
def test_what_is_no_http_gets_an_error_and_an_end(server, sent):
    with server.raw(timeout=10) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(sent)
        answer = read_all(connection)
    # A flood that is cut off may be reset before its answer is read.
    for part in answer.split(b"HTTP/1.1 ")[1:]:
        assert part.startswith(b"4"), part[:80]
        body = part.partition(b"\r\n\r\n")[2]
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_nonsense_while_an_answer_is_sent(server):
    body = json.dumps({"prompt": "the cat", "max_tokens": 200, "stream": True}).encode()
    with server.raw() as connection:
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        connection.recv(100)
        connection.sendall(os.urandom(5000) + b"\r\n\r\n")
        assert read_all(connection).rstrip().endswith(b"}}")


def test_several_requests_at_once_are_answered_in_turn(server):
    body = json.dumps({"prompt": "the cat"}).encode()
    one = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with server.raw() as connection:
        connection.sendall(one * 3)
        received = b""
        while received.count(b"HTTP/1.1 200") < 3 or not received.endswith(b"}"):
            received += connection.recv(65536)
    text = json.dumps(reference(server.served, "the cat")[0])[1:-1].encode()
    assert received.count(text) == 3


def test_bytes_that_are_no_text_in_paths_and_headers(server):
    with server.raw() as connection:
        connection.sendall(
            b"GET /%ff%fe%00%1b[2J HTTP/1.1\r\nHost: x\r\nX-Bytes: \xff\xfe\r\nConnection: close\r\n\r\n"
        )
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 404") and b"\x1b" not in answer and b"\x00" not in answer


def test_a_prompt_of_nothing_but_special_tokens(server):
    tokenizer = server.served.tokenizer
    for text in ("</s>" * 50, "<pad>" * 50, "<memory><reason>" * 20, "\x00" * 50, "\u202e\ufeff" * 20, "\U0010ffff"):
        expected = reference(server.served, text)[0]
        assert server.complete(prompt=text).body["choices"][0]["text"] == expected
    for ids in ([tokenizer.pad_token_id] * 5, [tokenizer.eos_token_id] * 5):
        assert server.complete(prompt=ids).body["choices"][0]["text"] == reference(server.served, ids)[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"repetition_penalty": 1e-40, "temperature": 1},
        {"temperature": 0.001},
        {"temperature": 1e38},
        {"temperature": 1e300},
        {"temperature": 0.001, "top_p": 1e-300, "min_p": 1, "top_k": 1},
        {"top_k": 2**31 - 1},
        {"halting_criterion": "kl", "kl_threshold": 1e300},
        {"halting_criterion": "kl", "kl_threshold": 1e-300},
        {"halting_criterion": "argmax_stability", "argmax_patience": 2**31 - 1},
    ],
    ids=str,
)
def test_extreme_numbers_get_an_answer_or_an_error(server, fields):
    """They must not end the step of others, which `nothing_is_left` looks for."""
    answer = server.complete(prompt="the cat", max_tokens=12, seed=1, **fields)
    assert answer.status in (200, 400) or answer.error["code"] == "engine_error", answer.text
    assert answer.status != 500 or "The model failed: " in answer.error["message"]


def test_many_idle_connections(server):
    idle = [server.raw() for _ in range(150)]
    try:
        assert server.complete(prompt="the dog").status == 200
    finally:
        for connection in idle:
            connection.close()
