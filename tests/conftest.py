"""Shared by all tests: no network, small threads, and memory that shows when it was never written."""

import contextlib
import io
import logging
import os
import signal
import sys
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Also for the processes that tests start: two of them would fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import dynamic_module_utils
from transformers.utils import logging as transformers_logging


# Shells start background jobs with signals ignored, and the commands that tests start would inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def few_threads():
    """Tiny tensors gain nothing from threads, and tests that start processes would fight over the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


ENVIRONMENT = os.environ


@pytest.fixture(autouse=True)
def one_environment():
    """datasets' `map` with several processes leaves a copy as `os.environ`; rich and others go on with the first."""
    yield
    os.environ = ENVIRONMENT  # noqa: B003


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """Code that is loaded from checkpoints is cached in a folder of the test, and leaves no modules."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    package = dynamic_module_utils.TRANSFORMERS_DYNAMIC_MODULE_NAME
    # Other tests may have loaded that package from the usual folder, or put this folder in front.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / package).is_dir()])
    for name in list(sys.modules):
        if name.startswith(package):
            monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(package):
            del sys.modules[name]


@pytest.fixture
def capture_warnings():
    """`with capture_warnings() as text:` keeps what transformers' loggers say; `text()` gives it."""

    @contextlib.contextmanager
    def capture():
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        transformers_logging.add_handler(handler)
        # The package's own loggers are not children of the library's.
        own = logging.getLogger("modeling_recurrent")
        own.addHandler(handler)
        try:
            yield stream.getvalue
        finally:
            transformers_logging.remove_handler(handler)
            own.removeHandler(handler)

    return capture


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fills what `torch.empty` hands out with NaN (or the largest integer), so that unwritten memory is seen."""

    def poison(make):
        def poisoned(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.device.type != "meta":
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))
                elif not tensor.is_complex() and tensor.dtype != torch.bool:
                    tensor.fill_(torch.iinfo(tensor.dtype).max)
            return tensor

        return poisoned

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
