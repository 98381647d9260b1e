"""`pipeline("text-generation")` on a saved model: batches, padding, and arguments of depth."""

import pytest
import torch
from transformers import pipeline


PROMPTS = ["the cat", "what did the dog see? the dog saw", "a"]
CALLS = [
    {},
    {"num_recurrences": 1},
    {"num_recurrences": 8},
    {"halting_criterion": "kl", "kl_threshold": 0.1},
    {"halting_criterion": "kl", "kl_threshold": 0.1, "halting_granularity": "sequence"},
]


@pytest.fixture(scope="module")
def generator(saved):
    return pipeline("text-generation", model=saved.folder, device="cpu")


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_are_what_single_prompts_are(generator, saved, continuation, call, batch_size):
    results = generator(PROMPTS, batch_size=batch_size, max_new_tokens=6, do_sample=False, return_tensors=True, **call)
    for prompt, (result,) in zip(PROMPTS, results, strict=True):
        expected, _ = continuation(prompt, **call)
        assert result["generated_token_ids"][-6:] == expected.tolist()
    texts = generator(PROMPTS, batch_size=batch_size, max_new_tokens=6, do_sample=False, **call)
    for prompt, (text,) in zip(PROMPTS, texts, strict=True):
        expected = saved.tokenizer.decode(continuation(prompt, **call)[0], skip_special_tokens=True)
        assert text["generated_text"] == prompt + expected


def test_depth_matters(generator):
    texts = [generator(PROMPTS[1], max_new_tokens=8, do_sample=False, **call)[0]["generated_text"] for call in CALLS]
    assert len(set(texts)) >= 3


def test_depths_of_tokens_come_along(generator, continuation):
    call = CALLS[3]
    depths = set()
    for prompt in PROMPTS:
        (result,) = generator(prompt, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, **call)
        _, expected = continuation(prompt, **call)
        assert torch.as_tensor(result["num_recurrences"]).flatten().tolist() == expected.num_recurrences[0].tolist()
        depths |= set(expected.num_recurrences[0].tolist())
    assert len(depths) >= 3


def test_depth_of_the_config(saved, continuation):
    deeper = pipeline("text-generation", model=saved.folder, device="cpu", model_kwargs={"num_recurrences": 8})
    assert deeper.model.config.num_recurrences == 8
    (result,) = deeper(PROMPTS[1], max_new_tokens=6, do_sample=False, return_tensors=True)
    assert result["generated_token_ids"][-6:] == continuation(PROMPTS[1], num_recurrences=8)[0].tolist()


def test_unknown_arguments_are_refused(generator):
    with pytest.raises((TypeError, ValueError), match="num_recurences"):
        generator(PROMPTS[0], max_new_tokens=2, num_recurences=3)
