"""What a client is told when a request cannot be answered: an HTTP status and the error object of OpenAI's API."""

import math
from collections.abc import Mapping

from memreason_hf.checks import shortened
from memreason_hf.messages import visible
from memreason_hf.serving.batching import CacheTooSmall


# The `type` that OpenAI's API gives to the errors of a status.
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """
    A request that is refused, or that failed.

    Args:
        status: the HTTP status.
        message: for the client. Says what is wrong and what to do.
        param: the field of the request that is wrong, if it is one.
        code: a short name of the error, for programs.
        retry_after: seconds after which the client may try again.

    Example:

        >>> ApiError(400, "n=0 must be at least 1.", param="n").body()["error"]["type"]
        'invalid_request_error'
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code = status, visible(message), code
        self.param = None if param is None else visible(param)
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The name under which metrics count the error."""
        return self.code or f"status_{self.status}"

    def body(self) -> dict:
        """The error object that a client reads."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers of the response beside its type and length."""
        headers = {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        return headers


def wrong(param: str, value: object, wanted: str) -> ApiError:
    """
    The error about a field of a request.

    Example:

        >>> wrong("n", 0, "must be at least 1").message
        'n=0 must be at least 1.'
    """
    return ApiError(400, f"{param}={shortened(value)} {wanted}.", param=param, code="invalid_value")


def wrong_request(error: ValueError | TypeError, fields: Mapping[str, object]) -> ApiError:
    """
    The error for a request that the decode loop refuses.

    Args:
        error: its message names the field first.
        fields: those of the request, by name.
    """
    message = str(error)
    if message.startswith("prompt_ids"):
        param = "prompt" if "prompt" in fields else "messages"
        if isinstance(error, CacheTooSmall):
            return ApiError(400, _too_large(error), param=param, code="context_length_exceeded")
        return ApiError(400, message, param=param, code="invalid_value")
    param = next((name for name in fields if message.startswith((f"{name}=", f"{name} ", f"{name}:"))), None)
    return ApiError(400, message, param=param, code="invalid_value")


def _too_large(error):
    """Its own message tells the owner of the cache to make it larger."""
    # The last new token is not fed back.
    tokens = error.prompt_tokens + error.new_tokens - 1
    return (
        f"A prompt of {error.prompt_tokens:,} tokens with an answer of {error.new_tokens:,} needs {tokens:,} "
        f"positions, but the cache of this server holds {tokens * error.total // error.needed:,} at up to "
        f"{error.recurrences} recurrences. Shorten the prompt, or lower max_tokens or the recurrences."
    )
