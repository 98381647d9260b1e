"""The tables and verdicts that the experiment prints."""

import math

import numpy as np

from memreason_hf.experiments.retrofit.evaluation import RECURRENCES_BY_HOP as SHOWN
from memreason_hf.experiments.retrofit.results import BETTER_AT, DEEPER, MOST_LOST
from memreason_hf.tables import format_table


def report(results: dict) -> str:
    """The tables and verdicts of the contents of `retrofit.json`."""
    seeds = results["seeds"]
    header = ["seed", "source", "static, trained on", *(f"R = {recurrence}" for recurrence in SHOWN)]
    parts = []
    for title, name, shown in (
        ("Places predicted correctly in %, over all hops of test chains", "accuracies", lambda value: 100 * value),
        ("Perplexity of a place", "losses", math.exp),
    ):
        rows = {seed: [shown(value) for value in _row(entry, name)] for seed, entry in seeds.items()}
        lines = [[seed, *map(_number(name), values)] for seed, values in rows.items()]
        if len(rows) > 1:
            lines.append(["mean", *map(_number(name), np.mean(list(rows.values()), axis=0))])
        parts += [f"\n{title}\n", format_table(header, lines)]
    parts += ["\nHops that are predicted correctly in at least 95 % of the test chains, from the first on\n"]
    parts.append(format_table(header, [[seed, *_solved_hops(entry)] for seed, entry in seeds.items()]))
    parts += ["", *(_describe(seed, entry) for seed, entry in seeds.items()), "", *_verdicts(results)]
    return "\n".join(parts)


def _row(entry, name):
    return [
        entry["source"][name][0],
        entry["static"][name][0],
        *(entry["looped"][name][recurrence - 1] for recurrence in SHOWN),
    ]


def _number(name):
    return "{:.1f}".format if name == "accuracies" else "{:.4f}".format


def _solved_hops(entry):
    by_hop = [entry[name]["accuracies_by_hop"]["1"] for name in ("source", "static")]
    by_hop += [entry["looped"]["accuracies_by_hop"][str(recurrence)] for recurrence in SHOWN]
    return [next((hop for hop, value in enumerate(values) if value < 0.95), len(values)) for values in by_hop]


def _describe(seed, entry):
    verdict, tokens = entry["verdict"], entry["training"]["looped"]["tokens"]
    best = verdict["best_recurrence"]
    return (
        f"Seed {seed}: trained on for {tokens:,} tokens each. The best depth is {best}; at {DEEPER * best} "
        f"recurrences {_lost(verdict['lost_perplexity'])} of the perplexity and "
        f"{100 * verdict['lost_accuracy']:.2f} points of accuracy are lost. After one recurrence the converted model "
        f"differs from its source by {entry['conversion_difference']}, and the trained one in its weights from the "
        f"static one by {entry['weight_difference']:.2g}."
    )


def _lost(share):
    return f"{100 * share:.2f} %"


def _verdicts(results):
    verdict = results["verdict"]
    deep = " and ".join(map(str, BETTER_AT))
    sentences = {
        "keeps_first": "(a) one recurrence is no worse than the static model trained on by as much",
        "is_better": f"(b) {deep} recurrences are better",
        "is_stable": f"(c) {DEEPER} times the best depth costs at most {100 * MOST_LOST:.0f} % of the perplexity and "
        "one point of accuracy",
    }
    count = len(results["seeds"])
    for name, sentence in sentences.items():
        holding = [seed for seed, entry in results["seeds"].items() if entry["verdict"][name]]
        how = "yes" if verdict[name] else "NO"
        yield f"{sentence}: {how}, on {len(holding)} of {count} seeds."
