"""A language model behind a chat-completion endpoint: a server, a provider of the Hub, or an Inference Endpoint."""

import asyncio
import os
import random
import re
from contextlib import suppress
from urllib.parse import urlsplit

from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import OfflineModeIsEnabled

from memreason_hf.chat.failures import HTTP_ERROR, Failure, describe_failure, malformed
from memreason_hf.chat.replies import ChatError, ChatReply, Messages, check_request
from memreason_hf.checks import check_int, check_number, check_type


# The environment variable that holds the key of an endpoint.
KEY_VARIABLE = "MEMREASON_API_KEY"
# Only these get the token of the Hub's login: it must not go to any address that a user types.
_HUB_HOSTS = re.compile(r"(.+\.)?huggingface\.co|.+\.endpoints\.huggingface\.cloud")
# The HTTP library opens at most 100 connections a client, and keeps 20 of them open.
_REQUESTS_A_CLIENT = 20
_LONGEST_WAIT = 60.0
# An endpoint that asks to wait longer is not waited for.
_MOST_ASKED_WAIT = 900.0
# How many requests in a row must get no answer before the others are not tried any more.
_MOST_LOST = 5


class EndpointChat:
    """
    A chat model over HTTP: any endpoint that speaks OpenAI's chat completions (vLLM, llama.cpp, Ollama, `transformers
    serve`, OpenAI, …), or a provider of the Hub, through [`~huggingface_hub.AsyncInferenceClient`].

    Requests that were lost on their way, refused for load (429) or answered with an error of the server (5xx) are
    tried again after a growing wait, or after the wait that the endpoint asks for (`Retry-After`), in which no other
    request is sent either.

    The key is that of the environment variable `key_variable`. Without it, an address of the Hub and its providers
    get the token of the Hub's login, and any other address gets none.

    Args:
        model: the model's name at the endpoint, or on the Hub.
        base_url: the address, with or without `/v1` and `/chat/completions`. None for a provider of the Hub.
        provider: a provider of the Hub, for example `"together"`; None: the Hub chooses one.
        concurrency: the maximum number of requests that are under way.
        max_tries: how often a request is sent before it counts as failed.
        timeout: the seconds in which an answer must come.
        key_variable: the name of the environment variable with the key.
        first_wait: seconds before the second try, doubled for each further one up to a minute.

    Raises:
        TypeError, ValueError: an argument is wrong. The message names it.

    Example:

    ```python
    chat = EndpointChat("Qwen/Qwen3-8B", base_url="http://127.0.0.1:8000/v1", concurrency=32)
    reply = asyncio.run(chat.ask([{"role": "user", "content": "Is the sky blue?"}], max_tokens=20))
    ```
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        provider: str | None = None,
        *,
        concurrency: int = 16,
        max_tries: int = 8,
        timeout: float = 300.0,
        key_variable: str = KEY_VARIABLE,
        first_wait: float = 1.0,
    ):
        check_type("model", model, str, "the name of a model")
        if not model.strip():
            raise ValueError("model='' must be the name of a model.")
        if base_url is not None:
            _check_address(base_url)
            if provider is not None:
                raise ValueError(f"provider={provider!r}: base_url={base_url!r} is asked itself. Leave one out.")
        check_int("concurrency", concurrency, least=1, most=10_000)
        check_int("max_tries", max_tries, least=1, most=1000)
        check_number("timeout", timeout, above=0)
        check_number("first_wait", first_wait, least=0)
        self.model, self.base_url, self.provider, self.concurrency = model, base_url, provider, concurrency
        self._max_tries, self._timeout, self._first_wait = max_tries, timeout, first_wait
        self._key = _read_key(key_variable)
        self._state: _Connections | None = None
        # Requests without an answer since the last answer, and whether there was any.
        self._num_lost, self._has_answered = 0, False

    @property
    def place(self) -> str:
        """Where the model is: an address without a key, or a provider."""
        return _place(self.base_url, self.provider)

    async def ask(
        self, messages: Messages, *, max_tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> ChatReply:
        """
        Asks the model.

        Args:
            messages: the conversation: mappings with `role` and `content`.
            max_tokens: the maximum number of new tokens.
            temperature: 0 takes the most likely token at each position.
            seed: for drawing tokens; endpoints that know no seed ignore it.

        Raises:
            ChatError: there was no answer after `max_tries`, or the request was refused.
        """
        check_request(messages, max_tokens, temperature, seed)
        values = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        connections = self._connections()
        for number in range(1, self._max_tries + 1):
            answer = await self._try(connections, [dict(message) for message in messages], values)
            if isinstance(answer, ChatReply):
                self._num_lost, self._has_answered = 0, True
                return answer
            self._check_passes(answer, number)
            connections.hold(answer.wait or 0.0)
            # Of many requests that failed together, each comes back at another time.
            await asyncio.sleep(random.uniform(0.5, 1) * min(self._first_wait * 2 ** (number - 1), _LONGEST_WAIT))
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Closes the connections. The next request opens others."""
        state, self._state = self._state, None
        if state is not None:
            await state.close()

    def _connections(self):
        if self._state is None or self._state.loop is not asyncio.get_running_loop():
            self._state = _Connections(self._new_client, self.concurrency)
        return self._state

    async def _try(self, connections, messages, values):
        """The reply to one try, or its `Failure`."""
        async with connections.client() as client:
            try:
                # The HTTP library's time limit starts again with every part of an answer.
                async with asyncio.timeout(self._timeout):
                    completion = await client.chat_completion(messages, model=self.model, **values)
            except (HTTP_ERROR, OSError, ValueError, RecursionError) as error:
                return describe_failure(error)
        return _read_completion(completion)

    def _check_passes(self, failure, number):
        """
        Raises:
            ChatError: another try is of no use, or there have been enough.
        """
        reason = self._redacted(failure.reason)
        too_long = (failure.wait or 0.0) > _MOST_ASKED_WAIT
        if failure.passes and number < self._max_tries and not too_long:
            return
        if failure.passes and too_long:
            reason += f", and asks to wait for {failure.wait:,.0f} seconds"
        elif failure.passes:
            reason += f" ({number} tries)" if number > 1 else ""
        # Once it has answered, a refusal that would concern all requests concerns this one.
        blames = "request" if failure.blames == "endpoint" and self._has_answered else failure.blames
        if blames != "request" or not self._has_answered:
            self._num_lost += 1
        is_fatal = blames == "endpoint" or self._num_lost >= _MOST_LOST
        where = f"llm={self.model!r} at {self.place}"
        raise ChatError(f"{where}: {reason}." if is_fatal else f"{reason}.", not failure.passes, is_fatal)

    def _redacted(self, reason):
        return reason.replace(self._key, "[key]") if self._key else reason

    def _new_client(self):
        if self.base_url is None:
            return AsyncInferenceClient(provider=self.provider, api_key=self._key, timeout=self._timeout)
        if self._key is None and not _is_hub(self.base_url):
            # Without a key the library would send the token of the Hub's login to any address. The header is left out.
            none = {"api_key": "none", "headers": {"authorization": None}}
            return _OwnServerClient(base_url=self.base_url, timeout=self._timeout, **none)
        kind = AsyncInferenceClient if _is_hub(self.base_url) else _OwnServerClient
        return kind(base_url=self.base_url, api_key=self._key, timeout=self._timeout)


