"""A server of `memreason serve` in a thread, and what asks it: plain HTTP, without a client library."""

import contextlib
import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass, field

import pytest
import torch
from demo_models import looped
from text_models import text_tokenizer

from memreason_hf.serving.api.limits import Limits
from memreason_hf.serving.api.served_model import ServedModel


NAME = "tests/tiny"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def served_model(*, seed=0, template=TEMPLATE, limits=None, tokenizer=None, **config):
    """A `ServedModel` with random weights, whose depths differ under `HALTING`."""
    tokenizer = text_tokenizer() if tokenizer is None else tokenizer
    tokenizer.chat_template = template
    with torch.random.fork_rng():
        model = looped(tokenizer, seed, **{"max_position_embeddings": 256, "max_recurrences": 9, **config})
    # Makes the model write readable text, and hardly ever bytes that are not a character.
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    unreadable = [index for index, name in enumerate(names) if not name.lstrip("Ġ").isascii()]
    with torch.no_grad():
        model.lm_head.weight[unreadable] *= 0.01
    values = {"context": 256, "most_recurrences": 9, "new_tokens": 6, "shutdown_seconds": 5.0, **(limits or {})}
    return ServedModel(NAME, model, tokenizer, Limits(**values), created=1)


HALTING = {"halting_criterion": "kl", "kl_threshold": 0.3}


@dataclass
class Answer:
    """What came back: `body` is parsed where it is JSON."""

    status: int
    headers: dict
    text: str
    body: object = field(init=False)

    def __post_init__(self):
        is_json = self.headers.get("content-type", "").startswith("application/json")
        self.body = json.loads(self.text) if is_json else None

    @property
    def error(self):
        return self.body["error"]

    @property
    def events(self):
        """The events of a stream, which must end with [DONE]."""
        lines = [line for line in self.text.split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@dataclass
class Running:
    """A running server."""

    served: ServedModel
    server: object
    port: int

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def stats(self):
        return self.server.engine.counters.stats

    def ask(self, method, path, body=None, headers=None, timeout=60):
        """Sends a request; a body that is neither text nor bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = dict(headers or {})
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, str | bytes) else json.dumps(body)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read().decode())
        finally:
            connection.close()

    def get(self, path, **options):
        return self.ask("GET", path, **options)

    def complete(self, **fields):
        return self.ask("POST", "/v1/completions", fields)

    def chat(self, *contents, **fields):
        messages = [{"role": "user", "content": content} for content in contents]
        return self.ask("POST", "/v1/chat/completions", {"messages": messages, **fields})

    def raw(self, timeout=30):
        """A connected socket."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def metric(self, name):
        """The value of a metric, by its line without the value."""
        lines = self.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), None)

    def wait_until(self, condition, seconds=20):
        """Waits until a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.01)

    def wait_until_idle(self):
        """Waits until nothing is decoded and no memory is in use."""
        self.wait_until(lambda: (self.stats.running, self.stats.waiting, self.stats.slots_used) == (0, 0, 0))


@contextlib.contextmanager
def running(served=None, send_buffer=None, **options):
    """
    A server in a thread, on a free port. It has ended without an error when the block ends. A small `send_buffer` lets
    a client that reads nothing be noticed after few bytes.
    """
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(name, reason='needs pip install "memreason-hf[serve]"')
    # A module of the extra.
    from memreason_hf.serving.api.server import Server, bind

    served = served_model() if served is None else served
    started = threading.Event()
    options.setdefault("batcher_options", {"max_rows": 8, "max_waiting": 64})
    server = Server(served, on_start=started.set, **options)
    bound = bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    if send_buffer is not None:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    failures = []

    def serve():
        try:
            server.serve_on(bound)
        except Exception as error:
            failures.append(error)
        finally:
            # Who waits for the start shall not wait in vain.
            started.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert started.wait(30) and not failures, failures
        yield Running(served, server, port)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
    assert not failures, failures


def reference(served, prompt, max_new_tokens=6, **arguments):
    """What `generate` gives for one prompt alone: `(text, ids, depths)`; the text as clients shall see it."""
    tokenizer, model = served.tokenizer, served.model
    ids = torch.tensor([prompt if isinstance(prompt, list) else tokenizer(prompt)["input_ids"]])
    seed = arguments.pop("seed", None)
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        output = model.generate(
            ids,
            # Without a mask, padding in a prompt would be hidden.
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
            eos_token_id=tokenizer.eos_token_id,
            **arguments,
        )
    new = output.sequences[0, ids.shape[1] :].tolist()
    shown = [one for one in new if one not in (tokenizer.eos_token_id, tokenizer.pad_token_id)]
    return tokenizer.decode(shown, skip_special_tokens=False), new, output.num_recurrences[0].tolist()
