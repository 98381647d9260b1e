import pytest
import torch

from memreason_hf.training.scheduled.losses import recurrence_loss_weights


def test_last_needs_no_weights():
    assert recurrence_loss_weights("last", 5) is None


def test_uniform():
    assert torch.equal(recurrence_loss_weights("uniform", 4), torch.full((4,), 0.25))


def test_geometric_favours_the_last_below_one_and_the_first_above():
    assert torch.allclose(recurrence_loss_weights("geometric", 3, 0.5), torch.tensor([1.0, 2.0, 4.0]) / 7)
    assert torch.allclose(recurrence_loss_weights("geometric", 3, 2.0), torch.tensor([4.0, 2.0, 1.0]) / 7)


@pytest.mark.parametrize("decay", [1e-3, 0.9, 1.0, 50.0])
@pytest.mark.parametrize("num_recurrences", [1, 2, 200])
def test_weights_sum_to_one_for_any_depth(decay, num_recurrences):
    weights = recurrence_loss_weights("geometric", num_recurrences, decay)
    assert weights.shape == (num_recurrences,)
    assert weights.dtype == torch.float32
    assert torch.isfinite(weights).all()
    assert abs(weights.double().sum().item() - 1) < 1e-6


def test_unknown_name():
    with pytest.raises(ValueError, match="recurrence_loss='first'"):
        recurrence_loss_weights("first", 2)
