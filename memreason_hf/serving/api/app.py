"""
The endpoints, in FastAPI, which is an optional dependency: `pip install "memreason-hf[serve]"`.

    app = build_app(served_model, engine, metrics)
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from memreason_hf.checks import shortened
from memreason_hf.serving.api.bodies import ClientGone, parse_json, read_body
from memreason_hf.serving.api.engine import Answers, Engine
from memreason_hf.serving.api.events import EventStream, until_gone
from memreason_hf.serving.api.fields import ChatFields, CompletionFields, RequestFields, read_fields, schema
from memreason_hf.serving.api.metrics import Metrics
from memreason_hf.serving.api.prompts import Prompt, PromptReader, count_prompts
from memreason_hf.serving.api.refusals import ApiError, wrong_request
from memreason_hf.serving.api.replies import ChoiceReader, Part, Reply, Usage
from memreason_hf.serving.api.served_model import ServedModel
from memreason_hf.serving.batching import GenerationRequest


COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ENDPOINTS = (COMPLETIONS, CHAT, "/v1/models", "/health", "/metrics", "/openapi.json")
# Bytes of a body that is read in less than a tenth of a second.
_SHORT_BODY = 2**16
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build_app(served: ServedModel, engine: Engine, metrics: Metrics) -> FastAPI:
    """
    The application. Its lifespan starts the engine, and closes it.

    Args:
        served: the model.
        engine: not started yet.
        metrics: of this engine.
    """
    handler = _Handler(served, engine, metrics)
    # The pages for /docs would load scripts of other servers.
    app = FastAPI(title="memreason serve", docs_url=None, redoc_url=None, lifespan=handler.lifespan)
    _add_error_handlers(app, metrics)

    @app.get("/health")
    async def health() -> dict:
        """Whether the model answers requests. Needs no key."""
        if engine.failure is not None:
            raise ApiError(503, f"The model has failed: {engine.failure}.", code="unavailable")
        return {"status": "ok", "model": served.name}

    @app.get("/metrics", response_class=Response)
    async def prometheus_metrics():
        """Metrics in the text format of Prometheus."""
        return Response(metrics.text(), media_type=_METRICS_TYPE)

    @app.get("/v1/models")
    async def models() -> dict:
        """The one model of this server, with its depth."""
        return {"object": "list", "data": [served.describe()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict:
        """The model, by its name."""
        check_name(served, name)
        return served.describe()

    @app.post(COMPLETIONS, openapi_extra=_body_of(CompletionFields), response_model=None)
    async def completions(request: Request) -> Response:
        """Continues prompts."""
        return await handler.answer(CompletionFields, request)

    @app.post(CHAT, openapi_extra=_body_of(ChatFields), response_model=None)
    async def chat_completions(request: Request) -> Response:
        """Answers a conversation."""
        return await handler.answer(ChatFields, request)

    return app


def _body_of(kind):
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema(kind)}}}}


def _add_error_handlers(app, metrics):
    @app.exception_handler(ApiError)
    async def refused(request, error):
        metrics.errors.labels(error.kind).inc()
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(HTTPException)
    async def not_found(request, error):
        if error.status_code == 404:
            message = f"There is no {shortened(request.url.path)}. The paths are {', '.join(ENDPOINTS)}."
            refusal = ApiError(404, message, code="no_such_path")
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            message = f"{request.method} {request.url.path} is not allowed. Send {allowed}."
            refusal = ApiError(405, message, code="method_not_allowed")
        else:
            refusal = ApiError(error.status_code, str(error.detail))
        metrics.errors.labels(refusal.kind).inc()
        return JSONResponse(refusal.body(), error.status_code, error.headers)

    @app.exception_handler(ClientGone)
    async def gone(request, error):
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unexpected(request, error):
        # The framework logs the error afterwards.
        metrics.errors.labels("internal_error").inc()
        return JSONResponse(ApiError(500, "The server failed. Its log says why.", code="internal_error").body(), 500)


def check_name(served: ServedModel, name: str | None) -> None:
    """
    Checks the name of the model that a request is for; None is the only one there is.

    Raises:
        ApiError: the server has another model (404).
    """
    if name is not None and name != served.name:
        message = f"model={shortened(name)}: this server has {served.name!r} only."
        raise ApiError(404, message, param="model", code="model_not_found")


class _Response(Response):
    """Lets FastAPI return an ASGI application."""

    def __init__(self, application):
        self.application, self.background = application, None

    async def __call__(self, scope, receive, send):
        await self.application(scope, receive, send)


class _Lane:
    """
    A thread that reads requests: a long prompt takes too long for the event loop.

    One thread, because a `PromptReader` is for one at a time.
    """

    def __init__(self, served):
        self.served, self.reader = served, PromptReader(served.tokenizer, served.limits.context)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="memreason-prompts")

    def read(self, kind: type[RequestFields], body: bytes) -> tuple:
        """The fields, prompts and requests of a body. Runs in the thread."""
        try:
            return self._read_fields(kind, parse_json(body))
        except RecursionError:
            # What could just be parsed may be too deep to be shown.
            raise ApiError(400, "The body is nested too deeply.", code="not_json") from None

    def _read_fields(self, kind, content):
        fields = read_fields(kind, content)
        check_name(self.served, fields.model)
        if kind is ChatFields:
            prompts = [self.reader.read_messages(fields.messages)]
        else:
            # Before thousands of them are read.
            self.served.check_choices(fields, count_prompts(fields.prompt))
            prompts = self.reader.read_prompts(fields.prompt)
        return fields, prompts, self.served.requests(fields, prompts)


class _Handler:
    """Answers completions and chats."""

    def __init__(self, served, engine, metrics):
        self.served, self.engine, self.metrics = served, engine, metrics
        self.shown = served.shown_tokens()
        # Long prompts have a lane of their own, so that short ones do not wait behind them.
        self._lanes = [_Lane(served), _Lane(served)]

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Runs the engine while the server runs."""
        self.engine.start()
        yield
        for lane in self._lanes:
            lane.thread.shutdown(wait=False)
        # Joining blocks, and the thread tells this loop what it does.
        await asyncio.to_thread(self.engine.close)

    async def answer(self, kind: type[RequestFields], request: Request) -> Response:
        """The response to one request."""
        try:
            body = await read_body(request.headers, request.receive, self.served.limits.body_bytes)
            started = time.perf_counter()
            lane = self._lanes[len(body) > _SHORT_BODY]
            read = asyncio.get_running_loop().run_in_executor(lane.thread, lane.read, kind, body)
            fields, prompts, requests = await read
            answers = await self._submit(requests, fields)
        except ClientGone:
            self.metrics.cancelled.inc()
            raise
        prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        self.metrics.prompt_tokens.inc(prompt_tokens)
        answer = _Answer(self, fields, prompts, answers, started, request.url.path)
        if fields.stream:
            return _Response(answer.stream())
        try:
            return JSONResponse(await until_gone(request.receive, answer.whole()))
        except ClientGone:
            self.metrics.cancelled.inc()
            raise
        finally:
            answers.cancel()

    async def _submit(self, requests: Sequence[GenerationRequest], fields: RequestFields) -> Answers:
        try:
            return await self.engine.submit(requests)
        except (ValueError, TypeError) as error:
            raise wrong_request(error, type(fields).model_fields) from error


