"""The static cache gives the same tokens, keeps its buffers, and lets prefill and decoding compile whole."""

import pytest
import torch
from recurrent_models import depth_calls, pad, random_ids, relative_error, tiny_model

from modeling_recurrent import RecurrentDepthCache, RecurrentDepthStaticCache


GRID = [
    ("gpt2", {"input_injection": "add", "state_norm": "layernorm"}),
    ("gpt2", {"position_embedding_type": "none", "sliding_window": 3, "input_injection": "concat"}),
    ("llama", {"num_key_value_heads": 2, "input_injection": "add"}),
    ("llama", {"sliding_window": 3, "num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add"}),
    ("family:gemma3_text", {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "gate"}),
]


def generate(model, ids, mask, **kwargs):
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, **kwargs
    )


@pytest.mark.parametrize(("style", "extra"), GRID)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_same_tokens_and_depths(style, extra, attention):
    model = tiny_model(style, **extra).double()
    model.set_attn_implementation(attention)
    ids, mask = pad([random_ids(n) for n in (5, 3, 7)], "left")
    calls = {"num_recurrences": 4}, {"num_recurrences": 4, "num_beams": 2}, {}, {"cache_recurrences": "last"}
    for call in (*calls, {"num_recurrences": 4, "prefill_chunk_size": 3}):
        plain = generate(model, ids, mask, **call)
        static = generate(model, ids, mask, cache_implementation="static", **call)
        for name in ("sequences", "num_recurrences", "prompt_recurrences"):
            assert torch.equal(getattr(plain, name), getattr(static, name)), name


@pytest.mark.parametrize(("style", "extra"), GRID)
@pytest.mark.slow
def test_prefill_and_decoding_compile_whole(style, extra):
    model = tiny_model(style, **extra)
    text = random_ids(2, 9)
    depth = 3
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    cache = RecurrentDepthStaticCache(model.config, max_batch_size=2, max_cache_len=16, num_recurrences=depth)
    addresses = [layer.keys.data_ptr() for layer in cache.layers]
    with torch.no_grad():
        expected = model(text, num_recurrences=depth).logits
        pieces = [text[:, :5], *(text[:, i : i + 1] for i in range(5, 9))]
        seen, logits = 0, []
        for piece in pieces:
            seen += piece.shape[1]
            mask = model.create_masks_for_generate(
                model.config,
                inputs_embeds=torch.empty(2, piece.shape[1], 0),
                attention_mask=torch.ones(2, seen, dtype=torch.long),
                past_key_values=cache,
            )
            places = torch.arange(seen - piece.shape[1], seen)[None]
            output = compiled(
                piece, attention_mask=mask, position_ids=places, past_key_values=cache, num_recurrences=depth
            )
            logits.append(output.logits)
    assert relative_error(torch.cat(logits, dim=1), expected) < 1e-5
    assert addresses == [layer.keys.data_ptr() for layer in cache.layers]
    torch._dynamo.reset()


def test_adaptive_depth_compiles_its_blocks():
    model = tiny_model("llama", input_injection="add", state_norm="rmsnorm", initializer_range=0.25).double()
    ids, mask = pad([random_ids(n) for n in (5, 3, 7, 4)], "left")
    call = depth_calls(model)["token-state"]
    plain = generate(model, ids, mask, **call)
    torch._dynamo.reset()
    for block in model.model.recurrent_layers:
        block.mlp.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    compiled = generate(model, ids, mask, **call)
    assert torch.equal(plain.sequences, compiled.sequences)
    assert torch.equal(plain.num_recurrences, compiled.num_recurrences)
    assert len(plain.num_recurrences.unique()) >= 2
    torch._dynamo.reset()


