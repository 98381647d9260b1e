"""Connections that slow or silent clients cannot keep: uvicorn itself has no such limits."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from memreason_hf.serving.api.limits import Limits
from memreason_hf.serving.api.refusals import ApiError


# While a request is in one of these states, more bytes of it must come.
_UNFINISHED = (h11.IDLE, h11.SEND_BODY)


class Connection(H11Protocol):
    """
    The protocol of one connection, which is closed if

    - a request is not complete `read_seconds` after the connection began or its first byte came, or
    - the client has read nothing for `stall_seconds`, while there is something to read.
    """

    limits: Limits

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._reading: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._reading = self.loop.call_later(self.limits.read_seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state not in _UNFINISHED:
            self._reading = _cancel(self._reading)
        else:
            self._watch_sender()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stalled = _cancel(self._stalled)
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            # A closed transport stays until its last byte has been read.
            self._watch_reader()
        elif self.conn.our_state is h11.SEND_RESPONSE:
            # The next request has come already: it was sent together with the one that has just been answered.
            self._unset_keepalive_if_required()
            if self.conn.their_state in _UNFINISHED:
                self._watch_sender()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        refusal = ApiError(400, "This is not a request of HTTP/1.1, or its headers are too long.", code="not_http")
        body = json.dumps(refusal.body()).encode()
        headers = [("content-type", "application/json"), ("connection", "close")]
        response = h11.Response(status_code=400, headers=[*headers, ("content-length", str(len(body)))])
        try:
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        except h11.LocalProtocolError:
            # The client sent nonsense while it was being answered.
            self.transport.abort()
        self.transport.close()
        self._watch_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading, self._stalled = _cancel(self._reading), _cancel(self._stalled)
        super().connection_lost(exc)

    def _watch_sender(self):
        if self._reading is None:
            self._reading = self.loop.call_later(self.limits.read_seconds, self.transport.abort)

    def _watch_reader(self):
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.limits.stall_seconds, self.transport.abort)


def _cancel(timer):
    if timer is not None:
        timer.cancel()


def connection_class(limits: Limits) -> type[Connection]:
    """The protocol with the limits of a server."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
