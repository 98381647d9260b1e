"""Attention maps against a softmax by hand and an unrolled Llama, and shares against a loop over pairs."""

import itertools
import math

import numpy as np
import pytest
import torch
from small_tokenizers import MODELS, gpt2, llama
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from unfused import llama_weights

from memreason_hf.analysis.attention_maps import eager_attention, kind_shares, read_attention, uniform_attention
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


VOCAB = 40
NAMES = ("question", "memory", "reason", "answer")


def random_ids(length=11):
    return torch.randint(3, VOCAB, (length,)).tolist()


def larger_weights(model):
    """Scales the weights, so that maps are far from even."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(0.3 / parameter.std().clamp_min(1e-6))
    return model.eval()


def causal_softmax(query, key):
    """`(heads, tokens, head_dim)` twice -> `(heads, tokens, tokens)`."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, -math.inf).softmax(-1)


def heads_of(states, num_heads):
    return states.reshape(states.shape[0], num_heads, -1).transpose(0, 1)


def rotated(states, base=10000.0):
    """Rotary positions as a product of complex numbers, the halves of a head being real and imaginary parts."""
    half = states.shape[-1] // 2
    angles = torch.arange(states.shape[1])[:, None] * base ** (-torch.arange(half) / half)
    turned = torch.complex(states[..., :half], states[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)


def test_one_llama_layer_by_hand():
    model = larger_weights(llama(VOCAB, num_key_value_heads=1))
    ids = random_ids()
    (layer,) = read_attention(model, ids).layers
    block = model.model.layers[0]
    with torch.no_grad():
        states = block.input_layernorm(model.model.embed_tokens(torch.tensor(ids)))
        query = rotated(heads_of(block.self_attn.q_proj(states), 2))
        key = rotated(heads_of(block.self_attn.k_proj(states), 1)).expand(2, -1, -1)
        expected = causal_softmax(query, key)
    assert (layer.layer, layer.recurrence) == (1, None)
    np.testing.assert_allclose(layer.by_head(), expected.numpy(), atol=1e-6)
    # A control: the maps are not near even attention.
    assert np.abs(expected.numpy() - uniform_attention(len(ids))).max() > 0.1


def test_one_gpt2_layer_by_hand():
    model = larger_weights(gpt2(VOCAB))
    ids = random_ids()
    (layer,) = read_attention(model, ids).layers
    block = model.transformer.h[0]
    with torch.no_grad():
        places = model.transformer.wpe(torch.arange(len(ids)))
        states = block.ln_1(model.transformer.wte(torch.tensor(ids)) + places)
        query, key, _ = (states @ block.attn.c_attn.weight + block.attn.c_attn.bias).chunk(3, dim=-1)
        expected = causal_softmax(heads_of(query, 2), heads_of(key, 2))
    np.testing.assert_allclose(layer.by_head(), expected.numpy(), atol=1e-6)


def looped(**kwargs):
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_recurrent_layers": 2,
        "num_recurrences": 3,
        "max_recurrences": 12,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        **kwargs,
    }
    return RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**values)).eval()


def unrolled(model, num_recurrences):
    """A Llama of transformers with the layers of the loop unrolled."""
    config, inner = model.config, model.model
    blocks = [*inner.prelude_layers, *(list(inner.recurrent_layers) * num_recurrences), *inner.coda_layers]
    twin = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=len(blocks),
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.norm_eps,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    weights = {"model.embed_tokens.weight": inner.embed_tokens.weight, "model.norm.weight": inner.norm.weight}
    weights["lm_head.weight"] = model.lm_head.weight
    for index, block in enumerate(blocks):
        weights |= {f"model.layers.{index}.{name}": value for name, value in llama_weights(block).items()}
    twin.load_state_dict(weights, strict=True)
    return twin.eval()


