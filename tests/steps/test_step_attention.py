"""Attention between steps equals a mask written by hand, however a text is cut into calls."""

import copy
import random
import threading
from itertools import pairwise

import pytest
import torch
from small_tokenizers import byte_level
from step_texts import FAMILIES, as_mask, extended, padded, random_text, sees
from transformers import (
    DynamicCache,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from memreason_hf.steps import StepScheme
from memreason_hf.steps.attention import STEP_ATTENTION_KEY, get_step_attention, set_step_attention
from memreason_hf.steps.tokenization import extend_tokenizer, step_token_ids


VARIANTS = ("own", "tokens")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def texts(tokenizer, count=4):
    rows = [random_text(tokenizer, question=index > 0) for index in range(count)]
    return rows if len({len(row) for row in rows}) > 1 else [*rows[:-1], rows[-1] + rows[0]]


@torch.no_grad()
def by_hand(model, tokenizer, row, variant, **kwargs):
    """The logits of one text by a model without the package's attention, `(tokens, vocabulary)`."""
    mask = as_mask(sees(row, step_token_ids(tokenizer), variant), model.dtype)
    return model(input_ids=torch.tensor([row]), attention_mask=mask, use_cache=False, **kwargs).logits[0]


def pair(family, variant, kernel="sdpa", dtype=torch.float64, **kwargs):
    """
    The same weights without and with attention between steps, and the tokenizer. In double precision, so that rounding
    does not decide between two tokens.
    """
    plain, tokenizer = extended(family, **kwargs)
    plain.to(dtype)
    plain.set_attn_implementation(kernel)
    sparse = copy.deepcopy(plain)
    set_step_attention(sparse, tokenizer, variant)
    return plain, sparse, tokenizer


@each_variant
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@each_family
@torch.no_grad()
def test_it_equals_a_mask_given_by_hand(family, kernel, variant):
    plain, sparse, tokenizer = pair(family, variant, kernel, dtype=torch.float32)
    rows, differences = texts(tokenizer), []
    for side in ("left", "right"):
        ids, real = padded(rows, side)
        logits = sparse(input_ids=ids, attention_mask=real, position_ids=(real.cumsum(1) - 1).clamp_min(0)).logits
        for index, row in enumerate(rows):
            expected = by_hand(plain, tokenizer, row, variant)
            torch.testing.assert_close(logits[index, real[index].bool()], expected, **CLOSE)
            alone = sparse(input_ids=torch.tensor([row])).logits[0]
            torch.testing.assert_close(alone, expected, **CLOSE)
            usual = plain(input_ids=torch.tensor([row])).logits[0]
            differences.append((usual - expected).abs().max())
    assert max(differences) > 1e-2


@each_variant
@each_family
@torch.no_grad()
def test_a_text_may_be_cut_into_calls(family, variant):
    plain, sparse, tokenizer = pair(family, variant)
    row = random_text(tokenizer)
    expected = by_hand(plain, tokenizer, row, variant)
    for _ in range(3):
        cuts = sorted(random.sample(range(1, len(row)), 4))
        cache, pieces = None, []
        for start, end in zip([0, *cuts], [*cuts, len(row)]):
            output = sparse(input_ids=torch.tensor([row[start:end]]), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            pieces.append(output.logits[0])
        torch.testing.assert_close(torch.cat(pieces), expected, **CLOSE)
    # A cache that is cropped and continued with another text.
    cache.crop(-3)
    other = row[:-3] + random_text(tokenizer)
    logits = sparse(input_ids=torch.tensor([other[len(row) - 3 :]]), past_key_values=cache).logits[0]
    torch.testing.assert_close(logits, by_hand(plain, tokenizer, other, variant)[len(row) - 3 :], **CLOSE)


@each_variant
@each_family
@torch.no_grad()
def test_ids_follow_the_rows_of_a_cache(family, variant):
    plain, sparse, tokenizer = pair(family, variant)
    starts = [random_text(tokenizer)[:9] for _ in range(3)]
    ends = [random_text(tokenizer, question=False)[:6] for _ in range(3)]

    def run(change, order):
        cache = sparse(input_ids=torch.tensor(starts), use_cache=True).past_key_values
        cache = change(cache) or cache
        width = min(len(end) for end in ends)
        new = torch.tensor([ends[index % 3][:width] for index in range(len(order))])
        logits = sparse(input_ids=new, past_key_values=cache).logits
        for index, source in enumerate(order):
            row = starts[source] + new[index].tolist()
            torch.testing.assert_close(logits[index], by_hand(plain, tokenizer, row, variant)[9:], **CLOSE)

    run(lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1])), [2, 0, 1])
    run(lambda cache: cache.batch_select_indices(torch.tensor([1, 1])), [1, 1])
    run(lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2])

    def copied(cache):
        other = copy.deepcopy(cache)
        cache.reorder_cache(torch.tensor([1, 2, 0]))
        other.reorder_cache(torch.tensor([1, 0, 2]))
        return other

    run(copied, [1, 0, 2])


