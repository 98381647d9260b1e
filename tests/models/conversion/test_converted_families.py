"""Decoders of all families become recurrent and plain again; every difference that should be 0.0 is."""

import copy

import pytest
import torch
from family_models import FAMILY_NAMES, NUM_LAYERS, OTHER_NAMES, tiny_source
from transformers import BertConfig, MambaConfig, MixtralConfig, T5Config

from memreason_hf.models import convert_decoder, unroll_decoder
from memreason_hf.models.conversion.decoder import check_family
from memreason_hf.models.conversion.exactness import (
    CASES,
    compute_logits,
    differences,
    in_float32,
    make_prompts,
    remove_layers,
)
from memreason_hf.models.conversion.layers import plan_layers
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from modeling_recurrent.families_recurrent import FAMILIES


EXACT = dict.fromkeys(CASES, 0.0)
# What differs by more than this is not rounding: the logits are of the order of 1.
VISIBLE = 1e-3
LAYERS = {"all layers": (2, 2, 2), "layers dropped": (1, 2, 1)}


def compare(source, converted, num_recurrences=1):
    prompts = make_prompts(source.config)
    return differences(compute_logits(source, prompts), compute_logits(converted, prompts, num_recurrences))


def layers_of(model):
    decoder = model.get_submodule(model.base_model_prefix)
    return getattr(decoder, FAMILIES[model.config.model_type].layers)


@pytest.mark.parametrize("sizes", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("name", FAMILY_NAMES + OTHER_NAMES)
def test_one_recurrence_is_the_source(name, sizes, tmp_path):
    source = tiny_source(name)
    plan = plan_layers(NUM_LAYERS, *sizes)
    prelude, loop, coda = sizes
    converted = convert_decoder(source, prelude=prelude, loop=loop, coda=coda)
    converted.save_pretrained(tmp_path)
    del converted
    remove_layers(source, plan)
    assert len(layers_of(source)) == sum(sizes)
    loaded = RecurrentDepthForCausalLM.from_pretrained(
        tmp_path, attn_implementation=source.config._attn_implementation
    )
    assert compare(source, loaded) == EXACT


def rope(kind, **parameters):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **parameters}}


