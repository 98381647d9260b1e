"""Results as a table for the terminal, one line for each group."""

import math

from memreason_hf.evaluation.results import validate_results
from memreason_hf.tables import format_table


def results_table(results: dict) -> str:
    """
    A table of results of kind `"evaluation"` or `"depth_sweep"`. Accuracies are in percent.

    The table of a sweep holds, for each group, its best accuracy and recurrence, the mean first recurrence at which
    the correct answer ranks first, the share of rows in which it ever does, and the accuracy after some recurrences:
    powers of two and the last one.
    """
    validate_results(results)
    if results["kind"] not in ("evaluation", "depth_sweep"):
        raise ValueError(
            f"kind={results['kind']!r} must be evaluation or depth_sweep: other results have other tables."
        )
    return _evaluation_table(results) if results["kind"] == "evaluation" else _sweep_table(results)


def _evaluation_table(results):
    compared = results["overall"]["fixed"] is not None
    header = [results["data"]["group_column"], "rows", "accuracy", "mean", "median", "std", "min", "max"]
    header += ["best fixed", "at", "difference"] if compared else []
    lines = []
    for entry in _entries(results):
        recurrences = entry["recurrences"]
        line = [
            entry["group"],
            entry["count"],
            _percent(entry["accuracy"]),
            f"{recurrences['mean']:.2f}",
            f"{recurrences['median']:g}",
            f"{recurrences['standard_deviation']:.2f}",
            recurrences["minimum"],
            recurrences["maximum"],
        ]
        if compared:
            fixed = entry["fixed"]
            difference = 100 * (entry["accuracy"] - fixed["best_accuracy"])
            line += [_percent(fixed["best_accuracy"]), fixed["best_recurrence"], f"{difference:+.1f}"]
        lines.append(line)
    return format_table(header, lines)


def _sweep_table(results):
    last = results["settings"]["max_recurrences"]
    shown = [2**power for power in range(int(math.log2(last)) + 1)]
    shown += [] if last in shown else [last]
    header = [results["data"]["group_column"], "rows", "best", "at", "first correct", "ever"]
    header += [f"r={recurrence}" for recurrence in shown]
    lines = []
    for entry in _entries(results):
        first = entry["first_correct"]
        line = [
            entry["group"],
            entry["count"],
            _percent(entry["best_accuracy"]),
            entry["best_recurrence"],
            "-" if first is None else f"{first:.1f}",
            _percent(entry["ever_correct"]),
        ]
        lines.append(line + [_percent(entry["accuracy"][recurrence - 1]) for recurrence in shown])
    return format_table(header, lines)


def _entries(results):
    return [*results["groups"], {"group": "all", **results["overall"]}]


def _percent(share):
    return f"{100 * share:.1f}"
