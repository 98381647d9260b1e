"""
The body of a request: read up to a limit, and parsed as JSON that means one thing.

Functions of this file work on the messages of ASGI and need no framework.
"""

import json
from collections.abc import Awaitable, Callable, Mapping

from memreason_hf.checks import shortened
from memreason_hf.messages import first_line
from memreason_hf.serving.api.refusals import ApiError


Receive = Callable[[], Awaitable[dict]]


class ClientGone(Exception):
    """The client has closed the connection. Nobody reads an answer."""


async def read_body(headers: Mapping[str, str], receive: Receive, limit: int) -> bytes:
    """
    The body of a request.

    A body above the limit is refused as soon as that is known: by its declared length, or once `limit` bytes and one
    more have come. No more than `limit` bytes and one message are held.

    Args:
        headers: of the request, by names in small letters.
        limit: the most bytes.

    Raises:
        ApiError: the body is too large (413), compressed or not declared as JSON (415).
        ClientGone: the connection ended before the body did.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        given = f"Content-Type {shortened(media_type)}" if media_type else "a request without a Content-Type"
        raise ApiError(415, f"{given}: send JSON with the header Content-Type: application/json.", code="not_json")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Content-Encoding: send the body without compression.", code="compressed")
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(limit)
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(limit):
    return ApiError(413, f"The body is larger than the {limit:,} bytes that this server reads.", code="body_too_large")


def parse_json(body: bytes) -> dict:
    """
    The JSON object of a body.

    Raises:
        ApiError: the body is not an object in UTF-8, is nested too deeply, repeats a name, or holds a number that JSON
            does not have.

    Example:

        >>> parse_json(b'{"n": NaN}')
        Traceback (most recent call last):
        memreason_hf.serving.api.refusals.ApiError: The body is not JSON: NaN is not a number.
    """
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise _not_json(f"it is not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise _not_json("it is nested too deeply") from None
    except ValueError as error:
        raise _not_json(first_line(error)) from None
    if not isinstance(content, dict):
        raise _not_json(f"it must be an object, got {shortened(content)}")
    return content


def _not_json(reason):
    return ApiError(400, f"The body is not JSON: {reason}.", code="not_json")


def _refuse_constant(name):
    raise ValueError(f"{name} is not a number")


def _object(pairs):
    content = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{shortened(name)} is given twice")
        content[name] = value
    return content
