"""
What `memreason testbed` prints: tables of what `testbed.json` holds.

`testbed.json` is one JSON object. Accuracies and shares are in 0..1, times in seconds. Version 1:

| key | type | meaning |
|---|---|---|
| `schema_version` | int | 1 |
| `kind` | str | `"testbed"` |
| `data` | object | the fields of `MultiHopConfig`, by which the world and its chains are built again |
| `settings` | object | `seed`, `num_judged`, `at_once` |
| `models` | object | for each model by its name: see below |
| `judges` | object | for each judge by its name what `JudgeRates.to_dict` gives |
| `environment` | object | versions of Python and libraries, and the machine |
| `seconds` | float | wall time of all of it, without what was kept of an earlier run |

A model:

| key | type | meaning |
|---|---|---|
| `title` | str | what the tables call it |
| `training` | object | `steps`, `max_steps`, `seconds`, `most_seconds`, `ended_by`, `num_parameters`, `log` |
| `hops`, `recurrences_by_kind` | object | of `evaluate_answers` or `evaluate_solutions`; keys of `hops` are strings |
| `recurrences_by_word`, `steps_by_kind` | object | of models that write steps: `evaluate_solutions` |
| `false_memories` | object | of models that write steps: what `false_memories` gives |
| `seconds` | float | wall time of asking it |
"""

from collections import Counter

import numpy as np

from memreason_hf.data.chains.config import parse_hop_counts
from memreason_hf.tables import format_table


# What `attribute_errors` tells apart.
_OUTCOMES = ("memory", "reason", "answer", "step", "none")


def report(results: dict) -> str:
    """The tables that the command prints, of what `testbed.json` holds."""
    models = results["models"]
    trained_hops = parse_hop_counts(results["data"]["train_hops"])[-1]
    title = f"Right answers in %, by hops ({trained_hops} is the most in training; 1 hop: the facts themselves)"
    parts = [_title(title)]
    hops = sorted({int(hop) for model in models.values() for hop in model["hops"]})
    parts.append(
        format_table(
            ["model", *hops],
            [[m["title"], *(_percent(m["hops"][_key(m, hop)]["accuracy"]) for hop in hops)] for m in models.values()],
        )
    )
    parts.append(_title("Tokens generated, and mean recurrences a token, by hops"))
    parts.append(
        format_table(
            ["model", *hops],
            [
                [f"{m['title']}: {what}", *(f"{m['hops'][_key(m, hop)][what]:.1f}" for hop in hops)]
                for m in models.values()
                for what in ("tokens", "recurrences")
            ],
        )
    )
    parts += _depths(models) + _attributions(models, trained_hops) + _judges(results["judges"])
    return "\n".join(parts)


def _key(model, hop):
    # JSON knows no numbers as keys.
    return hop if hop in model["hops"] else str(hop)


def _depths(models):
    rows = [
        [m["title"], *(_number(m["recurrences_by_kind"].get(kind)) for kind in ("memory", "reason", "answer"))]
        for m in models.values()
    ]
    parts = [_title("Mean recurrences by kind of step"), format_table(["model", "memory", "reason", "answer"], rows)]
    for model in models.values():
        by_word = model.get("recurrences_by_word", {})
        if len({round(depth, 3) for depth in by_word.values()}) > 1:
            words = ", ".join(f"{word} {depth:.2f}" for word, depth in by_word.items())
            parts.append(f"{model['title']}, by word: {words}")
    return parts


def _attributions(models, trained_hops):
    lines, parts = [], []
    for model in models.values():
        if "false_memories" not in model:
            continue
        for label, chosen in (
            (f"1-{trained_hops} hops", [g for hops, g in model["hops"].items() if int(hops) <= trained_hops]),
            (f"more than {trained_hops} hops", [g for hops, g in model["hops"].items() if int(hops) > trained_hops]),
        ):
            recalled = _percent(np.mean([group["recalled"] for group in chosen]))
            for verdict in ("right_answers", "wrong_answers"):
                counts = _sum(group["attribution"][verdict] for group in chosen)
                name = f"{model['title']}, {label}: {verdict.replace('_', ' ')}"
                lines.append([name, sum(counts.values()), *(counts[kind] for kind in _OUTCOMES)])
            support = _sum(group["attribution"]["reason_errors"] for group in chosen)
            ended = _sum(group["attribution"]["answer_errors"] for group in chosen)
            parts.append(
                f"{model['title']}, {label}: every needed fact is recalled in {recalled} % of the solutions. Of "
                f"{sum(support.values())} wrong answers that first go wrong at a reason step, {support['recalled']} "
                f"had recalled the fact of that hop, {support['not recalled']} had not; {support['no hop']} are about "
                f"no hop of the question. Of {sum(ended.values())} that first go wrong at the answer, "
                f"{ended['stopped early']} give the entity reached by their last reason step: hops are missing."
            )
        told = model["false_memories"]
        count = sum(told.values()) - told["carried_on"]
        parts.append(
            f"{model['title']}: told a false memory of a needed fact, it reasons from it as recalled in "
            f"{_percent(told['as recalled'] / count)} % of {count} solutions, from the truth in its weights in "
            f"{_percent(told['the truth'] / count)} %; {_percent(told['carried_on'] / count)} % answer what follows "
            "from the false memory."
        )
    if not lines:
        return []
    table = format_table(["the models' own solutions", "all", *_OUTCOMES], lines)
    return [_title("The kind of the first wrong step, by the known truth (none: no step is wrong)"), table, "", *parts]


def _sum(counts):
    total: Counter = Counter()
    for entry in counts:
        total.update(entry)
    return total


def _judges(judges):
    parts = [_title("Judges on errors that were put in (found: the right step and kind) and on right solutions")]
    names = list(judges)
    first = judges[names[0]]
    lines = [
        [f"error: {change}", found["count"], *(_percent(_share(judges[n]["errors"][change], "found")) for n in names)]
        for change, found in first["errors"].items()
    ]
    lines.append(["all errors found, %", "", *(_percent(judges[name]["hit_rate"]) for name in names)])
    lines += [
        [
            f"no error: {change}",
            found["count"],
            *(_percent(_share(judges[n]["right"][change], "false_alarms")) for n in names),
        ]
        for change, found in first["right"].items()
    ]
    lines.append(["false alarms, %", "", *(_percent(judges[name]["false_alarm_rate"]) for name in names)])
    return [*parts, format_table(["put in", "solutions", *names], lines)]


def _share(entry, name):
    return entry[name] / entry["count"]


def _title(text):
    return f"\n{text}\n"


def _percent(share):
    return f"{100 * share:.1f}"


def _number(value):
    return "-" if value is None or not np.isfinite(value) else f"{value:.2f}"
