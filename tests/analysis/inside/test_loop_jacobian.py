"""Eigenvalues of the loop: against the whole Jacobian of a tiny model, found by finite differences."""

import pytest
import torch
from recurrent_models import DECODING_GRID, grid_ids, random_ids, tiny_model

from memreason_hf.analysis.inside.jacobian import loop_eigenvalues


SMALL = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "initializer_range": 0.3}
GRID = [DECODING_GRID[index] for index in (0, 1, 4, 6, 7, 10)]


def small_model(style, extra):
    sizes = {**SMALL, **({"num_key_value_heads": 1} if "num_key_value_heads" in extra else {})}
    return tiny_model(style, **{**extra, **sizes}).double()


def next_state(model, ids, recurrence, shift):
    """
    The state after `recurrence` + 1 in a run in which `shift` is added to the state after `recurrence`, by a hook on
    the last layer of the loop: nothing of the package's way to continue a run is used.
    """
    calls = 0

    def add(module, arguments, output):
        nonlocal calls
        calls += 1
        if calls != recurrence:
            return output
        return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

    handle = model.model.recurrent_layers[-1].register_forward_hook(add)
    with torch.no_grad():
        output = model(ids[None], num_recurrences=recurrence + 1, output_hidden_states=True, use_cache=False)
    handle.remove()
    assert calls == recurrence + 1
    return output.hidden_states[recurrence + 1][0].flatten()


def whole_jacobian(model, ids, recurrence, step):
    width = len(ids) * model.config.hidden_size
    columns = []
    for index in range(width):
        shift = torch.zeros(width, dtype=torch.double)
        shift[index] = step
        shift = shift.view(1, len(ids), -1)
        ahead, behind = (next_state(model, ids, recurrence, sign * shift) for sign in (1, -1))
        columns.append((ahead - behind) / (2 * step))
    return torch.stack(columns, 1)


@pytest.mark.parametrize(("style", "extra"), GRID, ids=grid_ids(GRID))
def test_eigenvalues_are_those_of_the_whole_jacobian(style, extra):
    model, ids = small_model(style, extra), random_ids(3)
    recurrence = 2
    # The norms of families compute in float32, which a smaller step would show.
    step, tolerance = (1e-3, 1e-2) if style.startswith("family") else (1e-6, 1e-4)
    expected = whole_jacobian(model, ids, recurrence, step)
    found = loop_eigenvalues(model, ids, [recurrence, 4], range(3))
    assert found.shape == (2, 3, 8)
    # Causal: blocks above the diagonal are 0, so that those on it have all eigenvalues.
    blocks = expected.view(3, 8, 3, 8)
    assert blocks[0, :, 1:].abs().max() < 1e-7
    for position in range(3):
        one = torch.linalg.eigvals(blocks[position, :, position])
        assert found[0, position].abs().sort().values.tolist() == pytest.approx(
            one.abs().sort().values.tolist(), rel=tolerance, abs=tolerance
        )
    whole = torch.linalg.eigvals(expected).abs().max().item()
    assert found[0].abs().max().item() == pytest.approx(whole, rel=tolerance)
    # A control: another recurrence and another position have other values.
    assert found[1].abs().max().item() != pytest.approx(whole, rel=1e-4)
    assert found[0, 0].abs().max() != pytest.approx(found[0, 1].abs().max().item(), rel=1e-5)


def test_a_loop_that_only_adds_its_input_has_radius_one():
    model = tiny_model(input_injection="add", residual_init_scale=0.0, **SMALL)
    for layer in model.model.layers:
        for name, parameter in layer.named_parameters():
            if name.endswith("bias"):
                parameter.data.zero_()
    found = loop_eigenvalues(model, random_ids(4), [1, 3])
    assert torch.allclose(found, torch.ones_like(found), atol=1e-5)


def test_parts_and_positions_do_not_matter(monkeypatch):
    model, ids = small_model(*GRID[0]), random_ids(4)
    expected = loop_eigenvalues(model, ids, [2], [1, 3])
    monkeypatch.setattr("memreason_hf.analysis.inside.jacobian._NUMBERS_AT_ONCE", 60)
    assert torch.allclose(loop_eigenvalues(model, ids, [2], [-3, -1]).abs(), expected.abs())


def test_the_model_is_left_as_it_was():
    model = tiny_model(**SMALL).train()
    model.lm_head.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    loop_eigenvalues(model, random_ids(2), [1])
    assert model.training and before == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_has_no_derivative_is_refused():
    model, ids = tiny_model(**SMALL), random_ids(3)
    for arguments, message in (
        (([],), "at least one"),
        (([0],), "recurrences=0"),
        (([1], [3]), "positions=3"),
        (([1], [-4]), "positions=-4"),
    ):
        with pytest.raises(ValueError, match=message):
            loop_eigenvalues(model, ids, *arguments)
    with pytest.raises(ValueError, match="need float32 or float64"):
        loop_eigenvalues(model.bfloat16(), ids, [1])
