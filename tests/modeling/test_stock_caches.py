"""The library's own caches, which have a layer for each key-value slot: exact at fixed depth, or refused."""

import pytest
import torch
from engines import varied_model
from recurrent_models import DECODING_GRID, VOCAB, grid_ids, lively_model, pad, random_ids, same_decoding, tiny_model
from transformers import DynamicCache, EncoderDecoderCache, LlamaConfig, QuantizedCache, StaticCache, cache_utils

from memreason_hf.models.conversion.decoder import unroll_decoder
from modeling_recurrent import RecurrentDepthCache
from modeling_recurrent.stock_caches_recurrent import StockSlots, config_at


NEW_TOKENS = 6
CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "dynamic without a config": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config=config, max_cache_len=32),
}


def write(model, ids, mask, **kwargs):
    return model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        **kwargs,
    )


def keep_last(slots, *args):
    """In place of `StockSlots.commit`: all recurrences of a layer have the keys and values of the last one."""
    for start in slots.loop:
        layers = slots.cache.layers[start :: len(slots.loop)][: slots.depth]
        for layer in layers:
            layer.keys, layer.values = layers[-1].keys, layers[-1].values


@pytest.fixture
def prompts():
    return pad([random_ids(length) for length in (9, 4, 7)], "left")


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID, ids=grid_ids(DECODING_GRID))
def test_the_texts_and_depths_are_those_of_our_own_cache(style, extra, prompts, monkeypatch):
    """With the control: a cache with one slot for all recurrences gives other texts."""
    ids, mask = prompts
    depth = 4
    rows = [row[real.bool()] for row, real in zip(*prompts, strict=True)]
    model = varied_model(style, {**extra, "num_recurrences": depth}, rows)
    # The depth of the call is not that of the config.
    model.config.num_recurrences = 3
    expected = write(model, ids, mask, num_recurrences=depth)
    for name, make in CACHES.items():
        cache = make(config_at(model.config, depth))
        output = write(model, ids, mask, past_key_values=cache, num_recurrences=depth)
        assert same_decoding(output, expected), name
        assert output.past_key_values is cache
    monkeypatch.setattr(StockSlots, "commit", keep_last)
    cache = DynamicCache(config=config_at(model.config, depth))
    shared = write(model, ids, mask, past_key_values=cache, num_recurrences=depth).sequences
    assert not torch.equal(shared, expected.sequences)
    last = write(model, ids, mask, cache_recurrences="last", num_recurrences=depth)
    assert torch.equal(shared, last.sequences)


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize(("style", "extra"), [DECODING_GRID[4], DECODING_GRID[6]], ids=["own", "gemma3_text"])
def test_logits_by_pieces(style, extra, name):
    model = lively_model(style, extra)
    ids = random_ids(2, 20)
    cache = CACHES[name](model.config)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        pieces = [model(piece, past_key_values=cache).logits for piece in ids.split([7, 1, 1, 8, 1, 2], dim=1)]
    # A dynamic cache has keys and values of every slot, in the order of the slots.
    assert len(cache.layers) == model.config.num_hidden_layers
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-9)


