"""The state before the first recurrence: given by a call, or noise that is cut off; and norms shared with the last."""

import math

import pytest
import torch
from recurrent_models import pad, random_ids, relative_error, tiny_config, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from memreason_hf.models.conversion.decoder import convert_decoder, unroll_decoder
from modeling_recurrent.positions_recurrent import cut_off, position_noise


NOISY = {"input_injection": "concat", "state_init": "truncated_normal", "state_init_std": 0.5}


@torch.no_grad()
def test_a_given_state_takes_the_place_of_the_noise():
    model, ids = tiny_model("llama", **NOISY), random_ids(3, 5)
    output = model(ids, num_recurrences=2, output_hidden_states=True, state_seed=4)
    given = output.hidden_states[0]
    again = model(ids, num_recurrences=2, initial_state=given)
    assert torch.equal(again.logits, output.logits)
    assert relative_error(model(ids, num_recurrences=2, initial_state=given * 2).logits, output.logits) > 1e-3
    # It goes with halting, and each row keeps its own.
    call = {"halting_criterion": "state_difference", "state_difference_threshold": 0.3, "initial_state": given}
    halted = model(ids, **call)
    alone = model(ids[1:2], **{**call, "initial_state": given[1:2]})
    assert torch.equal(halted.num_recurrences[1], alone.num_recurrences[0])
    assert relative_error(alone.logits[0], halted.logits[1]) < 1e-5


def test_a_state_of_another_shape_is_refused():
    model, ids = tiny_model("llama", **NOISY), random_ids(2, 4)
    with pytest.raises(ValueError, match=r"initial_state has shape \(2, 3, 32\), but must have \(2, 4, 32\)"):
        model(ids, initial_state=torch.zeros(2, 3, 32))
    with pytest.raises(ValueError, match="initial_state is for `forward`"):
        model.generate(ids, max_new_tokens=2, initial_state=torch.zeros(2, 4, 32))


def test_noise_that_is_cut_off():
    noise = position_noise(torch.arange(4096), 64, 3)
    assert noise.abs().max() > 3.5  # the control
    cut = cut_off(noise)
    assert cut.abs().max() <= 3 * (1 + 1e-6)
    # Its variance is 1 - 2 * 3 * density(3) / probability of being inside.
    variance = 1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2))
    assert abs(cut.var().item() - variance) < 0.01
    # In the middle it is the same noise, and the order stays.
    assert torch.allclose(cut[noise.abs() < 1], noise[noise.abs() < 1], rtol=5e-3)
    assert torch.equal(cut.flatten()[:999].argsort(), noise.flatten()[:999].argsort())


@torch.no_grad()
def test_rows_with_noise_stand_alone():
    model = tiny_model("llama", **NOISY)
    rows = [random_ids(length) for length in (6, 3, 5)]
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        together = model(ids, attention_mask=mask)
        for i, row in enumerate(rows):
            assert relative_error(together.logits[i, mask[i].bool()], model(row[None]).logits[0]) < 1e-5


@torch.no_grad()
def test_norms_shared_with_the_last_one():
    """A shared norm computes what one of its own with the same weights computes."""
    ids = random_ids(2, 6)
    shared = tiny_model("llama", state_norm="last")
    own = tiny_model("llama", state_norm="rmsnorm")
    weights = shared.state_dict()
    own.load_state_dict({**weights, "model.state_norm.weight": weights["model.norm.weight"]})
    assert torch.equal(shared(ids).logits, own(ids).logits)
    own.model.state_norm.weight.mul_(2)
    assert relative_error(shared(ids).logits, own(ids).logits) > 1e-3
    without = tiny_model("llama", num_coda_layers=1)
    coda = tiny_model("llama", num_coda_layers=1, coda_norm=True)
    coda.load_state_dict(without.state_dict())
    assert relative_error(coda(ids).logits, without(ids).logits) > 1e-3
    with pytest.raises(Exception, match="coda_norm=True needs coda layers"):
        tiny_config("llama", coda_norm=True)


def test_layers_of_a_family_have_these_parts_too():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes)).eval()
    fields = {"exit_gate": True, "state_norm": "last", "coda_norm": True, "max_recurrences": 6}
    model = convert_decoder(llama, prelude=1, loop=2, coda=1, input_injection="concat", **fields)
    ids = random_ids(3, 5)
    with torch.no_grad():
        counts = model(ids, halting_criterion="exit_gate", exit_gate_threshold=0.8).num_recurrences
        # A fresh gate gives about a half: 0.5, 0.75, 0.875.
        assert ((counts >= 2) & (counts <= 4)).all()
        plain = convert_decoder(llama, prelude=1, loop=2, coda=1, input_injection="concat")
        for recurrences in (1, 3):
            ours, theirs = (which(ids, num_recurrences=recurrences).logits for which in (model, plain))
            assert relative_error(ours, theirs) > 1e-3
    with pytest.raises(ValueError, match="coda_norm=True puts a norm between"):
        unroll_decoder(model, 1)
    with pytest.raises(Exception, match="block_norm='sandwich' is for our own blocks"):
        convert_decoder(llama, prelude=1, loop=2, coda=1, block_norm="sandwich")
    with pytest.raises(Exception, match=r"embedding_scale=2\.0 is for our own blocks"):
        convert_decoder(llama, prelude=1, loop=2, coda=1, embedding_scale=2.0)
