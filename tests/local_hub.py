"""
A small Hub on the loopback interface, for the real client of huggingface_hub.

    with local_hub(tmp_path) as hub:
        hub.repositories.create("user/model")
        run(["memreason", "publish", …], env=hub.environment())
        assert hub.repositories.get("user/model").files() == …

It keeps repositories of models, data sets and Spaces with commits, branches, tags and pull requests, and checks
tokens. Large files go to and come from a second port without a token, as on the Hub. `hub.faults` makes requests
fail, `hub.bandwidth` makes uploads slow, and `hub.requests` lists what was asked.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hub_answers import Answer, Call, answer
from hub_repos import HubError, Repositories, Token
from huggingface_hub import close_session, constants, hf_api


# A token by its name in `local_hub(tokens=…)`.
WRITER, READER, STRANGER = "writer-of-user", "reader-of-user", "writer-of-stranger"
TOKENS = {
    WRITER: Token("user", organizations=("team",)),
    READER: Token("user", write=False),
    STRANGER: Token("stranger"),
}
_CHUNK = 1 << 16


@dataclass
class Fault:
    """
    What happens to the next `times` requests that match.

    Attributes:
        method: of the request.
        path: a regular expression that is searched in the path.
        status: answered in place of the result.
        drop: closes the connection "before" anything is done, or "after" it without an answer.
        after_bytes: how much of the body is read before the fault; None: all of it.
        corrupt: changes a byte of the body on its way.
        skip: how many requests that match pass first.
        seconds: how long the answer waits.
        headers: of the answer.
    """

    method: str
    path: str
    status: int | None = None
    drop: str | None = None
    after_bytes: int | None = None
    corrupt: bool = False
    times: int = 1
    skip: int = 0
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    hits: int = 0


@dataclass
class Request:
    """A request as it arrived, and the status of its answer (None until then)."""

    method: str
    path: str
    query: str
    token: str | None
    headers: dict[str, str]
    begun: float
    received: int = 0
    status: int | None = None
    fault: bool = False
    ended: float | None = None


class LocalHub:
    """
    The running server; see `local_hub`.

    Attributes:
        url: for `HF_ENDPOINT`.
        storage_url: where large files are sent to and read from.
        repositories: what it keeps.
        requests: every request since the start or since `requests.clear()`.
        faults: what will go wrong.
        bandwidth: bytes a second of each upload of a large file; None: unlimited.
        largest_regular_file: bytes from which on a file is a large file in any case.
        part_size: large files above it are uploaded in parts of so many bytes; None: at once.
        page_size: entries of a page when folders are listed.
    """

    def __init__(self, folder: Path, tokens: dict[str, Token]):
        self.folder = folder
        self.tokens = dict(tokens)
        self.repositories = Repositories(folder / "files", self.tokens)
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.bandwidth: float | None = None
        self.largest_regular_file = 10_000_000
        self.part_size: int | None = None
        self.page_size = 1000
        self._lock = threading.Lock()
        self._servers = [_Server(self), _Server(self)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def start(self) -> None:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Stops the server; open connections are closed."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self.cut()

    def cut(self) -> None:
        """
        Breaks all connections, as when the machine of a client dies. What a killed client had handed to the system
        would otherwise still arrive.
        """
        for server in self._servers:
            server.cut()

    def environment(self, token: str | None = WRITER, **changes: str) -> dict[str, str]:
        """The environment of a process whose Hub is this one, with caches of its own and one token or none."""
        gone = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        kept = {key: value for key, value in os.environ.items() if key not in gone}
        # Uploads by Xet need a second service and a second protocol, whichever the server offers.
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        own |= {"HF_HOME": str(self.folder / "home"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return kept | own | ({"HF_TOKEN": token} if token else {}) | changes

    def patch(self, monkeypatch, token: str = WRITER) -> None:
        """Points the client of this process here, with a token."""
        for key, value in self.environment(token).items():
            if key.startswith("HF_") or key.upper() == "NO_PROXY":
                monkeypatch.setenv(key, value)
        point_client_at(self.url, monkeypatch)

    def matching(self, method: str, path: str = "") -> list[Request]:
        """The requests so far of a method whose path matches a regular expression."""
        with self._lock:
            return [item for item in self.requests if item.method == method and re.search(path, item.path)]

    def log(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def next_fault(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.method != request.method or not re.search(fault.path, request.path):
                    continue
                fault.hits += 1
                if fault.skip < fault.hits <= fault.skip + fault.times:
                    request.fault = True
                    return fault
        return None


def point_client_at(url: str, monkeypatch) -> None:
    """Lets this process look for the Hub at an address, which its libraries read when they are first used."""
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    close_session()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub):
        self.hub, self._open = hub, set()
        super().__init__(("127.0.0.1", 0), _Handler)
        # Small, so that most of a file is not yet here when a connection is cut.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)

    def get_request(self):
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request):
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self):
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        # A client that was killed is no fault of the server.
        pass


class _Dropped(Exception):
    """The connection is to be closed without an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def _serve(self):
        hub, parts = self.server.hub, urlsplit(self.path)
        name = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.request_log = Request(self.command, parts.path, parts.query, name, headers, time.monotonic())
        hub.log(self.request_log)
        self.fault = hub.next_fault(self.request_log)
        try:
            self._send(self._answer(hub, parts, name))
        except (_Dropped, OSError):
            self.close_connection = True
        finally:
            self.request_log.ended = time.monotonic()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _answer(self, hub, parts, name) -> Answer:
        fault = self.fault
        if fault is not None and fault.drop == "before" and fault.after_bytes is None:
            raise _Dropped
        if fault is not None and fault.seconds:
            time.sleep(fault.seconds)
        try:
            upload = re.fullmatch(r"/uploads/([0-9a-f]{64})(?:/(\d+))?", parts.path)
            if upload and self.command == "PUT":
                result = self._receive_upload(hub, *upload.groups())
            else:
                body = self._read_body()
                if fault is not None and fault.status is not None:
                    raise HubError(fault.status, "The server is made to fail.", headers=fault.headers)
                if name is not None and name not in hub.tokens:
                    raise HubError(401, "Invalid credentials in Authorization header")
                completion = re.fullmatch(r"/complete/([0-9a-f]{64})", parts.path)
                if completion:
                    result = self._join_parts(hub, completion[1], json.loads(body))
                else:
                    query = parse_qs(parts.query, keep_blank_values=True)
                    call = Call(
                        hub, self.command, parts.path, query, self.request_log.headers, body, hub.tokens.get(name)
                    )
                    result = answer(call)
        except HubError as error:
            headers = {"X-Error-Message": error.message, **error.extra.pop("headers", {})}
            if error.code:
                headers["X-Error-Code"] = error.code
            result = Answer({"error": error.message, **error.extra}, status=error.status, headers=headers)
        if fault is not None and fault.drop == "after":
            raise _Dropped
        return result

    # Bodies.

    def _chunks(self):
        """The body in pieces, as slowly as the server is told to, and spoiled where a fault says so."""
        fault, limit = self.fault, None
        if fault is not None and (fault.status is not None or fault.drop == "before"):
            limit = fault.after_bytes
        for chunk in self._raw_chunks():
            if fault is not None and fault.corrupt:
                chunk, fault = bytes([chunk[0] ^ 1]) + chunk[1:], None
            self.request_log.received += len(chunk)
            yield chunk
            if limit is not None and self.request_log.received >= limit:
                if self.fault.drop:
                    raise _Dropped
                self.close_connection = True
                raise HubError(self.fault.status, "The server is made to fail.", headers=self.fault.headers)

    def _raw_chunks(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self._exactly(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            chunk = self._exactly(min(left, _CHUNK))
            left -= len(chunk)
            yield chunk

    def _exactly(self, size):
        data = self.rfile.read(size)
        if len(data) < size:
            raise _Dropped
        return data

    def _read_body(self) -> bytes:
        return b"".join(self._chunks())

    def _receive_upload(self, hub, sha256, part) -> Answer:
        """A large file or a part of one: kept under the hash that it was announced with, or refused."""
        target = hub.repositories.blob(sha256 if part is None else f"{sha256}.{part}")
        temporary, digest = target.with_name(f".{target.name}.{secrets.token_hex(4)}"), hashlib.sha256()
        try:
            with open(temporary, "wb") as file:
                for chunk in self._chunks():
                    file.write(chunk)
                    digest.update(chunk)
                    if hub.bandwidth:
                        time.sleep(len(chunk) / hub.bandwidth)
            if self.fault is not None and self.fault.status is not None:
                raise HubError(self.fault.status, "The server is made to fail.", headers=self.fault.headers)
            if part is None and digest.hexdigest() != sha256:
                raise HubError(400, "The content does not have the announced SHA-256.", "BadDigest")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return Answer(b"", headers={"ETag": f'"{digest.hexdigest()}"'})

    def _join_parts(self, hub, sha256, given) -> Answer:
        content = b"".join(
            hub.repositories.blob(f"{sha256}.{part['partNumber']}").read_bytes() for part in given["parts"]
        )
        if hashlib.sha256(content).hexdigest() != sha256:
            raise HubError(400, "The content does not have the announced SHA-256.", "BadDigest")
        hub.repositories.add_blob(content)
        return Answer({})

    # Answers.

    def _send(self, result: Answer) -> None:
        status, headers, start, size = result.status, dict(result.headers), 0, None
        if result.file is None:
            is_bytes = isinstance(result.content, bytes)
            content = result.content if is_bytes else json.dumps(result.content).encode()
            headers.setdefault("Content-Type", "application/octet-stream" if is_bytes else "application/json")
            size = len(content)
        else:
            total = result.file.stat().st_size
            start, end = self._range(total)
            size = end - start
            if (start, end) != (0, total):
                status, headers["Content-Range"] = 206, f"bytes {start}-{end - 1}/{total}"
        self.request_log.status = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(size))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        if result.file is None:
            self.wfile.write(content)
            return
        with open(result.file, "rb") as file:
            file.seek(start)
            while size and (chunk := file.read(min(size, _CHUNK))):
                self.wfile.write(chunk)
                size -= len(chunk)

    def _range(self, total):
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or not any(match.groups()):
            return 0, total
        if not match[1]:
            return max(total - int(match[2]), 0), total
        return min(int(match[1]), total), min(int(match[2]) + 1, total) if match[2] else total


@contextlib.contextmanager
def local_hub(folder: str | os.PathLike, *, tokens: dict[str, Token] | None = None):
    """
    A running Hub that keeps its files in a folder.

    Args:
        tokens: `{token: whose it is}`, by default `WRITER` and `READER` of "user" and `STRANGER` of "stranger".
    """
    hub = LocalHub(Path(folder), TOKENS if tokens is None else tokens)
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()


@pytest.fixture(name="hub")
def hub_fixture(tmp_path_factory):
    """A running Hub for one test: `from local_hub import hub_fixture` in a conftest makes `hub` known."""
    with local_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(name="this_process")
def this_process_fixture(hub, monkeypatch, tmp_path):
    """Points the client of this process at the Hub, which it otherwise reads when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    hub.patch(monkeypatch)
    yield hub
    # A connection to a Hub that is gone must not be used again.
    close_session()


this_process = this_process_fixture
