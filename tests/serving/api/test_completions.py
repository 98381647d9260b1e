"""Texts, ids and depths of completions are those of `generate` for each prompt alone."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from api_servers import HALTING, NAME, reference
from text_models import TEXT


DEPTHS = [{}, {"num_recurrences": 7}, HALTING, {**HALTING, "min_recurrences": 2, "max_recurrences": 5}]


def prompts(count):
    words = TEXT.replace("?", "").replace(".", "").split()
    return [" ".join(random.choices(words, k=random.randint(1, 9))) for _ in range(count)]


def asked(server, prompt, **fields):
    """`(text, ids, depths)` of one completion."""
    answer = server.complete(prompt=prompt, return_token_ids=True, recurrences=True, **fields)
    assert answer.status == 200, answer.text
    (choice,) = answer.body["choices"]
    return choice["text"], choice["token_ids"], choice["recurrences"]


@pytest.mark.parametrize("depth", DEPTHS, ids=str)
def test_greedy_texts_are_those_of_generate(server, depth):
    for prompt in prompts(2):
        expected = reference(server.served, prompt, 12, **depth)
        assert asked(server, prompt, max_tokens=12, **depth) == expected
        assert asked(server, prompt, max_tokens=12, temperature=0, top_p=0.5, seed=3, **depth) == expected


def test_in_a_crowd_every_request_has_its_own_text_and_depth(server):
    requests = []
    for index, prompt in enumerate(prompts(16)):
        draws = {"do_sample": True, "temperature": 0.9, "seed": index} if index % 2 else {}
        requests.append((prompt, random.randint(3, 16), {**DEPTHS[index % 4], **draws}))
    expected = [reference(server.served, prompt, length, **fields) for prompt, length, fields in requests]
    # The control: neither texts nor depths are all the same.
    assert len({text for text, _, _ in expected}) > 8
    assert len({depth for _, _, depths in expected for depth in depths}) >= 4

    def ask(request):
        prompt, length, fields = request
        return asked(server, prompt, max_tokens=length, **fields)

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, requests)) == expected
    server.wait_until_idle()


def test_a_seed_repeats_a_text_and_another_seed_does_not(server):
    draws = {"temperature": 1.0, "max_tokens": 12}
    first = asked(server, "the cat", seed=5, **draws)
    assert first == asked(server, "the cat", seed=5, **draws)
    assert first == reference(server.served, "the cat", 12, do_sample=True, temperature=1.0, seed=5)
    others = {asked(server, "the cat", seed=seed, **draws)[0] for seed in range(6, 10)}
    assert others != {first[0]}
    # Without a seed, two answers differ.
    assert len({asked(server, "the cat", **draws)[0] for _ in range(4)}) > 1


def test_a_filter_alone_asks_for_draws(server):
    expected = reference(server.served, "the cat", 12, do_sample=True, top_k=3, seed=1)
    assert asked(server, "the cat", max_tokens=12, top_k=3, seed=1) == expected
    greedy = reference(server.served, "the cat", 12)
    assert expected != greedy
    assert asked(server, "the cat", max_tokens=12, top_k=3, seed=1, do_sample=False) == greedy


def test_prompts_are_texts_or_ids(server):
    tokenizer = server.served.tokenizer
    texts = ["the cat", "a dog ran", "the mat"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    expected = [reference(server.served, text)[0] for text in texts]
    for given in (texts, rows):
        answer = server.complete(prompt=given).body
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        assert answer["usage"]["prompt_tokens"] == sum(map(len, rows))
    assert asked(server, rows[0])[0] == asked(server, texts[0])[0] == expected[0]


def test_choices_of_a_prompt_have_seeds_one_after_the_other(server):
    fields = {"n": 3, "temperature": 1.0, "seed": 2**63 - 2, "max_tokens": 8}
    answer = server.complete(prompt=["the cat", "the dog"], **fields).body
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    seeds = [2**63 - 2, 2**63 - 1, -(2**63)]
    expected = [
        reference(server.served, prompt, 8, do_sample=True, temperature=1.0, seed=seed)[0]
        for prompt in ("the cat", "the dog")
        for seed in seeds
    ]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert answer["usage"]["completion_tokens"] == 6 * 8 or "stop" in {c["finish_reason"] for c in answer["choices"]}


def test_usage_counts_tokens_and_recurrences(server):
    tokenizer = server.served.tokenizer
    answer = server.complete(prompt="the cat sat", max_tokens=10, recurrences=True, **HALTING).body
    depths = answer["choices"][0]["recurrences"]
    assert answer["usage"] == {
        "prompt_tokens": len(tokenizer("the cat sat")["input_ids"]),
        "completion_tokens": len(depths),
        "total_tokens": len(tokenizer("the cat sat")["input_ids"]) + len(depths),
        "recurrences": {"total": sum(depths), "mean": round(sum(depths) / len(depths), 6)},
    }
    assert answer["model"] == NAME and answer["object"] == "text_completion"
    assert "recurrences" not in server.complete(prompt="the cat").body["choices"][0]


def test_a_stop_string_ends_the_text_before_it(server):
    text, ids, _ = reference(server.served, "the cat", 24)
    stop = text[5:8]
    choice = server.complete(prompt="the cat", max_tokens=24, stop=["zzzz", stop], return_token_ids=True).body
    (choice,) = choice["choices"]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    # Tokens were generated up to the one that completed the stop string.
    assert choice["token_ids"] == ids[: len(choice["token_ids"])]
    assert len(choice["token_ids"]) < len(ids)


def test_without_a_length_the_default_of_the_server_holds(server):
    choice = server.complete(prompt="the cat", return_token_ids=True).body["choices"][0]
    assert len(choice["token_ids"]) == 6 and choice["finish_reason"] == "length"
    # Where less room is left, the text ends there.
    room = server.complete(prompt=[5] * 254, return_token_ids=True).body["choices"][0]
    assert len(room["token_ids"]) == 3


def test_echo_repeats_the_prompt(server):
    text = reference(server.served, "the cat")[0]
    assert server.complete(prompt="the cat", echo=True).body["choices"][0]["text"] == "the cat" + text
    ids = server.served.tokenizer("the cat")["input_ids"]
    assert server.complete(prompt=ids, echo=True).body["choices"][0]["text"] == "the cat" + text
    streamed = server.complete(prompt="the cat", echo=True, stream=True).events
    assert "".join(event["choices"][0]["text"] for event in streamed) == "the cat" + text


def test_marks_of_steps_are_part_of_the_text(server):
    """The tokens of a model that names its steps are special, and clients must see them."""
    tokenizer, model = server.served.tokenizer, server.served.model
    mark = tokenizer.convert_tokens_to_ids("<reason>")
    rows = torch.arange(3, len(tokenizer))[:, None]
    written = model.generate(rows, attention_mask=torch.ones_like(rows), max_new_tokens=16, do_sample=False)
    row = rows[(written == mark)[:, 1:].any(1)][0].tolist()
    text, ids, _ = reference(server.served, row, 16)
    assert "<reason>" in text and mark in ids
    answer = server.complete(prompt=row, max_tokens=16, stream=True)
    assert "".join(event["choices"][0]["text"] for event in answer.events) == text


class TestLogprobs:
    def test_they_are_those_of_the_model(self, server):
        tokenizer, model = server.served.tokenizer, server.served.model
        fields = {"max_tokens": 8, "logprobs": 3, "return_token_ids": True, "num_recurrences": 5}
        choice = server.complete(prompt="the cat", **fields).body["choices"][0]
        found = choice["logprobs"]
        ids = tokenizer("the cat")["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids + choice["token_ids"]]), num_recurrences=5).logits[0]
        expected = logits.log_softmax(-1)[len(ids) - 1 : -1]
        for place, token_id in enumerate(choice["token_ids"]):
            assert found["token_logprobs"][place] == pytest.approx(expected[place, token_id].item(), abs=1e-4)
            top = sorted(found["top_logprobs"][place].values(), reverse=True)
            assert top == pytest.approx(expected[place].topk(3).values.tolist()[: len(top)], abs=1e-4)
        assert "".join(found["tokens"]) == choice["text"]
        for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
            assert choice["text"][offset:].startswith(token)

    def test_draws_report_the_probabilities_before_the_temperature(self, server):
        fields = {"max_tokens": 6, "logprobs": 0, "return_token_ids": True, "temperature": 3.0, "seed": 4}
        choice = server.complete(prompt="the cat", **fields).body["choices"][0]
        again = server.complete(prompt="the cat", **{**fields, "logprobs": 20}).body["choices"][0]
        assert choice["token_ids"] == again["token_ids"]
        assert choice["logprobs"]["token_logprobs"] == again["logprobs"]["token_logprobs"]
        assert choice["logprobs"]["top_logprobs"] == [{}] * len(choice["token_ids"])

    def test_in_a_stream_they_come_with_their_tokens(self, server):
        fields = {"max_tokens": 8, "logprobs": 2}
        whole = server.complete(prompt="the cat", **fields).body["choices"][0]["logprobs"]
        parts = [
            event["choices"][0]["logprobs"]
            for event in server.complete(prompt="the cat", stream=True, **fields).events
        ]
        for name in whole:
            assert [entry for part in parts for entry in part[name]] == whole[name]
