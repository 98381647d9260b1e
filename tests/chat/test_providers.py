"""Requests to the Hub: where they go and which key they carry. The network is replaced below the HTTP client."""

import asyncio
import importlib
import json
import secrets

import pytest
from chat_servers import completion
from huggingface_hub import get_async_session, set_async_client_factory
from huggingface_hub.utils._http import default_async_client_factory

from memreason_hf.chat import EndpointChat
from memreason_hf.chat.endpoint import KEY_VARIABLE


@pytest.fixture
def sent():
    """The requests that would have left this machine."""
    client = get_async_session()
    # httpx, under the name that this release of huggingface_hub uses.
    library = importlib.import_module(type(client).__module__.partition(".")[0])
    asyncio.run(client.aclose())
    requests = []

    def handle(request):
        requests.append(request)
        return library.Response(200, json=completion("Yes."))

    set_async_client_factory(lambda: library.AsyncClient(transport=library.MockTransport(handle)))
    yield requests
    set_async_client_factory(default_async_client_factory)


def ask(*arguments):
    async def once():
        chat = EndpointChat(*arguments)
        try:
            return await chat.ask([{"role": "user", "content": "Is it?"}], max_tokens=3)
        finally:
            await chat.close()

    return asyncio.run(once())


@pytest.fixture
def token(monkeypatch):
    value = f"hf_{secrets.token_hex(8)}"
    monkeypatch.setenv("HF_TOKEN", value)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return value


@pytest.mark.parametrize(
    "arguments, start",
    [
        (("owner/name", None, "auto"), "https://router.huggingface.co/"),
        (("owner/name", None, None), "https://router.huggingface.co/"),
        (("any", "https://router.huggingface.co/v1"), "https://router.huggingface.co/v1/chat/completions"),
        (("any", "https://abc.eu.endpoints.huggingface.cloud"), "https://abc.eu.endpoints.huggingface.cloud/v1/"),
    ],
)
def test_the_hub_gets_the_token_of_the_login(sent, token, arguments, start):
    assert ask(*arguments).text == "Yes."
    (request,) = sent
    assert str(request.url).startswith(start) and request.headers["authorization"] == f"Bearer {token}"
    assert json.loads(request.content)["model"] == arguments[0]


@pytest.mark.parametrize(
    "base_url",
    [
        "http://router.huggingface.co/v1",  # without encryption
        "https://huggingface.co.example.org/v1",
        "https://myhuggingface.co/v1",
        "https://endpoints.huggingface.cloud.example.org",
        "https://example.org/huggingface.co/v1",
    ],
)
def test_no_other_address_gets_it(sent, token, base_url):
    ask("any", base_url)
    (request,) = sent
    assert "authorization" not in request.headers and token not in str(request.headers)


def test_a_key_of_ones_own_comes_first(sent, token, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "mine")
    ask("any", "https://abc.eu.endpoints.huggingface.cloud")
    assert sent[0].headers["authorization"] == "Bearer mine"
