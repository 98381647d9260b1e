"""What clients can ask of a server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    What clients can ask of a server.

    Attributes:
        context: the most tokens of a prompt with its answer. The last new token needs no position.
        new_tokens: tokens of an answer, where neither the request nor the generation config says how many.
        most_recurrences: the most recurrences of a token that a request can ask for.
        choices: the most answers of one request: prompts times `n`.
        body_bytes: the most bytes of a body.
        open_requests: requests that are read, wait or run at the same time. Others are told to come back.
        read_seconds: from the first byte of a request to its last one.
        stall_seconds: a client that reads nothing of its answer for so long is cut off.
        shutdown_seconds: requests that run when the server is told to stop may take so long to end.

    Example:

        >>> Limits(context=2048, most_recurrences=0)
        Traceback (most recent call last):
        ValueError: most_recurrences=0 must be at least 1.
    """

    context: int
    most_recurrences: int
    new_tokens: int = 256
    choices: int = 64
    body_bytes: int = 2**20
    open_requests: int = 256
    read_seconds: float = 30.0
    stall_seconds: float = 60.0
    shutdown_seconds: float = 30.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if name.endswith("_seconds"):
                if not 0 <= value <= 86_400:
                    raise ValueError(f"{name}={value:g} must be from 0 to 86400 seconds.")
                if value == 0 and name != "shutdown_seconds":
                    raise ValueError(f"{name}=0 must be above 0: no client could be answered in time.")
            elif value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
