"""Where `generate` takes its depth from: the call, a generation config, the model's config, in this order."""

import pytest
import torch
from recurrent_models import depth_calls, lively_model, random_ids, same_decoding
from transformers import AutoModelForCausalLM, GenerationConfig


HALTING = {"halting_criterion": "state_difference", "state_difference_threshold": 0.5}
COMMON = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}


def generate(model, ids, config=None, **call):
    if config is None:
        return model.generate(ids, **COMMON, **call)
    return model.generate(ids, generation_config=GenerationConfig(**COMMON, **config), **call)


def halting(model, **more):
    """A criterion at which this model's tokens differ."""
    return {**depth_calls(model)["token-state"], **more}


@pytest.mark.parametrize(
    "depth",
    [
        lambda model: {"num_recurrences": 7},
        halting,
        lambda model: halting(model, max_recurrences=6, min_recurrences=4),
        lambda model: halting(model, cache_recurrences="last", max_recurrences=8),
    ],
    ids=["fixed", "halting", "bounded", "last"],
)
def test_a_generation_config_says_how_deep(depth, tmp_path):
    model, ids = lively_model("llama", {"input_injection": "add", "num_recurrences": 2}), random_ids(2, 5)
    depth = depth(model)
    expected = generate(model, ids, **depth)
    assert not torch.equal(expected.num_recurrences, generate(model, ids).num_recurrences)
    assert same_decoding(generate(model, ids, depth), expected)
    # The model's own, which is saved with it.
    for name, value in depth.items():
        setattr(model.generation_config, name, value)
    assert same_decoding(generate(model, ids), expected)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert same_decoding(generate(loaded, ids), expected)
    assert same_decoding(generate(loaded, ids, {"top_k": 50}), expected)


def test_the_call_wins_over_the_generation_config_and_that_over_the_models():
    model, ids = lively_model("llama", {"input_injection": "add"}), random_ids(1, 4)
    model.generation_config.num_recurrences = 5
    assert generate(model, ids).num_recurrences.unique().tolist() == [5]
    assert generate(model, ids, {"num_recurrences": 4}).num_recurrences.unique().tolist() == [4]
    assert generate(model, ids, {"num_recurrences": 4}, num_recurrences=2).num_recurrences.unique().tolist() == [2]
    assert generate(model, ids, num_recurrences=2).num_recurrences.unique().tolist() == [2]
    assert generate(model, ids, num_recurrences=torch.tensor(2)).num_recurrences.unique().tolist() == [2]
    assert model.generation_config.num_recurrences == 5


def test_a_depth_of_the_call_replaces_one_of_another_kind():
    model, ids = lively_model("llama", {"input_injection": "add"}), random_ids(2, 5)
    criterion = halting(model, max_recurrences=8, min_recurrences=2)
    fixed, halted = generate(model, ids, num_recurrences=3), generate(model, ids, **criterion)
    for name, value in criterion.items():
        setattr(model.generation_config, name, value)
    assert same_decoding(generate(model, ids), halted)
    assert same_decoding(generate(model, ids, num_recurrences=3), fixed)
    model.config.num_recurrences = 3
    assert same_decoding(generate(model, ids, halting_criterion="none"), fixed)
    # Another criterion has other parameters, but the same bounds.
    other = generate(model, ids, halting_criterion="kl", kl_threshold=1e9)
    assert other.num_recurrences.unique().tolist() == [2]
    assert same_decoding(generate(model, ids, {"num_recurrences": 7}, **criterion), halted)


