"""The schema of `retrofit.json`, a document of kind `"retrofit"`, and the verdicts that follow from its numbers."""

import math
from dataclasses import fields
from typing import Literal

from pydantic import JsonValue
from typing_extensions import TypedDict

from memreason_hf.evaluation.results import Document, register_kind
from memreason_hf.experiments.retrofit.training import Recipe


# Recurrences at which the loop must be better than the static model.
BETTER_AT = (4, 8)
# How much more perplexity, as a share, and how much less accuracy may come with four times the best depth.
MOST_LOST = 0.01
# How many times the best depth.
DEEPER = 4


class Training(TypedDict):
    """How the training of one model went."""

    steps: int
    tokens: int
    num_parameters: int
    seconds: float
    log: list[dict[str, JsonValue]]
    """What the Trainer logged."""


class Measures(TypedDict):
    """One model on the test chains, over all hops. A list has an entry for each recurrence from 1 on."""

    losses: list[float]
    """Mean cross-entropy of a place, in nats."""
    accuracies: list[float]
    accuracies_by_hop: dict[str, list[float]]
    """After some of the recurrences, a list with an entry for each hop."""


class Verdict(TypedDict):
    """Whether the three demands hold."""

    keeps_first: bool
    """(a) After one recurrence neither loss nor accuracy are worse than those of the static model."""
    is_better: bool
    """(b) After 4 and 8 recurrences loss and accuracy are better than those of the static model."""
    is_stable: bool
    """(c) Four times the best depth costs at most 1 % of the perplexity and one point of accuracy."""


class SeedVerdict(Verdict):
    """The three demands, and what decides the third."""

    best_recurrence: int
    """The one of the lowest loss among the depths that training can draw."""
    lost_perplexity: float
    """Perplexity at four times that depth, divided by the best, minus 1."""
    lost_accuracy: float
    """Accuracy at that depth, minus accuracy at four times that depth."""


class SeedResults(TypedDict):
    """All models of one seed, which decides the world, the chains, the first weights and the batches."""

    conversion_difference: float
    """Largest difference of a logit between the source and the converted, saved and loaded model at one recurrence."""
    weight_difference: float
    """Largest difference of a weight between the static model and the looped one, at the end of training."""
    training: dict[str, Training]
    """Of `source`, `static` and `looped`."""
    source: Measures
    static: Measures
    looped: Measures
    verdict: SeedVerdict
    seconds: float
    """Time of the evaluation."""


# The fields of the recipe.
RecipeSettings = TypedDict("RecipeSettings", {field.name: field.type for field in fields(Recipe)})
RecipeSettings.__doc__ = "The fields of `Recipe`."


class RetrofitResults(Document):
    """A loop in a decoder that was trained at fixed depth, on several seeds."""

    kind: Literal["retrofit"]
    recipe: RecipeSettings
    num_test_chains: int
    seeds: dict[str, SeedResults]
    verdict: Verdict
    """What holds on every seed."""
    seconds: float
    """Wall time of the whole command, without what an earlier run had finished."""


def judge_seed(static: Measures, looped: Measures) -> SeedVerdict:
    """
    Compares a looped model with the static one.

    The best depth is sought up to a quarter of the measured depths, so that four times it was measured.

    Raises:
        ValueError: too few recurrences were measured.
    """
    losses, accuracies = looped["losses"], looped["accuracies"]
    if len(losses) < DEEPER * max(BETTER_AT):
        raise ValueError(f"{len(losses)} recurrences were measured, but {DEEPER * max(BETTER_AT)} are needed.")

    def is_at_least(recurrence):
        loss, accuracy = losses[recurrence - 1], accuracies[recurrence - 1]
        return loss <= static["losses"][0] and accuracy >= static["accuracies"][0]

    def is_above(recurrence):
        loss, accuracy = losses[recurrence - 1], accuracies[recurrence - 1]
        return loss < static["losses"][0] and accuracy > static["accuracies"][0]

    best = min(range(len(losses) // DEEPER), key=losses.__getitem__) + 1
    deep = DEEPER * best
    lost_perplexity = math.expm1(losses[deep - 1] - losses[best - 1])
    lost_accuracy = accuracies[best - 1] - accuracies[deep - 1]
    return {
        "keeps_first": is_at_least(1),
        "is_better": all(is_above(recurrence) for recurrence in BETTER_AT),
        "is_stable": lost_perplexity <= MOST_LOST and lost_accuracy <= MOST_LOST,
        "best_recurrence": best,
        "lost_perplexity": lost_perplexity,
        "lost_accuracy": lost_accuracy,
    }


def judge_all(verdicts: list[SeedVerdict]) -> Verdict:
    """What holds on every seed."""
    return {name: all(verdict[name] for verdict in verdicts) for name in Verdict.__annotations__}


def _check_verdicts(results):
    """Raises ValueError if a verdict does not follow from the numbers."""
    for seed, entry in results["seeds"].items():
        if entry["verdict"] != judge_seed(entry["static"], entry["looped"]):
            raise ValueError(f"seeds.{seed}.verdict does not follow from the measured losses and accuracies.")
    if results["verdict"] != judge_all([entry["verdict"] for entry in results["seeds"].values()]):
        raise ValueError("verdict does not follow from the verdicts of the seeds.")


register_kind("retrofit", RetrofitResults, check=_check_verdicts)
