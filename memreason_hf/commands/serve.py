"""
`memreason serve`: a model behind an HTTP server with the endpoints of OpenAI's API.

    memreason serve runs/quickstart
"""

import copy
import importlib
import ipaddress
import logging
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec

from memreason_hf.command_line.depth_arguments import DEPTH, depth_settings, describe_depth, given_depth
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.serving.api.access import KEY_VARIABLE, LOCAL_NAMES, read_keys
from memreason_hf.serving.api.engine import EngineFailed
from memreason_hf.serving.api.limits import Limits
from memreason_hf.serving.api.served_model import ServedModel
from memreason_hf.serving.batching.memory import CacheShape
from modeling_recurrent.arguments_recurrent import DEPTH_ARGUMENTS


PROG = "memreason serve"
DESCRIPTION = f"""\
Serves a recurrent-depth model, an adapter or a converted decoder over HTTP, with the endpoints of OpenAI's API:

  POST /v1/completions          texts, lists of texts or token ids
  POST /v1/chat/completions     by the chat template of the tokenizer
  GET  /v1/models               the model, with its depth
  GET  /health, /metrics        for probes, and for Prometheus

Requests are batched by depth: tokens that halt early do not wait for deep ones, and new requests enter as others end.
Texts are those that model.generate gives for each prompt alone.

A request can also have the arguments of generate, under their names: num_recurrences, halting_criterion,
kl_threshold, ..., top_k, min_p, repetition_penalty, do_sample. What it leaves out has the value of the model's
generation_config.json. With "recurrences": true, each choice lists the recurrences of its tokens; "usage" always has
their sum and mean.

Clients need a key if {KEY_VARIABLE} is set; several keys are separated by commas. Without a key, listen on this
machine only, as is the default. Needs FastAPI and uvicorn: pip install "memreason-hf[serve]".

SIGTERM or Ctrl-C ends the server: no new connections, and requests that run get --shutdown_seconds to finish.
"""
EPILOG = """\
examples:
  memreason serve runs/quickstart
  memreason serve user/model --revision v1.0 --device cuda --dtype bfloat16 --max_rows 64
  memreason serve runs/text --halting_criterion kl --kl_threshold 0.01 --most_recurrences 16
  memreason serve runs/finetune/checkpoint-300 --base meta-llama/Llama-3.1-8B --name tutor --port 9000
  MEMREASON_API_KEY=$(cat key.txt) memreason serve runs/text --host 0.0.0.0

with curl:
  curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \\
    -d '{"prompt": "Once upon a time", "max_tokens": 32, "num_recurrences": 8, "recurrences": true}'
  curl -N http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
    -d '{"messages": [{"role": "user", "content": "Is the sky blue?"}], "stream": true}'

with the openai client:
  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="the key, or anything if there is none")
  answer = client.completions.create(
      model=client.models.list().data[0].id, prompt="Once upon a time", temperature=0.8, seed=1,
      extra_body={"halting_criterion": "kl", "kl_threshold": 0.05, "recurrences": True})
  print(answer.choices[0].text, answer.choices[0].recurrences, answer.usage.recurrences)
"""
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@dataclass
class ServerArguments:
    """Where the server is."""

    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 for all networks."})
    port: int = field(default=8000, metadata={"help": "Port; 0 for any free one."})
    name: str | None = field(
        default=None, metadata={"help": "What clients call the model. Default: the last two parts of MODEL."}
    )
    log_requests: bool = field(default=False, metadata={"help": "Print a line for each request."})
    shutdown_seconds: float = field(
        default=30.0, metadata={"help": "Requests that run when a signal comes may take so long to end."}
    )

    def check(self) -> None:
        """
        Refuses impossible values before anything is loaded.

        Raises:
            ValueError: names the field and its value.
        """
        if not 0 <= self.port < 65536:
            raise ValueError(f"port={self.port} must be from 0 to 65535.")
        if self.name == "":
            raise ValueError("name='' must have a character.")


