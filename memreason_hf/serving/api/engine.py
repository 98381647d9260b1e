"""
The thread that runs the model, and what connects it with the event loop of the server.

    engine = Engine(lambda: DepthBatcher(model, tokenizer))
    engine.start()
    answers = await engine.submit([GenerationRequest(ids, max_new_tokens=8)])
    async for news in answers:
        for index, output in news:
            ...
    engine.close()

The decode loop is not safe for threads, so only this thread touches it: requests and cancellations reach it through a
queue, between two steps.
"""

import asyncio
import collections
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memreason_hf.messages import first_line
from memreason_hf.serving.api.refusals import ApiError
from memreason_hf.serving.batching import DepthBatcher, GenerationRequest, QueueFull, TokenOutput


logger = logging.getLogger(__name__)

# Failures one after the other, without a step that worked between them, after which the model is given up.
_MOST_FAILURES = 3
# The tokens of so many seconds give the tokens a second.
_WINDOW = 10.0
_RETRY_SECONDS = 1.0
# Requests and cancellations between two steps: a flood of them must not hold up the model.
_MOST_COMMANDS = 64
# Tokens and log-probabilities that may wait for a client: some ten megabytes.
_MOST_WAITING = 100_000


@dataclass
class Counters:
    """
    What the engine has done so far. Its thread writes, others read.

    Attributes:
        stats: the last `DepthBatcher.stats()`.
        tokens, recurrences: of all answers.
        failures: steps that raised an error.
    """

    stats: object
    tokens: int = 0
    recurrences: int = 0
    failures: int = 0
    _recent: collections.deque = field(default_factory=collections.deque)

    def add(self, outputs: Sequence[TokenOutput]) -> None:
        """Counts the tokens of a step."""
        new = [output for output in outputs if output.token_id is not None]
        if not new:
            return
        self.tokens += len(new)
        self.recurrences += sum(output.num_recurrences for output in new)
        self._recent.append((time.monotonic(), len(new)))
        self._forget()

    def tokens_per_second(self) -> float:
        """Over the last ten seconds."""
        now = time.monotonic()
        return sum(count for when, count in list(self._recent) if when > now - _WINDOW) / _WINDOW

    @property
    def mean_recurrences(self) -> float:
        """Over all tokens of all answers; 0 before the first one."""
        return self.recurrences / self.tokens if self.tokens else 0.0

    def _forget(self):
        while self._recent and self._recent[0][0] < time.monotonic() - _WINDOW:
            self._recent.popleft()


class EngineFailed(RuntimeError):
    """The model has failed for good. The message says why."""


class Answers:
    """
    The tokens of the requests that were submitted together, in the order in which they are decoded.

    An asynchronous iterator of lists of `(index of the request, TokenOutput)`: all that have come since the last one.
    It ends after the last token of the last request, and raises `ApiError` where the model failed.

    A reader who is slow does not hold up the model: outputs wait, up to a number that is far beyond what a reader lags
    who reads at all. Then the requests end with an error.

    Args:
        engine: decodes the requests.
        count: of the requests.
        most_waiting: tokens and log-probabilities that may wait for the reader.
    """

    def __init__(self, engine: "Engine", count: int, most_waiting: int = _MOST_WAITING):
        self._engine, self._most_waiting = engine, most_waiting
        self._waiting = 0
        self._running = set(range(count))
        self._news: list[tuple[int, TokenOutput]] = []
        self._has_news = asyncio.Event()
        self._error: ApiError | None = None
        self.is_cancelled = False

    def __aiter__(self):
        return self

    async def __anext__(self) -> list[tuple[int, TokenOutput]]:
        while not self._news:
            if self._error is not None:
                raise self._error
            if not self._running:
                raise StopAsyncIteration
            self._has_news.clear()
            await self._has_news.wait()
        news, self._news, self._waiting = self._news, [], 0
        return news

    def cancel(self) -> None:
        """Ends what still runs, for a client who has gone. Does nothing after the last token."""
        if self._running and not self.is_cancelled:
            self.is_cancelled = True
            self._engine.cancel(self)

    def _put(self, index, output):
        if self._error is not None:
            return
        self._news.append((index, output))
        self._waiting += 1 + len(output.logprobs or ())
        if self._waiting > self._most_waiting:
            self.cancel()
            self._news.clear()
            self._fail(ApiError(408, "The client reads its answer too slowly.", code="client_too_slow"))
            return
        if output.finish_reason is not None:
            self._running.discard(index)
        self._has_news.set()

    def _fail(self, error):
        self._error = error
        self._running.clear()
        self._has_news.set()


