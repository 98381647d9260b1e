"""Invariants 2 to 4 in generation: the same tokens and depths in every way of decoding, as from scratch."""

import dataclasses

import pytest
import torch
from recurrent_models import (
    DECODING_GRID,
    VOCAB,
    depth_calls,
    grid_ids,
    lively_model,
    pad,
    random_ids,
    reference_logits,
    relative_error,
    same_decoding,
    tiny_model,
)
from transformers import StoppingCriteria

from modeling_recurrent import RecurrentDepthCache, RecurrentDepthStaticCache
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


LENGTHS = (5, 2, 7, 4)
NEW = 5
IDS = grid_ids(DECODING_GRID)


def generate(model, ids, mask, **kwargs):
    values = {
        "max_new_tokens": NEW,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        **kwargs,
    }
    return model.generate(ids, attention_mask=mask, **values)


# Families: in test_decoding_grid.py.
OWN_BLOCKS = [entry for entry in DECODING_GRID if not entry[0].startswith("family:")]


@pytest.mark.parametrize(("style", "extra"), OWN_BLOCKS, ids=grid_ids(OWN_BLOCKS))
def test_decoding_against_a_reference_that_starts_from_scratch(style, extra, poisoned_memory):
    model = lively_model(style, extra)
    rows = [random_ids(n) for n in LENGTHS]
    ids, mask = pad(rows, "left")
    different = set()
    for name, call in depth_calls(model).items():
        output = generate(model, ids, mask, **call)
        logits = torch.stack(output.logits, dim=1)
        for i, row in enumerate(rows):
            assert (output.prompt_recurrences[i][~mask[i].bool()] == 0).all()
            prompt_counts = output.prompt_recurrences[i][mask[i].bool()]
            counts = torch.cat((prompt_counts, output.num_recurrences[i][1:]))
            assert prompt_counts[-1] == output.num_recurrences[i][0]
            text = torch.cat((row, output.sequences[i][ids.shape[1] :]))
            expected = reference_logits(model, text[:-1], counts.tolist())[len(row) - 1 :]
            assert relative_error(logits[i], expected) < 1e-6, name  # generate keeps logits in float32
            assert torch.equal(expected.argmax(-1), text[len(row) :])
            different |= set(counts.tolist())
    assert len(different) >= 4


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID, ids=IDS)
def test_every_way_of_decoding_agrees(style, extra):
    model = lively_model(style, extra)
    rows = [random_ids(n) for n in LENGTHS]
    ids, mask = pad(rows, "left")
    for name, call in depth_calls(model).items():
        plain = generate(model, ids, mask, **call)
        if name == "sequence-kl" and model.config.num_coda_layers:
            with pytest.raises(ValueError, match="use_cache=False with num_coda_layers"):
                generate(model, ids, mask, use_cache=False, **call)
        else:
            assert same_decoding(plain, generate(model, ids, mask, use_cache=False, **call)), name
        for i, row in enumerate(rows):
            own = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in call.items()}
            alone = generate(model, row[None], torch.ones(1, len(row), dtype=torch.long), **own)
            assert torch.equal(alone.sequences[0, len(row) :], plain.sequences[i, ids.shape[1] :])
            assert torch.equal(alone.num_recurrences[0], plain.num_recurrences[i])
            if name != "sequence-kl":
                lookup = generate(model, row[None], None, prompt_lookup_num_tokens=3, **own)
                assert same_decoding(lookup, alone), name
        if name == "sequence-kl":
            continue
        assert same_decoding(plain, generate(model, ids, mask, prefill_chunk_size=3, **call)), name
        beams = generate(model, ids, mask, num_beams=3, num_return_sequences=2, **call)
        again = generate(model, ids, mask, num_beams=3, num_return_sequences=2, use_cache=False, **call)
        assert same_decoding(beams, again), name
        assert beams.num_recurrences.shape == (8, beams.sequences.shape[1] - ids.shape[1])


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID[:4], ids=IDS[:4])
def test_beams_report_the_depths_of_what_they_return(style, extra):
    model = lively_model(style, extra)
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    call = depth_calls(model)["token-state"]
    output = generate(model, ids, mask, num_beams=3, **call)
    for i, sequence in enumerate(output.sequences):
        row = sequence[:-1][torch.cat((mask[i], mask.new_ones(len(sequence) - ids.shape[1] - 1))).bool()]
        counts = model(row[None], **call).num_recurrences[0]
        start = int(mask[i].sum())
        assert torch.equal(counts[start - 1 :], output.num_recurrences[i])
        assert torch.equal(counts[:start], output.prompt_recurrences[i][mask[i].bool()])


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID, ids=IDS)
def test_a_live_cache_goes_on(style, extra):
    model = lively_model(style, extra)
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    turn = random_ids(4, 3)
    longer = torch.cat((mask, torch.ones_like(turn)), dim=1)
    full = torch.cat((ids, turn), dim=1)
    with torch.no_grad():
        for name, call in depth_calls(model).items():
            if name == "sequence-kl":
                continue
            cache = RecurrentDepthCache(model.config)
            first = model(ids, attention_mask=mask, past_key_values=cache, **call)
            second = model(turn, attention_mask=longer, past_key_values=cache, **call)
            whole = model(full, attention_mask=longer, **call)
            if whole.num_recurrences.ndim == 2:
                counts = torch.cat((first.num_recurrences, second.num_recurrences), dim=1)
                assert torch.equal(counts, whole.num_recurrences), name
                assert torch.equal(cache.counts, whole.num_recurrences), name
            assert relative_error(second.logits, whole.logits[:, ids.shape[1] :]) < 1e-8, name

            # Another fixed count on the live cache, deeper and shallower: counts of the past stay as they were.
            for count in (9, 1):
                past = cache.counts.clamp_min(1)
                asked = torch.cat((past, torch.full((4, 2), count)), dim=1)
                more = random_ids(4, 2)
                longer_still = torch.cat((mask, torch.ones(4, asked.shape[1] - mask.shape[1])), dim=1)
                text = torch.cat((full, more), dim=1)
                expected = model(text, attention_mask=longer_still, num_recurrences=asked).logits[:, -2:]
                actual = model(more, attention_mask=longer_still, past_key_values=cache, num_recurrences=count).logits
                assert relative_error(actual, expected) < 1e-8, (name, count)
                cache.crop(-2)


