"""`state_init="previous_token"`: a decoded token starts from the last state of the one before it."""

import pytest
import torch
from recurrent_models import pad, random_ids, relative_error, tiny_model

from modeling_recurrent import RecurrentDepthCache, RecurrentDepthStaticCache


LENGTHS = (5, 2, 7, 4)
GRID = [
    ("gpt2", {"input_injection": "add", "state_norm": "layernorm"}),
    ("llama", {"input_injection": "concat", "state_norm": "rmsnorm", "state_init": "zeros", "num_coda_layers": 1}),
    ("llama", {"input_injection": "add", "sliding_window": 3, "num_prelude_layers": 1}),
]
CALLS = [
    {"num_recurrences": 4},
    {"halting_criterion": "state_difference", "state_difference_threshold": 0.7, "halting_granularity": "token"},
    {"halting_criterion": "entropy", "entropy_threshold": 2.0, "halting_granularity": "sequence"},
]
CONTINUED = {"state_init": "previous_token"}


def lively_model(style="llama", extra=None):
    extra = GRID[2][1] if extra is None else extra
    return tiny_model(
        style, seed=0, initializer_range=0.25, max_recurrences=9, tie_word_embeddings=False, **extra
    ).double()


def generate(model, ids, mask=None, **kwargs):
    values = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(ids, attention_mask=mask, **{**values, **CONTINUED, **kwargs})


@pytest.mark.parametrize(("style", "extra"), GRID)
@pytest.mark.parametrize("count", [1, 4])
def test_what_the_first_recurrence_reads(style, extra, count, poisoned_memory):
    """The state of the token before, as between recurrences: normed, with the new token's input injected."""
    model = lively_model(style, extra)
    decoder = model.model
    read = []
    decoder.recurrent_layers[0].register_forward_pre_hook(lambda _, args: read.append(args[0]))
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    inputs = {"use_cache": True, "num_recurrences": count, "output_hidden_states": True, **CONTINUED}
    with torch.no_grad():
        before = model(ids, attention_mask=mask, **inputs)
        plain = model(ids, attention_mask=mask, num_recurrences=count).logits
        assert relative_error(before.logits[mask.bool()], plain[mask.bool()]) < 1e-12  # side by side, as ever
        for _ in range(2):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            fed = []
            hooks = [
                module.register_forward_pre_hook(lambda _, args, fed=fed: fed.append(args[0]))
                for module in (decoder.injection, decoder.state_norm)
                if module is not None
            ]
            token = random_ids(4, 1)
            read.clear()
            after = model(token, attention_mask=mask, past_key_values=before.past_key_values, **inputs)
            last = before.hidden_states[-1][:, -1:]
            assert torch.equal(after.hidden_states[0], last)
            state = last if decoder.state_norm is None else decoder.state_norm(last)
            embedded = decoder.embed_tokens(token)
            if decoder.embed_positions is not None:
                embedded = embedded + decoder.embed_positions(mask.sum(-1, keepdim=True) - 1)
            if decoder.injection is not None:
                assert relative_error(read[0], decoder.injection(torch.cat((state, embedded), dim=-1))) < 1e-12
            elif not len(decoder.prelude_layers):
                assert relative_error(read[0], state + embedded) < 1e-12
            else:
                assert not torch.allclose(read[0], state)
            assert len(read) == count and (fed or decoder.state_norm is None)
            before = after
            for hook in hooks:
                hook.remove()


@pytest.mark.parametrize(("style", "extra"), GRID)
def test_rows_stand_alone(style, extra):
    model = lively_model(style, extra)
    rows = [random_ids(n) for n in LENGTHS]
    ids, mask = pad(rows, "left")
    for call in CALLS:
        batch = generate(model, ids, mask, **call)
        plain = generate(model, ids, mask, state_init=None, **call)
        assert not torch.allclose(torch.stack(batch.logits[1:]), torch.stack(plain.logits[1:]), rtol=1e-2)
        for i, row in enumerate(rows):
            alone = generate(model, row[None], **call)
            assert torch.equal(alone.sequences[0, len(row) :], batch.sequences[i, ids.shape[1] :])
            assert torch.equal(alone.num_recurrences[0], batch.num_recurrences[i])


