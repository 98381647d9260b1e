import pytest
from transformers import Gemma2Config, GPT2Config, LlamaConfig, SmolLM3Config

from memreason_hf.models.conversion.layers import config_with_layers, plan_layers


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"prelude": 4, "loop": 8, "coda": 4}, "prelude 0-3, loop 10-17, coda 18-21, dropped 4-9"),
        ({"prelude": "4", "loop": "8", "coda": "4"}, "prelude 0-3, loop 10-17, coda 18-21, dropped 4-9"),
        ({"prelude": "0-3", "loop": "10-17", "coda": "18-21"}, "prelude 0-3, loop 10-17, coda 18-21, dropped 4-9"),
        ({"loop": "8-13"}, "prelude 0-7, loop 8-13, coda 14-21"),
        ({"loop": "8"}, None),
        ({"loop": "8-13", "coda": 2}, "prelude 0-7, loop 8-13, coda 20-21, dropped 14-19"),
        ({"prelude": 0, "loop": 22, "coda": 0}, "loop 0-21"),
        ({"prelude": "0, 2", "loop": "5-6", "coda": (8, 9)}, "prelude 0,2, loop 5-6, coda 8-9, dropped 1,3-4,7,10-21"),
        ({}, "prelude 0-4, loop 5-16, coda 17-21"),
    ],
)
def test_numbers_and_ranges(arguments, expected):
    if expected is None:
        with pytest.raises(ValueError, match="needs --prelude and --coda"):
            plan_layers(22, **arguments)
    else:
        assert plan_layers(22, **arguments).describe() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prelude": "0-5", "loop": "5-8", "coda": "9"}, "prelude=0-5 and loop=5-8 overlap in layer 5"),
        ({"prelude": 4, "loop": "8-20", "coda": 4}, "loop=8-20 and coda=18-21 overlap in layer 18"),
        ({"prelude": 4, "loop": 0, "coda": 4}, "loop=0: no layer is left"),
        ({"prelude": 12, "loop": 0, "coda": 10}, "loop=0: no layer is left"),
        ({"prelude": "4-7", "loop": "0-3", "coda": "8"}, "must keep the order of the source"),
        ({"loop": "9,8"}, "must keep the order of the source"),
        ({"loop": "9-8"}, "the range 9-8 ends before it begins"),
        ({"loop": "8-22"}, "loop=8-22 names layer 22, but the source has the layers 0-21"),
        ({"prelude": 10, "loop": 8, "coda": 5}, "10 . 8 . 5 = 23 layers, but the source has 22"),
        ({"prelude": -1, "loop": 8, "coda": 5}, "prelude=-1 must not be negative"),
        ({"loop": "1-99999999999999"}, "loop=1-99999999999999 names layer 22"),
        ({"loop": "x"}, "loop='x' must be a number of layers or a range"),
        ({"prelude": "4"}, "loop is not given"),
    ],
)
def test_layers_that_cannot_be_chosen(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_layers(22, **arguments)


def test_lists_with_an_entry_for_each_layer_follow():
    config = config_with_layers(Gemma2Config(num_hidden_layers=4), [0, 2, 3])
    assert config.num_hidden_layers == 3
    assert config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    config = config_with_layers(SmolLM3Config(num_hidden_layers=8, no_rope_layer_interval=4), [0, 3, 3, 7])
    assert config.no_rope_layers == [1, 0, 0, 0]
    assert config_with_layers(GPT2Config(n_layer=5), [0, 4]).n_layer == 2


def test_lists_of_the_same_length_that_are_not_about_layers_stay():
    config = LlamaConfig(num_hidden_layers=2, eos_token_id=[7, 8])
    assert config_with_layers(config, [1]).eos_token_id == [7, 8]
