"""The exception of SIGTERM, which unwinds a program as Ctrl-C does."""

import signal


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived. It unwinds a program as Ctrl-C does, so that no temporary files stay behind."""


def interruption(number: int) -> KeyboardInterrupt:
    """The exception for a signal: `Terminated` for SIGTERM, `KeyboardInterrupt` for any other."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def signal_of(error: KeyboardInterrupt) -> int:
    """The signal that an exception stands for."""
    return signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