@pytest.mark.parametrize(("prelude", "coda", "num_recurrences"), [(0, 0, 4), (1, 2, 3), (2, 0, 1)])
def test_recurrences_are_the_layers_of_the_unrolled_model(prelude, coda, num_recurrences):
    model = looped(num_prelude_layers=prelude, num_coda_layers=coda)
    ids = random_ids()
    attention = read_attention(model, ids, num_recurrences=num_recurrences)
    plain = read_attention(unrolled(model, num_recurrences), ids)
    assert attention.num_recurrences == num_recurrences and attention.num_layers == prelude + 2 + coda
    assert plain.num_recurrences is None and plain.num_layers == prelude + 2 * num_recurrences + coda

    def same(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)

    for recurrence in range(1, num_recurrences + 1):
        both = [prelude + 2 * (recurrence - 1) + layer for layer in (1, 2)]
        for layer, depth in enumerate(both, start=prelude + 1):
            for head in (1, 4):
                (shown,) = attention.select(layer, head, recurrence)
                assert shown.recurrence == recurrence
                same(shown.weights, plain.select(depth, head)[0].weights)
        (mean,) = attention.select(recurrence=recurrence)
        same(mean.weights, np.mean([plain.select(depth)[0].weights for depth in both], axis=0))
    assert [shown.recurrence for shown in attention.select()] == list(range(1, num_recurrences + 1))
    for layer in range(1, prelude + 1):
        (shown,) = attention.select(layer)
        assert shown.recurrence is None
        same(shown.weights, plain.select(layer)[0].weights)
    for layer in range(1, coda + 1):
        (shown,) = attention.select(prelude + 2 + layer)
        same(shown.weights, plain.select(prelude + 2 * num_recurrences + layer)[0].weights)


def test_the_depth_is_fixed():
    halting = {"halting_criterion": "state_difference", "state_difference_threshold": 1e9, "min_recurrences": 2}
    model = looped(input_injection="add", state_norm="rmsnorm", **halting)
    ids = random_ids()
    with torch.no_grad():
        assert model(torch.tensor([ids])).num_recurrences.max() == 2
    assert read_attention(model, ids).num_recurrences == 3
    attention = read_attention(model, ids, num_recurrences=5)
    maps = attention.select(layer=1)
    assert len(maps) == 5 and len(attention.layers) == 10
    # The maps of the recurrences differ.
    assert all(np.abs(a.weights - b.weights).max() > 1e-4 for a, b in itertools.pairwise(maps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_rows_sum_to_one_and_nothing_ahead_is_seen(name, dtype):
    model = larger_weights(MODELS[name](VOCAB)).to(dtype)
    for shown in read_attention(model, random_ids()).select():
        assert shown.weights.dtype == np.float32
        np.testing.assert_allclose(shown.weights.sum(-1), 1, atol=1e-6)
        assert not np.triu(shown.weights, 1).any()


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_is_switched_and_put_back(name):
    model = MODELS[name](VOCAB)
    ids = random_ids()
    model.set_attn_implementation("eager")
    expected = read_attention(model, ids).select()
    model.set_attn_implementation("sdpa")
    model.train()
    found = read_attention(model, ids).select()
    assert model.training and model.config._attn_implementation == "sdpa"
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.weights, theirs.weights)
    with pytest.raises(RuntimeError, match="on purpose"), eager_attention(model):
        assert model.config._attn_implementation == "eager"
        raise RuntimeError("on purpose")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["llama", "gpt2", "recurrent"])
def test_a_model_with_an_adapter(name):
    peft = pytest.importorskip("peft")
    model = larger_weights(MODELS[name](VOCAB))
    ids = random_ids()
    plain = read_attention(model, ids).select()[0].weights
    embedding = next(key for key, module in model.named_modules() if module is model.get_input_embeddings())
    targets = [{"gpt2": "c_attn", "llama": "q_proj", "recurrent": "qkv_proj"}[name]]
    settings = {"trainable_token_indices": {embedding: [4, 5]}, "fan_in_fan_out": name == "gpt2"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, **settings))
    np.testing.assert_allclose(read_attention(adapted, ids).select()[0].weights, plain, atol=1e-6)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_()
    assert np.abs(read_attention(adapted, ids).select()[0].weights - plain).max() > 1e-3


def test_means_over_layers_and_heads():
    attention = read_attention(larger_weights(llama(VOCAB, num_hidden_layers=3)), random_ids())
    by_head = np.stack([layer.by_head() for layer in attention.layers])
    assert by_head.shape[:2] == (3, 2) == (attention.num_layers, attention.num_heads)
    np.testing.assert_array_equal(attention.select(2, 1)[0].weights, by_head[1, 0])
    for chosen, expected in (
        ((2, None), by_head[1].mean(0)),
        ((None, 2), by_head[:, 1].mean(0)),
        ((None, None), by_head.mean((0, 1))),
    ):
        np.testing.assert_allclose(attention.select(*chosen)[0].weights, expected, atol=1e-7)


