"""
A chat-completion endpoint on the loopback interface, for the real client: scripted answers, and what goes wrong.

    with chat_server(lambda request: "The answer is: B") as server:
        chat = EndpointChat("any", base_url=server.url)
        …
        assert [call.status for call in server.calls] == [200]
"""

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


HTML = "<!DOCTYPE html><html><head><title>Please log in</title></head><body>A portal.</body></html>"


@dataclass(frozen=True)
class Fault:
    """
    What a request gets in place of its answer.

    Attributes:
        status: of the answer.
        headers: of the answer, for example `{"Retry-After": "0.2"}`.
        body: of the answer; a value that is not a text is sent as JSON.
        drop: closes the connection "before" any byte of an answer, or in the "middle" of its body.
        seconds: waits before it does any of this.
    """

    status: int = 200
    headers: dict = field(default_factory=dict)
    body: object = ""
    drop: str | None = None
    seconds: float = 0.0


def rate_limited(seconds=0.05):
    body = {"error": {"message": "Rate limit reached", "type": "rate_limit"}}
    return Fault(429, {"Retry-After": str(seconds)}, body)


FAULTS = {
    "429": rate_limited(),
    "429 without a wait": Fault(429, body={"error": "slow down"}),
    "500": Fault(500, body="oops"),
    "502 page": Fault(502, {"Content-Type": "text/html"}, "<html><body>Bad gateway</body></html>"),
    "503": Fault(503, {"Retry-After": "0.02"}, {"detail": "loading"}),
    "dropped": Fault(drop="before"),
    "cut": Fault(drop="middle", body={"choices": [{"message": {"content": "This text never ends"}}]}),
    "not JSON": Fault(body='{"choices": [{"mess'),
    "another schema": Fault(body={"object": "list", "data": []}),
    "no choices": Fault(body={"choices": []}),
    "error at 200": Fault(body={"error": {"message": "overloaded"}}),
}


@dataclass
class ChatRequest:
    """
    A request as it arrived.

    Attributes:
        body: the JSON of the request.
        headers: with names in lower case.
        path: of the request.
        status: of its answer; None until then, 0 where the connection was dropped.
        text: what was answered, where it was answered properly.
        began, ended: seconds of a monotonic clock.
    """

    body: dict
    headers: dict
    path: str
    began: float
    status: int | None = None
    text: str | None = None
    ended: float | None = None

    @property
    def messages(self) -> list[dict]:
        return self.body["messages"]

    @property
    def prompt(self) -> str:
        """The contents of all messages."""
        return "\n\n".join(message["content"] for message in self.messages)


class ChatServer:
    """
    The running server; see `chat_server`.

    Attributes:
        url: for `base_url`.
        calls: every request, in the order of arrival.
        answer: a function of a `ChatRequest` that gives a text, or a `Fault`.
        fault: a function of a `ChatRequest` and its number, from 0, that gives a `Fault` or None.
        seconds: how long an answer takes.
    """

    def __init__(self, answer, fault=None, seconds=0.0, port=0):
        self.answer, self.fault, self.seconds = answer, fault, seconds
        self.calls: list[ChatRequest] = []
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def answered(self) -> list[ChatRequest]:
        """The requests that got a proper answer."""
        with self.lock:
            return [call for call in self.calls if call.text is not None]

    def most_at_once(self) -> int:
        """The largest number of requests that were under way at the same time."""
        with self.lock:
            moments = [(call.began, 1) for call in self.calls] + [
                (call.ended, -1) for call in self.calls if call.ended
            ]
        running = most = 0
        for _, change in sorted(moments):
            running += change
            most = max(most, running)
        return most

    def start(self):
        self._thread.start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    block_on_close = False

    def handle_error(self, request, client_address):
        """A client that has gone is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body go out as one packet: otherwise each answer waits for an acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self):
        owner = self.server.owner
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        call = ChatRequest(json.loads(raw), headers, self.path, time.monotonic())
        with owner.lock:
            number = len(owner.calls)
            owner.calls.append(call)
        fault = None if owner.fault is None else owner.fault(call, number)
        if fault is None:
            time.sleep(owner.seconds)
            said = owner.answer(call)
            fault = said if isinstance(said, Fault) else None
        if fault is not None:
            self._fail(call, fault)
            return
        self._finish(call, 200, said)
        self._send(200, {}, completion(said, call))

    def do_GET(self):
        self._send(404, {}, {"error": "not found"})

    def _finish(self, call, status, text=None):
        # Before the answer is sent: a test may look as soon as its client has it.
        with self.server.owner.lock:
            call.status, call.text, call.ended = status, text, time.monotonic()

    def _fail(self, call, fault):
        time.sleep(fault.seconds)
        self._finish(call, 0 if fault.drop else fault.status)
        if fault.drop == "before":
            # With a reset, as of a process that was killed.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self._send(fault.status, fault.headers, fault.body, cut=fault.drop == "middle")

    def _send(self, status, headers, body, cut=False):
        is_text = isinstance(body, str)
        data = (body if is_text else json.dumps(body)).encode()
        self.send_response(status)
        headers = {"Content-Type": "text/plain" if is_text else "application/json", **headers}
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        if cut:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


def completion(text, call=None):
    """The body of a proper answer."""
    num_prompt, num_new = len(call.prompt.split()) if call else 1, len(text.split())
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": call.body.get("model", "any") if call else "any",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new},
    }


@contextlib.contextmanager
def chat_server(answer: Callable[[ChatRequest], object] | str = "Yes.", *, fault=None, seconds=0.0, port=0):
    """
    A server for the length of the block.

    Args:
        answer: the text of every answer, or a function of the `ChatRequest`.
        fault: see `ChatServer`; `mixed_faults` makes one.
        seconds: how long an answer takes.
        port: where it listens; 0: at any free port.
    """
    server = ChatServer(answer if callable(answer) else lambda _: answer, fault, seconds, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def mixed_faults(share, names=tuple(FAULTS), seed=None):
    """A `fault` function: a share of all requests, at random, gets one of the named faults."""
    chance, lock = random.Random(seed), threading.Lock()

    def fault(call, number):
        with lock:
            return FAULTS[chance.choice(names)] if chance.random() < share else None

    return fault
