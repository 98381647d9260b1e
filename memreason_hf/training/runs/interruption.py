"""Ctrl-C once: finish the step, save, stop. Twice: stop now."""

import signal
import threading
import time


class InterruptWatch:
    """
    Notes a SIGINT in place of raising `KeyboardInterrupt`; a second one raises.

    A context manager. Outside the main thread, where signals cannot be handled, it does nothing.

    Args:
        grace_seconds: a second signal within so many seconds is taken for the first one, passed on by a launcher.
    """

    def __init__(self, grace_seconds: float = 0.0):
        self.grace_seconds = grace_seconds
        self.requested = False
        self._first = 0.0
        self._previous = None

    def __enter__(self) -> "InterruptWatch":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception):
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _note(self, number, frame):
        if self.requested:
            if time.monotonic() - self._first >= self.grace_seconds:
                raise KeyboardInterrupt
            return
        self.requested = True
        self._first = time.monotonic()
        print("\nInterrupted: finishing the step and saving. Ctrl-C again stops at once.", flush=True)
