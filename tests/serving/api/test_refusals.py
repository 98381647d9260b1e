"""Whatever a client sends, it gets an error object with its reason, and the server goes on."""

import json

import pytest
from api_servers import NAME, reference, running, served_model


@pytest.fixture(autouse=True)
def still_answers(server):
    """After each test, the server gives right texts and holds nothing."""
    yield
    assert server.complete(prompt="the cat").body["choices"][0]["text"] == reference(server.served, "the cat")[0]
    server.wait_until_idle()
    assert server.server.engine.counters.failures == 0


def check(answer, status, said, param=None, code=None):
    assert answer.status == status, answer.text
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert said in answer.error["message"]
    assert answer.error["param"] == param
    assert code is None or answer.error["code"] == code
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    assert answer.error["type"] == kinds.get(status, "invalid_request_error" if status < 500 else "server_error")


@pytest.mark.parametrize(
    ("fields", "said", "param"),
    [
        ({}, "prompt is not given", "prompt"),
        ({"prompt": "the cat", "temprature": 1}, "Did you mean 'temperature'?", "temprature"),
        ({"prompt": "the cat", "tools": [{"type": "function"}]}, "does not have this field", "tools"),
        ({"prompt": "the cat", "stop": ["x"] * 10_000}, "stop has 10,000 texts", "stop"),
        ({"prompt": "the cat", "n": 65}, "makes 65 answers, but a request gets at most 64", "n"),
        ({"prompt": ["the cat"] * 50_000}, "makes 50,000 answers", "n"),
        ({"prompt": ["the cat"] * 9, "n": 8}, "makes 72 answers", "n"),
        ({"prompt": ["the cat"] * 2, "n": 2**31 - 1}, "makes 4,294,967,294 answers", "n"),
        ({"prompt": "the cat", "max_tokens": 256}, "needs 257 positions", "max_tokens"),
        ({"prompt": ["a"] * 50, "logprobs": 20, "max_tokens": 250}, "at most 131,072. Lower n", "max_tokens"),
        ({"prompt": "the cat", "num_recurrences": 10}, "num_recurrences=10 must be at most 9", "num_recurrences"),
        ({"prompt": "the cat", "max_recurrences": 10}, "max_recurrences=10 must be at most 9", "max_recurrences"),
        ({"prompt": "the cat", "halting_criterion": "magic"}, "magic", "halting_criterion"),
        ({"prompt": "the cat", "halting_criterion": "exit_gate"}, "exit_gate", "halting_criterion"),
        ({"prompt": "the cat", "halting_criterion": "kl", "kl_threshold": -1}, "kl_threshold", "kl_threshold"),
        ({"prompt": "the cat", "halting_criterion": "kl", "argmax_patience": 0}, "argmax_patience", None),
        ({"prompt": "the cat", "halting_criterion": "kl", "num_recurrences": 3}, "num_recurrences", None),
        ({"prompt": "the cat", "halting_criterion": "kl", "min_recurrences": 5, "max_recurrences": 3}, "recur", None),
        ({"prompt": [5, 10**9]}, "is not a token id", "prompt"),
        ({"prompt": "the " * 400}, "at most 256 are read here", "prompt"),
        ({"prompt": "the cat", "echo": True, "logprobs": 1}, "not computed for the prompt", "echo"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_requests_that_cannot_run(server, fields, said, param):
    answer = server.complete(**fields)
    assert answer.status == 400, answer.text
    assert said in answer.error["message"]
    assert param is None or answer.error["param"] == param
    streamed = server.complete(**fields, stream=True)
    assert (streamed.status, streamed.error) == (400, answer.error)


def test_a_model_that_is_not_here(server):
    check(server.complete(prompt="a", model="gpt-5"), 404, NAME, "model", "model_not_found")
    check(server.get("/v1/models/gpt-5"), 404, NAME, "model", "model_not_found")


def test_paths_and_methods(server):
    check(server.get("/v1/embeddings"), 404, "There is no '/v1/embeddings'", code="no_such_path")
    check(server.get("/" + "a" * 3000), 404, "There is no")
    for method, path, allowed in (("GET", "/v1/completions", "POST"), ("DELETE", "/v1/models", "GET")):
        answer = server.ask(method, path)
        check(answer, 405, f"{method} {path} is not allowed. Send {allowed}.", code="method_not_allowed")
        assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"prompt": NaN}', "NaN is not a number"),
        (b'{"prompt": "\xff\xfe"}', "not UTF-8"),
        ('{"prompt":' * 90_000, "nested too deeply"),
        ('{"prompt": "a", "prompt": "b"}', "given twice"),
        ('{"prompt": "\\ud800"}', "half of a character"),
        ('{"\\ud800": "a"}', "is not a field"),
        ('{"model": "\\ud800", "prompt": "a"}', "this server has"),
        ('{"prompt": "a", "temperature": 1e999}', "finite number"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bodies_that_are_no_requests(server, body, said):
    answer = server.ask("POST", "/v1/completions", body)
    assert answer.status in (400, 404) and said in answer.error["message"]


def test_lists_in_lists_of_every_depth(server):
    """Somewhere between what is read and what is not, there must be no other error."""
    for depth in (10, 100, *range(300, 1100, 40), 3000):
        for field in ("prompt", "stop", "messages", "quux", "tools", "n"):
            body = f'{{"{field}": {"[" * depth}{"]" * depth}}}'
            for path in ("/v1/completions", "/v1/chat/completions"):
                assert server.ask("POST", path, body).status == 400


def test_other_types_of_body(server):
    for headers in ({"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}):
        assert server.ask("POST", "/v1/completions", "{}", headers).status == 415


def test_a_body_beyond_the_limit(server):
    limit = server.served.limits.body_bytes
    answer = server.ask("POST", "/v1/completions", json.dumps({"prompt": "x" * limit}))
    check(answer, 413, f"larger than the {limit:,} bytes", code="body_too_large")
    # One that just fits is read.
    body = json.dumps({"prompt": ""})
    check(server.ask("POST", "/v1/completions", body + " " * (limit - len(body))), 400, "has no tokens", "prompt")


def test_messages_that_cannot_be_read(server):
    answer = server.ask("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]})
    check(answer, 400, "messages[0].content=5 must be a text", "messages")
    with running(served_model(template=None)) as other:
        check(other.chat("hello"), 400, "has no chat template", "messages", "no_chat_template")


def test_a_request_that_the_cache_cannot_hold_is_told_the_limit_of_the_server():
    with running(batcher_options={"max_cache_tokens": 40}) as other:
        # The model halts after at most 9 recurrences, and a fixed depth of 4 needs less.
        answer = other.complete(prompt=[5] * 10, max_tokens=32, num_recurrences=9)
        said = "needs 41 positions, but the cache of this server holds 40 at up to 9 recurrences. Shorten the prompt"
        check(answer, 400, said, "prompt", "context_length_exceeded")
        assert "max_cache_tokens" not in answer.text
        assert other.complete(prompt=[5] * 10, max_tokens=31, num_recurrences=9).status == 200
        assert other.complete(prompt=[5] * 10, max_tokens=32, num_recurrences=4).status == 200
        check(other.chat("the cat", max_tokens=200), 400, "of this server holds", "messages")


def test_errors_are_counted_by_kind(server):
    before = server.metric('memreason_errors_total{kind="unknown_field"}') or 0
    server.complete(prompt="the cat", quux=1)
    assert server.metric('memreason_errors_total{kind="unknown_field"}') == before + 1


KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def guarded():
    with running(keys=("another-key-of-theirs", KEY)) as asked:
        yield asked


@pytest.fixture(scope="module")
def local():
    with running(host_names=("localhost", "127.0.0.1", "[::1]")) as asked:
        yield asked


class TestKeys:
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            "Bearer wrong",
            f"Basic {KEY}",
            KEY,
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            "Bearer \xe9",
        ],
    )
    def test_wrong_keys(self, guarded, header):
        headers = {} if header is None else {"Authorization": header}
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/metrics"), ("GET", "/x")):
            answer = guarded.ask(method, path, {"prompt": "a"} if method == "POST" else None, headers)
            check(answer, 401, "The key is missing or wrong", code="invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert KEY not in answer.text

    def test_right_keys(self, guarded):
        for key in (KEY, "another-key-of-theirs"):
            for scheme in ("Bearer", "bearer"):
                assert guarded.get("/v1/models", headers={"Authorization": f"{scheme} {key}"}).status == 200
        assert guarded.get("/health").status == 200


class TestHosts:
    def test_another_name_for_this_machine_is_refused(self, local):
        """A page whose own name suddenly points here could otherwise read every answer."""
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example:1"):
            check(local.get("/v1/models", headers={"Host": host}), 403, "without keys", code="unknown_host")

    def test_own_names(self, local):
        for host in ("localhost", f"localhost:{local.port}", "LOCALHOST:5", "127.0.0.1", "[::1]:80", "[::1]"):
            assert local.get("/v1/models", headers={"Host": host}).status == 200


class TestTooMany:
    def test_a_full_queue_says_when_to_come_back(self):
        with running(batcher_options={"max_rows": 1, "max_waiting": 2}) as asked:
            answer = asked.complete(prompt=["the cat"] * 4, max_tokens=100)
            check(answer, 429, "max_waiting=2", code="too_many_requests")
            assert int(answer.headers["retry-after"]) >= 1
            # None of the four was left behind.
            asked.wait_until_idle()
            assert asked.complete(prompt=["the cat"] * 2).status == 200

    def test_too_many_open_requests(self):
        with running(served_model(limits={"open_requests": 1})) as asked, asked.raw() as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            slow.sendall(b"Content-Length: 20\r\n\r\n{")
            asked.wait_until(lambda: asked.metric("memreason_open_requests") == 2)
            answer = asked.complete(prompt="the cat")
            check(answer, 429, "1 requests are open already", code="too_many_requests")
            assert int(answer.headers["retry-after"]) >= 1
            assert asked.get("/health").status == 200
            slow.close()
            asked.wait_until(lambda: asked.metric("memreason_open_requests") == 1)
            assert asked.complete(prompt="the cat").status == 200
