"""The static cache gives the same tokens, keeps its buffers, and lets prefill and decoding compile whole."""

import pytest
import torch
from recurrent_models import depth_calls, pad, random_ids, relative_error, tiny_model

from modeling_recurrent import RecurrentDepthStaticCache


GRID = [
    ("gpt2", {"input_injection": "add", "state_norm": "layernorm"}),
    ("gpt2", {"position_embedding_type": "none", "sliding_window": 3, "input_injection": "concat"}),
    ("llama", {"num_key_value_heads": 2, "input_injection": "add"}),
    ("llama", {"sliding_window": 3, "num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add"}),
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
    for call in ({"num_recurrences": 4}, {"num_recurrences": 4, "num_beams": 2}, {}):
        plain = generate(model, ids, mask, **call)
        static = generate(model, ids, mask, cache_implementation="static", **call)
        for name in ("sequences", "num_recurrences", "prompt_recurrences"):
            assert torch.equal(getattr(plain, name), getattr(static, name)), name


@pytest.mark.parametrize(("style", "extra"), GRID)
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


def test_what_changes_sizes_is_refused():
    model = tiny_model()
    ids = random_ids(2, 4)
    with pytest.raises(ValueError, match="int num_recurrences"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static", halting_criterion="kl")
    with pytest.raises(ValueError, match="int num_recurrences"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static", num_recurrences=torch.tensor([1, 2]))
    cache = RecurrentDepthStaticCache(model.config, 2, 8, num_recurrences=2)
    with pytest.raises(ValueError, match="num_recurrences=3 is above the 2 slots"):
        model(ids, past_key_values=cache, num_recurrences=3)