def test_bfloat16_decodes_as_it_recomputes():
    model = tiny_model("llama", input_injection="add", state_norm="rmsnorm").to(torch.bfloat16)
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    cached = generate(model, ids, mask, num_recurrences=torch.tensor([3, 1, 6, 2]))
    text = cached.sequences[:, :-1]
    longer = torch.cat((mask, mask.new_ones(4, text.shape[1] - mask.shape[1])), dim=1)
    fresh = model(text, attention_mask=longer, num_recurrences=torch.tensor([3, 1, 6, 2]))
    expected = fresh.logits[:, ids.shape[1] - 1 :].float()
    assert relative_error(torch.stack(cached.logits, 1).float(), expected) < 0.05


def test_last_slot_only_is_exact_where_there_is_no_past():
    model = lively_model("llama", {"input_injection": "add"})
    ids = random_ids(3, 6)
    with torch.no_grad():
        every, last = (
            model(ids, use_cache=True, num_recurrences=6, cache_recurrences=kept) for kept in ("all", "last")
        )
        assert relative_error(last.logits, every.logits) < 1e-10
        assert every.past_key_values.nbytes == 6 * last.past_key_values.nbytes
        step = random_ids(3, 1)
        near = model(step, past_key_values=last.past_key_values, num_recurrences=6).logits
        assert not torch.allclose(near, model(step, past_key_values=every.past_key_values, num_recurrences=6).logits)
    output = model.generate(ids, max_new_tokens=3, num_recurrences=4, cache_recurrences="last")
    assert output.shape == (3, 9)
    model.config.cache_recurrences = "last"
    for made in (RecurrentDepthCache(model.config), RecurrentDepthStaticCache(model.config, 1, 4)):
        assert made.cache_recurrences == "last"
    assert RecurrentDepthCache(model.config, "all").cache_recurrences == "all"


def test_sampling_repeats_with_the_seed():
    model = lively_model("gpt2", {})
    ids = random_ids(2, 4)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        outputs.append(
            model.generate(ids, do_sample=True, num_return_sequences=3, max_new_tokens=6, use_cache=use_cache)
        )
    assert torch.equal(*outputs) and outputs[0].shape == (6, 10)