@pytest.mark.parametrize(("style", "extra"), GRID)
@pytest.mark.parametrize(
    "how", [{"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 2}]
)
def test_beams_and_samples_are_what_their_tokens_say(style, extra, how):
    """Each text that is returned, read again token by token: the same depths, and the score that it was given."""
    model = lively_model(style, extra)
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    end = int(generate(model, ids, mask, num_recurrences=4).sequences[0, -3])
    for call in CALLS[:2]:
        output = generate(
            model, ids, mask, output_scores=True, length_penalty=0.0, top_k=0, eos_token_id=end, **how, **call
        )
        width = ids.shape[1]
        for i, sequence in enumerate(output.sequences):
            row = ids[i // 2][mask[i // 2].bool()]
            ends = (sequence[width:] == end).nonzero().flatten()
            new = sequence[width:][: int(ends[0]) + 1 if len(ends) else None]
            cache = RecurrentDepthCache(model.config)
            score, counts, tokens = 0, [], row[None]
            with torch.no_grad():
                for token in new:
                    step = model(tokens, past_key_values=cache, **CONTINUED, **call)
                    score += step.logits[0, -1].log_softmax(-1)[token].item()
                    counts.append(int(cache.counts[0, -1]))
                    tokens = token[None, None]
            assert output.num_recurrences[i, : len(new)].tolist() == counts
            assert torch.equal(output.prompt_recurrences[i][mask[i // 2].bool()], cache.counts[0, : len(row)])
            assert (output.num_recurrences[i, len(new) :] == 0).all()
            if "num_beams" in how:
                assert abs(output.sequences_scores[i].item() - score) < 1e-4


def test_the_state_moves_with_its_row_and_skips_padding():
    model = lively_model()
    ids, token = random_ids(3, 5), random_ids(3, 1)
    rows = torch.tensor([2, 0])
    with torch.no_grad():

        def run():
            cache = RecurrentDepthCache(model.config)
            model(ids, past_key_values=cache, **CONTINUED)
            return cache

        cache = run()
        state = cache.state
        expected = model(token, past_key_values=cache, **CONTINUED).logits
        for change in ("reorder_cache", "batch_select_indices"):
            cache = run()
            getattr(cache, change)(rows)
            assert (
                relative_error(model(token[rows], past_key_values=cache, **CONTINUED).logits, expected[rows]) < 1e-10
            )
        cache = run()
        cache.batch_repeat_interleave(2)
        assert torch.equal(cache.state, state.repeat_interleave(2, dim=0))

        # A row whose new token is padding keeps its state.
        cache = run()
        mask = torch.ones(3, 6)
        mask[1, -1] = 0
        model(token, attention_mask=mask, past_key_values=cache, **CONTINUED)
        assert torch.equal(cache.state[1], state[1]) and not torch.equal(cache.state[0], state[0])


def test_a_state_that_is_not_that_of_the_token_before_is_refused():
    model = lively_model()
    ids, token = random_ids(2, 5), random_ids(2, 1)
    with torch.no_grad():
        for spoil in ("never kept", "cropped", "a call without it"):
            cache = RecurrentDepthCache(model.config)
            model(ids, past_key_values=cache, **({} if spoil == "never kept" else CONTINUED))
            if spoil == "cropped":
                cache.crop(-1)
            if spoil == "a call without it":
                model(token, past_key_values=cache)
            with pytest.raises(ValueError, match="needs the state of the token before"):
                model(token, past_key_values=cache, **CONTINUED)
            model(random_ids(2, 2), past_key_values=cache, **CONTINUED)  # several start as usual
            model(token, past_key_values=cache, **CONTINUED)


BAD = [
    ({"use_cache": False}, "use_cache=False"),
    ({"state_init": "zeros"}, "state_init='zeros'"),
    ({"prefill_chunk_size": 2}, "prefill_chunk_size=2"),
    ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
    ({"cache_implementation": "static"}, "RecurrentDepthStaticCache"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_what_cannot_be_right_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        generate(lively_model(), random_ids(1, 4), **call)


def test_models_without_injection_and_training_are_refused():
    with pytest.raises(ValueError, match="input_injection='none'"):
        lively_model(extra={"input_injection": "none"})(random_ids(1, 4), use_cache=True, **CONTINUED)
    with pytest.raises(ValueError, match="training"):
        lively_model().train()(random_ids(1, 4), use_cache=True, **CONTINUED)
    model = lively_model()
    cache = RecurrentDepthStaticCache(model.config, 1, 8, dtype=torch.double)
    with pytest.raises(ValueError, match="RecurrentDepthStaticCache"):
        model(random_ids(1, 4), past_key_values=cache, num_recurrences=2, **CONTINUED)
