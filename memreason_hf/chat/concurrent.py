"""Work that waits for a language model, many pieces at once, for code that does not wait: a plain iterator."""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Protocol, TypeVar

from memreason_hf.chat.replies import ChatError, ChatReply, Messages
from memreason_hf.checks import check_int, check_type


Key, Result = TypeVar("Key"), TypeVar("Result")
_END = object()


class Chat(Protocol):
    """A language model that can be asked: `EndpointChat`, `LocalChat`, or one of your own."""

    concurrency: int

    async def ask(
        self, messages: Messages, *, max_tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> ChatReply: ...

    async def close(self) -> None: ...


def ask_all(
    chat: Chat,
    requests: Mapping[Key, Messages],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Iterator[tuple[Key, ChatReply | ChatError]]:
    """
    Asks a language model many things at once.

    Args:
        chat: the model. At most `chat.concurrency` requests are under way.
        requests: the messages of each request, by any key.
        max_tokens: the maximum number of new tokens of an answer.
        temperature: 0 takes the most likely token at each position.
        seed: for drawing tokens, the same for every request.

    Returns:
        An iterator of `(key, reply)` in the order in which the answers arrive. A request that was not answered gives
        the error in place of a reply.

    Raises:
        ChatError: no request can be answered (`is_fatal`).

    Example:

    ```python
    chat = EndpointChat("my-model", base_url="http://127.0.0.1:8000/v1")
    requests = {name: [{"role": "user", "content": f"Who was {name}?"}] for name in ("Ada Lovelace", "Alan Turing")}
    for name, reply in ask_all(chat, requests, max_tokens=100):
        print(name, reply.reason if isinstance(reply, ChatError) else reply.text)
    ```
    """
    check_type("requests", requests, Mapping, "a mapping of keys to messages")

    async def ask(key):
        try:
            return await chat.ask(requests[key], max_tokens=max_tokens, temperature=temperature, seed=seed)
        except ChatError as error:
            if error.is_fatal:
                raise
            return error

    return in_order_of_completion(ask, requests, concurrency=chat.concurrency, close=chat.close)


def in_order_of_completion(
    work: Callable[[Key], Awaitable[Result]],
    keys: Iterable[Key],
    *,
    concurrency: int,
    close: Callable[[], Awaitable[None]] | None = None,
    grace: float = 0.0,
    on_stop: Callable[[], None] | None = None,
) -> Iterator[tuple[Key, Result]]:
    """
    Runs a coroutine for each key, some at a time, in an event loop of its own.

    The loop runs in another thread, so requests go on while the caller handles a result. If the caller stops early,
    by an error, Ctrl-C or `close()` of the iterator, no further key is begun, and what is under way is cancelled.

    Args:
        work: the coroutine. If it raises an error, the others are cancelled, and the iterator raises that error.
        keys: read one by one, in that other thread.
        concurrency: how many keys are worked on at once.
        close: called in the loop at the end.
        grace: the seconds in which keys that are under way may still end when the caller stops early.
        on_stop: called in the caller's thread when it stops early, before the grace.

    Returns:
        An iterator of `(key, result)`, in the order in which they end.

    Example:

        >>> async def double(number):
        ...     return 2 * number
        >>> sorted(in_order_of_completion(double, [1, 2, 3], concurrency=2))
        [(1, 2), (2, 4), (3, 6)]
    """
    check_int("concurrency", concurrency, least=1)
    return _Pool(work, iter(keys), concurrency, close, grace, on_stop).results()


class _Pool:
    """The thread, its event loop, and the queue of results."""

    def __init__(self, work, keys, concurrency, close, grace, on_stop):
        self._work, self._keys, self._concurrency, self._close = work, keys, concurrency, close
        self._grace, self._on_stop = grace, on_stop
        self._done = queue.SimpleQueue()
        self._stopped = self._ended = False
        self._loop = self._task = None
        self._started = threading.Event()

    def results(self):
        # A daemon: a program that ends does not wait for an answer that may never come.
        thread = threading.Thread(target=self._run, name="requests", daemon=True)
        thread.start()
        try:
            while True:
                key, result, error = self._done.get()
                self._ended = key is _END
                if error is not None:
                    raise error
                if self._ended:
                    return
                yield key, result
        finally:
            self._stop(thread)

    def _stop(self, thread):
        self._stopped = True
        try:
            if not self._ended:
                if self._on_stop is not None:
                    self._on_stop()
                thread.join(self._grace)
        finally:
            self._started.wait()
            # The loop has closed if all is done.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)
            thread.join(5)

    def _run(self):
        error = None
        try:
            asyncio.run(self._main())
        except BaseException as caught:
            error = caught
        finally:
            self._started.set()
        self._done.put((_END, None, error))

    async def _main(self):
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._started.set()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(self._take())
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            if self._close is not None:
                await self._close()

    async def _take(self):
        while not self._stopped:
            key = next(self._keys, _END)
            if key is _END:
                return
            self._done.put((key, await self._work(key), None))


def _first(errors):
    """The first error of a group, which may be nested."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors
