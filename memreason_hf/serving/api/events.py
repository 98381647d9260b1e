"""Answers that are watched: work for a client ends when the client goes, and a stream of server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from memreason_hf.serving.api.bodies import ClientGone, Receive
from memreason_hf.serving.api.refusals import ApiError


Result = TypeVar("Result")
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies must not collect events.
    (b"x-accel-buffering", b"no"),
]
_DONE = b"data: [DONE]\n\n"


async def until_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """
    The result of `work`, which is cancelled when the client closes the connection.

    Raises:
        ClientGone: the client has closed the connection first.
    """
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_end(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _wait_for_end(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """
    An ASGI application that sends events, each a JSON object.

    An error that comes after the first event is an event of its own, because the status has been sent already.

    Args:
        events: the events.
        on_end: called in any case, also where the client goes before the first event.
        on_error, on_gone: called for an error, and for a client who has gone.
    """

    def __init__(
        self,
        events: AsyncIterator[dict],
        *,
        on_end: Callable[[], None],
        on_error: Callable[[ApiError], None] = lambda error: None,
        on_gone: Callable[[], None] = lambda: None,
    ):
        self._events, self._on_end = events, on_end
        self._on_error, self._on_gone = on_error, on_gone

    async def __call__(self, scope: dict, receive: Receive, send: Callable[[dict], Awaitable[None]]) -> None:
        """Sends the events to their end, or until the client goes."""
        try:
            await until_gone(receive, self._send(send))
        except ClientGone:
            self._on_gone()
        finally:
            self._on_end()
            await self._events.aclose()

    async def _send(self, send):
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        try:
            async for event in self._events:
                await _send_body(send, _line(event))
            await _send_body(send, _DONE, more_body=False)
        except ApiError as error:
            self._on_error(error)
            await _send_body(send, _line(error.body()), more_body=False)


def _line(event):
    # ASCII only: no line separator of Unicode can end an event early.
    return b"data: " + json.dumps(event, separators=(",", ":")).encode("ascii") + b"\n\n"


async def _send_body(send, body, more_body=True):
    await send({"type": "http.response.body", "body": body, "more_body": more_body})
