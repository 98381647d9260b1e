"""LocalChat: the texts of `generate`, whatever else is in a batch, and draws that follow the model's distribution."""

import asyncio
import random

import pytest
import torch
from demo_models import looped
from text_models import text_tokenizer

from memreason_hf.chat import ChatError, LocalChat, ask_all


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
WORDS = ["the", "cat", "sat", "on", "mat", "and", "dog", "ran", "after", "what", "did", "see"]


@pytest.fixture(scope="module")
def parts():
    tokenizer = text_tokenizer()
    tokenizer.chat_template = TEMPLATE
    with torch.random.fork_rng():
        model = looped(tokenizer, 3, max_position_embeddings=200, num_recurrences=2)
    return model, tokenizer


def questions(count):
    texts = [" ".join(random.choices(WORDS, k=random.randint(1, 12))) for _ in range(count)]
    return {index: [{"role": "user", "content": text}] for index, text in enumerate(texts)}


def alone(model, tokenizer, messages, max_new_tokens):
    ids = torch.tensor([tokenizer(f"user: {messages[0]['content']}\nassistant:")["input_ids"]])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    new = output[0, ids.shape[1] :].tolist()
    new = new[: new.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in new else new
    return tokenizer.decode(new, skip_special_tokens=True).strip(), len(new), ids.shape[1]


def test_batches_give_the_texts_of_generate(parts):
    requests = questions(11)
    chat = LocalChat(*parts, batch_size=4)
    chat.model.train()
    try:
        replies = dict(ask_all(chat, requests, max_tokens=9))
        assert chat.model.training
    finally:
        chat.model.eval()
    assert len({reply.text for reply in replies.values()}) > 3
    for key, messages in requests.items():
        text, num_new, num_prompt = alone(*parts, messages, 9)
        assert (replies[key].text, replies[key].num_new_tokens, replies[key].num_prompt_tokens) == (
            text,
            num_new,
            num_prompt,
        )
        assert replies[key].is_cut == (num_new == 9)


def test_requests_of_one_moment_share_a_batch_and_keep_their_own_lengths(parts, monkeypatch):
    chat, sizes = LocalChat(*parts, batch_size=4), []
    inner = chat._answer
    monkeypatch.setattr(chat, "_answer", lambda batch: sizes.append(len(batch)) or inner(batch))

    async def both():
        lengths = [1, 3, 8]
        asked = [chat.ask(messages, max_tokens=n) for n, messages in zip(lengths, questions(3).values(), strict=True)]
        return lengths, await asyncio.gather(*asked)

    lengths, replies = asyncio.run(both())
    assert sizes == [3]
    assert all(reply.num_new_tokens <= n for n, reply in zip(lengths, replies, strict=True))


def test_a_drawn_text_depends_on_its_seed_and_not_on_its_neighbours(parts):
    requests = questions(6)
    first = dict(ask_all(LocalChat(*parts, batch_size=6), requests, max_tokens=8, temperature=1.0, seed=5))
    apart = dict(ask_all(LocalChat(*parts, batch_size=1), requests, max_tokens=8, temperature=1.0, seed=5))
    other = dict(ask_all(LocalChat(*parts, batch_size=6), requests, max_tokens=8, temperature=1.0, seed=6))
    assert first == apart
    assert first != other


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_draws_follow_the_softmax(parts, temperature):
    model, tokenizer = parts
    messages, count = [{"role": "user", "content": "what did the dog see"}], 1500
    ids = torch.tensor([tokenizer("user: what did the dog see\nassistant:")["input_ids"]])
    with torch.no_grad():
        expected = torch.softmax(model(ids).logits[0, -1].double() / temperature, -1)
    chat = LocalChat(model, tokenizer, batch_size=250)
    drawn = []
    chat._reply = lambda request, ids: drawn.append(ids[0])

    async def draw():
        start = random.randrange(10**9)
        asked = [chat.ask(messages, max_tokens=1, temperature=temperature, seed=start + i) for i in range(count)]
        await asyncio.gather(*asked)

    asyncio.run(draw())
    found = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / count
    distance = 0.5 * (found - expected).abs().sum().item()
    # A draw of the same size by torch is as far from the truth, within a little.
    usual = torch.bincount(torch.multinomial(expected, count, replacement=True), minlength=len(expected)) / count
    assert distance < 0.5 * (usual - expected).abs().sum().item() + 0.06
    # A control: another temperature is farther away.
    with torch.no_grad():
        wrong = torch.softmax(model(ids).logits[0, -1].double() * 3, -1)
    assert 0.5 * (found - wrong).abs().sum().item() > 2 * distance


def test_what_cannot_be_asked_is_refused(parts):
    model, tokenizer = parts
    chat = LocalChat(model, tokenizer)

    def ask(messages):
        return asyncio.run(chat.ask(messages, max_tokens=4))

    with pytest.raises(ChatError, match=r"refuses messages of system, user: no system here") as caught:
        ask([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])
    assert caught.value.is_final
    with pytest.raises(ChatError, match=r"has \d+ tokens, but the model reads at most 200"):
        ask([{"role": "user", "content": "the cat sat. " * 100}])
    bare = text_tokenizer()
    with pytest.raises(ValueError, match="no chat template"):
        LocalChat(model, bare)


def test_a_caller_that_stops_does_not_wait_for_a_long_text(parts):
    model, tokenizer = parts
    chat = LocalChat(model, tokenizer, batch_size=2)
    ended = []
    inner = chat._answer
    chat._answer = lambda batch: ended.append(inner(batch)) or ended[-1]
    requests = {**questions(1), "long": [{"role": "user", "content": "the dog"}]}
    iterator = ask_all(chat, requests, max_tokens=150)
    iterator.close()
    stop = asyncio.new_event_loop()

    async def cancelled():
        task = asyncio.create_task(chat.ask(requests["long"], max_tokens=150))
        await asyncio.sleep(0.05)
        task.cancel()
        await chat.close()

    stop.run_until_complete(cancelled())
    stop.close()
    # The batch has ended early, not with its 150 tokens.
    assert len(ended) == 1 and all(reply.num_new_tokens < 150 for reply in ended[0])


def test_a_failure_of_the_model_is_raised_where_it_is_asked(parts):
    chat = LocalChat(*parts)
    chat._answer = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(ask_all(chat, questions(3), max_tokens=2))
