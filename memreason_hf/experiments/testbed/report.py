"""The tables that `memreason testbed` prints."""

from collections import Counter

import numpy as np

from memreason_hf.data.chains.config import parse_hop_counts
from memreason_hf.evaluation.known_truth.agreement import describe_agreement
from memreason_hf.evaluation.solutions.attribution import NO_ANSWER, NO_DEPARTURE
from memreason_hf.steps import KINDS
from memreason_hf.tables import format_table


def report(results: dict) -> str:
    """The tables of the contents of `testbed.json`."""
    models = results["models"]
    trained_hops = parse_hop_counts(results["data"]["train_hops"])[-1]
    hops = sorted({hop for model in models.values() for hop in model["hops"]}, key=int)
    parts = [
        _title(f"Right answers in %, by hops ({trained_hops} is the most in training; 1 hop: the facts themselves)"),
        format_table(
            ["model", *hops],
            [[m["title"], *(_percent(m["hops"][hop]["accuracy"]) for hop in hops)] for m in models.values()],
        ),
        _title("Tokens generated, and mean recurrences per token, by hops"),
        format_table(
            ["model", *hops],
            [
                [f"{m['title']}: {what}", *(f"{m['hops'][hop][what]:.1f}" for hop in hops)]
                for m in models.values()
                for what in ("tokens", "recurrences")
            ],
        ),
    ]
    return "\n".join([*parts, *_depths(models), *_attributions(models, trained_hops), *_judges(results["judges"])])


def _depths(models):
    kinds = ("memory", "reason", "answer")
    rows = [[m["title"], *(_number(m["recurrences_by_kind"].get(kind)) for kind in kinds)] for m in models.values()]
    parts = [_title("Mean recurrences by kind of step"), format_table(["model", *kinds], rows)]
    for model in models.values():
        by_word = model.get("recurrences_by_word", {})
        if len({round(depth, 3) for depth in by_word.values()}) > 1:
            words = ", ".join(f"{word} {depth:.2f}" for word, depth in by_word.items())
            parts.append(f"{model['title']}, by word: {words}")
    return parts


def _attributions(models, trained_hops):
    lines, sentences = [], []
    for model in models.values():
        if "false_memories" not in model:
            continue
        groups = {int(hops): group for hops, group in model["hops"].items()}
        for label, chosen in (
            (f"1-{trained_hops} hops", [group for hops, group in groups.items() if hops <= trained_hops]),
            (f"more than {trained_hops} hops", [group for hops, group in groups.items() if hops > trained_hops]),
        ):
            name = f"{model['title']}, {label}"
            for verdict in ("right_answers", "wrong_answers"):
                counts = _sum(group["attribution"][verdict] for group in chosen)
                columns = (counts[kind] for kind in (*KINDS, NO_ANSWER, NO_DEPARTURE))
                lines.append([f"{name}: {verdict.replace('_', ' ')}", counts.total(), *columns])
            sentences.append(f"{name}: {_describe_errors(chosen)}")
        sentences.append(f"{model['title']}: {_describe_false_memories(model['false_memories'])}")
    if not lines:
        return []
    table = format_table(["the models' own solutions", "all", *KINDS, NO_ANSWER, NO_DEPARTURE], lines)
    title = _title("The kind of the first wrong step, by the known truth (none: no step is wrong)")
    return [title, table, "", *sentences]


def _describe_errors(groups):
    recalled = _percent(np.mean([group["recalled"] for group in groups]))
    reasons = _sum(group["attribution"]["reason_errors"] for group in groups)
    answers = _sum(group["attribution"]["answer_errors"] for group in groups)
    return (
        f"{recalled} % of the solutions recall every needed fact. {reasons.total()} wrong answers first go wrong at a "
        f"reason step: {reasons['recalled']} had recalled the fact of that hop, {reasons['not recalled']} had not, "
        f"and {reasons['no hop']} are about no hop of the question. {answers.total()} first go wrong at the answer: "
        f"{answers['stopped early']} give the entity that their last reason step reaches, so hops are missing."
    )


def _describe_false_memories(counts):
    total = sum(counts.values()) - counts["carried_on"]
    shares = {name: _percent(count / total) for name, count in counts.items()}
    return (
        f"after a false memory of a needed fact, {shares['as recalled']} % of {total} solutions reason from it, "
        f"{shares['the truth']} % from the truth in the model's weights; {shares['carried_on']} % answer what follows "
        "from the false memory."
    )


def _judges(judges):
    title = _title("Judges on errors inserted by rule (found: the right step and kind) and on correct solutions")
    names = list(judges)
    lines = []
    for part, label, hits, rate, total in (
        ("errors", "error", "found", "hit_rate", "all errors found, %"),
        ("right", "no error", "false_alarms", "false_alarm_rate", "false alarms, %"),
    ):
        for change in judges[names[0]][part]:
            entries = [judges[name][part][change] for name in names]
            # A language model is asked about fewer solutions.
            shares = (entry[hits] / entry["count"] for entry in entries)
            lines.append([f"{label}: {change}", entries[0]["count"], *map(_percent, shares)])
        lines.append([total, "", *(_percent(judges[name][rate]) for name in names)])
    # Results of the first release have no agreement by kind.
    by_kind = [describe_agreement(name, judges[name]) for name in names if "kinds" in judges[name]]
    return [title, format_table(["change", "solutions", *names], lines), "", *by_kind]


def _sum(counts):
    total: Counter = Counter()
    for entry in counts:
        total.update(entry)
    return total


def _title(text):
    return f"\n{text}\n"


def _percent(share):
    return f"{100 * share:.1f}"


def _number(value):
    return "-" if value is None or not np.isfinite(value) else f"{value:.2f}"
