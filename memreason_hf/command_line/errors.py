"""How a command ends: of an expected error one message and exit code 2, and no loss when nobody reads any more."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from huggingface_hub.errors import StrictDataclassError


# The exit code after Ctrl-C, as shells have it.
INTERRUPTED = 130
# Set to 1 to see where an expected error came from.
TRACEBACK_VARIABLE = "MEMREASON_TRACEBACK"
# What a wrong recipe, flag, path or file raises. A TypeError is left out: it is more often a fault of the program.
USER_ERRORS = (ValueError, OSError, StrictDataclassError)


def describe(error: BaseException) -> str:
    """The message of an error; of a config's validation error the message of the broken rule."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        return str(error.__cause__)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    return str(error) or type(error).__name__


class _OutlastingStream:
    """
    Standard output that goes on into nothing when its reader, `head` for one, has seen enough.

    Else a command whose output is cut would end in the middle, and not write its files.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        return self._outlast(self._stream.write, text)

    def flush(self):
        return self._outlast(self._stream.flush)

    def _outlast(self, act, *arguments):
        try:
            return act(*arguments)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            return len(arguments[0]) if arguments else None


@contextmanager
def user_errors(command: str, *exceptions: type[BaseException]) -> Iterator[None]:
    """
    Ends the program with one message and exit code 2 when an expected error comes out of the block. What the block
    prints may be cut by its reader: the block goes on.

    Args:
        command: what the message begins with, for example "memreason train".
        exceptions: what is expected; `USER_ERRORS` if nothing is given. Everything else keeps its traceback.
    """
    expected = exceptions or USER_ERRORS
    output = _OutlastingStream(sys.stdout)
    try:
        with redirect_stdout(output):
            try:
                yield
            finally:
                output.flush()
    except expected as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f" (process {rank})"
        print(f"{command}: error{where}: {describe(error)}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
