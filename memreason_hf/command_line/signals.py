"""
Ctrl-C and SIGTERM end a command with one line and the exit code of shells: 130 and 143.

Without heavy imports, because it must be in effect before they begin.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
# What Python does with a signal unless somebody has decided otherwise.
_USUAL = (signal.SIG_DFL, signal.default_int_handler)


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived. It unwinds a program as Ctrl-C does, so that no temporary files stay behind."""


def exit_code(number: int) -> int:
    """The exit code after a signal: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def signal_of(interruption: KeyboardInterrupt) -> int:
    """The signal that an exception stands for."""
    return signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT


def say_stopped(command: str, number: int, ending: str) -> None:
    """Prints the line about a command that a signal has stopped, once for all ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"\n{command}: stopped by {_NAMES[number]}; {ending}.", file=sys.stderr, flush=True)


def stop_while_loading(command: str) -> dict:
    """
    From now on a signal ends the process at once with one line: modules that are being imported must not be unwound,
    because some of them swallow the exception or turn it into another one.

    Returns:
        The previous handlers, for `restore`.
    """

    def stop(number, frame):
        say_stopped(command, number, "it was still loading, and nothing was written")
        os._exit(exit_code(number))

    stop.ends_loading = True
    return _install(dict.fromkeys(_NAMES, stop))


def restore(handlers: dict) -> None:
    """Installs the handlers that `stop_while_loading` has replaced."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within the block SIGTERM raises `Terminated`, and SIGINT `KeyboardInterrupt`."""
    previous = _install({signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate})
    try:
        yield
    finally:
        usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        restore({number: usual[number] if hasattr(it, "ends_loading") else it for number, it in previous.items()})


def _terminate(number, frame):
    raise Terminated


def _install(handlers):
    """Replaces the handlers of signals that nobody has decided about. Returns those that were replaced."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    replaced = {}
    for number, handler in handlers.items():
        present = signal.getsignal(number)
        if present in _USUAL or hasattr(present, "ends_loading"):
            replaced[number] = signal.signal(number, handler)
    return replaced
