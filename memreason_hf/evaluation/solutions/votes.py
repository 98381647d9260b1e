"""Several solutions of one question: the answer of the majority, and how often one of k is right."""

from collections.abc import Mapping, Sequence
from math import comb
from statistics import fmean

from memreason_hf.checks import check_int
from memreason_hf.data.questions.answer_types import answer_key
from memreason_hf.evaluation.solutions.generation import GeneratedSolution


def by_item(generations: Sequence[GeneratedSolution]) -> dict[int, list[GeneratedSolution]]:
    """The solutions of each item, by its index, in the order of their samples."""
    items: dict[int, list[GeneratedSolution]] = {}
    for generation in generations:
        items.setdefault(generation.index, []).append(generation)
    return {index: sorted(solutions, key=lambda one: one.sample or 0) for index, solutions in items.items()}


def majority(solutions: Sequence[GeneratedSolution]) -> GeneratedSolution:
    """
    The first solution with the answer that most solutions of a question give (self-consistency).

    Solutions without a valid answer have no vote. Of answers with equally many votes the one that was given first
    wins. Answers are the same as `answer_key` counts them.

    Raises:
        ValueError: there are no solutions.
    """
    if not solutions:
        raise ValueError("There are no solutions to vote. Generate at least one.")
    votes: dict[object, list[GeneratedSolution]] = {}
    for solution in solutions:
        if solution.answer is not None:
            votes.setdefault(answer_key("text", solution.answer), []).append(solution)
    # `max` takes the first of equal ones, and a dict keeps the order in which answers came.
    return max(votes.values(), key=len)[0] if votes else solutions[0]


def pass_at(num_samples: int, num_correct: int, k: int) -> float:
    """
    The probability that at least one of `k` solutions is right, estimated without bias from `num_samples` of which
    `num_correct` are right (Chen et al. 2021, arXiv 2107.03374): 1 - C(n - c, k) / C(n, k).

    Raises:
        ValueError, TypeError: a number is out of range.

    Example:

        >>> pass_at(4, 1, 2)
        0.5
    """
    check_int("num_samples", num_samples, least=1)
    check_int("num_correct", num_correct, 0, num_samples, "it counts some of num_samples")
    check_int("k", k, 1, num_samples, "it counts some of num_samples")
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def measure_votes(generations: Sequence[GeneratedSolution]) -> dict:
    """
    What several solutions of each question show together.

    Returns:
        `num_samples` (the fewest of an item); `pass_at`, by k as a text, for powers of two up to `num_samples` and
        itself, and `majority_accuracy`, shares of the items.
    """
    items = by_item(generations)
    count = min(map(len, items.values()))
    ks = sorted({2**power for power in range(count.bit_length())} | {count})
    return {
        "num_samples": count,
        "pass_at": {
            str(k): fmean(pass_at(len(s), sum(one.is_correct for one in s), k) for s in items.values()) for k in ks
        },
        "majority_accuracy": fmean(majority(solutions).is_correct for solutions in items.values()),
    }


def vote_scores(results: Mapping) -> dict[str, float]:
    """The columns of a comparison for the results of `measure_votes`; empty where each question has one solution."""
    count = results.get("num_samples", 1)
    if count < 2:
        return {}
    return {f"majority of {count}": results["majority_accuracy"], f"pass@{count}": results["pass_at"][str(count)]}