@dataclass
class LimitArguments:
    """What clients can ask for."""

    context: int | None = field(
        default=None,
        metadata={"help": "The most tokens of a prompt with its answer. Default: max_position_embeddings."},
    )
    max_new_tokens: int = field(
        default=256,
        metadata={"help": "Tokens of an answer, if neither the request nor generation_config.json says how many."},
    )
    most_recurrences: int | None = field(
        default=None,
        metadata={"help": "The most recurrences that a request can ask for. Default: max_recurrences of the model."},
    )
    choices: int = field(default=64, metadata={"help": "The most answers to one request: its prompts times n."})
    max_rows: int = field(default=32, metadata={"help": "The most answers that are written at the same time."})
    max_cache_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens whose keys and values fit into the cache. Default: by the memory that is free."},
    )
    max_waiting: int = field(
        default=256, metadata={"help": "The most answers that wait for a place. Others are refused with status 429."}
    )
    open_requests: int = field(
        default=256, metadata={"help": "The most requests at the same time. Others are refused with status 429."}
    )
    body_bytes: int = field(default=2**20, metadata={"help": "The most bytes of the body of a request."})
    read_seconds: float = field(default=30.0, metadata={"help": "A request must have arrived after this time."})
    stall_seconds: float = field(
        default=60.0, metadata={"help": "A client that reads nothing of its answer for so long is cut off."}
    )

    def check(self) -> None:
        """
        Refuses impossible values before anything is loaded.

        Raises:
            ValueError: names the field and its value.
        """
        for name in ("max_rows", "max_waiting", "max_cache_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.choices > self.max_waiting:
            raise ValueError(
                f"choices={self.choices} is above max_waiting={self.max_waiting}: such a request could never be "
                "accepted. Change one."
            )

    def limits(self, config, shutdown_seconds: float = 30.0) -> Limits:
        """
        The limits for a model.

        Args:
            config: with the depth of a request that does not say any.

        Raises:
            ValueError: the model cannot do what a limit allows, or needs more than it allows.
        """
        most = config.max_position_embeddings
        context = most if self.context is None else self.context
        if config.position_embedding_type == "learned" and context > most:
            raise ValueError(f"context={context} is above the max_position_embeddings={most} that the model learned.")
        least = max(config.num_recurrences if config.halting_criterion is None else 1, config.min_recurrences)
        deepest = max(config.max_recurrences, least) if self.most_recurrences is None else self.most_recurrences
        if deepest < least:
            raise ValueError(
                f"most_recurrences={deepest} is below the {least} recurrences of a request that does not say any."
            )
        return Limits(
            context=context,
            most_recurrences=deepest,
            new_tokens=self.max_new_tokens,
            choices=self.choices,
            body_bytes=self.body_bytes,
            open_requests=self.open_requests,
            read_seconds=self.read_seconds,
            stall_seconds=self.stall_seconds,
            shutdown_seconds=shutdown_seconds,
        )


SECTIONS = [
    model_section(left_out=("batch_size", "no_progress")),
    Section("server", ServerArguments, "server"),
    Section("limits", LimitArguments, "limits"),
    DEPTH,
]


def make_parser() -> CommandParser:
    return CommandParser(SECTIONS, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """
    Serves until a signal comes: 130 or 143 is then the exit code. It is 2 for an expected error, and 1 if the model
    fails for good while it serves.
    """
    with user_errors(PROG, stopped="it takes no more requests"):
        try:
            _serve(*make_parser().parse_sections(argv))
        except EngineFailed as error:
            print(f"{PROG}: error: {error}", file=sys.stderr, flush=True)
            return 1
    return 0


def _serve(model, arguments, limit_arguments, depth):
    arguments.check()
    limit_arguments.check()
    keys = read_keys()
    server = _server_module()
    config = model.load_recurrent_config()
    wanted = _with_depth(config, None, depth)
    limit_arguments.limits(wanted, arguments.shutdown_seconds)
    tokenizer = model.load_tokenizer(config)
    bound = server.bind(arguments.host, arguments.port)
    try:
        is_local = ipaddress.ip_address(bound.getsockname()[0]).is_loopback
        if not is_local and not keys:
            print(
                f"Warning: host={arguments.host!r} is open to other machines, and {KEY_VARIABLE} is not set: whoever "
                "reaches this port can use the model.",
                file=sys.stderr,
            )
        print(f"Loading {model.model} ...", file=sys.stderr, flush=True)
        network = model.load_model()
        if given_depth(depth):
            _set_depth(network, depth)
        # The depth of the generation config is known only now.
        wanted = _with_depth(network.config, network.generation_config, None)
        limits = limit_arguments.limits(wanted, arguments.shutdown_seconds)
        name = arguments.name or model.short_name
        served = ServedModel(name, network, tokenizer, limits, created=int(time.time()))
        served.warm_up()
        _run(server, served, bound, arguments, limit_arguments, keys, is_local)
    finally:
        bound.close()


def _run(server, served, bound, arguments, limit_arguments, keys, is_local):
    address = server.url(bound)
    # Malformed requests of clients are no news.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    settings, _ = depth_settings(_with_depth(served.config, served.model.generation_config, None), DEPTH.fields_of())

    def say():
        # A script that waits for this line can connect once it has read it.
        print(f"Serving {served.name} at {address}/v1, {describe_depth(settings)}", flush=True)
        print("Ctrl-C ends it.", file=sys.stderr, flush=True)

    ready = server.Server(
        served,
        keys=keys,
        host_names=_host_names(arguments.host) if is_local and not keys else (),
        batcher_options={
            "max_rows": limit_arguments.max_rows,
            "max_cache_tokens": limit_arguments.max_cache_tokens,
            "max_waiting": limit_arguments.max_waiting,
        },
        log=_log if arguments.log_requests else None,
        on_start=say,
    )
    _warn_of_small_cache(served, ready.engine.counters.stats.slots_total)
    ready.serve_on(bound)


def _warn_of_small_cache(served, cells):
    limits = served.limits
    fits = cells // CacheShape(served.config).cells(1, limits.most_recurrences)
    if fits < limits.context:
        print(
            f"Warning: the cache holds {fits:,} tokens at {limits.most_recurrences} recurrences, but "
            f"context={limits.context}: larger requests are refused. Raise max_cache_tokens, or lower context or "
            "most_recurrences.",
            file=sys.stderr,
            flush=True,
        )


def _log(line):
    print(line.replace("\n", " "), file=sys.stderr, flush=True)


def _server_module():
    """The part that needs the extra. It is not imported for `--help`."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f'{", ".join(missing)} is not installed: pip install "memreason-hf[serve]"')
    return importlib.import_module("memreason_hf.serving.api.server")


def _host_names(host):
    shown = f"[{host}]" if ":" in host else host
    return {*LOCAL_NAMES, shown}


def _with_depth(config, generation_config, depth):
    """A copy of the config with the depth of a generation config and of flags, as `generate` combines them."""
    combined = copy.deepcopy(config)
    given = {name: getattr(generation_config, name, None) for name in DEPTH_ARGUMENTS}
    given = {name: value for name, value in given.items() if value is not None}
    if "num_recurrences" in given and "halting_criterion" not in given:
        given["halting_criterion"] = None
    if depth is not None:
        settings, _ = depth_settings(combined, depth)
        given |= given_depth(depth) | {"halting_criterion": settings["halting_criterion"]}
    for name, value in given.items():
        setattr(combined, name, value)
    return combined


def _set_depth(network, depth):
    """Makes flags the depth of requests that say nothing else."""
    wanted = _with_depth(_with_depth(network.config, network.generation_config, None), None, depth)
    for name in DEPTH_ARGUMENTS:
        setattr(network.config, name, getattr(wanted, name))
        if getattr(network.generation_config, name, None) is not None:
            delattr(network.generation_config, name)


if __name__ == "__main__":
    sys.exit(main())
