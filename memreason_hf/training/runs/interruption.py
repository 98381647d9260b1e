"""
Ctrl-C or SIGTERM once: finish the training step, save, stop. Twice: stop now.

Our own, because Ctrl-C ends the library's trainer within a training step, without a checkpoint. Schedulers send
SIGTERM before they take a machine away.
"""

import signal
import threading
import time

from memreason_hf.interrupts import interruption


class InterruptWatch:
    """
    A context manager that records SIGINT and SIGTERM instead of ending the program. A second signal raises
    `KeyboardInterrupt`; SIGTERM its subclass `Terminated`.

    Outside the main thread, where Python cannot handle signals, it does nothing.

    Args:
        grace_seconds (`float`, defaults to 0.0):
            A second signal within this time counts as the first one: launchers pass Ctrl-C on to processes that
            the terminal has already interrupted.

    Attributes:
        requested (`int`): The number of the signal that has arrived; 0 for none.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, grace_seconds: float = 0.0):
        self.grace_seconds = grace_seconds
        self.requested = 0
        self._requested_at = 0.0
        self._previous_handlers = {}

    def __enter__(self) -> "InterruptWatch":
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous_handlers.items():
            # None: a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous_handlers = {}

    def _handle(self, number, frame):
        if self.requested:
            if time.monotonic() - self._requested_at >= self.grace_seconds:
                raise interruption(number)
            return
        self.requested = int(number)
        self._requested_at = time.monotonic()
        again = "Ctrl-C again" if number == signal.SIGINT else "A second signal"
        print(f"\nInterrupted: finishing the step and saving. {again} stops at once.", flush=True)