@each_variant
@each_family
def test_greedy_texts_with_and_without_a_cache_and_padding(family, variant):
    plain, sparse, tokenizer = pair(family, variant)
    rows = [random_text(tokenizer)[:8] + random_text(tokenizer) for _ in range(3)]
    ids, real = padded(rows)
    settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    made = sparse.generate(input_ids=ids, attention_mask=real, **settings)
    again = sparse.generate(input_ids=ids, attention_mask=real, use_cache=False, **settings)
    assert made.tolist() == again.tolist()
    for index, row in enumerate(rows):
        alone = sparse.generate(input_ids=torch.tensor([row]), **settings)[0].tolist()
        assert made[index, ids.shape[1] :].tolist() == alone[len(row) :]
        written = list(row)
        for _ in range(8):
            written.append(by_hand(plain, tokenizer, written, variant)[-1].argmax().item())
        assert alone == written


@each_variant
@each_family
def test_samples_with_several_returned(family, variant):
    plain, sparse, tokenizer = pair(family, variant)
    ids, real = padded([random_text(tokenizer) for _ in range(2)])
    made = sparse.generate(
        input_ids=ids,
        attention_mask=real,
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=10,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert len({tuple(row) for row in made.sequences.tolist()}) > 2
    logits = torch.stack(made.logits, dim=1)
    for index, sequence in enumerate(made.sequences.tolist()):
        row = sequence[int((real[index // 3] == 0).sum()) :]
        expected = by_hand(plain, tokenizer, row, variant)[-11:-1]
        torch.testing.assert_close(logits[index], expected.float(), **CLOSE)


@each_variant
@each_family
def test_other_ways_of_decoding_give_the_same_text(family, variant):
    _, sparse, tokenizer = pair(family, variant)
    ids, real = padded([random_text(tokenizer) for _ in range(2)])
    settings = {"do_sample": False, "max_new_tokens": 10, "eos_token_id": None, "attention_mask": real}
    expected = sparse.generate(input_ids=ids, **settings)
    assert torch.equal(sparse.generate(input_ids=ids, prefill_chunk_size=3, **settings), expected)
    if family == "recurrent":
        drafted = sparse.generate(input_ids=ids, num_recurrences=3, draft_recurrences=2, draft_tokens=3, **settings)
        assert torch.equal(drafted, expected)
    # Wrong guesses are cropped from the cache.
    row = ids[:1, int((real[0] == 0).sum()) :]
    settings["attention_mask"] = None
    alone = sparse.generate(input_ids=row, **settings)
    assert torch.equal(sparse.generate(input_ids=row, prompt_lookup_num_tokens=3, **settings), alone)


@each_variant
@each_family
@torch.no_grad()
def test_attention_maps_are_zero_where_the_mask_hides_tokens(family, variant):
    _, sparse, tokenizer = pair(family, variant, "eager")
    row = random_text(tokenizer)
    maps = sparse(input_ids=torch.tensor([row]), output_attentions=True, use_cache=False).attentions
    seen = sees(row, step_token_ids(tokenizer), variant)
    for attention in maps:
        assert ((attention[0] > 0) == seen).all()


@each_variant
@torch.no_grad()
def test_padding_within_a_text_changes_nothing(variant):
    plain, sparse, tokenizer = pair("recurrent", variant)
    row = random_text(tokenizer)
    ids, real, holes = [], [], sorted(random.sample(range(1, len(row)), 5))
    for place, token_id in enumerate(row):
        gap = random.randint(1, 3) if place in holes else 0
        ids += [2] * gap + [token_id]
        real += [0] * gap + [1]
    real = torch.tensor([real])
    logits = sparse(input_ids=torch.tensor([ids]), attention_mask=real).logits[0][real[0].bool()]
    torch.testing.assert_close(logits, by_hand(plain, tokenizer, row, variant), **CLOSE)


@pytest.mark.parametrize(
    "scheme", [StepScheme(0, 1), StepScheme(1, 1), StepScheme(3, 2), StepScheme(2, 0, layout="front")]
)
@each_variant
@torch.no_grad()
def test_other_schemes(scheme, variant):
    plain, tokenizer = extended("llama", scheme)
    sparse = copy.deepcopy(plain)
    set_step_attention(sparse, tokenizer, variant)
    front = [[5, 6, *step_token_ids(tokenizer)["prefix"], 7, 8, 9], [4, 5, 6]]
    rows = texts(tokenizer) if scheme.has_kinds else front
    for row in rows:
        logits = sparse(input_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(logits, by_hand(plain, tokenizer, row, variant), **CLOSE)


@each_variant
def test_rows_that_stop_early_keep_their_own_masks(variant):
    for window in (None, 4):
        plain, sparse, tokenizer = pair("recurrent", variant, sliding_window=window)
        rows = texts(tokenizer)
        ids, real = padded(rows)
        counts = torch.tensor([3, 1, 6, 2])
        # With a past, so that rows are read in several contiguous runs.
        with torch.no_grad():
            first = sparse(input_ids=ids[:, :5], attention_mask=real[:, :5], num_recurrences=counts, use_cache=True)
            rest = sparse(
                input_ids=ids[:, 5:],
                attention_mask=real,
                num_recurrences=counts,
                past_key_values=first.past_key_values,
            )
        logits = torch.cat((first.logits, rest.logits), dim=1)
        uncached = sparse(input_ids=ids, attention_mask=real, num_recurrences=counts, use_cache=False).logits
        for index, row in enumerate(rows):
            if window is None:
                expected = by_hand(plain, tokenizer, row, variant, num_recurrences=int(counts[index]))
            else:
                single = sparse(input_ids=torch.tensor([row]), num_recurrences=int(counts[index]), use_cache=False)
                expected = single.logits[0]
            torch.testing.assert_close(logits[index, real[index].bool()], expected, **CLOSE)
            torch.testing.assert_close(uncached[index, real[index].bool()], expected, **CLOSE)


@torch.no_grad()
def test_a_sliding_window_applies_in_addition():
    plain, sparse, tokenizer = pair("recurrent", "tokens", num_prelude_layers=0, num_coda_layers=0, sliding_window=3)
    row = random_text(tokenizer)
    seen = sees(row, step_token_ids(tokenizer), "tokens").triu(-2)
    expected = plain(input_ids=torch.tensor([row]), attention_mask=as_mask(seen, plain.dtype), use_cache=False).logits
    torch.testing.assert_close(sparse(input_ids=torch.tensor([row])).logits, expected, **CLOSE)


def halting_call(model, ids, real, criterion):
    """Arguments with a threshold between the model's own scores, so that depths differ."""
    logits = []
    with torch.no_grad():
        states = model(
            input_ids=ids,
            attention_mask=real,
            num_recurrences=5,
            output_hidden_states=True,
            on_recurrence=lambda recurrence, rows, values: logits.append(values.log_softmax(-1)),
        ).hidden_states[1:]
    if criterion == "kl":
        scores = [(new.exp() * (new - old)).sum(-1) for old, new in pairwise(logits)]
    else:
        scores = [(new - old).norm(dim=-1) / new.norm(dim=-1) for old, new in pairwise(states)]
    threshold = torch.stack(scores)[:, real.bool()].quantile(0.3).item()
    return {"halting_criterion": criterion, f"{criterion}_threshold": threshold, "max_recurrences": 7}


@each_variant
@torch.no_grad()
def test_caches_that_forget_what_left_the_window(variant):
    tokenizer = byte_level()
    config = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0, "pad_token_id": 2}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    plain = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, **sizes, **config)).eval()
    extend_tokenizer(tokenizer, StepScheme(1, 2), plain)
    for parameter in plain.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    sparse = copy.deepcopy(plain)
    set_step_attention(sparse, tokenizer, variant)
    rows = [random_text(tokenizer) for _ in range(3)]
    ids, real = padded(rows)
    made = sparse.generate(
        input_ids=ids,
        attention_mask=real,
        do_sample=False,
        max_new_tokens=9,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert any(made.past_key_values.is_sliding)
    for index, row in enumerate(rows):
        text = row + made.sequences[index, ids.shape[1] :].tolist()
        mask = as_mask(sees(text, step_token_ids(tokenizer), variant).triu(-3))
        expected = plain(input_ids=torch.tensor([text]), attention_mask=mask, use_cache=False).logits[0, -10:-1]
        torch.testing.assert_close(torch.stack(made.logits, dim=1)[index], expected, **CLOSE)


@pytest.mark.parametrize(
    "criterion, granularity", [("state_difference", "token"), ("kl", "token"), ("kl", "sequence")]
)
@each_variant
def test_depth_that_is_decided_on_the_way(criterion, granularity, variant):
    for _ in range(20):
        plain, sparse, tokenizer = pair("recurrent", variant, num_coda_layers=0, state_norm="rmsnorm")
        ids, real = padded([random_text(tokenizer) for _ in range(4)])
        made = sparse.generate(
            input_ids=ids,
            attention_mask=real,
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=None,
            return_dict_in_generate=True,
            halting_granularity=granularity,
            **halting_call(sparse, ids, real, criterion),
        )
        counts = torch.cat((made.prompt_recurrences, made.num_recurrences[:, 1:]), dim=1)
        if len(counts.unique()) > 4:
            break
    # Padding has 0. A model that halts at the same depth everywhere would show nothing.
    assert len(counts.unique()) > 4
    for index, sequence in enumerate(made.sequences):
        kept = torch.cat((real[index], torch.ones(8, dtype=torch.long))).bool()
        row = sequence[kept].tolist()[:-1]
        given = counts[index][kept[:-1]][None]
        logits = by_hand(plain, tokenizer, row, variant, num_recurrences=given)
        assert logits[-8:].argmax(-1).tolist() == sequence[-8:].tolist()


@each_variant
@torch.no_grad()
def test_a_decoder_that_is_a_part_of_the_base_model(variant):
    """The head of OPT calls it directly."""
    tokenizer = byte_level()
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "max_position_embeddings": 128}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    plain = OPTForCausalLM(
        OPTConfig(vocab_size=len(tokenizer), num_hidden_layers=2, num_attention_heads=2, **sizes, **ids)
    ).eval()
    extend_tokenizer(tokenizer, StepScheme(1, 2), plain)
    for parameter in plain.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    sparse = copy.deepcopy(plain.double())
    set_step_attention(sparse, tokenizer, variant)
    assert get_step_attention(sparse) == variant
    rows = texts(tokenizer)
    ids, real = padded(rows)
    logits = sparse(input_ids=ids, attention_mask=real).logits
    made = sparse.generate(input_ids=ids, attention_mask=real, do_sample=False, max_new_tokens=5, eos_token_id=None)
    for index, row in enumerate(rows):
        text = row + made[index, ids.shape[1] :].tolist()
        expected = by_hand(plain, tokenizer, text, variant, position_ids=torch.arange(len(text))[None])
        torch.testing.assert_close(logits[index, real[index].bool()], expected[: len(row)], **CLOSE)
        assert expected[len(row) - 1 : -1].argmax(-1).tolist() == text[len(row) :]
    set_step_attention(sparse, tokenizer, None)
    assert get_step_attention(sparse) is None
    usual = plain(input_ids=torch.tensor(rows[:1])).logits
    torch.testing.assert_close(sparse(input_ids=torch.tensor(rows[:1])).logits, usual, rtol=0, atol=0)


def test_a_model_with_recurrent_layers_is_refused():
    """Their state carries what the mask hides."""
    tokenizer = byte_level()
    model = MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1))
    extend_tokenizer(tokenizer, StepScheme(1, 2), model)
    with pytest.raises(ValueError, match="MambaForCausalLM has layers that carry a state"):
        set_step_attention(model, tokenizer, "own")
    assert get_step_attention(model) is None


@torch.no_grad()
def test_two_models_side_by_side():
    models = [pair(family, variant) for family in ("llama", "recurrent") for variant in VARIANTS]
    plain, _, tokenizer = models[0]
    models.append((plain, plain, tokenizer))
    rows = [random_text(tokenizer) for _ in models]
    expected = [
        plain(input_ids=torch.tensor([row])).logits[0]
        if sparse is plain
        else by_hand(plain, tokenizer, row, get_step_attention(sparse))
        for (plain, sparse, tokenizer), row in zip(models, rows)
    ]
    # Token by token, the models in turn.
    caches, logits = [None] * len(models), [[] for _ in models]
    for place in range(max(map(len, rows))):
        for index, (_, sparse, _) in enumerate(models):
            if place < len(rows[index]):
                new = torch.tensor([rows[index][place : place + 1]])
                output = sparse(input_ids=new, past_key_values=caches[index], use_cache=True)
                caches[index] = output.past_key_values
                logits[index].append(output.logits[0])
    for got, wanted in zip(logits, expected):
        torch.testing.assert_close(torch.cat(got), wanted, **CLOSE)

    # At the same time, each model in several threads.
    outcome = {}

    def work(index):
        _, sparse, _ = models[index % len(models)]
        with torch.no_grad():
            for _ in range(5):
                outcome[index] = sparse(input_ids=torch.tensor([rows[index % len(models)]])).logits[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2 * len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, got in outcome.items():
        torch.testing.assert_close(got, expected[index % len(models)], **CLOSE)
    assert len(outcome) == len(threads)


@each_variant
@each_family
def test_gradients_are_those_of_the_mask_by_hand(family, variant):
    plain, sparse, tokenizer = pair(family, variant)
    rows = texts(tokenizer)
    ids, real = padded(rows, "right")
    weights = torch.randn(*ids.shape)
    logits = sparse(input_ids=ids, attention_mask=real, use_cache=False).logits
    (logits.logsumexp(-1) * weights * real).sum().backward()
    total = 0
    for index, row in enumerate(rows):
        mask = as_mask(sees(row, step_token_ids(tokenizer), variant), plain.dtype)
        logits = plain(input_ids=torch.tensor([row]), attention_mask=mask, use_cache=False).logits[0]
        total = total + (logits.logsumexp(-1) * weights[index, : len(row)]).sum()
    total.backward()
    for (name, one), other in zip(sparse.named_parameters(), plain.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3, msg=name)


@each_family
@torch.no_grad()
def test_removing_it_leaves_only_a_record(family):
    plain, sparse, tokenizer = pair(family, "own")
    row = torch.tensor([random_text(tokenizer)])
    before = plain(input_ids=row).logits
    assert not torch.equal(sparse(input_ids=row).logits, before)
    set_step_attention(sparse, tokenizer, "tokens")
    set_step_attention(sparse, tokenizer, None)
    assert get_step_attention(sparse) is None
    torch.testing.assert_close(sparse(input_ids=row).logits, before, rtol=0, atol=0)
    noted = sparse.config.to_dict().pop(STEP_ATTENTION_KEY)
    assert noted["variant"] is None
    assert sparse.config.to_dict() == {**plain.config.to_dict(), STEP_ATTENTION_KEY: noted}
    assert sparse.config._attn_implementation == plain.config._attn_implementation
    assert vars(sparse).keys() == vars(plain).keys()
    assert vars(sparse.base_model).keys() == vars(plain.base_model).keys()
    sparse.generate(input_ids=row, num_beams=2, max_new_tokens=3, pad_token_id=2)


@torch.no_grad()
def test_an_error_in_a_forward_leaves_nothing():
    plain, sparse, tokenizer = pair("llama", "own")
    row = random_text(tokenizer)
    handle = sparse.model.layers[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sparse(input_ids=torch.tensor([row]))
    handle.remove()
    _, other, _ = pair("qwen2", "own")
    other.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attn_implementation"):
        other(input_ids=torch.tensor([row]))
    torch.testing.assert_close(
        sparse(input_ids=torch.tensor([row])).logits[0], by_hand(plain, tokenizer, row, "own"), **CLOSE
    )


def test_a_cache_of_another_kind_is_refused():
    plain, sparse, tokenizer = pair("llama", "own")
    row = torch.tensor([random_text(tokenizer)])
    cache = plain(input_ids=row, past_key_values=DynamicCache(config=plain.config)).past_key_values
    with pytest.raises(ValueError, match="of which only 0 were read"):
        sparse(input_ids=row, past_key_values=cache)


@each_family
def test_a_mask_for_pairs_of_tokens_is_refused(family):
    plain, sparse, tokenizer = pair(family, "own")
    row = torch.tensor([random_text(tokenizer)])
    mask = torch.zeros(1, 1, row.shape[1], row.shape[1]).masked_fill(~causal(row.shape[1]), -1e9)
    plain(input_ids=row, attention_mask=mask)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 1, .*makes the mask between pairs"):
        sparse(input_ids=row, attention_mask=mask)
    with pytest.raises(ValueError, match="attention_mask is a dict"):
        sparse(input_ids=row, attention_mask={"full_attention": mask})


def causal(length):
    return torch.ones(length, length).tril().bool()