@pytest.mark.parametrize(
    "mode", [{"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}, {"prefill_chunk_size": 4}], ids=str
)
def test_ways_of_decoding(mode, prompts):
    ids, mask = prompts
    model = lively_model("llama", {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add"})
    expected = write(model, ids, mask, **mode)
    assert same_decoding(write(model, ids, mask, past_key_values=DynamicCache(config=model.config), **mode), expected)


@pytest.mark.parametrize("window", [None, 3])
def test_drafts_that_are_rejected(window):
    """Prompt lookup crops the cache, also where layers keep a window."""
    model = lively_model("llama", {"num_prelude_layers": 1, "sliding_window": window})
    ids = random_ids(1, 4).repeat(1, 3)
    mask = torch.ones_like(ids)
    expected = write(model, ids, mask)
    cache = DynamicCache(config=model.config)
    assert same_decoding(write(model, ids, mask, past_key_values=cache, prompt_lookup_num_tokens=2), expected)


@pytest.mark.parametrize("name", CACHES)
def test_another_turn(name):
    model = lively_model("llama", {"num_prelude_layers": 1, "num_coda_layers": 1, "sliding_window": 4})
    cache, own = CACHES[name](model.config), RecurrentDepthCache(model.config)
    text, turn = random_ids(1, 7), random_ids(1, 4)
    outputs = []
    for past in (cache, own):
        first = write(model, text, torch.ones_like(text), past_key_values=past).sequences
        ids = torch.cat((first, turn), 1)
        outputs.append(write(model, ids, torch.ones_like(ids), past_key_values=past))
    assert same_decoding(*outputs)
    assert outputs[0].prompt_recurrences.shape[1] == 7 + NEW_TOKENS + 4


def test_gradients_flow_through_a_dynamic_cache():
    model = lively_model("llama", {"input_injection": "add"})
    ids = random_ids(2, 8)
    cache = DynamicCache(config=model.config)
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embeds[:, :5], past_key_values=cache, use_cache=True)
    model(inputs_embeds=embeds[:, 5:], past_key_values=cache, use_cache=True).logits.sum().backward()
    twin = embeds.detach().clone().requires_grad_()
    model(inputs_embeds=twin, use_cache=False).logits[:, 5:].sum().backward()
    assert torch.allclose(embeds.grad, twin.grad, atol=1e-9) and twin.grad[:, :5].abs().max() > 0


@pytest.mark.slow
def test_a_compiled_step_with_a_static_cache():
    model = tiny_model("llama", num_prelude_layers=1, num_coda_layers=1, input_injection="add")
    ids = random_ids(2, 8)
    cache = StaticCache(config=model.config, max_cache_len=16)
    step = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model(ids).logits[:, 5:]
        model(ids[:, :5], past_key_values=cache)
        logits = [step(ids[:, place : place + 1], past_key_values=cache).logits for place in (5, 6, 7)]
    assert torch.allclose(torch.cat(logits, 1), expected, atol=1e-5)


@pytest.mark.skipif(not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="transformers 5.17 has no fp8 cache")
def test_a_quantised_cache_is_that_of_the_unrolled_model(prompts):
    """It rounds, so the standard is a plain Llama with a layer for each slot, and the same rounding."""
    ids, mask = prompts
    model = tiny_model("family:llama", num_prelude_layers=1, num_coda_layers=1, initializer_range=0.25)
    plain = unroll_decoder(model, 3)
    assert isinstance(plain.config, LlamaConfig) and plain.config.num_hidden_layers == 8
    quantised = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}, "output_logits": True}
    expected = write(plain, ids, mask, **quantised)
    output = write(model, ids, mask, **quantised)
    assert isinstance(output.past_key_values, QuantizedCache) and len(output.past_key_values.layers) == 8
    assert torch.equal(output.sequences, expected.sequences)
    for logits, others in zip(output.logits, expected.logits, strict=True):
        assert torch.allclose(logits, others, atol=1e-4)
    # It rounds enough to be seen.
    exact = write(model, ids, mask, output_logits=True).logits[-1]
    assert (exact - output.logits[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("implementation", ["offloaded", "offloaded_static"])
def test_a_model_on_a_cpu_has_nothing_to_offload(implementation, prompts):
    model = tiny_model()
    with pytest.raises(ValueError, match=f"cache_implementation='{implementation}' moves keys and values"):
        write(model, *prompts, cache_implementation=implementation)


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["offloaded", "offloaded_static"])
def test_offloaded_caches(implementation):
    ids = random_ids(3, 9).cuda()
    extra = {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add", "sliding_window": 4}
    model = lively_model("llama", extra).cuda()
    expected = write(model, ids, torch.ones_like(ids), num_recurrences=5)
    output = write(model, ids, torch.ones_like(ids), num_recurrences=5, cache_implementation=implementation)
    assert same_decoding(output, expected)
    assert output.past_key_values.layers[0].keys.device.type == "cpu"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_recurrences": 4}, r"is a DynamicCache of 6 layers, but num_recurrences=4 needs 8"),
        ({"num_recurrences": torch.tensor([3, 2, 3])}, "cannot be combined with counts that differ"),
        ({"halting_criterion": "kl"}, "cannot be combined with halting_criterion='kl'"),
        ({"cache_recurrences": "last"}, "cache_recurrences='last' with a DynamicCache"),
        ({"draft_recurrences": 1}, "draft_recurrences=1 cannot be combined with a DynamicCache"),
        ({"cache_implementation": "static"}, "cache_implementation='static' asks for a new cache"),
    ],
    ids=str,
)
def test_what_a_dynamic_cache_cannot_hold_is_refused(call, message, prompts):
    model = lively_model("llama", {})
    with pytest.raises(ValueError, match=message):
        write(model, *prompts, past_key_values=DynamicCache(config=model.config), **call)


def test_caches_of_other_shapes_are_refused():
    model = lively_model("llama", {"num_prelude_layers": 1, "sliding_window": 4})
    ids = random_ids(2, 6)
    plain = LlamaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=7)
    with torch.no_grad():
        # It has as many layers as the model has slots, and no window.
        exact = model(ids, past_key_values=DynamicCache(config=plain)).logits
        assert torch.allclose(exact, model(ids).logits, atol=1e-9)
        narrow = config_at(model.config, 3)
        narrow.sliding_window = 2
        with pytest.raises(ValueError, match="layer 1 keeps a sliding window, but the model has sliding_attention"):
            model(ids, past_key_values=DynamicCache(config=narrow))
        cache = DynamicCache(config=model.config)
        model(ids, past_key_values=cache)
        with pytest.raises(ValueError, match="past_key_values holds 2 rows, but the input has 3"):
            model(random_ids(3, 1), past_key_values=cache)
        with pytest.raises(ValueError, match="counts per row or a halting criterion"):
            model(ids[:, :1], past_key_values=cache, halting_criterion="state_difference")
        encoder = EncoderDecoderCache(DynamicCache(), DynamicCache())
        with pytest.raises(TypeError, match="another Cache of a decoder or None, got a EncoderDecoderCache"):
            model(ids, past_key_values=encoder)
        with pytest.raises(TypeError, match="another Cache of a decoder or None, got a tuple"):
            model(ids, past_key_values=())


