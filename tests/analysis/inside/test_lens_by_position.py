"""The lens: equal to separate runs at every depth, and to a decoder unrolled by hand."""

import numpy as np
import pytest
import torch
from recurrent_models import DECODING_GRID, VOCAB, grid_ids, lively_model, random_ids, reference_logits, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from memreason_hf.analysis.inside.lens import LensReading, lens_by_position
from memreason_hf.models import convert_decoder


LAST = 5


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID, ids=grid_ids(DECODING_GRID))
def test_every_recurrence_is_a_run_that_stops_there(style, extra):
    model, ids = lively_model(style, extra), random_ids(2, 6)
    targets = random_ids(2, 6)
    targets[0, 2] = -100
    reading = lens_by_position(model, ids, targets, num_recurrences=LAST, top=4, batch_size=1)
    previous = None
    for recurrence in range(1, LAST + 1):
        with torch.no_grad():
            logits = model(ids, num_recurrences=recurrence, use_cache=False).logits
        best = logits.softmax(-1).sort(descending=True)
        here = (slice(None), slice(None), recurrence - 1)
        assert np.array_equal(reading.top_ids[here], best.indices[..., :4].numpy())
        np.testing.assert_allclose(reading.top_probabilities[here], best.values[..., :4].numpy(), rtol=1e-4)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        np.testing.assert_allclose(reading.entropy[here], entropy.numpy(), rtol=1e-4, atol=1e-5)
        # The place of the target in the sorted ids is its rank.
        for row, at in np.ndindex(2, 6):
            target = int(targets[row, at])
            rank = 0 if target == -100 else best.indices[row, at].tolist().index(target) + 1
            assert reading.target_rank[row, at, recurrence - 1] == rank
            assert np.isnan(reading.target_probability[row, at, recurrence - 1]) == (target == -100)
        # A control: depths differ, so that a lens at a wrong depth would be seen.
        assert previous is None or not torch.allclose(previous, logits, rtol=1e-3)
        previous = logits


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID[:5], ids=grid_ids(DECODING_GRID[:5]))
def test_the_last_recurrence_is_bit_for_bit_the_model(style, extra):
    model, ids, seen = tiny_model(style, **extra), random_ids(2, 5), []
    with torch.no_grad():
        output = model(
            ids, num_recurrences=4, use_cache=False, on_recurrence=lambda at, rows, logits: seen.append(logits)
        )
    assert torch.equal(seen[3], output.logits) and not torch.equal(seen[2], output.logits)


def test_an_unrolled_decoder_agrees():
    model = tiny_model("llama", input_injection="add", state_norm="rmsnorm", num_prelude_layers=1, num_coda_layers=1)
    row = random_ids(5)
    reading = lens_by_position(model, row[None], num_recurrences=3)
    for recurrence in range(1, 4):
        with torch.no_grad():
            expected = reference_logits(model, row, [recurrence] * 5).softmax(-1)
        np.testing.assert_allclose(
            reading.target_probability[0, :4, recurrence - 1], expected[range(4), row[1:]].numpy(), rtol=1e-3
        )
        assert np.array_equal(reading.top_ids[0, :, recurrence - 1, 0], expected.argmax(-1).numpy())
    # By default the target is the next token, which the last position does not have.
    assert reading.targets.tolist() == [[*row[1:].tolist(), -100]]


def test_a_converted_decoder_says_after_one_recurrence_what_its_source_says():
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    source = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4, initializer_range=0.2)).eval()
    ids = random_ids(2, 5)
    with torch.no_grad():
        expected = source(ids).logits.softmax(-1)
    looped = convert_decoder(source, prelude=1, loop=2, coda=1)
    with torch.no_grad():
        # A new gate lets nothing of the state through, so that all recurrences are alike.
        looped.model.injection.weight.fill_(0.7)
    reading = lens_by_position(looped, ids, num_recurrences=3)
    assert np.array_equal(reading.top_ids[:, :, 0, 0], expected.argmax(-1).numpy())
    np.testing.assert_allclose(reading.top_probabilities[:, :, 0, 0], expected.amax(-1).numpy(), rtol=1e-5)
    # A control: the second recurrence says something else.
    assert not np.allclose(reading.top_probabilities[:, :, 1, 0], expected.amax(-1).numpy(), rtol=1e-3)


def test_readable_and_settled_are_what_a_slow_search_finds():
    rng = np.random.default_rng()
    top_ids, targets = rng.integers(0, 3, (6, 5, 7, 1)), rng.integers(0, 3, (6, 5))
    targets[rng.random((6, 5)) < 0.2] = -100
    empty = np.zeros((6, 5, 7))
    reading = LensReading(top_ids, top_ids.astype(float), empty, empty, empty, targets)
    for row, at in np.ndindex(6, 5):
        hits = [int(token) == targets[row, at] for token in top_ids[row, at, :, 0]]
        first = hits.index(True) + 1 if True in hits else 0
        settled = next((t + 1 for t in range(7) if all(hits[t:])), 0)
        assert (reading.readable_from[row, at], reading.settled_from[row, at]) == (first, settled)
    candidates = rng.integers(0, 3, (6, 2))
    shares = reading.shares_of(candidates)
    expected = np.mean([top_ids[row, 3, 4, 0] == candidates[row, 1] for row in range(6)])
    assert shares.shape == (2, 5, 7) and shares[1, 3, 4] == pytest.approx(expected)


def test_a_tie_goes_to_the_lower_id():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    reading = lens_by_position(model, random_ids(1, 3), num_recurrences=2, top=2)
    assert not reading.top_ids[..., 0].any() and reading.top_ids[..., 1].all()
    np.testing.assert_allclose(reading.entropy, np.log(VOCAB), rtol=1e-5)


def test_the_model_is_left_as_it_was():
    model = tiny_model().train()
    model.lm_head.eval()
    lens_by_position(model, random_ids(1, 3), num_recurrences=2)
    assert model.training and not model.lm_head.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_recurrences": 0}, "num_recurrences=0"),
        ({"top": 0}, "top=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"targets": torch.ones(1, 2, dtype=torch.long)}, "must have that of input_ids"),
        ({"targets": torch.full((2, 3), VOCAB)}, "must hold ids from 0 to 60"),
        ({"input_ids": torch.full((2, 3), VOCAB)}, "vocab_size is 61"),
        ({"input_ids": torch.ones(3, dtype=torch.long)}, "must be \\(rows, tokens\\)"),
    ],
)
def test_what_cannot_be_read_is_refused(arguments, message):
    arguments = {"input_ids": random_ids(2, 3), "num_recurrences": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        lens_by_position(tiny_model(), arguments.pop("input_ids"), arguments.pop("targets", None), **arguments)


def test_logits_that_are_nan_are_refused_and_named():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ValueError, match="NaN after recurrence 1"):
        lens_by_position(model, random_ids(1, 3), num_recurrences=2)
    with pytest.raises(TypeError, match="RecurrentDepthForCausalLM"):
        lens_by_position(torch.nn.Linear(2, 2), random_ids(1, 3), num_recurrences=2)
