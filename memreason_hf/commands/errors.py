"""Expected errors of a command: one message and exit code 2 instead of a traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError


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


@contextmanager
def user_errors(command: str, *exceptions: type[BaseException]) -> Iterator[None]:
    """
    Ends the program with one message and exit code 2 when an expected error comes out of the block.

    Args:
        command: what the message begins with, for example "memreason train".
        exceptions: what is expected; `USER_ERRORS` if nothing is given. Everything else keeps its traceback.
    """
    expected = exceptions or USER_ERRORS
    try:
        yield
    except expected as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f" (process {rank})"
        print(f"{command}: error{where}: {describe(error)}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