def test_what_is_not_there():
    plain = read_attention(llama(VOCAB, num_hidden_layers=3), random_ids())
    deep = read_attention(looped(num_prelude_layers=1), random_ids())
    for attention, arguments, message in (
        (plain, {"layer": 4}, "layer=4: there are layers 1 to 3"),
        (plain, {"layer": 0}, "layer=0: there are layers 1 to 3"),
        (plain, {"head": 3}, "head=3: there are heads 1 to 2"),
        (plain, {"recurrence": 1}, "recurrence=1: each layer of this model runs once"),
        (deep, {"layer": 4}, "layer=4: there are layers 1 to 3"),
        (deep, {"recurrence": 4}, "recurrence=4: there are recurrences 1 to 3"),
        (deep, {"layer": 1, "recurrence": 1}, "recurrence=1: layer 1 lies outside the loop"),
    ):
        with pytest.raises(ValueError, match=message):
            attention.select(**arguments)


def test_what_cannot_be_read():
    with pytest.raises(ValueError, match="has 9 tokens, but the model's context is 8"):
        read_attention(llama(VOCAB, max_position_embeddings=8), random_ids(9))
    assert read_attention(llama(VOCAB, max_position_embeddings=8), random_ids(8)).num_layers == 1
    with pytest.raises(ValueError, match="the id 40, but the model has only 40 embedding rows"):
        read_attention(llama(VOCAB), [3, VOCAB])
    with pytest.raises(ValueError, match="has no tokens"):
        read_attention(llama(VOCAB), [])
    with pytest.raises(ValueError, match="num_recurrences=2: a 'llama' model has no recurrences"):
        read_attention(llama(VOCAB), random_ids(), num_recurrences=2)
    with pytest.raises(ValueError, match="num_recurrences=0 must be at least 1"):
        read_attention(looped(), random_ids(), num_recurrences=0)


@pytest.mark.parametrize("make", [llama, lambda size: looped()])
def test_an_attention_without_weights(make):
    """An attention implementation that is not one of transformers."""

    def blind(module, query, key, value, attention_mask, **kwargs):
        return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(1, 2).contiguous(), None

    AttentionInterface.register("blind_for_a_test", blind)
    try:
        model = make(VOCAB)
        model.set_attn_implementation("blind_for_a_test")
        with pytest.raises(ValueError, match="attn_implementation='blind_for_a_test'"):
            read_attention(model, random_ids())
        assert model.config._attn_implementation == "blind_for_a_test"
    finally:
        AttentionInterface._global_mapping.pop("blind_for_a_test")


def brute_force(weights, kinds, attending, attended):
    total, count = 0.0, 0
    for i, kind in enumerate(kinds):
        if kind == attending:
            count += 1
            total += sum(float(weights[i, j]) for j, other in enumerate(kinds) if other == attended)
    return total / count


def test_shares_against_a_loop_over_pairs():
    rng = np.random.default_rng(np.random.randint(2**31))
    for _ in range(20):
        num_tokens = int(rng.integers(4, 30))
        weights = np.tril(rng.exponential(size=(num_tokens, num_tokens)))
        weights /= weights.sum(-1, keepdims=True)
        kinds = [*NAMES[: int(rng.integers(1, 4))], *rng.choice(NAMES, num_tokens)][:num_tokens]
        found = kind_shares(weights, kinds)
        assert list(found.kinds) == [name for name in NAMES if name in kinds]
        assert found.counts == tuple(kinds.count(name) for name in found.kinds)
        expected = [[brute_force(weights, kinds, a, b) for b in found.kinds] for a in found.kinds]
        np.testing.assert_allclose(found.shares, expected, atol=1e-12)
        np.testing.assert_allclose(found.shares.sum(-1), 1, atol=1e-12)
        # Several maps at once. The shares of all tokens are means weighted by the number of tokens.
        both = kind_shares(np.stack([weights, uniform_attention(num_tokens)]), kinds)
        np.testing.assert_allclose(both.shares[0], found.shares)
        overall = np.array(found.counts) @ found.shares / num_tokens
        np.testing.assert_allclose(
            overall, [weights[:, np.array(kinds) == name].sum() / num_tokens for name in found.kinds]
        )


def test_shares_of_even_attention_by_hand():
    found = kind_shares(uniform_attention(4), ["question", "memory", "memory", "reason"])
    expected = [[1, 0, 0], [(1 / 2 + 1 / 3) / 2, (1 / 2 + 2 / 3) / 2, 0], [1 / 4, 1 / 2, 1 / 4]]
    np.testing.assert_allclose(found.shares, expected)


def test_shares_need_a_kind_for_each_token():
    with pytest.raises(ValueError, match=r"weights has shape \(4, 4\), but kinds has 3 entries"):
        kind_shares(uniform_attention(4), ["memory"] * 3)
    # Other names may be used, and come last.
    assert kind_shares(uniform_attention(3), ["b", "memory", "a"]).kinds == ("memory", "b", "a")