def test_shallower_and_again():
    model = tiny_model("llama", input_injection="add").double()
    ids, step = random_ids(2, 4), random_ids(2, 1)
    cache = RecurrentDepthStaticCache(model.config, 2, 8, num_recurrences=5, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(2):
            model(ids, past_key_values=cache, num_recurrences=2)
            actual = model(step, past_key_values=cache, num_recurrences=5).logits
            counts = torch.tensor([[2, 2, 2, 2, 5]] * 2)
            expected = model(torch.cat((ids, step), dim=1), num_recurrences=counts).logits[:, -1:]
            assert relative_error(actual, expected) < 1e-10
            cache.crop(-1)
            assert int(cache.get_seq_length()) == 4
            assert relative_error(model(step, past_key_values=cache, num_recurrences=5).logits, expected) < 1e-10
            cache.reset()


def test_the_last_slot_alone():
    model = tiny_model("llama", input_injection="add", num_prelude_layers=1).double()
    ids = random_ids(2, 5)
    expected, actual = (
        generate(model, ids, None, cache_recurrences="last", output_logits=True, **call)
        for call in ({}, {"cache_implementation": "static"})
    )
    assert relative_error(torch.stack(actual.logits), torch.stack(expected.logits)) < 1e-6
    assert actual.past_key_values.layers[1].keys.shape[0] == 1
    exact = generate(model, ids, None, output_logits=True)
    assert relative_error(torch.stack(actual.logits[1:]), torch.stack(exact.logits[1:])) > 1e-3
    # One slot serves any depth.
    with torch.no_grad():
        cache = RecurrentDepthStaticCache(
            model.config, 2, 8, num_recurrences=1, dtype=torch.double, cache_recurrences="last"
        )
        assert relative_error(model(ids, past_key_values=cache).logits, model(ids).logits) < 1e-10


def test_depths_of_a_live_cache():
    model = tiny_model("llama", input_injection="add").double()
    ids = random_ids(2, 7)
    static = RecurrentDepthStaticCache(model.config, 2, 16, num_recurrences=5, dtype=torch.float64)
    caches = RecurrentDepthCache(model.config), static
    with torch.no_grad():
        for cache in caches:
            model(ids[:, :3], past_key_values=cache, num_recurrences=2)
            model(ids[:, 3:5], past_key_values=cache, num_recurrences=4)
    expected, actual = (generate(model, ids, None, past_key_values=cache, num_recurrences=5) for cache in caches)
    for name in ("sequences", "num_recurrences", "prompt_recurrences"):
        assert torch.equal(expected[name], actual[name]), name
    assert actual.prompt_recurrences.tolist() == [[2, 2, 2, 4, 4, 5, 5]] * 2


def test_what_changes_sizes_is_refused():
    model = tiny_model()
    ids = random_ids(2, 4)
    with pytest.raises(ValueError, match="int num_recurrences"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static", halting_criterion="kl")
    with pytest.raises(ValueError, match="int num_recurrences"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static", num_recurrences=torch.tensor([1, 2]))
    cache = RecurrentDepthStaticCache(model.config, 2, 8, num_recurrences=2)
    with pytest.raises(ValueError, match="num_recurrences=3 exceeds the 2 slots"):
        model(ids, past_key_values=cache, num_recurrences=3)


def test_a_cache_that_is_too_short_is_refused():
    model = tiny_model()
    ids = random_ids(2, 4)
    cache = RecurrentDepthStaticCache(model.config, 2, 9)
    for call in ({}, {"inputs_embeds": model.model.embed_tokens(ids)}):
        with pytest.raises(ValueError, match="room for 9 tokens, but a prompt of 4 tokens and 7 new ones need 10"):
            model.generate(None if call else ids, past_key_values=cache, max_new_tokens=7, **call)
    # The last token of a text is never read, so that one more fits.
    text = generate(model, ids, None, past_key_values=cache, num_recurrences=2).sequences
    assert text.shape == (2, 10) and int(cache.get_seq_length()) == 9
    with pytest.raises(ValueError, match="room for 9 tokens, but a prompt of 10 tokens and 6 new ones need 15"):
        generate(model, text, None, past_key_values=cache, num_recurrences=2)