def test_a_window_of_slots_is_not_one_of_tokens():
    """Padding between the tokens of a row, as after a right-padded prompt, moves the window."""
    ids, mask = pad([random_ids(9), random_ids(3)], "right")
    model = lively_model("llama", {"sliding_window": 4})
    with pytest.raises(ValueError, match="keeps a window of slots, but attention_mask has padding between"):
        write(model, ids, mask, past_key_values=DynamicCache(config=model.config))
    # A cache that keeps all tokens is exact.
    expected = write(model, ids, mask)
    assert same_decoding(write(model, ids, mask, past_key_values=DynamicCache()), expected)


@pytest.mark.parametrize("past", [0, 6])
def test_a_coda_after_each_recurrence_is_refused(past):
    """It would append to the layers of the coda in each of its runs."""
    model = lively_model("llama", {"num_coda_layers": 1})
    ids = random_ids(2, 9)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        if past:
            model(ids[:, :past], past_key_values=cache)
        with pytest.raises(ValueError, match="a DynamicCache would keep the keys and values of every run"):
            model(ids[:, past:], past_key_values=cache, on_recurrence=lambda *_: None)
        with torch.enable_grad(), pytest.raises(ValueError, match="losses at several recurrences run the coda after"):
            model.train()(ids[:, past:], labels=ids[:, past:], past_key_values=cache, recurrence_loss="uniform")
        # The refused calls have written nothing, and one without a callback is exact.
        logits = model.eval()(ids[:, past:], past_key_values=cache).logits
        assert torch.allclose(logits, model(ids).logits[:, past:], atol=1e-9)


def test_on_recurrence_without_a_coda_is_exact():
    model = lively_model("llama", {"num_prelude_layers": 1})
    ids = random_ids(2, 9)
    seen = []
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :6], past_key_values=cache)
        model(ids[:, 6:], past_key_values=cache, on_recurrence=lambda *shown: seen.append(shown[2]))
        assert len(seen) == 3 and torch.allclose(seen[-1], model(ids).logits[:, 6:], atol=1e-9)


@pytest.mark.parametrize("window", [None, 4])
def test_a_compiled_step_at_another_depth_is_refused(window):
    model = tiny_model("llama", num_prelude_layers=1, num_coda_layers=1, sliding_window=window)
    ids = random_ids(2, 7)
    cache = StaticCache(config=model.config, max_cache_len=16)
    step = torch.compile(model, backend="eager")
    with torch.no_grad():
        model(ids[:, :6], past_key_values=cache)
        with pytest.raises(ValueError, match="is a StaticCache of 8 layers, but num_recurrences=2 needs 6"):
            step(ids[:, 6:], past_key_values=cache, num_recurrences=2)


def test_a_static_cache_that_is_shorter_than_the_window():
    """Where all layers slide, it would forget tokens that are in the window."""
    model = lively_model("llama", {"sliding_window": 16})
    ids = random_ids(1, 6)
    mask = torch.ones_like(ids)
    expected = write(model, ids, mask, disable_compile=True)
    # The last new token is not stored.
    needed = ids.shape[1] + NEW_TOKENS - 1
    for room in (needed, 16, 40):
        cache = StaticCache(config=model.config, max_cache_len=room)
        assert same_decoding(write(model, ids, mask, past_key_values=cache, disable_compile=True), expected)
    cache = StaticCache(config=model.config, max_cache_len=needed - 1)
    with pytest.raises(ValueError, match=f"past_key_values has room for {needed - 1} tokens"):
        write(model, ids, mask, past_key_values=cache, disable_compile=True)
    # Beyond a whole window it forgets what no token attends to.
    cache = StaticCache(config=model.config, max_cache_len=40)
    long = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "disable_compile": True}
    texts = [model.generate(ids, attention_mask=mask, past_key_values=past, **long) for past in (cache, None)]
    assert torch.equal(*texts)


def test_a_forward_pass_beyond_a_cache_that_is_shorter_than_the_window():
    model = lively_model("llama", {"sliding_window": 16})
    ids = random_ids(2, 9)
    cache = StaticCache(config=model.config, max_cache_len=8)
    with torch.no_grad():
        logits = [model(piece, past_key_values=cache).logits for piece in ids[:, :8].split([5, 3], dim=1)]
        assert torch.allclose(torch.cat(logits, 1), model(ids[:, :8]).logits, atol=1e-9)
        with pytest.raises(ValueError, match="room for 8 tokens, fewer than sliding_window=16, but needs to keep 9"):
            model(ids[:, 8:], past_key_values=cache)
        with pytest.raises(ValueError, match="fewer than sliding_window=16, but needs to keep 9"):
            model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=8))
