"""The interval of an accuracy, over resampled questions."""

import numpy as np


def accuracy_interval(
    correct: np.ndarray, groups: np.ndarray, num_samples: int, confidence: float, seed: int
) -> list[float] | None:
    """
    A percentile bootstrap of the accuracy over resampled questions, each taken with all its items.

    Args:
        correct: 1 for each right item and 0 for each wrong one, `(items,)`.
        groups: the number of the question of each item, from 0, `(items,)`.
        num_samples: resampled sets of questions; 0 for no interval.
        confidence: of the interval, between 0 and 1.
        seed: of the resampling.

    Returns:
        The two ends, in 0..1; None without samples.

    Example:

        >>> low, high = accuracy_interval(np.array([1.0, 1.0, 0.0, 1.0]), np.arange(4), 1000, 0.95, seed=0)
        >>> 0 <= low <= 0.75 <= high <= 1
        True
    """
    if num_samples == 0:
        return None
    items = np.bincount(groups)
    hits = np.bincount(groups, weights=correct)
    generator = np.random.default_rng(seed)
    # How often each question is drawn when as many are drawn as there are.
    draws = generator.multinomial(len(items), np.full(len(items), 1 / len(items)), size=num_samples)
    accuracies = (draws @ hits) / (draws @ items)
    tail = (1 - confidence) / 2
    return [float(value) for value in np.quantile(accuracies, [tail, 1 - tail])]
