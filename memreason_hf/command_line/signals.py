"""
Ctrl-C and SIGTERM end a command with one line and the exit code of shells: 130 and 143.

Without heavy imports, because it must be in effect before they begin.

A command's process goes through three kinds of time: it loads (`stop_while_loading`), it runs (`signals_raise`), and
it ends, or prepares the next part of its work. In the first and the last a signal ends it at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from memreason_hf.interrupts import Terminated


_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_AGAIN_SECONDS = 0.01
# What Python does with a signal unless somebody has decided otherwise.
_USUAL = (signal.SIG_DFL, signal.default_int_handler)


def exit_code(number: int) -> int:
    """The exit code after a signal: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def say_stopped(command: str, number: int, ending: str) -> None:
    """Prints the line about a command that a signal has stopped, once for all ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"\n{command}: stopped by {_NAMES[number]}; {ending}.", file=sys.stderr, flush=True)


class _Stop:
    """
    A handler that ends the process at once with one line: it is in effect where an exception would be a traceback,
    before a command has begun and after it has ended.
    """

    def __init__(self, command: str):
        self.command = command
        self.ending = "it was still loading, and nothing was written"

    def __call__(self, number, frame):
        say_stopped(self.command, number, self.ending)
        os._exit(exit_code(number))


def stop_while_loading(command: str) -> dict:
    """
    From now on a signal ends the process at once with one line: modules that are being imported must not be unwound,
    because some of them swallow the exception or turn it into another one.

    Returns:
        The previous handlers, for `restore`.
    """
    return _install(dict.fromkeys(_NAMES, _Stop(command)))


def restore(handlers: dict) -> None:
    """Installs the handlers that `stop_while_loading` has replaced."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def signals_raise(ending: str = "it had ended") -> Iterator[None]:
    """
    Within the block SIGTERM raises `Terminated`, and SIGINT `KeyboardInterrupt`.

    Args:
        ending: what the line of `stop_while_loading` says after the block.
    """
    previous = _install({signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate})
    try:
        with _none_is_lost():
            yield
    finally:
        for handler in previous.values():
            if isinstance(handler, _Stop):
                handler.ending = ending
        restore(previous)


def _terminate(number, frame):
    raise Terminated


@contextmanager
def _none_is_lost():
    """
    Sends a signal again whose exception was raised where Python ignores exceptions: in a `__del__`, or in the callback
    of a weak reference.
    """
    before, timers = sys.unraisablehook, []

    def hook(ignored):
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            before(ignored)
            return
        number = signal.SIGTERM if issubclass(ignored.exc_type, Terminated) else signal.SIGINT
        while True:
            # On a busy machine the signal is here again before the thread that sends it has been started.
            with suppress(KeyboardInterrupt):
                start_timer(number)
                return

    def start_timer(number):
        # After a moment, because an exception in the hook would be ignored as well.
        timers.append(threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number)))
        timers[-1].daemon = True
        timers[-1].start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def _install(handlers):
    """Replaces the handlers of signals that nobody has decided about. Returns those that were replaced."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    replaced = {}
    for number, handler in handlers.items():
        present = signal.getsignal(number)
        if present in _USUAL or isinstance(present, _Stop):
            replaced[number] = signal.signal(number, handler)
    return replaced