_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 12}
VARIANTS = {
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "no cache by default": ("llama", {"use_cache": False}),
    "ends": ("llama", {"pad_token_id": None, "eos_token_id": [2, 5]}),
    "llama3": ("llama", rope("llama3", factor=4.0, **_BANDS)),
    "yarn": ("qwen3", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "longrope": ("phi3", {"original_max_position_embeddings": 12, **rope("longrope", **_FACTORS)}),
    "partial rotary": ("phi3", rope("default", partial_rotary_factor=0.5)),
    "no window": ("qwen2", {"use_sliding_window": False}),
}


@pytest.mark.parametrize(("name", "overrides"), VARIANTS.values(), ids=VARIANTS)
def test_variants_of_a_family_come_along(name, overrides, tmp_path):
    source = tiny_source(name, **overrides)
    convert_decoder(source, prelude=1, loop=2, coda=1).save_pretrained(tmp_path)
    remove_layers(source, plan_layers(NUM_LAYERS, 1, 2, 1))
    assert compare(source, RecurrentDepthForCausalLM.from_pretrained(tmp_path)) == EXACT
    if "rope_parameters" in overrides:
        # A control: the plain rotation is another one.
        assert min(compare(source, convert_decoder(tiny_source(name), prelude=1, loop=2, coda=1)).values()) > VISIBLE


REFUSED = {
    "t5": (T5Config(), "it is an encoder-decoder"),
    "mixtral": (MixtralConfig(), "its layers choose among experts"),
    "mamba": (MambaConfig(), "its layers keep a running state"),
    "bert": (BertConfig(), "its layers are not known to run in a loop"),
    "recurrent": (RecurrentDepthConfig(), "The source is a recurrent-depth model already"),
}


@pytest.mark.parametrize(("config", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_looped_is_refused_by_name(config, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        check_family(config)
    if config.model_type != "recurrent_depth":
        assert repr(config.model_type) in str(refusal.value) and "gemma3_text" in str(refusal.value)


def test_a_quantised_model_is_refused():
    source = tiny_source("llama")
    source.is_quantized = True
    with pytest.raises(ValueError, match="The source is quantised"):
        convert_decoder(source)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="The source is a LlamaModel, which has no language-model head"):
        convert_decoder(tiny_source("llama").model)


def test_weights_are_shared_only_on_request():
    source = tiny_source("llama", tie_word_embeddings=True)
    own, shared = convert_decoder(source), convert_decoder(source, share_weights=True)
    pointers = {parameter.data_ptr() for parameter in source.parameters()}
    assert not pointers & {parameter.data_ptr() for parameter in own.parameters()}
    names = [name for name, parameter in shared.named_parameters() if parameter.data_ptr() not in pointers]
    assert names == ["model.injection.weight"]
    assert shared.lm_head.weight is shared.model.embed_tokens.weight


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_an_unrolled_loop_is_the_loop(name, tmp_path):
    looped = convert_decoder(tiny_source(name), prelude=1, loop=2, coda=1, input_injection="none")
    unroll_decoder(looped, 3).save_pretrained(tmp_path)
    plain_class = type(tiny_source(name))
    plain = plain_class.from_pretrained(tmp_path, attn_implementation=looped.config._attn_implementation)
    assert len(layers_of(plain)) == 1 + 3 * 2 + 1
    prompts = make_prompts(looped.config)
    expected = compute_logits(looped, prompts, num_recurrences=3)
    assert differences(expected, compute_logits(plain, prompts)) == EXACT
    # A control: another depth is seen.
    assert min(differences(compute_logits(looped, prompts, 2), compute_logits(plain, prompts)).values()) > VISIBLE


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_controls_swapped_layers_and_an_open_gate_are_seen(name):
    source = tiny_source(name)
    swapped = convert_decoder(source)
    layers = swapped.model.layers
    first, second = (copy.deepcopy(layers[index].state_dict()) for index in (2, 3))
    layers[2].load_state_dict(second)
    layers[3].load_state_dict(first)
    assert min(compare(source, swapped).values()) > VISIBLE
    closed, opened = convert_decoder(source), convert_decoder(source, injection_gate_init=1.0)
    assert max(compare(source, closed, num_recurrences=2).values()) == 0.0
    assert min(compare(source, opened, num_recurrences=2).values()) > VISIBLE
    assert compare(source, opened) == EXACT


def test_a_window_is_reached_over_and_padding_matters():
    """A control of the prompts: without its window, or with padding that is not masked, a decoder differs."""
    source = tiny_source("mistral")
    prompts = make_prompts(source.config)
    expected = compute_logits(source, prompts)
    wide = tiny_source("mistral", sliding_window=None)
    assert all(value > VISIBLE for value in differences(expected, compute_logits(wide, prompts)).values())
    short = prompts.mask("left").sum(1).tolist()
    assert len(set(short)) == 3 and min(short) > source.config.sliding_window
    assert not torch.equal(expected["left_padding"], expected["right_padding"])


def test_layers_are_removed_with_what_the_config_says_about_them():
    source, whole = tiny_source("smollm3"), tiny_source("smollm3")
    remove_layers(source, plan_layers(NUM_LAYERS, "0-0", "2-3", "5-5"))
    kept = [whole.model.layers[index] for index in (0, 2, 3, 5)]
    for place, (layer, original) in enumerate(zip(source.model.layers, kept, strict=True)):
        assert layer.self_attn.layer_idx == place
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, original.state_dict()[name])
    assert source.config.num_hidden_layers == 4
    for name in ("layer_types", "no_rope_layers"):
        listed = getattr(whole.config, name)
        assert getattr(source.config, name) == [listed[index] for index in (0, 2, 3, 5)]
        # A control: other layers would be listed otherwise.
        assert getattr(source.config, name) != listed[:4]


def test_bfloat16_weights_compute_in_float32():
    source = tiny_source("qwen3")
    low, copied = tiny_source("qwen3").bfloat16(), tiny_source("qwen3").bfloat16().float()
    ids = make_prompts(source.config).ids
    with torch.no_grad(), in_float32(low):
        logits = low(ids).logits
    assert logits.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(logits, copied(ids).logits)
        # Controls: bfloat16 itself differs, and the weights are back in their own dtype.
        assert (low(ids).logits.float() - logits).abs().max() > VISIBLE
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}


def test_weights_come_back_after_an_error():
    model = tiny_source("llama").bfloat16()
    with pytest.raises(RuntimeError), in_float32(model):
        model(torch.zeros(1, 3, 7, dtype=torch.long))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_is_not_finite_is_not_exact():
    logits = {"cached": torch.tensor([1.0, float("nan")])}
    assert differences(logits, logits) == {"cached": float("inf")}
    assert differences({"cached": torch.ones(2)}, {"cached": torch.ones(3)}) == {"cached": float("inf")}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"input_injection": "gate"}, "gates on the way back"),
        ({"input_injection": "concat"}, "input_injection='concat' mixes"),
        ({"input_injection": "none", "state_norm": "rmsnorm"}, "state_norm='rmsnorm' stands between"),
        ({"input_injection": "concat", "state_init": "normal"}, "state_init='normal' starts"),
        ({"input_injection": "none", "recurrence_lora_rank": 2}, "recurrence_lora_rank=2"),
    ],
)
def test_a_loop_that_a_plain_decoder_cannot_express(fields, reason):
    looped = convert_decoder(tiny_source("llama"), **fields)
    with pytest.raises(ValueError, match=reason):
        unroll_decoder(looped, 2)
    if "state_init" not in fields:
        assert unroll_decoder(looped, 1).config.num_hidden_layers == NUM_LAYERS
