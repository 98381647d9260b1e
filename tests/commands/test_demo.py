"""`memreason demo`: refusals before anything is loaded, and a page that Ctrl-C ends."""

import importlib.util
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from demo_models import demo_model, save
from refusals import refused

from memreason_hf.commands.demo import main


NO_GRADIO = importlib.util.find_spec("gradio") is None
needs_gradio = pytest.mark.skipif(NO_GRADIO, reason="needs gradio")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(demo_model(), tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save(demo_model("plain"), tmp_path_factory.mktemp("demo") / "plain")


@pytest.fixture
def pretend_gradio(monkeypatch):
    """The checks before the page is built do not need it."""
    monkeypatch.setattr("memreason_hf.commands.demo.check_gradio", lambda: None)


def test_without_gradio_the_extra_is_named(folder, capsys, monkeypatch):
    monkeypatch.setattr("memreason_hf.serving.demo.page.find_spec", lambda name: None)
    message = refused(capsys, main, [folder])
    assert message == 'memreason demo: error: gradio is not installed: pip install "memreason-hf[demo]"'


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "0"], "port=0 must be from 1 to 65535"),
        (["--port", "70000"], "port=70000"),
        (["--deepest", "0"], "deepest=0 must be at least 1"),
        (["--deepest", "3"], "deepest=3 is below the 4 recurrences"),
        (["--most_new_tokens", "0"], "most_new_tokens=0"),
        (["--max_new_tokens", "300"], "max_new_tokens=300 is above most_new_tokens=256"),
        (["--max_new_tokens", "0"], "max_new_tokens=0 must be at least 1"),
        (["--do_sample", "--temperature", "0"], "temperature=0 must be above 0"),
        (["--halting_criterion", "magic"], "magic"),
        (["--kl_threshold", "0.1"], "kl_threshold=0.1 is a parameter of"),
        (["--halting_criterion", "kl", "--num_recurrences", "4"], "Pass only one of them"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(folder, capsys, pretend_gradio, flags, said):
    assert said in refused(capsys, main, [folder, *flags])


def test_what_is_no_model_is_refused(tmp_path, capsys, pretend_gradio):
    assert "config.json is missing" in refused(capsys, main, [str(tmp_path)])


def test_depth_of_a_model_without_recurrences_is_refused(plain, capsys, pretend_gradio):
    assert "without recurrences" in refused(capsys, main, [plain, "--num_recurrences", "4"])


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@needs_gradio
def test_a_port_that_is_taken_is_refused(folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in refused(capsys, main, [folder, "--port", str(port)])


@needs_gradio
def test_the_page_is_on_this_machine_until_ctrl_c(folder):
    port = free_port()
    flags = ["--port", str(port), "--halting_criterion", "kl", "--kl_threshold", "0.02", "--prompt", "the cat"]
    command = [sys.executable, "-m", "memreason_hf.commands.demo", folder, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert re.fullmatch(rf"The page is at http://127\.0\.0\.1:{port}/\n", line), process.communicate()
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=30).read().decode()
        assert "the cat" in page and '"kl"' in page
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "Stopped." in errors and "Traceback" not in errors
