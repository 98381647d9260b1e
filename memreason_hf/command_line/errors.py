"""
How a command ends: an expected error is one line and exit code 2, a signal one line and exit code 130 or 143, and a
closed pipe does not stop the command.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from huggingface_hub.errors import StrictDataclassError

from memreason_hf.command_line.signals import exit_code, say_stopped, signals_raise
from memreason_hf.interrupts import signal_of
from memreason_hf.messages import describe_field_error, visible


# Set to 1 to see the traceback of an expected error.
TRACEBACK_VARIABLE = "MEMREASON_TRACEBACK"
# How torch says that there is not enough memory, on a CPU.
_NO_MEMORY = ("can't allocate memory", "not enough memory")
# Errors that a wrong recipe, flag, path or file raises. TypeError is not among them, because it is more often a bug
# of the program. A RecursionError comes from JSON that is nested too deeply.
USER_ERRORS = (ValueError, OSError, RecursionError, StrictDataclassError)


def describe(error: BaseException) -> str:
    """The message of an error. For the validation error of a config, that is the message of the broken rule."""
    if isinstance(error, StrictDataclassError):
        return describe_field_error(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    if is_out_of_memory(error):
        line = next(iter(str(error).splitlines()), "")
        return f"Not enough memory ({line or type(error).__name__}). Lower the batch size or the sizes of the model."
    if isinstance(error, RecursionError):
        return f"A file or value is nested too deeply to be read. {TRACEBACK_VARIABLE}=1 shows which."
    return str(error) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on a CPU or a GPU."""
    if isinstance(error, MemoryError):
        return True
    # torch is not imported for this: building a data set does without it.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


class _OutlastingStream:
    """
    Standard output that discards what is written after its reader, for example `head`, has closed the pipe.

    Otherwise the command would end at that moment, before it writes its files.
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
def user_errors(
    command: str, *exceptions: type[BaseException], stopped: str = "no half-written file was left"
) -> Iterator[None]:
    """
    Ends the program with one message and exit code 2 when an expected error leaves the block, and with one message and
    exit code 130 or 143 after Ctrl-C or SIGTERM. The block runs to its end even if the reader of standard output
    closes the pipe.

    Args:
        command: the beginning of the message, for example `"memreason train"`.
        exceptions: the expected errors, by default `USER_ERRORS`; those of a lack of memory are always expected. All
            other errors keep their traceback.
        stopped: what the message about a signal says about files.

    Example:
        >>> with user_errors("memreason train"):  # doctest: +SKIP
        ...     raise ValueError("seed='x' must be a whole number.")
        memreason train: error: seed='x' must be a whole number.
    """
    expected = exceptions or USER_ERRORS
    output = _OutlastingStream(sys.stdout)
    try:
        with signals_raise(stopped), redirect_stdout(output):
            try:
                yield
            finally:
                output.flush()
    except KeyboardInterrupt as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        say_stopped(command, signal_of(error), stopped)
        raise SystemExit(exit_code(signal_of(error))) from None
    except (*expected, MemoryError, RuntimeError) as error:
        if not isinstance(error, expected) and not is_out_of_memory(error):
            raise
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f" (process {rank})"
        print(f"{command}: error{where}: {visible(describe(error))}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
