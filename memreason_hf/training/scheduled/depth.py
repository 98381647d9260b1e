"""How deep the training steps of a run are: the mean depth, and how it grows along the run."""

import math

from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.sampling_recurrent import sample_num_recurrences, sampling_mean


RECURRENCE_GROWTHS = ("none", "linear", "1-sqrt")


def grown_mean(growth: str, mean: float, step: int, growth_steps: int, start: float = 1.0) -> float:
    """
    The mean number of recurrences of a training step.

    Args:
        growth (`str`):
            `"none"`: always `mean`. Otherwise the mean is `start + (mean - start) * g(step / growth_steps)`, with
            g(x) = x for `"linear"` and g(x) = 1 - sqrt(1 - x) for `"1-sqrt"`, which stays shallow, and so cheap, for
            longer (arXiv 2511.07384, with `start` near 0; the learning-rate schedule `"warmup_stable_decay"` of
            transformers has a warm-up of that name).
        mean (`float`): The mean at the end, from step `growth_steps` on.
        step (`int`): The training steps taken so far.
        growth_steps (`int`): The steps in which the mean grows.
        start (`float`, *optional*, defaults to 1): The mean of the first step.

    Raises:
        ValueError: another `growth`.

    Example:

    ```python
    >>> from memreason_hf.training.scheduled.depth import grown_mean

    >>> [round(grown_mean("1-sqrt", 9, step, growth_steps=100), 1) for step in (0, 36, 75, 100)]
    [1.0, 2.6, 5.0, 9.0]
    ```
    """
    if growth not in RECURRENCE_GROWTHS:
        raise ValueError(f"recurrence_growth={growth!r} must be one of {', '.join(RECURRENCE_GROWTHS)}.")
    if growth == "none" or step >= growth_steps:
        return float(mean)
    progress = step / growth_steps
    share = progress if growth == "linear" else 1 - math.sqrt(1 - progress)
    return start + (mean - start) * share


class DepthSchedule:
    """
    The depth of every training step of a run: a pure function of its number, the same on every rank.

    Args:
        config ([`RecurrentDepthConfig`]): Its distribution of depths (`recurrence_sampling`).
        seed (`int`): Of the draws.
        growth, start (`str`, `float`): See `grown_mean`.
        growth_steps (`int`): The steps in which the mean grows.

    Raises:
        ValueError: `start` is above the config's mean.
    """

    def __init__(self, config: RecurrentDepthConfig, seed: int, growth: str, growth_steps: int, start: float):
        self.config, self.seed = config, seed
        self.growth, self.growth_steps, self.start = growth, growth_steps, start
        if growth != "none" and start > sampling_mean(config):
            raise ValueError(
                f"recurrence_growth_start={start} is above the mean depth {sampling_mean(config):g} of the model's "
                "config, to which the depth grows. Lower it, or raise num_recurrences of the config."
            )

    def mean(self, step: int) -> float:
        """The mean depth of a training step, before it is clipped to `recurrence_min` and `recurrence_max`."""
        return grown_mean(self.growth, sampling_mean(self.config), step, self.growth_steps, self.start)

    def num_recurrences(self, step: int) -> int:
        """The depth of a training step."""
        mean = None if self.growth == "none" or step >= self.growth_steps else self.mean(step)
        return sample_num_recurrences(self.config, self.seed, step, mean)
