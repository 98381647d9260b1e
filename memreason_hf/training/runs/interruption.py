"""
Ctrl-C once: finish the training step, save, stop. Twice: stop now.

Our own, because Ctrl-C ends the library's trainer within a training step, without a checkpoint.
"""

import signal
import threading
import time


class InterruptWatch:
    """
    A context manager that records a SIGINT instead of raising `KeyboardInterrupt`. A second SIGINT raises it.

    Outside the main thread, where Python cannot handle signals, it does nothing.

    Args:
        grace_seconds (`float`, defaults to 0.0):
            A second signal within this time counts as the first one: launchers pass Ctrl-C on to processes that
            the terminal has already interrupted.

    Attributes:
        requested (`bool`): Whether a SIGINT has arrived.
    """

    def __init__(self, grace_seconds: float = 0.0):
        self.grace_seconds = grace_seconds
        self.requested = False
        self._requested_at = 0.0
        self._previous_handler = None

    def __enter__(self) -> "InterruptWatch":
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception):
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def _handle(self, number, frame):
        if self.requested:
            if time.monotonic() - self._requested_at >= self.grace_seconds:
                raise KeyboardInterrupt
            return
        self.requested = True
        self._requested_at = time.monotonic()
        print("\nInterrupted: finishing the step and saving. Ctrl-C again stops at once.", flush=True)
