"""Trajectories: against separate runs, the halting criterion's own numbers, and a singular value decomposition."""

import numpy as np
import pytest
import torch
from recurrent_models import DECODING_GRID, grid_ids, lively_model, random_ids, tiny_model

from memreason_hf.analysis.inside.trajectories import principal_components, read_trajectories


LAST = 6
GRID = [DECODING_GRID[index] for index in (0, 4, 7, 10)]


@pytest.mark.parametrize(("style", "extra"), GRID, ids=grid_ids(GRID))
def test_the_numbers_of_separate_runs(style, extra):
    model = lively_model(style, extra)
    groups = {2: random_ids(3, 4), "other": random_ids(2, 6)}
    found, fitted = read_trajectories(model, groups, num_recurrences=LAST, positions="all", components=3, batch_size=2)
    for name, ids in groups.items():
        states = []
        for recurrence in range(1, LAST + 1):
            with torch.no_grad():
                output = model(ids, num_recurrences=recurrence, output_hidden_states=True, use_cache=False)
            states.append(output.hidden_states[-1])
        before = [output.hidden_states[0], *states]
        group = found[name]
        for t, state in enumerate(states):
            norm = state.norm(dim=-1)
            np.testing.assert_allclose(group.norm[..., t], norm.numpy(), rtol=1e-9)
            np.testing.assert_allclose(
                group.step[..., t], ((state - before[t]).norm(dim=-1) / norm).numpy(), rtol=1e-6
            )
            distance = (state - states[-1]).norm(dim=-1) / states[-1].norm(dim=-1)
            np.testing.assert_allclose(group.to_last[..., t], distance.numpy(), rtol=1e-6, atol=1e-12)
            cosine = torch.cosine_similarity(state, states[-1], dim=-1)
            np.testing.assert_allclose(group.cosine_to_last[..., t], cosine.numpy(), rtol=1e-6)
            np.testing.assert_allclose(group.coordinates[:, :, t], fitted.project(state.numpy()), rtol=1e-7, atol=1e-9)
        assert group.positions.tolist() == list(range(ids.shape[1]))
        # A control: the state moves.
        assert group.step.min() > 1e-4


def test_the_step_is_what_state_difference_compares():
    model = lively_model(*DECODING_GRID[3])
    ids = random_ids(16, 5)
    found, _ = read_trajectories(model, {"all": ids}, num_recurrences=9, positions="last")
    steps = found["all"].step[:, 0]
    # The criterion does not look at the first recurrence.
    threshold = float(np.median(steps[:, 1:]))
    with torch.no_grad():
        output = model(
            ids,
            halting_criterion="state_difference",
            halting_granularity="sequence",
            state_difference_threshold=threshold,
            min_recurrences=1,
            max_recurrences=9,
        )
    expected = [next((t + 1 for t in range(1, 9) if row[t] < threshold), 9) for row in steps]
    assert output.num_recurrences.tolist() == expected and len(set(expected)) >= 3


def test_the_last_position_is_a_part_of_all():
    model, ids = lively_model(*DECODING_GRID[0]), random_ids(2, 5)
    last, _ = read_trajectories(model, {"a": ids}, num_recurrences=3)
    every, _ = read_trajectories(model, {"a": ids}, num_recurrences=3, positions="all")
    np.testing.assert_allclose(last["a"].step, every["a"].step[:, -1:], rtol=1e-9)
    assert last["a"].positions.tolist() == [4]


def test_components_of_a_singular_value_decomposition():
    rng = np.random.default_rng()
    states = rng.normal(size=(5, 8, 6)) * np.arange(1, 7)
    found = principal_components(states, 4)
    flat = states.reshape(-1, 6)
    _, values, directions = np.linalg.svd(flat - flat.mean(0))
    np.testing.assert_allclose(found.explained, (values**2 / (values**2).sum())[:4], rtol=1e-9)
    np.testing.assert_allclose(np.abs((found.directions * directions[:4]).sum(1)), 1, rtol=1e-9)
    assert all(row[np.abs(row).argmax()] > 0 for row in found.directions)
    whole = principal_components(states, 6)
    np.testing.assert_allclose(whole.project(flat) @ whole.directions + whole.mean, flat, atol=1e-9)
    # A control: fewer components lose something.
    assert np.abs(found.project(flat) @ found.directions + found.mean - flat).max() > 1e-3


def test_states_that_never_change():
    found = principal_components(np.ones((4, 3)), 2)
    assert found.explained.tolist() == [0.0, 0.0]
    model = tiny_model(residual_init_scale=0.0)
    for layer in model.model.layers:
        for name, parameter in layer.named_parameters():
            if name.endswith("bias"):
                parameter.data.zero_()
    (group,) = read_trajectories(model, {"a": random_ids(2, 3)}, num_recurrences=3)[0].values()
    assert not group.step.any() and not group.to_last.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": {}}, "groups is empty"),
        ({"num_recurrences": 1}, "num_recurrences=1 must be at least 2"),
        ({"positions": "first"}, "positions='first'"),
        ({"components": 0}, "components=0"),
        ({"components": 33}, "components=33"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_followed_is_refused(arguments, message):
    arguments = {"groups": {"a": random_ids(1, 3)}, "num_recurrences": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        read_trajectories(tiny_model(), arguments.pop("groups"), **arguments)


def test_states_that_are_nan_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        principal_components(np.array([[np.nan, 1.0]]), 1)
