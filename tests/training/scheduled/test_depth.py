"""The depth of a training step grows along a run, and follows from (seed, step)."""

import math
from statistics import mean

import pytest
import torch
from processes import load_result, run_ranks, save_result
from recurrent_models import tiny_config
from small_runs import small_model, small_trainer
from transformers import get_scheduler

from memreason_hf.training.scheduled.depth import RECURRENCE_GROWTHS, DepthSchedule, grown_mean
from modeling_recurrent.sampling_recurrent import sample_num_recurrences


SAMPLINGS = {
    "fixed": {"num_recurrences": 8},
    "uniform": {"recurrence_sampling": "uniform", "recurrence_min": 1, "recurrence_max": 15},
    "poisson": {"recurrence_sampling": "poisson", "num_recurrences": 8},
    "lognormal_poisson": {"recurrence_sampling": "lognormal_poisson", "num_recurrences": 8},
}


def schedule(fields, growth="1-sqrt", seed=0, growth_steps=75, start=1.0):
    return DepthSchedule(tiny_config(**fields), seed, growth, growth_steps, start)


@pytest.mark.parametrize("growth", ["linear", "1-sqrt"])
def test_the_shape_is_that_of_the_published_schedule(growth):
    """The code of arXiv 2511.07384 takes the warm-up of the library's learning-rate schedule, from 0 on."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=32.0)
    arguments = {"num_decay_steps": 0, "min_lr_ratio": 0, "warmup_type": growth}
    published = get_scheduler("warmup_stable_decay", optimizer, 75, 100, scheduler_specific_kwargs=arguments)
    for step in range(100):
        expected = published.get_last_lr()[0]
        assert grown_mean(growth, 32, step, 75, start=0) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        published.step()
    assert grown_mean("linear", 9, 50, 100) == 5 and grown_mean("1-sqrt", 9, 75, 100) == 5
    assert grown_mean("none", 9, 0, 100) == 9
    with pytest.raises(ValueError, match="recurrence_growth='cosine' must be one of none, linear, 1-sqrt"):
        grown_mean("cosine", 9, 0, 100)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("growth", RECURRENCE_GROWTHS)
def test_drawn_depths_follow_the_mean(sampling, growth):
    fields = SAMPLINGS[sampling]
    config = tiny_config(**fields)
    for step, growth_steps in ((0, 100), (37, 75), (74, 75), (75, 75), (500, 75)):
        found = [schedule(fields, growth, seed, growth_steps).num_recurrences(step) for seed in range(400)]
        expected = grown_mean(growth, 8, step, growth_steps)
        # "fixed" rounds up, "uniform" rounds its end.
        tolerance = {"fixed": 1.0, "uniform": 0.9}.get(sampling, 0.45)
        assert abs(mean(found) - expected) < tolerance, (step, mean(found), expected)
        assert min(found) >= 1
        if growth == "none" or step >= growth_steps:
            # Where nothing grows any more, the draws are those of the config.
            assert found == [sample_num_recurrences(config, seed, step) for seed in range(400)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draw_follows_from_seed_and_step(sampling):
    one, two = (schedule(SAMPLINGS[sampling]) for _ in range(2))
    forwards = [one.num_recurrences(step) for step in range(100)]
    assert forwards == [two.num_recurrences(step) for step in reversed(range(100))][::-1]
    assert len(set(forwards)) >= 5
    assert mean(forwards[:25]) < mean(forwards[25:60]) < mean(forwards[75:])
    if sampling != "fixed":
        assert forwards != [schedule(SAMPLINGS[sampling], seed=1).num_recurrences(step) for step in range(100)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_bounds_clip_a_grown_depth(sampling):
    fields = SAMPLINGS[sampling] | {"recurrence_min": 3, "recurrence_max": 9}
    found = [schedule(fields).num_recurrences(step) for step in range(300)]
    assert (min(found), max(found)) == (3, 8 if sampling == "fixed" else 9)
    assert set(found[:15]) <= {3, 4, 5} if sampling in ("fixed", "uniform") else mean(found[:15]) < 4


def test_a_start_above_the_mean_is_refused():
    with pytest.raises(ValueError, match="recurrence_growth_start=9 is above the mean depth 8"):
        schedule(SAMPLINGS["uniform"], start=9)
    schedule(SAMPLINGS["uniform"], growth="none", start=9)


def depths_of(trainer):
    found = []
    trainer.model.model.register_forward_hook(
        lambda model, args, output: found.append(int(output.num_recurrences[0])) if model.training else None
    )
    trainer.train()
    return found


GROWING = {"recurrence_growth": "linear", "max_steps": 8, "recurrence_growth_ratio": 0.5}
DEEP = {"recurrence_sampling": "fixed", "num_recurrences": 9, "recurrence_min": None, "recurrence_max": None}


def test_a_run_grows_over_a_share_of_its_steps(tmp_path):
    trainer = small_trainer(tmp_path, small_model(**DEEP), **GROWING, logging_steps=1)
    assert depths_of(trainer) == [1, 3, 5, 7, 9, 9, 9, 9]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["mean_recurrences"] for entry in logs] == [1, 3, 5, 7, 9, 9, 9, 9]
    assert [entry["num_recurrences"] for entry in logs] == [1, 3, 5, 7, 9, 9, 9, 9]
    # The length of a run decides its depths, so that it counts where the learning rate does not look ahead.
    assert trainer.run_fingerprint()["training.growth_steps"] == 4
    plain = small_trainer(tmp_path / "plain", small_model(**DEEP), max_steps=8, logging_steps=1)
    assert depths_of(plain) == [9] * 8
    assert "training.growth_steps" not in plain.run_fingerprint()
    assert "mean_recurrences" not in plain.state.log_history[0]


def test_a_start_above_the_mean_ends_a_run_before_it_begins(tmp_path):
    with pytest.raises(ValueError, match=r"recurrence_growth_start=10\.0"):
        small_trainer(tmp_path / "run", small_model(**DEEP), **GROWING, recurrence_growth_start=10.0)
    assert not list(tmp_path.glob("run/*"))


def grow(folder, result, world_size):
    trainer = small_trainer(
        folder,
        small_model(residual_dropout=0.0, recurrence_max=9),
        **{**GROWING, "recurrence_growth": "1-sqrt", "per_device_train_batch_size": 16 // world_size},
        logging_steps=1,
    )
    depths = depths_of(trainer)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    save_result(f"{result}-{trainer.args.process_index}", (depths, losses))


def test_ranks_have_one_depth(tmp_path):
    run_ranks(grow, tmp_path / "one", tmp_path / "single", 1, world_size=1)
    run_ranks(grow, tmp_path / "two", tmp_path / "double", 2)
    depths, losses = load_result(tmp_path / "single-0")
    assert len(set(depths)) >= 3 and depths[0] <= 2
    for rank in range(2):
        found, found_losses = load_result(tmp_path / f"double-{rank}")
        assert found == depths
        assert found_losses == pytest.approx(losses, rel=1e-4)
    assert all(math.isfinite(loss) for loss in losses)
