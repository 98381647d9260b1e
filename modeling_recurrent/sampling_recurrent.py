"""Draws the number of recurrences of a training step, which depends only on a seed and the number of the step."""

import math

import torch
from transformers.utils import logging


# Spread of the log-normal rate in `lognormal_poisson`, from arXiv 2502.05171, section 3.3.
LOGNORMAL_SIGMA = 0.5

_MASK = (1 << 64) - 1

logger = logging.get_logger(__name__)


def mix_seed(seed: int, step: int) -> int:
    """SplitMix64's finaliser over (seed, step): neighbouring steps get unrelated seeds, from 0 to 2^63 - 1."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return (value ^ (value >> 31)) & ((1 << 63) - 1)


def sample_num_recurrences(config, seed: int, step: int, mean: float | None = None) -> int:
    """
    Draws the number of recurrences of a training step.

    Args:
        config (`RecurrentDepthConfig`):
            `recurrence_sampling`, its mean `num_recurrences`, `recurrence_min` and `recurrence_max` are read.
        seed (`int`), step (`int`):
            The draw is a pure function of both, so that it is the same on every rank and after a resume.
        mean (`float`, *optional*):
            The mean of the distribution, at least 1, in place of the config's: for a run whose depth grows.
            `"fixed"` rounds it up. `"uniform"` draws from `recurrence_min` to the depth that gives this mean, and
            always `recurrence_min` if the mean is not above it.

    Returns:
        `int`: At least 1 and between `recurrence_min` and `recurrence_max`. `"poisson"` draws from Poisson(mean).
        `"lognormal_poisson"` draws a rate from exp(N(log(mean - 1) - sigma^2 / 2, sigma)) and then 1 + Poisson(rate)
        (arXiv 2502.05171, with its mean kept at `num_recurrences`). Both are clipped, not redrawn. `"fixed"` draws
        nothing and creates no generator.

    Example:

    ```python
    >>> from modeling_recurrent import RecurrentDepthConfig
    >>> from modeling_recurrent.sampling_recurrent import sample_num_recurrences

    >>> config = RecurrentDepthConfig(recurrence_sampling="uniform", recurrence_min=2, recurrence_max=8)
    >>> [sample_num_recurrences(config, seed=0, step=step) for step in range(5)]
    [8, 6, 2, 8, 4]
    ```
    """
    low = config.recurrence_min or 1
    high = config.recurrence_max
    if mean is not None and config.recurrence_sampling == "uniform":
        high = max(round(2 * mean - low), low)
    mean = config.num_recurrences if mean is None else mean
    draw = math.ceil(mean)
    if config.recurrence_sampling != "fixed":
        draw = _draw(config, mean, low, high, torch.Generator().manual_seed(mix_seed(seed, step)))
    draw = max(draw, low)
    return draw if high is None else min(draw, high)


def sampling_mean(config) -> float:
    """The mean of the distribution of depths before it is clipped."""
    if config.recurrence_sampling == "uniform":
        return (config.recurrence_min + config.recurrence_max) / 2
    return float(config.num_recurrences)


def _draw(config, mean, low, high, generator):
    if config.recurrence_sampling == "uniform":
        return int(torch.randint(low, high + 1, (), generator=generator))
    if config.recurrence_sampling == "poisson":
        return int(torch.poisson(torch.tensor(float(mean)), generator=generator))
    # log E[rate] = mu + sigma^2 / 2
    rate = torch.exp(torch.randn((), generator=generator) * LOGNORMAL_SIGMA - LOGNORMAL_SIGMA**2 / 2) * (mean - 1)
    return 1 + int(torch.poisson(rate, generator=generator))


class TrainingDraws:
    """
    Draws depth in training for a model whose caller does not pass it.

    A single process draws from torch's generator, as dropout does: `set_seed` sets it, checkpoints of a trainer hold
    its state, and gradient checkpointing restores it. Where several processes train together, their generators differ
    as soon as one of them drops out more values than another, and processes of different depth would wait for each
    other forever. The n-th draw of a process then depends only on `recurrence_seed` and n.
    """

    def __init__(self):
        self.count = 0

    def num_recurrences(self, config) -> int:
        """The recurrences of the next training forward pass. A fixed depth draws nothing, so it can be compiled."""
        if config.recurrence_sampling == "fixed":
            return sample_num_recurrences(config, 0, 0)
        return self._draw(config)

    @torch.compiler.disable
    def _draw(self, config):
        if not _several_processes():
            return sample_num_recurrences(config, int(torch.randint(2**62, ())), 0)
        if self.count == 0:
            logger.warning_once(
                "The model draws the depth of each training forward pass from recurrence_seed and the number of the "
                "pass, because several processes train together. A resumed run starts with the first pass again. For "
                "a run that resumes exactly, pass num_recurrences, as RecurrentTrainer does."
            )
        self.count += 1
        return sample_num_recurrences(config, config.recurrence_seed, self.count - 1)


def _several_processes():
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


__all__ = ["TrainingDraws", "mix_seed", "sample_num_recurrences", "sampling_mean"]
