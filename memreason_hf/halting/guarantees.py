"""
Tests that a loss stays below a bound, and the choice among candidates by them.

    p_values = [p_value(losses, risk=0.005) for losses in losses_of_candidates]     # from cautious to daring
    last_safe = fixed_sequence(p_values, level=0.05)                                # the number of safe candidates

The losses of all candidates are those of the same rows, drawn independently of the candidates. The chosen candidate
then loses more than `risk` with a probability of at most `level` over the draw of the rows (Learn then Test,
arXiv 2110.01052). Conformal risk control (arXiv 2208.02814) promises less, the mean over such draws, and needs fewer
rows.
"""

import math
from collections.abc import Sequence

import numpy as np

from memreason_hf.checks import check_int, check_number


def check_promise(risk: float, confidence: float) -> None:
    """
    Checks the two numbers of a promise.

    Raises:
        TypeError, ValueError: one of them is not a number between 0 and 1, both excluded.
    """
    check_number("risk", risk)
    if risk <= 0:
        raise ValueError(
            f"risk={risk} must be above 0: a finite number of rows cannot show that nothing is ever lost. Pass for "
            "example 0.005."
        )
    check_number("risk", risk, below=1)
    check_number("confidence", confidence, above=0, below=1)


def rows_needed(risk: float, confidence: float, comparisons: int = 1) -> int:
    """
    The fewest rows with which a test can succeed, which it then does if no row loses anything.

    Args:
        risk: the bound of the mean loss, in 0..1.
        confidence: the probability with which the promise holds.
        comparisons: the number of hypotheses that share the error of `1 - confidence`.

    Example:

        >>> rows_needed(0.005, 0.95), rows_needed(0.05, 0.95), rows_needed(0.05, 0.95, comparisons=100)
        (598, 59, 149)
    """
    check_promise(risk, confidence)
    check_int("comparisons", comparisons, least=1)
    level = (1 - confidence) / comparisons
    rows = max(math.ceil(math.log(level) / math.log1p(-risk)), 1)
    # The logarithms are rounded.
    while rows > 1 and binomial_tail(0, rows - 1, risk) <= level:
        rows -= 1
    while binomial_tail(0, rows, risk) > level:
        rows += 1
    return rows


def rows_needed_in_mean(risk: float) -> int:
    """
    The fewest rows with which conformal risk control can succeed.

    Example:

        >>> rows_needed_in_mean(0.005)
        199
    """
    check_promise(risk, 0.5)
    rows = max(math.floor(1 / risk) - 2, 1)
    while 1 / (rows + 1) > risk:
        rows += 1
    return rows


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """
    P(X <= `successes`) of a binomial variable X, summed exactly, in float64.

    Example:

        >>> round(binomial_tail(1, 3, 0.5), 12)
        0.5
    """
    if successes >= trials:
        return 1.0
    if successes < 0:
        return 0.0
    below = np.arange(successes, dtype=np.float64)
    odds = math.log(probability) - math.log1p(-probability)
    logs = trials * math.log1p(-probability) + np.cumsum(
        np.concatenate(([0.0], np.log((trials - below) / (below + 1)) + odds))
    )
    largest = logs.max()
    return min(float(np.exp(largest) * np.exp(logs - largest).sum()), 1.0)


def p_value(losses: np.ndarray, risk: float) -> float:
    """
    A p-value of the hypothesis that the mean loss is above `risk`.

    For losses of 0 and 1 it is the binomial tail, which is exact; for losses between, the bound of Hoeffding and
    Bentkus (arXiv 2110.01052, equation 3).

    Args:
        losses: of independent rows, each in 0..1, shape (rows,).
        risk: the bound, in 0..1.

    Example:

        >>> round(p_value(np.zeros(598), 0.005), 4)
        0.0499
    """
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 1 or len(losses) == 0:
        raise ValueError(f"losses has shape {losses.shape}, but must be a list of at least one number.")
    if not ((losses >= 0) & (losses <= 1)).all():
        raise ValueError(f"losses must be in 0..1, but reach from {losses.min()} to {losses.max()}.")
    rows, total = len(losses), losses.sum()
    if np.isin(losses, (0, 1)).all():
        return binomial_tail(int(total), rows, risk)
    mean = total / rows
    # Without the slack, a sum that is a whole number but for rounding would count as the next one.
    bentkus = math.e * binomial_tail(math.ceil(total - 1e-9), rows, risk)
    hoeffding = math.exp(-rows * _divergence(min(mean, risk), risk))
    return min(hoeffding, bentkus, 1.0)


def _divergence(a, b):
    """KL divergence of Bernoulli(a) from Bernoulli(b), in nats."""
    first = a * math.log(a / b) if a > 0 else 0.0
    return first + ((1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0)


def fixed_sequence(p_values: Sequence[float], level: float) -> int:
    """
    How many candidates are safe if they are tested in their order, each at `level`, up to the first that fails.

    The order must not depend on the rows. Because testing ends at the first failure, any number of candidates costs
    nothing (arXiv 2110.01052, section 3.1).

    Example:

        >>> fixed_sequence([0.01, 0.02, 0.3, 0.01], level=0.05)
        2
    """
    failed = np.flatnonzero(~(np.asarray(p_values) <= level))
    return int(failed[0]) if len(failed) else len(p_values)


def holm(p_values: Sequence[float], level: float) -> np.ndarray:
    """
    Which candidates are safe by Holm's step-down procedure, in any order, shape of `p_values`.

    The smallest p-value is compared with `level` / K, the next with `level` / (K - 1), and so on, up to the first
    failure.

    Example:

        >>> holm([0.3, 0.01, 0.02], level=0.05).tolist()
        [False, True, True]
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    limits = level / np.arange(len(p_values), 0, -1)
    safe = np.zeros(len(p_values), dtype=bool)
    safe[order[: fixed_sequence(p_values[order] - limits, 0.0)]] = True
    return safe


def conformal(losses: np.ndarray, risk: float) -> int:
    """
    How many candidates are safe by conformal risk control: a row that is drawn like these loses at most `risk` in the
    mean, where the mean is also taken over the rows that chose the candidate (arXiv 2208.02814, equation 4).

    That needs losses that do not fall from candidate to candidate. The largest loss of a row so far takes the place of
    its loss, which is never too small.

    Args:
        losses: of each candidate and row, from cautious to daring, each in 0..1, shape (candidates, rows).

    Example:

        >>> conformal(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]]), risk=0.5)
        2
    """
    monotone = np.maximum.accumulate(np.asarray(losses, dtype=np.float64), axis=0)
    bounds = (monotone.sum(axis=1) + 1) / (monotone.shape[1] + 1)
    return fixed_sequence(bounds, risk)


__all__ = [
    "binomial_tail",
    "check_promise",
    "conformal",
    "fixed_sequence",
    "holm",
    "p_value",
    "rows_needed",
    "rows_needed_in_mean",
]
