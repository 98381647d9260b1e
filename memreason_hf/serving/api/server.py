"""
The server: a socket, uvicorn on it, and an end that lets running requests finish.

    bound = bind("127.0.0.1", 8000)
    Server(served_model).serve_on(bound)
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import uvicorn

from memreason_hf.serving.api.access import Gate
from memreason_hf.serving.api.app import ENDPOINTS, build_app
from memreason_hf.serving.api.connections import connection_class
from memreason_hf.serving.api.engine import Engine, EngineFailed
from memreason_hf.serving.api.metrics import Metrics
from memreason_hf.serving.api.refusals import ApiError
from memreason_hf.serving.api.served_model import ServedModel


logger = logging.getLogger(__name__)

# After the last requests have been answered with an error, their clients have so long to read it.
_LAST_SECONDS = 2
_INTERVAL = 0.05


def bind(host: str, port: int) -> socket.socket:
    """
    A socket that is bound, but does not listen yet: while a model is loaded, clients are told that nobody is there.

    Args:
        host: a name or an address.
        port: 0 for any free one.

    Raises:
        ValueError: there is no such host on this machine, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"host={host!r}: {error.strerror}.") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _taken(host, port, error) from None
    return bound


def _taken(host, port, error):
    return ValueError(f"host={host!r}, port={port}: {os.strerror(error.errno)}. Choose another port.")


def url(bound: socket.socket) -> str:
    """The address of a socket, for clients."""
    host, port, *_ = bound.getsockname()
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """
    Uvicorn with a model behind it.

    When it ends, it takes no new connections and lets running requests finish. What still runs after
    `limits.shutdown_seconds` is answered with an error, and after a second signal that happens at once.

    Args:
        served: the model.
        keys, host_names, log: see `Gate`.
        batcher_options: arguments of `DepthBatcher`.
        on_start: called when clients can connect.
    """

    def __init__(
        self,
        served: ServedModel,
        *,
        keys: Sequence[str] = (),
        host_names: Collection[str] = (),
        batcher_options: Mapping[str, object] | None = None,
        log: Callable[[str], None] | None = None,
        on_start: Callable[[], None] = lambda: None,
    ):
        self.limits, self._on_start, self._hurries = served.limits, on_start, False
        options = dict(batcher_options or {})
        self.engine = Engine(lambda: served.make_batcher(**options), on_death=self._end)
        metrics = Metrics(self.engine)
        gate = Gate(
            build_app(served, self.engine, metrics),
            metrics,
            keys=keys,
            host_names=host_names,
            open_requests=self.limits.open_requests,
            endpoints=ENDPOINTS,
            log=log,
        )
        super().__init__(
            uvicorn.Config(
                gate,
                http=connection_class(self.limits),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=self.limits.shutdown_seconds + 2 * _LAST_SECONDS,
            )
        )

    def serve_on(self, bound: socket.socket) -> None:
        """
        Answers requests until a signal comes, or `should_exit` is set. A signal is raised again at the end.

        Args:
            bound: see `bind`. Closed at the end.

        Raises:
            ValueError: another process has begun to listen on the port since it was bound.
            EngineFailed: the model has failed for good.
        """
        try:
            try:
                bound.listen(self.config.backlog)
            except OSError as error:
                raise _taken(*bound.getsockname()[:2], error) from None
            self.run([bound])
        finally:
            bound.close()
            if not self.engine.close():
                logger.warning("The last step of the model has not ended.")
        if self.engine.has_failed:
            raise EngineFailed(f"The model has failed: {self.engine.failure}.")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        late = asyncio.create_task(self._end_late_requests())
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit:
            # Uvicorn would stop here and cancel its tasks, without a word to the clients.
            self._hurries = True
        else:
            super().handle_exit(sig, frame)

    def _end(self):
        self.should_exit = True

    async def _end_late_requests(self):
        deadline = time.monotonic() + self.limits.shutdown_seconds
        while time.monotonic() < deadline and not self._hurries:
            await asyncio.sleep(_INTERVAL)
        self.engine.fail_all(ApiError(503, "The server is shutting down.", code="unavailable"))
        await asyncio.sleep(_LAST_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
