"""What went wrong with a request to an endpoint: why, whether to try again, and when."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from memreason_hf.checks import shortened
from memreason_hf.messages import first_line, visible


# What the HTTP library raises where no answer came. Its name depends on the version of huggingface_hub.
HTTP_ERROR = HfHubHTTPError.__mro__[1]
# An answer with one of these may be another one later; so may every one from 500 on but 501 (not implemented).
_PASSING = (408, 409, 423, 425, 429)
_NOT_IMPLEMENTED = 501
_MOST_LETTERS = 200


@dataclass(frozen=True)
class Failure:
    """
    Why a request was not answered.

    Attributes:
        reason: for people, without a full stop.
        passes: whether another try may succeed.
        wait: seconds that the endpoint asks to wait; None if it does not say.
        blames: what is at fault: `"request"` (other requests may be answered), `"endpoint"` (nothing will be
            answered as long as the flags are the same), or `"moment"` (load, the network, a restart).
    """

    reason: str
    passes: bool
    wait: float | None = None
    blames: str = "moment"


def describe_failure(error: Exception) -> Failure:
    """
    The failure that an error of the client stands for.

    Args:
        error: what `AsyncInferenceClient.chat_completion` raised.
    """
    if isinstance(error, HfHubHTTPError):
        return _refused(error.response)
    if isinstance(error, OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set, so the Hub's providers are not asked. Unset it, or pass --endpoint URL"
        return Failure(reason, passes=False, blames="endpoint")
    if isinstance(error, InferenceTimeoutError | TimeoutError):
        return Failure("no answer came in time; a longer --timeout may help", passes=True)
    if isinstance(error, HTTP_ERROR | OSError):
        what = f"{type(error).__name__}: {first_line(error)}"
        return Failure(f"the connection failed ({what}). Check that the server runs, and its address", passes=True)
    if isinstance(error, json.JSONDecodeError):
        return malformed(error.doc)
    if isinstance(error, UnicodeDecodeError | RecursionError) or str(error).startswith("Invalid "):
        # JSON of another form than the client's classes.
        return malformed(first_line(error))
    # What the client's own checks say: no token, an unknown provider, a model that the provider does not have.
    return Failure(first_line(error), passes=False, blames="endpoint")


def malformed(body: str) -> Failure:
    """The failure of an answer with a status of success that does not hold a completion."""
    if body.lstrip("\ufeff \t\r\n").startswith("<"):
        title = re.search(r"<title[^>]*>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
        what = f" with the title {shortened(_line(title[1]))}" if title else ""
        reason = f"the endpoint answers with a web page{what}, not JSON. Check the address; it usually ends with /v1"
        return Failure(reason, passes=False, blames="endpoint")
    return Failure(f"the answer is not a chat completion: {shortened(_line(body))}", passes=True)


def _refused(response):
    status = response.status_code
    reason = f"the endpoint answered with status {status}{_said(response)}"
    if status == 401:
        return Failure(f"{reason}. Check the key", passes=False, blames="endpoint")
    if status in (403, 404):
        return Failure(f"{reason}. Check the address, the model's name and the key", passes=False, blames="endpoint")
    if status in _PASSING or (status >= 500 and status != _NOT_IMPLEMENTED):
        return Failure(reason, passes=True, wait=retry_after(response.headers))
    return Failure(reason, passes=False, blames="request")


def _said(response):
    """What an endpoint says about a status, shortened."""
    try:
        text = response.text
    except Exception:  # the HTTP library raises an error of its own if the body was not read
        return ""
    if "<html" in text[:500].lower():
        return " and a web page"
    try:
        said = json.loads(text)
    except ValueError:
        return f": {shortened(_line(text))}" if text.strip() else ""
    # OpenAI's form, FastAPI's, and that of text-generation-inference.
    for name in ("error", "message", "detail"):
        if isinstance(said, Mapping) and said.get(name):
            said = said[name]
    return f": {_line(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False))[:_MOST_LETTERS]}"


def _line(text):
    return visible(" ".join(text.split()))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """
    The seconds that a `Retry-After` header asks to wait: a number, or a date. None if there is none.

    Example:

        >>> retry_after({"retry-after": "2.5"}), retry_after({"retry-after": "soon"}), retry_after({})
        (2.5, None, None)
        >>> retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})
        0.0
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
