"""How many recurrences a training step takes: one draw from (seed, step), the same wherever it is made."""

import torch


# Spread of the log-normal rate in `lognormal_poisson`, from arXiv 2502.05171, section 3.3.
LOGNORMAL_SIGMA = 0.5

_MASK = (1 << 64) - 1


def _mix(seed: int, step: int) -> int:
    """SplitMix64's finaliser over (seed, step): neighbouring steps get unrelated generator seeds."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return (value ^ (value >> 31)) & ((1 << 63) - 1)


def sample_num_recurrences(config, seed: int, step: int) -> int:
    """
    The number of recurrences of training step `step`.

    Args:
        config (`RecurrentDepthConfig`): `recurrence_sampling`, its mean `num_recurrences`, `recurrence_min` and
            `recurrence_max` are read.
        seed (`int`), step (`int`): the draw is a pure function of both: equal on every rank and after a resume.

    Returns:
        `int`, at least 1 and within min..max. `poisson` draws from Poisson(mean); `lognormal_poisson` draws a rate
        from exp(N(log(mean - 1) - sigma^2 / 2, sigma)) and then 1 + Poisson(rate) (arXiv 2502.05171, with its mean
        kept at `num_recurrences`); both are clipped, not redrawn.
    """
    low = config.recurrence_min or 1
    high = config.recurrence_max
    mean = config.num_recurrences
    generator = torch.Generator().manual_seed(_mix(seed, step))
    if config.recurrence_sampling == "uniform":
        draw = int(torch.randint(low, high + 1, (), generator=generator))
    elif config.recurrence_sampling == "poisson":
        draw = int(torch.poisson(torch.tensor(float(mean)), generator=generator))
    elif config.recurrence_sampling == "lognormal_poisson":
        # log E[rate] = mu + sigma^2 / 2
        rate = torch.exp(torch.randn((), generator=generator) * LOGNORMAL_SIGMA - LOGNORMAL_SIGMA**2 / 2) * (mean - 1)
        draw = 1 + int(torch.poisson(rate, generator=generator))
    else:
        draw = mean
    draw = max(draw, low)
    return draw if high is None else min(draw, high)


__all__ = ["sample_num_recurrences"]
