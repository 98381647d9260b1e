"""Rotary positions: parts of a head, scaled variants, memory that starts empty."""

import pytest
import torch
from recurrent_models import random_ids, relative_error, tiny_config, tiny_model
from transformers import StableLmConfig, StableLmForCausalLM
from unfused import llama_weights

from modeling_recurrent import RecurrentDepthForCausalLM


ROPES = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
]


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
@torch.no_grad()
def test_partial_rotation_is_that_of_stablelm(rope, factor):
    """StableLM has the blocks of our Llama style with LayerNorm, and rotates the first part of each head."""
    parameters = {"rope_theta": 5e3, "partial_rotary_factor": factor, **rope}
    model = tiny_model(
        "llama", norm_type="layernorm", rope_parameters=dict(parameters), num_recurrences=1, num_recurrent_layers=3
    )
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
    twin = StableLmForCausalLM(
        StableLmConfig(
            **{name: getattr(model.config, name) for name in shared},
            num_hidden_layers=3,
            num_key_value_heads=4,
            layer_norm_eps=model.config.norm_eps,
            rope_parameters=dict(parameters),
        )
    ).eval()
    for block, layer in zip(model.model.recurrent_layers, twin.model.layers, strict=True):
        layer.load_state_dict(llama_weights(block))
    twin.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    twin.model.norm.load_state_dict(model.model.norm.state_dict())
    twin.lm_head.load_state_dict(model.lm_head.state_dict())
    for length in (11, 90):  # the second is beyond the length from which dynamic scaling starts
        ids = random_ids(2, length)
        logits = model(ids).logits
        assert relative_error(logits, twin(ids).logits) < 1e-5
    if factor < 1:  # the control: a whole rotation is another model
        twin.config.rope_parameters["partial_rotary_factor"] = 1.0
        whole = StableLmForCausalLM(twin.config).eval()
        whole.load_state_dict(twin.state_dict())
        assert relative_error(logits, whole(ids).logits) > 1e-3


@pytest.mark.parametrize("rope", ROPES[:2], ids=lambda rope: rope["rope_type"])
@torch.no_grad()
def test_a_model_made_on_the_meta_device(rope, poisoned_memory):
    config = tiny_config("llama", rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5, **rope})
    expected = RecurrentDepthForCausalLM(config).model.rotary_emb
    with torch.device("meta"):
        model = RecurrentDepthForCausalLM(config)
    model.to_empty(device="cpu")
    assert model.model.rotary_emb.inv_freq.isnan().all()
    model.init_weights()
    for name in ("inv_freq", "original_inv_freq"):
        assert torch.equal(getattr(model.model.rotary_emb, name), getattr(expected, name))
    assert model(random_ids(1, 4)).logits.isfinite().all()


@torch.no_grad()
def test_frequencies_keep_their_precision():
    model = tiny_model("llama").to(torch.bfloat16)
    exact = tiny_model("llama").model.rotary_emb.inv_freq
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(model.model.rotary_emb.inv_freq, exact)
    assert not torch.equal(exact, exact.bfloat16().float())
