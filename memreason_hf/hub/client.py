"""The Hub's client: who the token belongs to, errors of one line that say what to do, and new tries."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, RepoCard, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id


logger = logging.getLogger(__name__)

# What the HTTP library raises where no answer came. Its name depends on the version of huggingface_hub.
_HTTPError = HfHubHTTPError.__mro__[1]
_PASSING = (408, 429, 500, 502, 503, 504)
_TRIES, _FIRST_WAIT, _LONGEST_WAIT = 6, 1.0, 8.0
_SETTINGS = "https://huggingface.co/settings/tokens"
_AGAIN = "Run the same command again: files that have arrived are not sent twice."

Result = TypeVar("Result")


class HubError(OSError):
    """The Hub refused something, or could not be reached; the message says what to do."""


def check_repo_id(repo_id: str) -> None:
    """
    Checks that a name can be that of a repository.

    Raises:
        ValueError: it cannot.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id={repo_id!r} is not the name of a repository (owner/name): {_line(error)}") from None


class HubClient:
    """
    The client of huggingface_hub for one token, with errors that say what to do.

    Args:
        token (`str`, *optional*): Default: that of `HF_TOKEN` or `hf auth login`.

    Raises:
        ValueError: there is no token, or `HF_ENDPOINT` is no address.

    Attributes:
        api ([`~huggingface_hub.HfApi`]): The client.
        endpoint (`str`): The address of the Hub: `HF_ENDPOINT`.
    """

    def __init__(self, token: str | None = None):
        self.endpoint = self.find_endpoint()
        with self.errors("the token"):
            self._token = token or get_token()
        if not self._token:
            raise ValueError(f"There is no token. Run hf auth login, or set HF_TOKEN (see {_SETTINGS}).")
        if not re.fullmatch(r"[!-~]+", self._token):
            # The HTTP library would show it.
            raise ValueError("The token holds characters that no token has. Copy it again into HF_TOKEN.")
        self.api = HfApi(endpoint=self.endpoint, token=self._token, library_name="memreason-hf")

    @staticmethod
    def find_endpoint() -> str:
        """
        The address of the Hub.

        Raises:
            ValueError: `HF_ENDPOINT` is none.
        """
        if urlsplit(constants.ENDPOINT).scheme not in ("http", "https"):
            raise ValueError(f"HF_ENDPOINT={constants.ENDPOINT!r} is not an address. Use https://host, or unset it.")
        return constants.ENDPOINT

    @cached_property
    def user(self) -> dict:
        """
        Who the token belongs to, as `whoami` answers.

        Raises:
            HubError: the token is wrong or may only read, or the Hub cannot be reached.
        """
        with self.errors("your account"):
            try:
                user = with_retries(self.api.whoami, unreachable_at_once=True)
            except HfHubHTTPError as error:
                if error.response.status_code == 401:
                    source = " HF_TOKEN goes before what hf auth login saved." if self._is_from_environment() else ""
                    raise HubError(
                        f"{self.endpoint} does not know the token (401): it is wrong, expired or revoked. Run hf auth "
                        f"login, or set HF_TOKEN (see {_SETTINGS}).{source}"
                    ) from None
                raise
        role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise HubError(
                f"The token of {user['name']} may only read. Make one that may write on {_SETTINGS}, and set HF_TOKEN "
                "to it or run hf auth login."
            )
        return user

    def check_card(self, card: RepoCard, repo_type: str) -> None:
        """
        Lets the Hub check the metadata of a card.

        Raises:
            ValueError: the metadata is not valid.
            HubError: the Hub cannot be reached.
        """
        with self.errors("the card"):
            try:
                with_retries(lambda: card.validate(repo_type))
            except ValueError as error:
                raise ValueError(f"README.md: the Hub refuses its metadata: {_messages(str(error))}") from None

    @contextmanager
    def errors(self, subject: str) -> Iterator[None]:
        """
        Turns what the client raises into `HubError`, in one line that does not show the token.

        Args:
            subject (`str`): What the calls are about: the name of a repository.
        """
        try:
            yield
        except HubError:
            raise
        except OfflineModeIsEnabled:
            raise HubError(
                f"HF_HUB_OFFLINE=1 forbids to ask {self.endpoint} about {subject}. Unset it to publish."
            ) from None
        except (_HTTPError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not isinstance(error.__cause__, _HTTPError):
                raise
            raise HubError(self._without_token(self._explain(error, subject))) from None

    @contextmanager
    def storage_errors(self, subject: str) -> Iterator[None]:
        """
        Turns what uploads of large files raise into `HubError`.

        Xet, where it is installed, sends them by a library of its own, which raises bare `RuntimeError` and `OSError`.
        """
        try:
            yield
        except (HubError, _HTTPError):
            raise
        except (RuntimeError, OSError) as error:
            if isinstance(error.__cause__, _HTTPError):
                raise
            text = f"{subject}: a large file could not be sent ({_line(error)}). {_AGAIN}"
            raise HubError(self._without_token(text)) from error

    def _is_from_environment(self):
        return os.environ.get("HF_TOKEN", "").strip() == self._token

    def _without_token(self, text):
        return text.replace(self._token, "(token)") if getattr(self, "_token", None) else text

    def _explain(self, error, subject):
        if isinstance(error, RuntimeError):
            # The client wraps what happened to one file of an upload.
            return f"{_line(error).rstrip('.')} ({self._explain(error.__cause__, subject)})"
        if not isinstance(error, HfHubHTTPError):
            return (
                f"{self.endpoint} cannot be reached ({_line(error)}). Check the network, proxies and HF_ENDPOINT. "
                f"{_AGAIN}"
            )
        status, said = error.response.status_code, _said(error)
        if isinstance(error, GatedRepoError):
            return (
                f"{subject} is gated ({said}). Ask for access on its page, {self.endpoint}/{subject}, and try again."
            )
        if isinstance(error, RepositoryNotFoundError):
            return f"{subject} does not exist on {self.endpoint}, or this token may not see it ({status})."
        if isinstance(error, RevisionNotFoundError):
            return f"{subject} has no such revision ({said})."
        if status == 401:
            return f"{self.endpoint} asks for a valid token ({said}). Run hf auth login, or set HF_TOKEN."
        if status in (402, 403):
            return (
                f"{self.endpoint} refuses {subject} ({status}: {said}). Use a token that may write there (see "
                f"{_SETTINGS}), or another name."
            )
        if status == 412:
            return f"{subject} has changed meanwhile ({said}). Run the same command again."
        if status in _PASSING:
            return f"{self.endpoint} did not answer in {_TRIES} tries ({status}: {said}). {_AGAIN}"
        return f"{subject}: {self.endpoint} answers {status}: {said}"


def with_retries(function: Callable[[], Result], *, unreachable_at_once: bool = False) -> Result:
    """
    Calls a function again, after a growing wait, while the Hub is busy or connections break.

    Args:
        function: Does no harm when it is called twice.
        unreachable_at_once (`bool`): Whether a Hub that cannot be reached at all is an error at once.
    """
    wait = _FIRST_WAIT
    for left in reversed(range(_TRIES)):
        try:
            return function()
        except _HTTPError as error:
            if not left or not is_passing(error) or (unreachable_at_once and "Connect" in type(error).__name__):
                raise
            logger.warning("%s Trying again in %g s.", _said(error), wait)
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
    raise AssertionError("unreachable")


def is_passing(error: BaseException) -> bool:
    """Whether an error of the client may be gone at the next try."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    return isinstance(error, _HTTPError)


def _said(error):
    if isinstance(error, HfHubHTTPError):
        return (
            (error.server_message or error.response.headers.get("X-Error-Message") or "").strip().replace("\n", " ")
        ) or f"HTTP {error.response.status_code}"
    return _line(error)


def _line(error):
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} …"


def _messages(text):
    """What the Hub finds wrong, from its answer in JSON or plain text."""
    try:
        found = [str(error["message"]) for error in json.loads(text)["errors"]]
    except (ValueError, KeyError, TypeError):
        found = [text]
    return _line("; ".join(found))
