"""The `openai` client, as users call it."""

import asyncio

import pytest
from api_servers import HALTING, NAME, reference, running


openai = pytest.importorskip("openai", reason='needs the client: pip install "memreason-hf[integrations]"')


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="anything", max_retries=0, timeout=60) as made:
        yield made


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == NAME == client.models.retrieve(NAME).id
    assert model.depth["num_recurrences"] == 4 and model.depth["most_recurrences"] == 9
    with pytest.raises(openai.NotFoundError, match="this server has"):
        client.models.retrieve("gpt-5")


def test_completions(client, server):
    text, ids, depths = reference(server.served, "the cat", 10, **HALTING)
    answer = client.completions.create(
        model=NAME,
        prompt="the cat",
        max_tokens=10,
        logprobs=1,
        extra_body={**HALTING, "recurrences": True, "return_token_ids": True},
    )
    (choice,) = answer.choices
    assert (choice.text, choice.token_ids, choice.recurrences) == (text, ids, depths)
    assert answer.usage.completion_tokens == len(ids)
    assert answer.usage.recurrences == {"total": sum(depths), "mean": round(sum(depths) / len(depths), 6)}
    assert len(choice.logprobs.token_logprobs) == len(ids)


def test_many_prompts_with_several_choices(client, server):
    answer = client.completions.create(
        model=NAME, prompt=["the cat", "the dog"], n=2, max_tokens=6, temperature=0.8, seed=3
    )
    expected = [
        reference(server.served, prompt, do_sample=True, temperature=0.8, seed=seed)[0]
        for prompt in ("the cat", "the dog")
        for seed in (3, 4)
    ]
    assert [choice.text for choice in answer.choices] == expected


def test_a_stream(client, server):
    text, _, depths = reference(server.served, "the cat", 10, **HALTING)
    stream = client.completions.create(
        model=NAME,
        prompt="the cat",
        max_tokens=10,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={**HALTING, "recurrences": True},
    )
    *events, last = list(stream)
    assert "".join(event.choices[0].text for event in events) == text
    assert [depth for event in events for depth in event.choices[0].recurrences] == depths
    assert last.usage.recurrences["total"] == sum(depths)


def test_chat(client, server):
    messages = [{"role": "system", "content": "the dog"}, {"role": "user", "content": "the cat"}]
    expected = reference(server.served, "system: the dog\nuser: the cat\nassistant:", 8)[0]
    answer = client.chat.completions.create(model=NAME, messages=messages, max_completion_tokens=8, logprobs=True)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
    stream = client.chat.completions.create(model=NAME, messages=messages, max_tokens=8, stream=True)
    assert "".join(event.choices[0].delta.content or "" for event in stream) == expected


def test_errors_are_those_of_the_client(client):
    with pytest.raises(openai.BadRequestError, match="num_recurrences=99 must be at most 9") as refused:
        client.completions.create(model=NAME, prompt="the cat", extra_body={"num_recurrences": 99})
    assert refused.value.param == "num_recurrences" and refused.value.code == "invalid_value"
    with pytest.raises(openai.BadRequestError, match="does not have this field"):
        tools = [{"type": "function", "function": {"name": "f"}}]
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "a"}], tools=tools)
    with pytest.raises(openai.BadRequestError, match="at most 256 are read here"):
        client.completions.create(model=NAME, prompt="the " * 400)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="the cat")


def test_keys():
    with running(keys=("a-key-of-the-tests",)) as server:
        base = {"base_url": f"{server.url}/v1", "max_retries": 0}
        with openai.OpenAI(api_key="wrong-key", **base) as wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        with openai.OpenAI(api_key="a-key-of-the-tests", **base) as right:
            assert right.completions.create(model=NAME, prompt="the cat").choices[0].text


def test_the_client_comes_back_after_a_full_queue():
    with running(batcher_options={"max_rows": 1, "max_waiting": 1}) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as impatient:
            with pytest.raises(openai.RateLimitError, match="max_waiting=1") as refused:
                impatient.completions.create(model=NAME, prompt=["the cat"] * 2 + ["a"], max_tokens=50)
            assert refused.value.response.headers["retry-after"] == "1"

        async def ask():
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=8) as patient:
                asked = (patient.completions.create(model=NAME, prompt="the cat") for _ in range(4))
                return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

        assert asyncio.run(ask()) == [reference(server.served, "the cat")[0]] * 4


def test_a_stream_that_is_closed_ends_its_request(client, server):
    counters = server.server.engine.counters
    before = counters.tokens
    stream = client.completions.create(model=NAME, prompt=["the cat"] * 8, max_tokens=250, stream=True)
    next(iter(stream))
    stream.close()
    server.wait_until_idle()
    assert counters.tokens - before < 8 * 200
