import pytest
from small_tokenizers import byte_level, recurrent
from transformers import LlamaConfig

from memreason_hf.command_line.depth_arguments import (
    DepthArguments,
    DepthByKindArguments,
    check_has_recurrences,
    depth_settings,
    given_depth,
    schedule_by_kind,
)
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer
from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA, criterion_parameters


def test_settings_are_the_config_unless_a_flag_says_otherwise():
    config = RecurrentDepthConfig.gpt2_style(
        hidden_size=8, num_attention_heads=2, halting_criterion="kl_entropy", kl_threshold=0.5, max_recurrences=7
    )
    settings, forward_arguments = depth_settings(config, DepthArguments(entropy_threshold=1.0, min_recurrences=2))
    assert settings == {
        "num_recurrences": None,
        "halting_criterion": "kl_entropy",
        "halting_granularity": config.halting_granularity,
        "min_recurrences": 2,
        "max_recurrences": 7,
        "parameters": {"kl_threshold": 0.5, "entropy_threshold": 1.0},
    }
    assert forward_arguments == {
        "halting_criterion": "kl_entropy",
        "halting_granularity": config.halting_granularity,
        "min_recurrences": 2,
        "max_recurrences": 7,
        "kl_threshold": 0.5,
        "entropy_threshold": 1.0,
    }
    for arguments in (DepthArguments(halting_criterion="none"), DepthArguments(num_recurrences=4)):
        settings, forward_arguments = depth_settings(config, arguments)
        assert forward_arguments == {"num_recurrences": 4}
        assert (settings["num_recurrences"], settings["halting_criterion"], settings["parameters"]) == (4, None, {})
    assert config.entropy_threshold == 3.0 and config.min_recurrences == 1
    assert set(criterion_parameters()) <= set(DepthArguments.__dataclass_fields__)


def test_every_parameter_is_explained():
    for name in criterion_parameters():
        help_text = DepthArguments.__dataclass_fields__[name].metadata["help"]
        assert "halts" in help_text and help_text.split(":")[0].split(", ")[0] in HALTING_CRITERIA


def test_what_is_given():
    assert given_depth(DepthArguments(), DepthByKindArguments()) == {}
    given = given_depth(DepthArguments(min_recurrences=2), DepthByKindArguments("memory=2"))
    assert given == {"min_recurrences": 2, "depth_by_kind": "memory=2"}


def test_models_without_recurrences():
    config = LlamaConfig()
    check_has_recurrences(config, "model", {})
    check_has_recurrences(RecurrentDepthConfig(), "model", {"num_recurrences": 3})
    with pytest.raises(ValueError, match="num_recurrences=3: model='model' is a 'llama' model, without"):
        check_has_recurrences(config, "model", {"num_recurrences": 3, "kl_threshold": 1})


@pytest.fixture
def extended():
    tokenizer = byte_level()
    model = recurrent(len(tokenizer))
    extend_tokenizer(tokenizer, StepScheme(1, 2), model)
    return model.config, tokenizer


@pytest.mark.parametrize(
    ("depth", "otherwise", "rest"),
    [
        ({}, "num_recurrences", {"halting_criterion": "none"}),
        ({"num_recurrences": 5}, 5, {"halting_criterion": "none"}),
        ({"halting_criterion": "none", "num_recurrences": 5}, 5, {"halting_criterion": "none"}),
        (
            {"halting_criterion": "kl", "kl_threshold": 0.3, "max_recurrences": 6, "min_recurrences": 2},
            6,
            {"halting_criterion": "kl", "kl_threshold": 0.3, "min_recurrences": 2},
        ),
        ({"halting_criterion": "kl"}, "max_recurrences", {"halting_criterion": "kl"}),
    ],
)
def test_a_schedule_takes_the_place_of_the_count_or_of_the_limit(extended, depth, otherwise, rest):
    config, tokenizer = extended
    arguments = schedule_by_kind(config, DepthArguments(**depth), "memory=2,reason=3", tokenizer)
    schedule = arguments.pop("depth_schedule")
    assert not {"num_recurrences", "max_recurrences"} & set(arguments)
    assert rest.items() <= arguments.items()
    expected = getattr(config, otherwise) if isinstance(otherwise, str) else otherwise
    depths = dict(zip(schedule.kinds.names, schedule.depths.tolist(), strict=True))
    assert depths == {"none": expected, "memory": 2, "reason": 3, "answer": expected, "step": expected}


def test_depth_flags_that_contradict_a_schedule(extended):
    config, tokenizer = extended
    with pytest.raises(ValueError, match="max_recurrences=3 has no effect with depth_by_kind='memory=2'"):
        schedule_by_kind(config, DepthArguments(max_recurrences=3), "memory=2", tokenizer)
    with pytest.raises(ValueError, match="num_recurrences=3 fixes the depth"):
        depth = DepthArguments(num_recurrences=3, halting_criterion="kl")
        schedule_by_kind(config, depth, "memory=2", tokenizer)