def test_assisted_generation_by_a_shallower_copy():
    model = lively_model("llama", {"input_injection": "add"})
    row = random_ids(1, 6)
    plain = generate(model, row, None, num_recurrences=5)
    assistant = tiny_model("llama")
    helped = generate(model, row, None, num_recurrences=5, assistant_model=assistant.double())
    assert same_decoding(plain, helped)


class Streamer:
    def __init__(self):
        self.tokens, self.depths = [], []

    def put(self, value):
        self.tokens.append(value)

    def put_recurrences(self, value):
        self.depths.append(value)

    def end(self):
        self.ended = True


def test_a_streamer_receives_depths():
    model = lively_model("llama", {"input_injection": "add"})
    call = depth_calls(model)["token-state"]
    row, streamer = random_ids(1, 5), Streamer()
    output = generate(model, row, None, streamer=streamer, **call)
    assert torch.equal(torch.cat(streamer.depths, dim=1), output.num_recurrences)
    assert streamer.ended and len(streamer.tokens) == 1 + NEW
    by_place = Streamer()
    model.generate(row, *[None] * 6, by_place, max_new_tokens=NEW, do_sample=False, **call)
    assert torch.equal(torch.cat(by_place.depths, dim=1), output.num_recurrences)


class LastTokenAbove(StoppingCriteria):
    """A row ends with a token above `bound`."""

    def __init__(self, bound):
        self.bound = bound

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] > self.bound


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID[:4], ids=IDS[:4])
@pytest.mark.parametrize("criteria", [None, [LastTokenAbove(VOCAB - 4)]], ids=["tokens", "criteria"])
def test_behind_the_end_of_a_text_there_is_no_depth(style, extra, criteria):
    """Rows that have ended are padded until the last row has ended; the depth of padding is 0."""
    model = lively_model(style, extra, seed=0)
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    calls = {**depth_calls(model), "static": {"num_recurrences": 4, "cache_implementation": "static"}}
    calls["sampling"] = {**calls["token-state"], "do_sample": True, "top_k": 0}
    calls["uncached"] = {**calls["token-state"], "use_cache": False}
    for name, call in calls.items():
        torch.manual_seed(5)
        free = generate(model, ids, mask, **call)
        new = free.sequences[:, ids.shape[1] :]
        # A token that some row writes before another does, if that one does at all, and before the last place.
        first = [((new == token).cumsum(1) == 0).sum(1) for token in range(VOCAB)]
        end = next(token for token in range(VOCAB) if first[token].min() < first[token].max().clamp_max(NEW - 1))
        streamer = Streamer()
        torch.manual_seed(5)
        output = generate(model, ids, mask, eos_token_id=end, stopping_criteria=criteria, streamer=streamer, **call)
        width = output.num_recurrences.shape[1]
        is_end = (new == end) | (new > (VOCAB - 4 if criteria else VOCAB))
        behind = (is_end.cumsum(1) - is_end.long() > 0)[:, :width]
        assert behind.any(), name
        expected = free.num_recurrences[:, :width].masked_fill(behind, 0)
        assert torch.equal(output.num_recurrences, expected), name
        assert torch.equal(torch.cat(streamer.depths, dim=1), expected), name
    # Where no token ends texts nothing pads them either: all are read.
    stops = generate(model, ids, mask, stopping_criteria=[LastTokenAbove(VOCAB // 2)], num_recurrences=2)
    assert (stops.num_recurrences == 2).all()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("style", "extra"), DECODING_GRID[:5], ids=IDS[:5])
def test_guidance_runs_both_texts_at_the_same_depth(style, extra, use_cache):
    model = lively_model(style, extra)
    row, other = random_ids(1, 6), random_ids(1, 4)
    calls = depth_calls(model)
    tokens = {**calls["token-state"], "num_recurrences": torch.tensor([[2, 0, 3, 1, 0, 4]])}
    for call in (calls["fixed"], calls["token-state"], tokens):
        own = {name: value for name, value in call.items() if call is not tokens or name != "num_recurrences"}
        for negative in (None, other):
            guided = {"guidance_scale": 1.7, "negative_prompt_ids": negative}
            output = generate(model, row, None, use_cache=use_cache, **guided, **call)
            against = row[:, -1:] if negative is None else negative
            for place in range(NEW):
                logits = output.logits[place].log_softmax(-1)
                unguided = model(against, **own).logits[:, -1].float().log_softmax(-1)
                token = (1.7 * (logits - unguided) + unguided).argmax(-1)[:, None]
                assert torch.equal(token[0, 0], output.sequences[0, 6 + place])
                against = torch.cat((against, token), dim=1)


@pytest.mark.parametrize("name", ["num_recurrences", "min_recurrences", "max_recurrences"])
def test_bounds_without_dimensions_serve_beams(name):
    model = lively_model("llama", {"input_injection": "add"})
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    call = {} if name == "num_recurrences" else depth_calls(model)["token-state"]
    expected = generate(model, ids, mask, num_beams=2, **call, **{name: 3})
    assert same_decoding(expected, generate(model, ids, mask, num_beams=2, **call, **{name: torch.tensor(3)}))


BAD = [
    ({"halting_criterion": "kl", "halting_granularity": "sequence", "prefill_chunk_size": 2}, "prefill_chunk_size=2"),
    ({"halting_criterion": "kl", "halting_granularity": "sequence", "prompt_lookup_num_tokens": 2}, "assisted"),
    (
        {"halting_criterion": "kl", "halting_granularity": "sequence", "num_beams": 2, "use_cache": False},
        "num_beams=2",
    ),
    (
        {"cache_implementation": "quantized", "halting_criterion": "kl"},
        "'quantized' keeps all recurrences of a fixed depth and cannot be combined with halting_criterion='kl'",
    ),
    ({"cache_recurrences": "first"}, "cache_recurrences='first'"),
    ({"num_recurrences": -1}, "num_recurrences=-1"),
    ({"num_recurrences": torch.tensor([-3])}, "num_recurrences holds -3"),
    ({"num_recurrences": torch.tensor([[2, 0, -2, 1]])}, "num_recurrences holds -2"),
    ({"halting_criterion": "kl", "num_coda_layers": 1}, "num_coda_layers=1: logits would depend on states"),
    (
        {"halting_criterion": "confidence", "num_coda_layers": 1, "use_cache": False},
        "num_coda_layers=1: logits would depend",
    ),
    (
        {"halting_criterion": "kl", "halting_granularity": "sequence", "use_cache": False, "num_coda_layers": 1},
        "use_cache=False with num_coda_layers=1",
    ),
    ({"halting_criterion": "kl", "halting_granularity": "sequence", "draft_recurrences": 2}, "int num_recurrences"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_what_generate_cannot_do_is_refused(call, message):
    call = dict(call)
    model = tiny_model(num_coda_layers=call.pop("num_coda_layers", 0))
    with pytest.raises(ValueError, match=message):
        model.generate(random_ids(1, 4), max_new_tokens=2, **call)


def test_caches_of_others_are_refused():
    model = tiny_model()
    ids = random_ids(2, 4)
    # Fewer layers; as many, but one of them outside of the loop; other heads.
    for extra in (
        {"num_recurrent_layers": 1},
        {"num_recurrent_layers": 1, "num_prelude_layers": 1},
        {"num_recurrent_layers": 1, "num_coda_layers": 1},
        {"num_attention_heads": 2},
    ):
        other = RecurrentDepthCache(tiny_model(**extra).config)
        for call in (model, lambda ids, **kwargs: model.generate(ids, max_new_tokens=2, **kwargs)):
            with pytest.raises(ValueError, match="this model has"):
                call(ids, past_key_values=other)
    cache = RecurrentDepthCache(model.config)
    model(ids, past_key_values=cache)
    for rows in (1, 3):
        with pytest.raises(ValueError, match=f"holds 2 rows, but the input has {rows}"):
            model(random_ids(rows, 1), past_key_values=cache)
    with pytest.raises(TypeError, match="Only recurrent-depth models can update"):
        cache.update(torch.zeros(1), torch.zeros(1), 0)


class TestCacheInterface:
    def test_lengths_and_masks(self):
        model = tiny_model(num_prelude_layers=1)
        cache = RecurrentDepthCache(model.config)
        assert cache.get_seq_length() == 0 and not cache.is_initialized and cache.get_max_length() == -1
        with torch.no_grad():
            model(random_ids(2, 5), past_key_values=cache, num_recurrences=3)
        assert cache.get_seq_length() == 5 and cache.get_mask_sizes(2, 0) == (7, 0)
        assert cache.is_croppable and not cache.is_compileable and not any(cache.is_sliding)
        assert len(cache.layers) == 3
        cache.crop(-2)
        assert cache.get_seq_length() == 3 and cache.counts.tolist() == [[3] * 3] * 2
        cache.crop(2)
        assert cache.get_seq_length() == 2
        cache.crop(0)
        assert cache.get_seq_length() == 2
        # In transformers 5.17 assisted generation gives a tensor.
        cache.crop(torch.tensor(-1))
        assert cache.get_seq_length() == 1 and type(cache.get_seq_length()) is int
        cache.reset()
        assert cache.get_seq_length() == 0 and not cache.is_initialized

    @pytest.mark.parametrize("change", ["reorder", "select", "repeat"])
    def test_rows_move_together(self, change):
        model = lively_model("llama", {"input_injection": "add"})
        ids = random_ids(3, 5)
        counts = torch.tensor([1, 4, 2])
        cache = RecurrentDepthCache(model.config)
        with torch.no_grad():
            model(ids, past_key_values=cache, num_recurrences=counts)
            if change == "reorder":
                rows = torch.tensor([2, 0, 0])
                cache.reorder_cache(rows)
            elif change == "select":
                rows = torch.tensor([1, 2])
                cache.batch_select_indices(rows)
            else:
                rows = torch.tensor([0, 0, 1, 1, 2, 2])
                cache.batch_repeat_interleave(2)
            step = random_ids(len(rows), 1)
            actual = model(step, past_key_values=cache, num_recurrences=counts[rows]).logits
            expected = model(torch.cat((ids[rows], step), dim=1), num_recurrences=counts[rows]).logits[:, -1:]
        assert relative_error(actual, expected) < 1e-8
        assert torch.equal(cache.counts, counts[rows][:, None].expand(-1, 6))

    def test_buffers_grow_by_doubling(self):
        model = tiny_model()
        cache = RecurrentDepthCache(model.config)
        sizes = set()
        with torch.no_grad():
            for _ in range(70):
                model(
                    random_ids(1, 1), past_key_values=cache, num_recurrences=2, position_ids=torch.zeros(1, 1).long()
                )
                sizes.add(cache.layers[0].keys.shape[3])
        assert len(sizes) <= 4 and cache.get_seq_length() == 70


def test_gradients_through_new_tokens_behind_a_cache():
    model = tiny_model("llama").double()
    ids = random_ids(2, 6)
    with torch.no_grad():
        cache = model(ids[:, :4], use_cache=True).past_key_values
    logits = model(ids[:, 4:], past_key_values=cache).logits
    logits.sum().backward()
    with torch.no_grad():
        expected = model(ids).logits[:, 4:]
    assert relative_error(logits, expected) < 1e-10
    attention = model.model.recurrent_layers[0].self_attn
    keys = attention.qkv_proj.weight.grad.split([heads * attention.head_dim for heads in attention.heads])[1]
    assert keys.abs().max() > 0


def test_gradient_checkpointing_behind_a_cache_is_refused():
    model = tiny_model("llama")
    model.gradient_checkpointing_enable()
    ids = random_ids(2, 4)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    model.train()
    for call in ({"past_key_values": cache}, {"use_cache": True}):
        with pytest.raises(ValueError, match="Gradient checkpointing runs layers a second time"):
            model(ids, **call)
    model(ids).logits.sum().backward()


def test_vocabulary_is_read_in_slices(monkeypatch):
    import modeling_recurrent.loop_recurrent as module

    model = lively_model("llama", {"input_injection": "add", "state_norm": "rmsnorm"})
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    for name, parameter in {"kl": 0.3, "argmax_stability": 2, "confidence": 0.4}.items():
        (field,) = dataclasses.fields(HALTING_CRITERIA[name])
        call = {"halting_criterion": name, field.name: parameter}
        widths = []
        hook = model.lm_head.register_forward_pre_hook(lambda _, args, seen=widths: seen.append(args[0].shape[0]))
        whole = model(ids, attention_mask=mask, **call)
        monkeypatch.setattr(module, "READ_OUT_SLICE", 3 * VOCAB)
        sliced = model(ids, attention_mask=mask, **call)
        monkeypatch.undo()
        hook.remove()
        assert torch.equal(whole.num_recurrences, sliced.num_recurrences)
        assert 3 in widths and max(widths[:1]) == int(mask.sum())