class Engine:
    """
    Runs a decode loop in a thread of its own.

    A step that raises an error ends all requests, also those that wait, with status 500, and the engine goes on with
    a new decode loop. After three such failures in a row, or if no new loop can be made, the engine is dead, and
    `on_death` is called.

    Args:
        make_batcher: makes a decode loop without requests.
        on_death: called in the thread of the engine.

    Attributes:
        counters: what has been done so far.
        failure: why the engine takes no requests any more; None while it does.
        has_failed: whether the model is the reason.
    """

    def __init__(self, make_batcher: Callable[[], DepthBatcher], on_death: Callable[[], None] | None = None):
        self._make_batcher, self._on_death = make_batcher, on_death
        self._batcher = make_batcher()
        self.counters = Counters(self._batcher.stats())
        self.failure: str | None = None
        self.has_failed = False
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        self._places: dict[object, tuple[Answers, int]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failures_in_a_row = 0
        self._thread = threading.Thread(target=self._run, name="memreason-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread. Called from the event loop that will submit requests."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self, seconds: float = 10.0) -> bool:
        """Ends the thread after the current step; returns whether it has ended in time."""
        self._commands.put(None)
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    async def submit(self, requests: Sequence[GenerationRequest]) -> Answers:
        """
        Submits requests together: all of them are accepted, or none.

        Raises:
            ApiError: too many requests wait (429), or the engine is dead (503).
            ValueError, TypeError: a request cannot run. The message names the field.
        """
        answers = Answers(self, len(requests))
        accepted = self._loop.create_future()
        self._commands.put(lambda: self._submit(answers, requests, accepted))
        # A thread that ends sets `failure` before it answers what has come: one of both finds every request.
        if self.failure is not None:
            accepted.cancel()
            raise self._dead()
        try:
            await accepted
        except asyncio.CancelledError:
            answers.cancel()
            raise
        return answers

    def cancel(self, answers: Answers) -> None:
        """Ends the requests of `answers` that still run."""
        self._commands.put(lambda: self._cancel(answers))

    def fail_all(self, error: ApiError) -> None:
        """Ends all requests that wait or run with an error."""
        self._commands.put(lambda: self._fail_all(error))

    def _run(self):
        try:
            while self.failure is None and self._obey():
                if self._batcher.has_work:
                    self._step()
        except Exception as error:  # nobody else would see it, and clients would wait for ever
            logger.exception("The engine has failed.")
            self._die(f"{type(error).__name__}: {first_line(error)}")
        self._fail_all(self._dead(), cancels=False)
        self._refuse_the_rest()

    def _obey(self):
        """Carries out what has been asked; waits where there is nothing to decode. False: the thread shall end."""
        for _ in range(_MOST_COMMANDS):
            try:
                command = self._commands.get(block=not self._batcher.has_work)
            except queue.Empty:
                break
            if command is None:
                return False
            command()
            self.counters.stats = self._batcher.stats()
        return True

    def _step(self):
        said = None
        try:
            outputs = self._batcher.step()
        except Exception as error:  # whatever a model can raise: clients must not wait for ever
            logger.exception("The model failed. The requests that were running or waiting are answered with an error.")
            said = f"{type(error).__name__}: {first_line(error)}"
        if said is not None:
            # The error is gone by now, and with it what holds the memory of the failed step.
            self._recover(said)
            return
        self._failures_in_a_row = 0
        # Before the outputs are handed on: who has read the last token finds its memory freed.
        self.counters.stats = self._batcher.stats()
        self.counters.add(outputs)
        news = []
        for output in outputs:
            place = self._places.get(output.request_id)
            if place is None:
                continue
            if output.finish_reason is not None:
                del self._places[output.request_id]
            news.append((*place, output))
        if news:
            self._tell(_deliver, news)

    def _recover(self, said):
        self.counters.failures += 1
        self._failures_in_a_row += 1
        self._fail_all(ApiError(500, f"The model failed: {said}.", code="engine_error"), cancels=False)
        self._batcher = None
        try:
            self._batcher = self._make_batcher()
        except Exception as next_error:
            logger.exception("The decode loop cannot be made again.")
            said = f"{type(next_error).__name__}: {first_line(next_error)}"
        else:
            self.counters.stats = self._batcher.stats()
        if self._batcher is None or self._failures_in_a_row >= _MOST_FAILURES:
            self._die(said)

    def _die(self, reason):
        self.failure, self.has_failed = reason, True
        if self._on_death is not None:
            self._on_death()

    def _submit(self, answers, requests, accepted):
        if answers.is_cancelled:
            return
        done = []
        try:
            for index, request in enumerate(requests):
                done.append(self._batcher.submit(request))
                self._places[done[-1]] = (answers, index)
        except Exception as error:  # raised where the client waits
            for request_id in done:
                del self._places[request_id]
                self._batcher.cancel(request_id)
            if isinstance(error, QueueFull):
                error = busy(str(error))
            self._tell(_settle, accepted, error)
            return
        self._tell(_settle, accepted, None)

    def _cancel(self, answers):
        for request_id in [one for one, (its, _) in self._places.items() if its is answers]:
            del self._places[request_id]
            self._batcher.cancel(request_id)

    def _fail_all(self, error, cancels=True):
        everyone = {id(answers): answers for answers, _ in self._places.values()}
        for request_id in self._places if cancels and self._batcher is not None else ():
            self._batcher.cancel(request_id)
        self._places.clear()
        for answers in everyone.values():
            self._tell(answers._fail, error)

    def _refuse_the_rest(self):
        """Answers commands that came after the last step. Those that come still later see `failure`."""
        if self.failure is None:
            self.failure = "the server is shutting down"
        self._batcher = _Refusing(self._dead())
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            if command is not None:
                command()

    def _dead(self):
        reason = self.failure or "it is shutting down"
        return ApiError(503, f"This server has stopped: {reason}.", code="unavailable")

    def _tell(self, function, *arguments):
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The event loop has been closed: nobody is left to be told.
            logger.debug("The event loop is closed.")


class _Refusing:
    """Stands where the decode loop of a dead engine stood."""

    def __init__(self, error):
        self.error = error

    def submit(self, request):
        raise self.error

    def cancel(self, request_id):
        pass


def busy(reason: str) -> ApiError:
    """The error for a client who should come back."""
    return ApiError(429, reason, code="too_many_requests", retry_after=_RETRY_SECONDS)


def _deliver(news):
    for answers, index, output in news:
        answers._put(index, output)


def _settle(accepted, error):
    if accepted.done():
        return
    if error is None:
        accepted.set_result(None)
    else:
        accepted.set_exception(error)
