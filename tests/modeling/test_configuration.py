"""Fields that are refused, and those that survive a file."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from recurrent_models import tiny_config
from transformers import AutoConfig, LlamaConfig

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


BAD_FIELDS = [
    ({"hidden_size": "x"}, "hidden_size"),
    ({"hidden_size": 30}, "num_attention_heads=4"),
    ({"hidden_size": 0}, r"field 'hidden_size':\s.*got 0"),
    ({"num_recurrent_layers": 0}, r"field 'num_recurrent_layers':\s.*got 0"),
    ({"num_prelude_layers": -1}, r"field 'num_prelude_layers':\s.*got -1"),
    ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
    ({"num_recurrences": 0}, r"field 'num_recurrences':\s.*got 0"),
    ({"num_recurrences": -3}, r"field 'num_recurrences':\s.*got -3"),
    ({"recurrence_min": 5, "recurrence_max": 4}, "recurrence_min=5 is above recurrence_max=4"),
    ({"recurrence_sampling": "uniform"}, "needs recurrence_min"),
    ({"recurrence_sampling": "poison"}, "recurrence_sampling"),
    ({"backprop_recurrences": 0}, r"field 'backprop_recurrences':\s.*got 0"),
    ({"halting_criterion": "kl_entropi"}, "Did you mean 'kl_entropy'"),
    ({"halting_granularity": "row"}, "halting_granularity"),
    ({"kl_threshold": 0.0}, r"field 'kl_threshold':\s.*got 0.0"),
    ({"min_recurrences": 20}, "min_recurrences=20 is above max_recurrences=12"),
    ({"state_init": "zeros"}, "the input would never reach the state"),
    ({"sliding_window": 0}, r"field 'sliding_window':\s.*got 0"),
    ({"attention_dropout": 1.5}, r"field 'attention_dropout':\s.*got 1.5"),
    ({"position_embedding_type": "rope", "head_dim": 7}, "head_dim=7 must be even"),
    ({"position_embedding_type": "alibi"}, "position_embedding_type"),
    ({"kl_threshold": float("nan")}, r"field 'kl_threshold':\s.*got nan"),
    ({"confidence_threshold": 2.0}, r"field 'confidence_threshold':\s.*got 2.0"),
    ({"norm_eps": -1.0}, r"field 'norm_eps':\s.*got -1.0"),
    (
        {"position_embedding_type": "rope", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
        "rope_parameters=.*Missing required keys.*factor.*Add what is missing",
    ),
    (
        {"position_embedding_type": "none", "rope_parameters": {"rope_type": "longrope", "factor": 2.0}},
        "rope_parameters=.*short_factor.*Add what is missing",
    ),
    (
        {"position_embedding_type": "rope", "rope_parameters": {"rope_type": "linear", "factor": "x"}},
        "rope_parameters\\['factor'\\]='x' must be a number of at least 1",
    ),
    (
        {"position_embedding_type": "rope", "rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        "layer types full_attention",
    ),
    (
        {"position_embedding_type": "rope", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.4}},
        "'partial_rotary_factor'.=0.4 must be above 0, at most 1, and rotate an even number",
    ),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[message for _, message in BAD_FIELDS])
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("field", "hint"), [("num_recurences", "num_recurrences"), ("recurrence_mn", "recurrence_min"), ("halting", None)]
)
def test_misspelt_fields_are_refused(field, hint):
    with pytest.raises(TypeError, match=f"Did you mean '{hint}'" if hint else field):
        RecurrentDepthConfig(**{field: 3})
    with pytest.raises(TypeError, match="num_recurrent_layers"):
        RecurrentDepthConfig(num_hidden_layers=3)


def test_fields_survive_a_file(tmp_path):
    config = tiny_config(
        "llama",
        num_prelude_layers=1,
        num_coda_layers=2,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
        recurrence_sampling="poisson",
        recurrence_min=2,
        halting_criterion="kl",
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is RecurrentDepthConfig
    elsewhere = ("_name_or_path", "transformers_version")
    assert {**loaded.to_dict(), **dict.fromkeys(elsewhere)} == {**config.to_dict(), **dict.fromkeys(elsewhere)}
    # Two recurrent layers, three times, between one and two others: the key-value slots of a token.
    assert loaded.num_hidden_layers == 1 + 2 * 3 + 2 and loaded.num_physical_layers == 5
    assert "num_hidden_layers" not in json.loads((tmp_path / "config.json").read_text())


def test_keys_of_a_later_release_are_kept_with_a_warning(tmp_path, capture_warnings):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "field_of_tomorrow": 7}))
    with capture_warnings() as text:
        assert AutoConfig.from_pretrained(tmp_path).field_of_tomorrow == 7
    assert "does not know and keeps as they are: field_of_tomorrow" in text()
    with pytest.raises(TypeError, match="field_of_tomorrow"):
        RecurrentDepthConfig(field_of_tomorrow=7)


def test_layer_types_in_a_file_are_dropped_with_a_warning(tmp_path, capture_warnings):
    """Other tools write them; here they follow from other fields."""
    config = tiny_config("llama", num_prelude_layers=1, sliding_window=4)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    assert "layer_types" not in values
    path.write_text(json.dumps({**values, "layer_types": ["full_attention"] * 7}))
    with capture_warnings() as text:
        loaded = AutoConfig.from_pretrained(tmp_path)
    assert "layer_types, which is not read: the types of layers follow from sliding_window" in text()
    assert loaded.layer_types == config.layer_types == ["full_attention"] + ["sliding_attention"] * 6
    loaded.save_pretrained(tmp_path)
    assert "layer_types" not in json.loads(path.read_text())


def test_keys_of_other_packages_are_registered(tmp_path, monkeypatch, capture_warnings):
    monkeypatch.setattr(RecurrentDepthConfig, "registered_keys", set())
    RecurrentDepthConfig.register_key("notes_of_a_package")
    config = tiny_config(notes_of_a_package={"a": 1})
    config.save_pretrained(tmp_path)
    with capture_warnings() as text:
        assert AutoConfig.from_pretrained(tmp_path).notes_of_a_package == {"a": 1}
    assert "notes_of_a_package" not in text()
    with pytest.raises(TypeError, match="notes_of_another"):
        tiny_config(notes_of_another=1)


def test_the_config_of_another_architecture_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model of type 'llama', which cannot be loaded as a 'recurrent_depth'"):
        RecurrentDepthForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("gated", [True, False])
def test_the_tensor_parallel_plan_names_what_is_there(gated):
    for stacks in ({}, {"num_prelude_layers": 1, "num_coda_layers": 2}):
        model = RecurrentDepthForCausalLM(tiny_config(gated_mlp=gated, **stacks))
        linear = {
            re.sub(r"\.\d+\.", ".*.", name)
            for name, module in model.model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        # transformers 5.17 adds the embedding by itself.
        assert set(model.config.base_model_tp_plan) - {"embed_tokens"} == linear


def test_presets_are_the_two_block_families():
    gpt2, llama = RecurrentDepthConfig.gpt2_style(), RecurrentDepthConfig.llama_style()
    assert (gpt2.norm_type, gpt2.gated_mlp, gpt2.hidden_act) == ("layernorm", False, "gelu_new")
    assert (llama.norm_type, llama.gated_mlp, llama.hidden_act) == ("rmsnorm", True, "silu")
    assert gpt2.tie_word_embeddings and not llama.tie_word_embeddings
    assert RecurrentDepthConfig.gpt2_style(hidden_act="relu").hidden_act == "relu"
    assert RecurrentDepthConfig(halting_criterion="none").halting_criterion is None
