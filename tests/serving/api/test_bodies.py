"""Bodies are read up to a limit, and refused for what they are."""

import asyncio
import json
import time

import pytest

from memreason_hf.serving.api.bodies import ClientGone, parse_json, read_body
from memreason_hf.serving.api.refusals import ApiError


JSON = {"content-type": "application/json"}


class Sender:
    """`receive` of ASGI for a body in parts; counts what was taken."""

    def __init__(self, parts, ends=True):
        self.parts, self.ends, self.taken = iter(parts), ends, 0

    async def __call__(self):
        part = next(self.parts, None)
        if part is None:
            return {"type": "http.request", "more_body": False} if self.ends else {"type": "http.disconnect"}
        self.taken += len(part)
        return {"type": "http.request", "body": part, "more_body": True}


def read(sender, headers=JSON, limit=100):
    return asyncio.run(read_body(headers, sender, limit))


def test_a_body_in_parts():
    assert read(Sender([b"ab", b"", b"cd"])) == b"abcd"
    assert read(Sender([b"x" * 60, b"x" * 40])) == b"x" * 100


def test_a_body_beyond_the_limit_is_not_read_to_its_end():
    sender = Sender(b"x" * 30 for _ in range(10**9))
    with pytest.raises(ApiError, match="larger than the 100 bytes") as refused:
        read(sender)
    assert refused.value.status == 413 and sender.taken == 120


@pytest.mark.parametrize("length", ["101", "1000000000", "9" * 5000])
def test_a_declared_length_beyond_the_limit_is_refused_unread(length):
    sender = Sender([b"x"])
    with pytest.raises(ApiError) as refused:
        read(sender, {**JSON, "content-length": length})
    assert refused.value.status == 413 and sender.taken == 0


def test_a_client_that_goes():
    with pytest.raises(ClientGone):
        read(Sender([b"x"], ends=False))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {**JSON, "content-encoding": "gzip"},
    ],
)
def test_other_bodies_are_refused_unread(headers):
    """A page of another server can send text to this one without asking, but no JSON."""
    sender = Sender([b"{}"])
    with pytest.raises(ApiError) as refused:
        read(sender, headers)
    assert refused.value.status == 415 and sender.taken == 0
    assert read(Sender([b"{}"]), {"content-type": "Application/JSON; charset=utf-8"}) == b"{}"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting"),
        (b'{"a": 1,}', "Expecting|Illegal trailing comma"),
        (b"[1]", "must be an object"),
        (b"null", "must be an object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit|digits"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * 500_000, "nested too deeply"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_json_is_refused(body, said):
    with pytest.raises(ApiError, match=said) as refused:
        parse_json(body)
    assert refused.value.status == 400 and len(refused.value.message) < 300


def test_a_name_that_is_repeated_at_the_end_of_many_is_found_at_once():
    names = [f'"n{index}": 1' for index in range(50_000)]
    body = ("{" + ",".join([*names, '"n49999": 2']) + "}").encode()
    started = time.perf_counter()
    with pytest.raises(ApiError, match="given twice"):
        parse_json(body)
    assert time.perf_counter() - started < 2


def test_what_json_means_is_kept():
    content = {"a": [1, 2.5, None, True], "b": {"c": "é"}}
    assert parse_json(json.dumps(content).encode()) == content
