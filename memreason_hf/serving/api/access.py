"""
What happens around every request: keys, host names, the number of open requests, and the count of what was answered.

An ASGI application around another one; needs no framework.
"""

import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from memreason_hf.checks import shortened
from memreason_hf.messages import visible
from memreason_hf.serving.api.engine import busy
from memreason_hf.serving.api.refusals import ApiError


# One key, or several, separated by commas.
KEY_VARIABLE = "MEMREASON_API_KEY"
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
# Answered without a key, for probes of a cluster.
_OPEN_PATHS = ("/health",)
_SHORTEST_KEY = 8

Scope = Mapping[str, object]
Send = Callable[[dict], Awaitable[None]]


def read_keys(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """
    The keys of clients, from `MEMREASON_API_KEY`. Empty if the variable is not set: then no key is needed.

    Raises:
        ValueError: the variable is set, but holds no key, or one that is too short or cannot be sent. The message
            does not repeat it.

    Example:

        >>> read_keys({"MEMREASON_API_KEY": "first-key, second-key"})
        ('first-key', 'second-key')
    """
    value = (os.environ if environment is None else environment).get(KEY_VARIABLE)
    if value is None:
        return ()
    keys = tuple(key for key in (part.strip() for part in value.split(",")) if key)
    if not keys:
        raise ValueError(f"{KEY_VARIABLE} is set, but holds no key. Set a key, or unset the variable.")
    for key in keys:
        if len(key) < _SHORTEST_KEY:
            raise ValueError(f"{KEY_VARIABLE} holds a key of {len(key)} characters. Use at least {_SHORTEST_KEY}.")
        if not all("!" <= character <= "~" for character in key):
            raise ValueError(f"{KEY_VARIABLE} holds a key with blanks or characters outside ASCII.")
    return keys


class Gate:
    """
    Lets requests through to an application.

    Args:
        app: the ASGI application behind it.
        metrics: where requests are counted: `memreason_hf.serving.api.metrics.Metrics`.
        keys: one of them must be sent, if there are any.
        host_names: the names under which clients may call the server; empty for any. A page of another server that
            makes its own name point to this machine is not let through.
        open_requests: the most requests with a body at the same time.
        endpoints: paths that metrics count by their names.
        log: called with a line about each request. Headers, queries and bodies are never in it.
    """

    def __init__(
        self,
        app: Callable,
        metrics: object,
        *,
        keys: Sequence[str] = (),
        host_names: Collection[str] = (),
        open_requests: int = 256,
        endpoints: Collection[str] = (),
        log: Callable[[str], None] | None = None,
    ):
        self.app, self.metrics, self.endpoints, self.log = app, metrics, frozenset(endpoints), log
        self._keys = [key.encode() for key in keys]
        self._host_names = frozenset(name.lower() for name in host_names)
        self._most, self._open = open_requests, 0

    async def __call__(self, scope: Scope, receive: Callable, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answered, started = _Answered(send), time.perf_counter()
        has_body = scope["method"] == "POST"
        self._open += has_body
        try:
            with self.metrics.open_requests.track_inprogress():
                self._check(scope, has_body)
                await self.app(scope, receive, answered)
        except ApiError as error:
            self.metrics.errors.labels(error.kind).inc()
            await send_error(answered, error)
        finally:
            self._open -= has_body
            endpoint = scope["path"] if scope["path"] in self.endpoints else "other"
            # 499: the client had gone before there was an answer.
            status = answered.status or 499
            self.metrics.requests.labels(endpoint, str(status)).inc()
            if self.log is not None:
                self.log(_line(scope, status, time.perf_counter() - started))

    def _check(self, scope, has_body):
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        if self._host_names:
            self._check_host(headers.get("host", b"").decode("latin-1"))
        if self._keys and scope["path"] not in _OPEN_PATHS:
            self._check_key(headers.get("authorization", b""))
        if has_body and self._open > self._most:
            raise busy(f"{self._most} requests are open already. Try again later.")

    def _check_key(self, given):
        scheme, _, key = given.partition(b" ")
        # All keys are compared, each in constant time.
        fits = [hmac.compare_digest(key.strip(), own) for own in self._keys]
        if scheme.lower() != b"bearer" or not any(fits):
            message = "The key is missing or wrong. Send the header Authorization: Bearer KEY."
            raise ApiError(401, message, code="invalid_api_key")

    def _check_host(self, given):
        name = given.lower()
        if not name.endswith("]"):
            before, _, port = name.rpartition(":")
            name = before if before and port.isdigit() else name
        if name and name not in self._host_names:
            message = (
                f"Host {shortened(given)}: without keys, this server answers to {', '.join(sorted(self._host_names))} "
                f"only. Set {KEY_VARIABLE} where it runs."
            )
            raise ApiError(403, message, code="unknown_host")


def _line(scope, status, seconds):
    address = (scope.get("client") or ("?",))[0]
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    return visible(f"{when} {address} {scope['method']} {scope['path'][:200]} {status} {seconds:.3f} s")


class _Answered:
    """`send` of ASGI, which remembers the status."""

    def __init__(self, send):
        self._send = send
        self.status = None

    async def __call__(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


async def send_error(send: Send, error: ApiError) -> None:
    """Sends an error as the whole answer."""
    body = json.dumps(error.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers()}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
