"""What the experiment prints: accuracy by hop count, and the numbers beside those of the study."""

from memreason_hf.experiments.depth_extrapolation.results import DEEPER, OVERTHINKING_HOPS, REACHED, REACHED_WELL
from memreason_hf.tables import format_table


# arXiv 2604.07822: dynamic depth, trained on at most 12 hops, full attention.
STUDY = {"reach": 19, "steps": 1_450_000, "batch_size": 128}
_MOST_ROWS = 14


def report(results: dict) -> str:
    """The tables of the contents of `extrapolation.json`."""
    training, reach = results["training"], results["reach"]
    header = ["hops", "chains", "best %", "at recurrence", f"at {DEEPER} x %", "halting %", "mean recurrences"]
    lines = [_line(entry) for entry in _some(results["hop_counts"])]
    lines += [
        [f"{entry['hops']:,}", f"{entry['count']:,}", "-", "-", "-", *_halting(entry["accuracy"], entry)]
        for entry in results["deep"]
    ]
    compared = [
        ["training steps", f"{STUDY['steps']:,}", f"{training['steps']:,}"],
        ["training chains, with repeats", f"{STUDY['steps'] * STUDY['batch_size']:,}", f"{training['chains']:,}"],
        [f"deepest hop count at {REACHED:.0%}", str(STUDY["reach"]), _number(reach["fixed"])],
        ["the same, halting by itself", "", _number(reach["adaptive"])],
        [f"deepest hop count at {REACHED_WELL:.0%}", "", _number(reach["fixed_well"])],
        ["the same, halting by itself", "", _number(reach["adaptive_well"])],
        [f"most lost at {DEEPER} times the depth, up to {OVERTHINKING_HOPS} hops", "falls", _points(reach)],
    ]
    return "\n".join(
        [
            f"{training['num_parameters']:,} parameters, trained on chains of at most {training['trained_hops']} hops",
            "",
            format_table(header, lines),
            "",
            format_table(["", "study, 12 hops", "here"], compared),
        ]
    )


def _some(entries):
    """All hop counts if they are few, and otherwise some of them with the first and the last."""
    step = -(-len(entries) // _MOST_ROWS)
    return [entry for index, entry in enumerate(entries) if index % step == 0 or index == len(entries) - 1]


def _line(entry):
    late = entry["late_accuracy"]
    return [
        str(entry["hops"]),
        f"{entry['count']:,}",
        f"{100 * entry['best_accuracy']:.1f}",
        str(entry["best_recurrence"]),
        "-" if late is None else f"{100 * late:.1f}",
        *_halting(entry["adaptive_accuracy"], entry),
    ]


def _halting(accuracy, entry):
    return [f"{100 * accuracy:.1f}", f"{entry['mean_recurrences']:.1f}"]


def _number(value):
    return "none" if value is None else str(value)


def _points(reach):
    return "not measured" if reach["most_lost"] is None else f"{100 * reach['most_lost']:.1f} points"
