"""Patches: of a state with itself, of everything, and of one position against hooks on a whole run."""

import numpy as np
import pytest
import torch
from recurrent_models import DECODING_GRID, grid_ids, lively_model, random_ids

from memreason_hf.analysis.inside.patching import patch_effects, top_answers
from memreason_hf.analysis.inside.runs import continue_run, record_run
from memreason_hf.evaluation.mode import evaluation_mode


LAST = 4


def pair_for(model, length=5):
    """Two random texts with different answers."""
    for _ in range(100):
        ids = random_ids(2, length)
        if len(set(top_answers(model, ids, LAST).tolist())) == 2:
            return ids[:1], ids[1:]
    return None


def varied_model(style, extra):
    """A random model that does not answer everything alike, and two texts with different answers."""
    for _ in range(20):
        model = lively_model(style, extra)
        if (pair := pair_for(model)) is not None:
            return model, *pair
    raise AssertionError(f"{style} {extra}: every model answers everything alike.")


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID, ids=grid_ids(DECODING_GRID))
def test_a_patch_with_itself_changes_nothing_and_one_of_everything_gives_the_other_answer(style, extra):
    model, first, second = varied_model(style, extra)
    with evaluation_mode(model):
        own, other = (record_run(model, ids, LAST) for ids in (first, second))
        for recurrence in range(LAST):
            same = continue_run(model, first, own.states[recurrence], recurrence, LAST, own.inputs)
            torch.testing.assert_close(same, own.logits, rtol=1e-9, atol=1e-9)
            everything = continue_run(model, first, other.states[recurrence], recurrence, LAST, other.inputs)
            torch.testing.assert_close(everything, other.logits, rtol=1e-9, atol=1e-9)
            # A control: the state alone is not nothing.
            changed = continue_run(model, first, other.states[recurrence], recurrence, LAST)
            starts_alike = recurrence == 0 and model.config.state_init != "embedding"
            assert torch.allclose(changed, own.logits) == starts_alike
    found = patch_effects(model, first, second, num_recurrences=LAST, part="both", batch_size=4)
    np.testing.assert_allclose(found.whole_effect, 1.0, rtol=1e-7)
    assert found.whole_flipped.all() and found.effect.shape == (1, LAST, 5)


def test_without_injection_the_state_is_everything():
    model, first, second = varied_model("llama", {})
    found = patch_effects(model, first, second, num_recurrences=LAST)
    np.testing.assert_allclose(found.whole_effect, 1.0, rtol=1e-7)
    # A control: a loop that reads its input again does not forget the first text.
    model, first, second = varied_model("llama", {"input_injection": "add", "state_norm": "rmsnorm"})
    whole = patch_effects(model, first, second, num_recurrences=LAST).whole_effect
    assert np.abs(whole - 1).max() > 1e-3


def run_with_hooks(model, ids, donor, recurrence, position, part):
    """A whole run in which layers and injection are changed by hand; the logits at the last token."""
    decoder, calls = model.model, 0

    def replace(module, arguments, output):
        nonlocal calls
        calls += 1
        if calls == recurrence and part != "input":
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[:, position] = donor.states[recurrence][:, position]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
        return output

    inject = decoder._inject

    def inject_other(state, inputs, is_first):
        if calls >= recurrence and part != "state":
            inputs = inputs.clone()
            inputs[:, position] = donor.inputs[:, position]
        return inject(state, inputs, is_first)

    handle = decoder.recurrent_layers[-1].register_forward_hook(replace)
    decoder._inject = inject_other
    try:
        with torch.no_grad():
            return model(ids, num_recurrences=LAST, use_cache=False).logits[0, -1]
    finally:
        handle.remove()
        del decoder._inject


GRID = [DECODING_GRID[index] for index in (0, 3, 4, 6, 10)]


@pytest.mark.parametrize("part", ["state", "input", "both"])
@pytest.mark.parametrize(("style", "extra"), GRID, ids=grid_ids(GRID))
def test_one_position_equals_a_whole_run_with_hooks(style, extra, part):
    model, first, second = varied_model(style, extra)
    found = patch_effects(model, first, second, num_recurrences=LAST, part=part)
    with evaluation_mode(model):
        own, other = (record_run(model, ids, LAST) for ids in (first, second))
    answers = [int(record.logits[0].argmax()) for record in (own, other)]

    def margin(logits):
        return float(logits[answers[1]] - logits[answers[0]])

    low, high = margin(own.logits[0]), margin(other.logits[0])
    assert found.margins[0].tolist() == pytest.approx([low, high]) and low < 0 < high
    for recurrence in range(1, LAST):
        for position in range(5):
            logits = run_with_hooks(model, first, other, recurrence, position, part)
            expected = (margin(logits) - low) / (high - low)
            assert found.effect[0, recurrence, position] == pytest.approx(expected, abs=1e-8)
            assert found.flipped[0, recurrence, position] == (int(logits.argmax()) == answers[1])
    # A control: positions and recurrences differ.
    later = found.effect[0, 1:]
    assert np.ptp(later, axis=1).min() > 1e-6 and np.ptp(later, axis=0).max() > 1e-6


def test_batches_do_not_matter_and_hooks_do_not_stay():
    model, first, second = varied_model(*DECODING_GRID[4])
    rows = torch.cat((first, second)), torch.cat((second, first))
    one, many = (patch_effects(model, *rows, num_recurrences=3, batch_size=size) for size in (1, 64))
    np.testing.assert_allclose(one.effect, many.effect, atol=1e-9)
    assert one.effect.shape == (2, 3, 5)
    assert not any(module._forward_hooks for name, module in model.named_modules() if "lora" not in name)


def test_what_cannot_be_patched_is_refused():
    model, first, second = varied_model("llama", {})
    for texts, arguments, message in (
        ((first, second[:, :3]), {}, "same number of tokens"),
        ((first, first), {}, "same answer to both texts"),
        ((first, second), {"part": "input"}, "input_injection='none'"),
        ((first, second), {"part": "all"}, "part='all'"),
        ((first, second), {"num_recurrences": 0}, "num_recurrences=0"),
        ((first, second), {"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            patch_effects(model, *texts, **{"num_recurrences": 2, **arguments})
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        patch_effects(model, first, second, num_recurrences=2)


def test_float32_is_close():
    model, first, second = varied_model("llama", {"input_injection": "add"})
    exact = patch_effects(model.double(), first, second, num_recurrences=LAST)
    found = patch_effects(model.float(), first, second, num_recurrences=LAST)
    np.testing.assert_allclose(found.effect, exact.effect, atol=1e-3)