class _Answer:
    """The answer to one request, while its tokens come."""

    def __init__(self, handler, fields, prompts, answers, started, endpoint):
        self.metrics, self.endpoint, self.started = handler.metrics, endpoint, started
        self.fields, self.prompts, self.answers = fields, prompts, answers
        self.reply = Reply(handler.served.name, fields)
        self.usage = Usage(sum(len(prompt.ids) for prompt in prompts))
        count = (fields.n or 1) * len(prompts)
        self._readers = [ChoiceReader(handler.shown, fields.num_logprobs) for _ in range(count)]
        self._decode = handler.shown.decode
        self._is_first = True

    async def whole(self) -> dict:
        """The body of the response."""
        parts = [Part(self._echo(index)) for index in range(len(self._readers))]
        async for new in self._parts():
            for index, part in new.items():
                parts[index].extend(part)
        return self.reply.whole(parts, self.usage)

    def stream(self) -> EventStream:
        """The response as a stream."""
        return EventStream(
            self._events(),
            on_end=self.answers.cancel,
            on_error=lambda error: self.metrics.errors.labels(error.kind).inc(),
            on_gone=self.metrics.cancelled.inc,
        )

    async def _events(self) -> AsyncIterator[dict]:
        for index in range(len(self._readers)):
            if self.reply.is_chat:
                yield self.reply.begin(index)
            elif self.fields.echo:
                yield self.reply.event(index, Part(self._echo(index)))
        async for new in self._parts():
            for index, part in new.items():
                if self._says_something(part):
                    yield self.reply.event(index, part)
        options = self.fields.stream_options
        if options is not None and options.include_usage:
            yield self.reply.end(self.usage)

    def _says_something(self, part):
        """A token may add nothing that can be shown now."""
        by_token = (self.fields.recurrences or self.fields.return_token_ids) and part.token_ids
        return part.text or part.finish_reason is not None or part.logprobs or by_token

    def _echo(self, index):
        if not getattr(self.fields, "echo", None):
            return ""
        prompt: Prompt = self.prompts[index // (self.fields.n or 1)]
        return self._decode(list(prompt.ids)) if prompt.text is None else prompt.text

    async def _parts(self) -> AsyncIterator[dict[int, Part]]:
        """What has come since the last time, by choice."""
        async for news in self.answers:
            self._measure_first()
            new: dict[int, Part] = {}
            for index, output in news:
                if output.finish_reason == "error":
                    raise ApiError(500, f"The model failed: {output.error}.", code="engine_error")
                new.setdefault(index, Part()).extend(self._readers[index].read(output))
                if output.token_id is not None:
                    self.usage.completion_tokens += 1
                    self.usage.recurrences += output.num_recurrences
            yield new
        self.metrics.seconds.labels(self.endpoint).observe(time.perf_counter() - self.started)

    def _measure_first(self):
        if self._is_first:
            self._is_first = False
            self.metrics.first_token_seconds.labels(self.endpoint).observe(time.perf_counter() - self.started)
