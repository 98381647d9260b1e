"""`memreason serve`: help, refusals before anything is loaded, a server in a process, and how signals end it."""

import importlib.util
import json
import os
import re
import signal
import socket
import time

import pytest
from api_servers import reference
from demo_models import demo_model, save
from refusals import refused
from served_processes import KEY, fail_in_child, served_process
from text_models import save_text_model
from transformers import GenerationConfig

from memreason_hf.commands import serve
from memreason_hf.commands.serve import main
from memreason_hf.serving.api.limits import Limits
from memreason_hf.serving.api.served_model import ServedModel


MISSING = [name for name in ("fastapi", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "model"
    model, tokenizer = save_text_model(folder)
    return ServedModel(str(folder), model, tokenizer, Limits(2048, 9))


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("MEMREASON_API_KEY", raising=False)


@pytest.fixture
def pretend_extra(monkeypatch):
    """The checks before the server is made do not need it."""
    monkeypatch.setattr(serve, "_server_module", lambda: None)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for part in ("curl", "OpenAI(base_url=", "MEMREASON_API_KEY", "--max_rows", 'pip install "memreason-hf[serve]"'):
        assert part in text
    lines = text.partition("examples:")[2].splitlines()
    examples = [line.split("memreason serve ")[1].split() for line in lines if "memreason serve " in line]
    assert len(examples) == 5
    for example in examples:
        model, *_ = serve.make_parser().parse_sections(example)
        assert model.model
    # The bodies of the examples are JSON.
    bodies = re.findall(r"-d '(\{.*\})'", text)
    assert len(bodies) == 2 and all(json.loads(body) for body in bodies)


def test_without_the_extra_it_is_named(saved, capsys, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    message = refused(capsys, main, [saved.name])
    assert message == (
        "memreason serve: error: fastapi, uvicorn, prometheus_client is not installed: "
        'pip install "memreason-hf[serve]"'
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "-1"], "port=-1 must be from 0 to 65535"),
        (["--port", "70000"], "port=70000"),
        (["--max_rows", "0"], "max_rows=0 must be at least 1"),
        (["--max_waiting", "0"], "max_waiting=0"),
        (["--max_cache_tokens", "0"], "max_cache_tokens=0"),
        (["--choices", "300"], "choices=300 is above max_waiting=256"),
        (["--context", "0"], "context=0 must be at least 1"),
        (["--body_bytes", "0"], "body_bytes=0"),
        (["--read_seconds", "-1"], "read_seconds=-1 must be from 0"),
        (["--read_seconds", "0"], "read_seconds=0 must be above 0"),
        (["--stall_seconds", "0"], "stall_seconds=0 must be above 0"),
        (["--shutdown_seconds", "inf"], "shutdown_seconds=inf"),
        (["--stall_seconds", "nan"], "stall_seconds=nan"),
        (["--most_recurrences", "2"], "most_recurrences=2 is below the 3 recurrences"),
        (["--num_recurrences", "8", "--most_recurrences", "7"], "most_recurrences=7 is below the 8"),
        (["--halting_criterion", "magic"], "magic"),
        (["--halting_criterion", "kl", "--num_recurrences", "4"], "Pass only one of them"),
        (["--kl_threshold", "0.1"], "kl_threshold=0.1 is a parameter of"),
        (["--name", ""], "name=''"),
        (["--hots", "x"], "Did you mean --host?"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(saved, capsys, pretend_extra, flags, said):
    assert said in refused(capsys, main, [saved.name, *flags])


def test_what_is_no_looped_model_is_refused(tmp_path, capsys, pretend_extra):
    assert "config.json is missing" in refused(capsys, main, [str(tmp_path)])
    plain = save(demo_model("plain"), tmp_path / "plain")
    assert "depth can only be chosen" in refused(capsys, main, [plain])


@pytest.mark.parametrize("key", ["", "short", "two words of it"])
def test_what_is_no_key_is_refused(saved, capsys, pretend_extra, monkeypatch, key):
    monkeypatch.setenv("MEMREASON_API_KEY", key)
    message = refused(capsys, main, [saved.name])
    assert "MEMREASON_API_KEY" in message and (not key or key not in message)


@needs_extra
def test_a_model_that_no_request_can_run_on_is_refused(tmp_path, capsys):
    model, _ = save_text_model(tmp_path / "beams")
    model.generation_config.num_beams = 4
    model.generation_config.save_pretrained(tmp_path / "beams")
    assert "num_beams=4" in refused(capsys, main, [str(tmp_path / "beams"), "--port", "0"])


@needs_extra
def test_the_depth_of_the_generation_config_must_be_allowed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(serve, "_run", lambda *arguments: None)
    save_text_model(tmp_path / "deep")
    GenerationConfig(num_recurrences=9).save_pretrained(tmp_path / "deep")
    flags = [str(tmp_path / "deep"), "--port", "0", "--most_recurrences", "4"]
    assert "most_recurrences=4 is below the 9 recurrences" in refused(capsys, main, flags)


@needs_extra
@pytest.mark.parametrize(("host", "said"), [("nowhere.invalid", "host='nowhere.invalid'"), ("192.0.2.1", "192.0.2.1")])
def test_a_host_that_this_machine_is_not(saved, capsys, host, said):
    assert said in refused(capsys, main, [saved.name, "--host", host])


@needs_extra
def test_a_port_that_is_taken_is_refused(saved, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port={port}: Address already in use" in refused(capsys, main, [saved.name, "--port", str(port)])


@needs_extra
def test_a_port_that_is_taken_while_the_model_loads_is_refused(saved, capsys, monkeypatch):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        # Both can bind the port: whoever listens first has it.
        monkeypatch.setattr(ServedModel, "warm_up", lambda served: other.listen())
        assert f"port={port}: Address already in use" in refused(capsys, main, [saved.name, "--port", str(port)])


@needs_extra
@pytest.mark.parametrize("tokens", [99, 100])
def test_a_cache_that_cannot_hold_the_longest_request_is_warned_about(saved, capsys, monkeypatch, tokens):
    from memreason_hf.serving.api.server import Server

    monkeypatch.setattr(Server, "serve_on", lambda server, bound: None)
    flags = ["--port", "0", "--context", "100", "--max_cache_tokens", str(tokens)]
    assert main([saved.name, *flags]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning")]
    said = "Warning: the cache holds 99 tokens at 9 recurrences, but context=100: larger requests are refused. Raise "
    assert [line.startswith(said + "max_cache_tokens") for line in warnings] == [True] * (100 - tokens)


@needs_extra
def test_sigterm_lets_a_running_request_finish(saved, tmp_path):
    depth = {"halting_criterion": "kl", "kl_threshold": 0.3}
    flags = [part for name, value in depth.items() for part in (f"--{name}", str(value))]
    with served_process(tmp_path, [saved.name, *flags, "--name", "tutor"], {"MEMREASON_API_KEY": KEY}) as server:
        assert server.name == "tutor" and server.depth.startswith("halting by kl (kl_threshold 0.3)")
        # The depth of the flags is that of requests that say nothing.
        text, _, _ = reference(saved, "the cat", 40, **depth)
        assert server.ask(prompt="the cat", max_tokens=40)["choices"][0]["text"] == text
        fixed = reference(saved, "the cat", 40, num_recurrences=2)[0]
        assert server.ask(prompt="the cat", max_tokens=40, num_recurrences=2)["choices"][0]["text"] == fixed != text
        expected = reference(saved, "the dog", 400, **depth)[0]
        connection = server.begin(prompt="the dog", max_tokens=400, stream=True)
        response = connection.getresponse()
        first = response.read(10)
        os.kill(server.process.pid, signal.SIGTERM)
        events = [line.removeprefix("data: ") for line in (first + response.read()).decode().split("\n\n") if line]
        assert events.pop() == "[DONE]"
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == expected
        with pytest.raises(OSError):
            server.ask(prompt="the cat")
        code, printed = server.end()
    assert code == 143
    assert printed.rstrip().endswith("memreason serve: stopped by SIGTERM; it takes no more requests.")
    assert "Traceback" not in printed and KEY not in printed and "Warning" not in printed


@needs_extra
def test_requests_that_take_too_long_are_told_that_the_server_ends(saved, tmp_path):
    with served_process(tmp_path, [saved.name, "--shutdown_seconds", "0.3"]) as server:
        slow = {"prompt": ["the cat"] * 32, "max_tokens": 2000}
        stream, whole = server.begin(**slow, stream=True), server.begin(**slow)
        response = stream.getresponse()
        first = response.read(10)
        started = time.monotonic()
        os.kill(server.process.pid, signal.SIGINT)
        last = (first + response.read()).decode().rstrip().rpartition("data: ")[2]
        answer = whole.getresponse()
        error = json.loads(answer.read())["error"]
        assert answer.status == 503 and error["message"] == "The server is shutting down."
        assert json.loads(last)["error"] == error
        code, printed = server.end()
    assert code == 130 and time.monotonic() - started < 10
    assert printed.rstrip().endswith("stopped by Ctrl-C; it takes no more requests.") and "Traceback" not in printed


@pytest.mark.slow
@needs_extra
def test_a_second_signal_ends_it_at_once(saved, tmp_path):
    with served_process(tmp_path, [saved.name, "--shutdown_seconds", "600"]) as server:
        response = server.begin(prompt=["the cat"] * 32, max_tokens=2000, stream=True).getresponse()
        response.read(10)
        started = time.monotonic()
        for _ in range(2):
            os.kill(server.process.pid, signal.SIGTERM)
            time.sleep(0.3)
        assert "The server is shutting down." in response.read().decode()
        code, printed = server.end()
    assert code == 143 and time.monotonic() - started < 10 and "Traceback" not in printed


@pytest.mark.slow
@needs_extra
def test_a_model_that_fails_for_good_ends_the_server_with_the_reason(saved, tmp_path):
    with served_process(tmp_path, [saved.name], run=fail_in_child) as server:
        for _ in range(3):
            error = server.ask(prompt="the cat")["error"]
            assert error["type"] == "server_error" and "out of luck" in error["message"]
        code, printed = server.end()
    assert code == 1
    assert "memreason serve: error: The model has failed: RuntimeError: out of luck." in printed


@pytest.mark.slow
@needs_extra
def test_a_host_that_others_reach_is_warned_about(saved, tmp_path):
    with served_process(tmp_path, [saved.name, "--host", "0.0.0.0", "--log_requests"]) as server:
        assert server.ask(prompt="the cat")["choices"][0]["text"] == reference(saved, "the cat", 256)[0]
        os.kill(server.process.pid, signal.SIGTERM)
        code, printed = server.end()
    assert code == 143 and "Warning: host='0.0.0.0' is open to other machines" in printed
    assert re.search(r"127\.0\.0\.1 POST /v1/completions 200 \d+\.\d+ s", printed)
