"""Invariant 2: a row stands alone, and equals a reference that shares nothing with the model's loop."""

import pytest
import torch
from family_models import FAMILY_NAMES
from recurrent_models import grid_ids, pad, random_ids, reference_logits, relative_error, tiny_model
from reference_decoding import reference


GRID = [
    ("gpt2", {}),
    ("gpt2", {"position_embedding_type": "none", "sliding_window": 3, "input_injection": "add"}),
    ("gpt2", {"position_embedding_type": "sinusoidal", "input_injection": "concat", "state_norm": "layernorm"}),
    ("gpt2", {"num_prelude_layers": 1, "num_coda_layers": 1, "sliding_window": 2, "tie_word_embeddings": False}),
    ("gpt2", {"state_init": "zeros", "input_injection": "add", "state_norm": "layernorm"}),
    ("llama", {"num_key_value_heads": 2}),
    ("llama", {"num_prelude_layers": 1, "input_injection": "concat", "state_norm": "rmsnorm"}),
    ("llama", {"num_coda_layers": 2, "input_injection": "add", "sliding_window": 4, "attention_bias": True}),
    ("llama", {"state_init": "zeros", "input_injection": "concat", "head_dim": 6, "num_prelude_layers": 1}),
]
# Two looped layers between a prelude and a coda: layers of both types are in the loop.
FAMILIES = [
    (
        f"family:{name}",
        {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "gate", "injection_gate_init": 0.6},
    )
    for name in FAMILY_NAMES
]
GRID += FAMILIES
IDS = grid_ids(GRID)
LENGTHS = (7, 3, 9, 1, 5)


def brute_force(model, row, counts):
    """Logits of one row, from a reference that shares nothing with the model's loop."""
    if model.config.block_model_type is None:
        return reference_logits(model, row, counts.tolist())
    return reference(model, row, counts)[0]


def set_attention(model, attention):
    supported = {"eager": True, "sdpa": model._supports_sdpa, "flex_attention": model._supports_flex_attn}
    if not supported[attention]:
        pytest.skip(f"{model.config.block_model_type} does not support {attention}")
    model.set_attn_implementation(attention)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("style", "extra"), GRID, ids=IDS)
def test_counts_per_row_against_reference(style, extra, side, attention):
    model = tiny_model(style, **extra)
    set_attention(model, attention)
    rows = [random_ids(n) for n in LENGTHS]
    counts = [4, 1, 7, 2, 4]
    ids, mask = pad(rows, side)
    output = model(ids, attention_mask=mask, num_recurrences=torch.tensor(counts))
    assert output.num_recurrences.tolist() == counts
    for i, (row, count) in enumerate(zip(rows, counts)):
        expected = brute_force(model, row, torch.full((len(row),), count))
        assert relative_error(output.logits[i][mask[i].bool()], expected) < 2e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("style", "extra"), GRID, ids=IDS)
def test_counts_per_token_against_reference(style, extra, side):
    model = tiny_model(style, **extra)
    rows = [random_ids(n) for n in LENGTHS]
    counts = [torch.randint(1, 7, (n,)) for n in LENGTHS]
    ids, mask = pad(rows, side)
    given = torch.zeros_like(mask)
    given[mask.bool()] = torch.cat(counts)
    output = model(ids, attention_mask=mask, num_recurrences=given)
    assert torch.equal(output.num_recurrences, given)
    for i, (row, count) in enumerate(zip(rows, counts)):
        expected = brute_force(model, row, count)
        assert relative_error(output.logits[i][mask[i].bool()], expected) < 2e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("style", "extra"), GRID, ids=IDS)
def test_batch_of_many_equals_batch_of_one(style, extra, attention, side):
    if attention == "flex_attention" and model_head_dim(style, extra) != 16:
        # flex attention wants at least 16 channels a head
        extra = {**extra, "hidden_size": 64} | ({} if style.startswith("family:") else {"head_dim": 16})
    model = tiny_model(style, **extra)
    set_attention(model, attention)
    rows = [random_ids(n) for n in LENGTHS]
    ids, mask = pad(rows, side)
    counts = torch.tensor([3, 1, 5, 2, 4])
    with torch.no_grad():
        together = model(ids, attention_mask=mask, num_recurrences=counts).logits
        for i, row in enumerate(rows):
            alone = model(row[None], num_recurrences=int(counts[i])).logits[0]
            assert relative_error(together[i][mask[i].bool()], alone) < 1e-5


def model_head_dim(style, extra):
    return extra.get("head_dim", 8)


def test_normal_state_is_a_function_of_seed_and_position():
    model = tiny_model(state_init="normal", input_injection="add", state_norm="layernorm")
    rows = [random_ids(n) for n in LENGTHS]
    alone = [model(row[None]).logits[0] for row in rows]
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        together = model(ids, attention_mask=mask).logits
        for i, row_logits in enumerate(alone):
            assert relative_error(together[i][mask[i].bool()], row_logits) < 1e-5
    ids = rows[0][None]
    assert not torch.allclose(model(ids, state_seed=1).logits, model(ids, state_seed=2).logits)
    assert torch.equal(model(ids, state_seed=1).logits, model(ids, state_seed=1).logits)
    # In training every step draws its own, unless a seed is given.
    model.train()
    assert not torch.allclose(model(ids).logits, model(ids).logits)
    assert torch.equal(model(ids, state_seed=1).logits, model(ids, state_seed=1).logits)


def test_normal_state_is_normal():
    from modeling_recurrent.positions_recurrent import position_noise

    noise = position_noise(torch.arange(500)[None], 128, seed=3)
    assert noise.shape == (1, 500, 128)
    assert abs(noise.mean().item()) < 0.02 and abs(noise.std().item() - 1) < 0.02
    assert abs((noise**4).mean().item() - 3) < 0.2
    neighbours = torch.corrcoef(torch.stack([noise[0, :-1].flatten(), noise[0, 1:].flatten()]))[0, 1]
    assert abs(neighbours.item()) < 0.02


def test_padding_of_nothing_but_padding_stays_finite():
    model = tiny_model(sliding_window=2)
    ids, mask = pad([random_ids(6), random_ids(2)], "left")
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        assert model(ids, attention_mask=mask).logits.isfinite().all()


def test_a_prepared_mask_is_used_as_it_is():
    model = tiny_model()
    ids = random_ids(2, 6)
    square = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].expand(2, 1, 6, 6)
    counts = torch.tensor([2, 5])
    expected = model(ids, num_recurrences=counts).logits
    assert relative_error(model(ids, attention_mask=square, num_recurrences=counts).logits, expected) < 1e-5
    # One mask for all rows.
    assert relative_error(model(ids, attention_mask=square[:1], num_recurrences=counts).logits, expected) < 1e-5