class _OwnServerClient(AsyncInferenceClient):
    """A client for an address that is not on the Hub: `HF_HUB_OFFLINE` does not concern it."""

    _opened = None

    async def _get_async_client(self):
        client = await super()._get_async_client()
        if client is not self._opened:
            hooks = client.event_hooks
            client.event_hooks = {**hooks, "request": [_allow_offline(hook) for hook in hooks["request"]]}
            self._opened = client
        return client


def _allow_offline(hook):
    async def run(request):
        with suppress(OfflineModeIsEnabled):
            await hook(request)

    return run


class _Connections:
    """The clients of one event loop, and the moment before which none of them may send anything."""

    def __init__(self, new_client, concurrency):
        self.loop = asyncio.get_running_loop()
        self._clients = [new_client() for _ in range(-(-concurrency // _REQUESTS_A_CLIENT))]
        # A client is in it as often as it may be used at once.
        self._free = asyncio.Queue()
        for number in range(concurrency):
            self._free.put_nowait(self._clients[number % len(self._clients)])
        self._not_before = 0.0

    def hold(self, seconds: float) -> None:
        """Keeps all requests back for some seconds."""
        self._not_before = max(self._not_before, self.loop.time() + seconds)

    def client(self) -> "_Lent":
        return _Lent(self)

    async def take(self):
        client = await self._free.get()
        try:
            while (wait := self._not_before - self.loop.time()) > 0:
                await asyncio.sleep(wait)
        except BaseException:
            self._free.put_nowait(client)
            raise
        return client

    def give_back(self, client) -> None:
        self._free.put_nowait(client)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


class _Lent:
    """A client, lent for one request."""

    def __init__(self, connections):
        self._connections = connections

    async def __aenter__(self):
        self._client = await self._connections.take()
        return self._client

    async def __aexit__(self, *error):
        self._connections.give_back(self._client)


def shown_address(base_url: str) -> str:
    """
    An address without what may be a key: a name and a password, a query, and what follows.

    Example:

        >>> shown_address("https://me:secret@host/v1?key=secret")
        'https://[...]@host/v1?[...]'
    """
    base_url = re.sub(r"^([a-zA-Z][\w+.-]*:/*)?.*@", r"\1[...]@", base_url, flags=re.DOTALL)
    return re.sub(r"([?#]).*", r"\1[...]", base_url, count=1, flags=re.DOTALL)


def _check_address(base_url):
    check_type("base_url", base_url, str, "an address")
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError(
            f"base_url={shown_address(base_url)!r} must be an address, for example http://127.0.0.1:8000/v1."
        )
    # Not `parts.username`: an empty name before the @ is none.
    if "@" in parts.netloc:
        raise ValueError(f"base_url holds a name or a password. Put the key into {KEY_VARIABLE}, and leave it out.")
    if "?" in base_url or "#" in base_url:
        raise ValueError(
            f"base_url={shown_address(base_url)!r} must end before the question mark: requests go to a path below it. "
            f"Put a key into {KEY_VARIABLE}, and leave the rest out."
        )


def _read_key(variable):
    check_type("key_variable", variable, str, "the name of an environment variable")
    if not re.fullmatch(r"[A-Za-z_]\w*", variable):
        raise ValueError(f"key_variable={variable!r} must be the name of an environment variable.")
    key = os.environ.get(variable, "").strip()
    if not key and variable != KEY_VARIABLE:
        raise ValueError(f"key_variable={variable!r}: this environment variable is not set, so there is no key.")
    if key and not re.fullmatch(r"[!-~]+", key):
        # The HTTP library would show it.
        raise ValueError(f"The key in {variable} holds characters that no key has. Copy it again.")
    return key or None


def _is_hub(base_url):
    parts = urlsplit(base_url)
    return parts.scheme == "https" and _HUB_HOSTS.fullmatch(parts.hostname) is not None


def _place(base_url, provider):
    return base_url if base_url is not None else f"the provider {provider or 'auto'!r} of the Hub"


def _read_completion(completion) -> ChatReply | Failure:
    """The reply in a completion. Fields that an endpoint leaves out are None in the client's objects."""
    choices = getattr(completion, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    text = getattr(message, "content", None)
    if not hasattr(message, "content") or not isinstance(text, str | None):
        shown = {name: value for name, value in vars(completion).items() if value is not None}
        return malformed(str(shown))
    usage = getattr(completion, "usage", None)
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    counts = [count if isinstance(count, int) else None for count in counts]
    finish_reason = getattr(choices[0], "finish_reason", None)
    return ChatReply(text or "", *counts, finish_reason if isinstance(finish_reason, str) else None)
