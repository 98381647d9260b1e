"""
lm-eval's model class on a saved model, with depth as model arguments.

    lm_eval --model hf --model_args pretrained=FOLDER,trust_remote_code=True,num_recurrences=8 --tasks ...

Arguments that the class does not know go to `from_pretrained`, and so to the config. Generation tasks also take a
depth through `--gen_kwargs`, which lm-eval ignores in all other tasks. Log-likelihoods are computed on right-padded
rows without an attention mask. They are exact with a fixed depth and with `halting_granularity="token"`. With
`"sequence"`, a row could not find its last real token.
"""

import pytest
import torch


lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.instance import Instance  # noqa: E402 - only where there is one
from lm_eval.models.huggingface import HFLM  # noqa: E402


REQUESTS = [("the cat sat", " on the mat"), ("what did the dog see?", " the cat"), ("a", " dog")]
SETTINGS = [
    {"num_recurrences": 8},
    {"num_recurrences": 2},
    {"halting_criterion": "kl", "kl_threshold": 0.1, "halting_granularity": "token"},
]


def instances(kind, arguments):
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def make(saved, batch_size, settings):
    arguments = ",".join(f"{name}={value}" for name, value in {"pretrained": saved.folder, **settings}.items())
    return HFLM.create_from_arg_string(arguments, {"batch_size": batch_size, "device": "cpu"})


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_log_likelihoods(saved, settings, batch_size):
    evaluated = make(saved, batch_size, settings)
    for name, value in settings.items():
        assert getattr(evaluated.model.config, name) == value
    results = evaluated.loglikelihood(instances("loglikelihood", REQUESTS), disable_tqdm=True)
    counts = set()
    for (context, target), (score, is_greedy) in zip(REQUESTS, results, strict=True):
        prompt, whole = (saved.tokenizer(text)["input_ids"] for text in (context, context + target))
        output = saved.model(torch.tensor([whole]), **settings)
        log_probs = output.logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(whole) - 1)
        expected = sum(log_probs[place, whole[place + 1]].item() for place in places)
        assert score == pytest.approx(expected, rel=1e-4)
        assert is_greedy == all(log_probs[place].argmax() == whole[place + 1] for place in places)
        counts |= set(output.num_recurrences.flatten().tolist())
    assert len(counts) >= (4 if "halting_criterion" in settings else 1)


def test_depth_matters(saved):
    scores = [
        [score for score, _ in make(saved, 3, settings).loglikelihood(instances("loglikelihood", REQUESTS), True)]
        for settings in SETTINGS
    ]
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_generation(saved, continuation, settings):
    evaluated = make(saved, 3, settings)
    requests = [(context, {"until": ["zzz"], "max_gen_toks": 6, "do_sample": False}) for context, _ in REQUESTS]
    results = evaluated.generate_until(instances("generate_until", requests), disable_tqdm=True)
    for (context, _), text in zip(REQUESTS, results, strict=True):
        expected, _ = continuation(context, **settings)
        assert text == saved.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("depth", [{"num_recurrences": 7}, SETTINGS[2]], ids=str)
def test_generation_arguments_of_a_request(saved, continuation, depth):
    """What `--gen_kwargs` adds to the requests of a generation task, the only ones that lm-eval adds it to."""
    request = {"until": ["zzz"], "max_gen_toks": 6, "do_sample": False}
    requests = [(context, {**request, **depth}) for context, _ in REQUESTS]
    results = make(saved, 3, {}).generate_until(instances("generate_until", requests), disable_tqdm=True)
    texts = [continuation(context, **depth)[0] for context, _ in REQUESTS]
    assert results == [saved.tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]
    assert any(not torch.equal(ids, continuation(context)[0]) for ids, (context, _) in zip(texts, REQUESTS))
    misspelt = [(context, {**request, "num_recurences": 7}) for context, _ in REQUESTS]
    with pytest.raises(ValueError, match="num_recurences"):
        make(saved, 3, {}).generate_until(instances("generate_until", misspelt), disable_tqdm=True)


def test_unknown_arguments_are_refused(saved):
    with pytest.raises(TypeError, match="num_recurences"):
        make(saved, 1, {"num_recurences": 3})
