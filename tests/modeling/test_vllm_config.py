"""What vLLM reads from the config of a model, and what is refused before it would be served with other texts."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from recurrent_models import tiny_config, tiny_model
from transformers import AutoConfig, GenerationConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_recurrent import RecurrentDepthModel
from modeling_recurrent.blocks_recurrent import RecurrentDepthSplitAttention
from modeling_recurrent.families_recurrent import FAMILIES
from modeling_recurrent.vllm_recurrent import check_heads


@pytest.fixture
def vllm(monkeypatch):
    """Makes a model as vLLM does: its name is that of a registered attention function."""
    name = "vllm"
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, None)

    def make(config, **overrides):
        config.update(overrides)
        config._attn_implementation = name
        return RecurrentDepthModel(config)

    return make


@pytest.mark.parametrize("style", ["gpt2", "llama", *(f"family:{name}" for name in FAMILIES)])
def test_every_slot_says_what_vllm_reads(vllm, style):
    model = vllm(tiny_config(style, num_prelude_layers=1, num_coda_layers=1))
    config = model.config
    slots = model.key_value_slots
    assert len(slots) == config.num_hidden_layers == len(config.layer_types) == 8
    assert [slot.layer_idx for slot in slots] == list(range(8))
    for slot in slots:
        assert isinstance(slot.scaling, float) and slot.config is config and not list(slot.parameters())
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    if hasattr(slots[0], "sliding_window"):
        # EXAONE 4 has the attribute in all layers, and another one that says in which it counts.
        assert [getattr(slot, "is_sliding", slot.sliding_window is not None) for slot in slots] == windows
    assert not any(windows) or config.sliding_window == 5


def test_the_factor_of_logits_is_a_factor(vllm):
    model = vllm(tiny_config("family:granite"))
    assert model.config.logit_scale == 0.5
    assert not hasattr(vllm(tiny_config("family:llama")).config, "logit_scale")
    assert vllm(tiny_config("family:gemma2")).config.final_logit_softcapping == 3.0


@pytest.mark.parametrize(
    ("fields", "overrides", "message"),
    [
        ({"halting_criterion": "kl"}, {}, "num_recurrences=3 recurrences, but the config has halting_criterion='kl'"),
        ({"cache_recurrences": "last"}, {}, "the config has cache_recurrences='last'"),
        ({"recurrence_lora_rank": 2}, {}, "recurrence_lora_rank=2, updates of them that differ"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            {},
            "with rope_type='dynamic' positions depend on the longest text",
        ),
        ({}, {"num_recurrences": 0}, "num_recurrences"),
        ({}, {"num_recurences": 8}, "Did you mean 'num_recurrences'"),
    ],
)
def test_what_would_change_the_texts_is_refused(vllm, fields, overrides, message):
    config = tiny_config("llama", **fields)
    RecurrentDepthModel(config)  # the control: only in vLLM
    with pytest.raises((ValueError, TypeError, StrictDataclassError), match=message):
        vllm(config, **overrides)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"halting_criterion": "kl"}, {"halting_criterion": None}),
        ({"cache_recurrences": "last"}, {"cache_recurrences": "all"}),
    ],
)
def test_the_remedy_of_the_message_works(vllm, fields, remedy):
    vllm(tiny_config("llama", **fields), **remedy)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("halting_criterion", "kl", "or serve with `memreason serve`"),
        ("cache_recurrences", "last", "or serve with `memreason serve`"),
        ("num_recurrences", 6, "or set num_recurrences=6 in the config, for one server with --hf-overrides"),
    ],
)
def test_the_remedy_for_a_generation_config_works(vllm, tmp_path, name, value, remedy):
    model = tiny_model("llama", num_recurrences=3)
    setattr(model.generation_config, name, value)
    model.save_pretrained(tmp_path)
    message = rf"ignores {name}={value!r} .* Remove it from generation_config.json, {remedy}\."
    with pytest.raises(ValueError, match=message):
        vllm(AutoConfig.from_pretrained(tmp_path))
    if "--hf-overrides" in remedy:
        assert getattr(vllm(AutoConfig.from_pretrained(tmp_path), **{name: value}).config, name) == value
    else:
        with pytest.raises(ValueError, match="vLLM would change the texts"):
            vllm(AutoConfig.from_pretrained(tmp_path), **{name: value})
    path = tmp_path / "generation_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    assert fields.pop(name) == value
    path.write_text(json.dumps(fields), encoding="utf-8")
    vllm(AutoConfig.from_pretrained(tmp_path))


def test_attention_between_steps_is_refused(vllm):
    """vLLM has its own attention. A setting that was removed again leaves a record without a variant."""
    step = {"variant": "tokens", "tokens": {"prefix": [50]}}
    config = tiny_config("llama")
    config.step_attention = step
    with pytest.raises(ValueError, match="the config has step_attention with variant='tokens'"):
        vllm(config)
    config.step_attention = {**step, "variant": None}
    vllm(config)


def test_a_depth_in_the_generation_config_is_not_forgotten(vllm, tmp_path):
    model = tiny_model("llama", num_recurrences=3)
    model.generation_config.num_recurrences = 6
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).num_recurrences == 6
    with pytest.raises(ValueError, match=r"ignores num_recurrences=6 .* and the config has 3"):
        vllm(AutoConfig.from_pretrained(tmp_path))
    # What is set for this server is intentional.
    for depth in (6, 8):
        assert vllm(AutoConfig.from_pretrained(tmp_path), num_recurrences=depth).config.num_recurrences == depth


def test_stages_of_a_pipeline_are_refused(vllm):
    with pytest.raises(ValueError, match="pipeline_parallel_size must be 1"):
        vllm(tiny_config("llama")).supports_pp_plan  # noqa: B018
    assert not RecurrentDepthModel(tiny_config("llama")).supports_pp_plan


def test_the_attention_for_vllm_computes_the_same():
    """The forward pass with three products of heads, against the one with a joint rotation."""
    model = tiny_model("llama", num_key_value_heads=2)
    ids = torch.randint(1, 61, (2, 9))
    expected = model(ids, use_cache=False).logits
    for layer in model.model.layers:
        layer.self_attn.__class__ = RecurrentDepthSplitAttention
    assert torch.allclose(model(ids, use_cache=False).logits, expected, atol=1e-6)


def test_heads_that_vllm_does_not_split_are_refused():
    query, key = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8)
    check_heads(SimpleNamespace(attn=SimpleNamespace(num_heads=4, num_kv_heads=2)), query, key)
    with pytest.raises(ValueError, match="4 query heads and 2 key heads, but vLLM expects 2 and 1"):
        check_heads(SimpleNamespace(attn=SimpleNamespace(num_heads=2, num_kv_heads=1)), query, key)