def test_a_generation_config_that_is_passed_comes_before_that_of_the_model():
    """The library merges them, also where both set a depth, each of its own kind."""
    model, ids = lively_model("llama", {"input_injection": "add"}), random_ids(2, 5)
    criterion = halting(model, max_recurrences=8)
    fixed, halted = generate(model, ids, num_recurrences=3), generate(model, ids, **criterion)
    for name, value in criterion.items():
        setattr(model.generation_config, name, value)
    assert same_decoding(generate(model, ids, {"num_recurrences": 3}), fixed)
    assert same_decoding(generate(model, ids, num_recurrences=None), halted)
    other = generate(model, ids, {"halting_criterion": "kl", "kl_threshold": 1e9})
    assert other.num_recurrences.unique().tolist() == [2]
    model.generation_config = GenerationConfig(num_recurrences=7)
    assert same_decoding(generate(model, ids, criterion), halted)
    assert same_decoding(generate(model, ids, {"num_recurrences": 7}, **criterion), halted)
    # Two kinds in one place contradict each other.
    with pytest.raises(ValueError, match="give one of them"):
        generate(model, ids, {"num_recurrences": 7, **criterion})


def test_parameters_in_a_generation_config_wait_for_a_criterion():
    model, ids = lively_model("llama", {"input_injection": "add", "num_recurrences": 3}), random_ids(2, 5)
    plain = generate(model, ids)
    model.generation_config.kl_threshold, model.generation_config.max_recurrences = 1e-9, 5
    assert same_decoding(generate(model, ids), plain)
    assert same_decoding(generate(model, ids, num_recurrences=3), plain)
    assert generate(model, ids, halting_criterion="kl").num_recurrences.unique().tolist() == [5]
    model.config.halting_criterion = "kl"
    assert generate(model, ids).num_recurrences.unique().tolist() == [5]
    model.generation_config.num_recurrences = 3
    assert same_decoding(generate(model, ids), plain)


def test_drafts_from_a_generation_config():
    model, ids = lively_model("llama", {"input_injection": "add"}), random_ids(1, 4)
    plain = generate(model, ids, num_recurrences=6)
    output = generate(model, ids, {"num_recurrences": 6, "draft_recurrences": 2, "draft_tokens": 3})
    assert "accepted_drafts" in output and same_decoding(output, plain)
    model.generation_config.draft_recurrences = 2
    assert "accepted_drafts" in generate(model, ids, {"num_recurrences": 6})


def test_mistakes_are_named():
    model, ids = lively_model("llama", {}), random_ids(1, 4)
    with pytest.raises(TypeError, match=r"num_recurences=7.* Did you mean 'num_recurrences'"):
        model.generate(ids, num_recurences=7)
    with pytest.raises(TypeError, match=r"num_recurences=7.* Did you mean 'num_recurrences'"):
        generate(model, ids, {"num_recurences": 7})
    limits = torch.full((1, 4), 3)
    with pytest.raises(ValueError, match=r"max_recurrences has shape \(1, 4\), but generate takes an int"):
        generate(model, ids, halting_criterion="kl", max_recurrences=limits)
    with pytest.raises(ValueError, match="draft_recurrences=1 cannot be combined with counts that differ"):
        generate(model, ids, num_recurrences=limits, draft_recurrences=1)
    with pytest.raises(ValueError, match="halting_criterion='kll' must be one of"):
        generate(model, ids, {"halting_criterion": "kll"})
    with pytest.raises(ValueError, match="num_recurrences=0 must be at least 1"):
        generate(model, ids, {"num_recurrences": 0})


@pytest.mark.parametrize("call", [{}, HALTING, {"num_recurrences": 5}], ids=str)
def test_generation_in_train_mode_is_inference(call):
    """GRPO and other trainers generate without switching to evaluation mode."""
    fields = {"recurrence_sampling": "uniform", "recurrence_min": 4, "recurrence_max": 9, "num_recurrences": 3}
    model, ids = lively_model("llama", {"input_injection": "add", **fields}), random_ids(2, 5)
    expected = generate(model, ids, **call)
    model.train()
    assert same_decoding(generate(model, ids, **call), expected)
    assert model.training and model.model.training_draws.count == 0
    for name, value in call.items():
        setattr(model.config, name, value)
    assert same_decoding(generate(model, ids), expected)
