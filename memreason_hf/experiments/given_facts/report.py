"""The tables that `memreason reproduce given_facts` prints."""

from memreason_hf.tables import format_table


def report(results: dict) -> str:
    """The tables of the contents of `given_facts.json`."""
    models, trained = results["models"], results["trained_hops"]
    hops = list(next(iter(models.values()))["fresh"]["hops"])
    measured = [
        (f"{entry['title']}, {label}", entry[name])
        for entry in models.values()
        for name, label in (
            ("fresh", "fresh worlds"),
            ("learned", "learned world"),
            ("depth_by_kind", "fresh worlds, memory after 2 recurrences"),
        )
        if name in entry
    ]
    right = [[title, *(_percent(entry["hops"][hop]["accuracy"]) for hop in hops)] for title, entry in measured]
    parts = [
        f"\nRight answers in %, by hops ({trained} is the most in training)\n",
        format_table(["model", *hops], right),
        "\nTold one false memory: solutions in %\n",
        format_table(
            ["model, hops", "solutions", "follow it", "the truth", "another answer"], _lies(measured, trained)
        ),
    ]
    for title, entry in measured:
        if "other_memories" in entry:
            share = _percent(entry["other_memories"])
            parts.append(f"{title}: {share} % right if the memory steps state the facts of another world.")
    seconds = sum(entry["seconds"] + entry["training"]["seconds"] for entry in models.values())
    parts.append(f"\nTraining and evaluation took {seconds:.0f} CPU seconds.")
    return "\n".join(parts)


def _lies(measured, trained):
    rows = []
    for title, entry in measured:
        for name, counts in entry.get("false_memories", {}).items():
            label = f"1-{trained}" if name == "trained" else f"more than {trained}"
            total = sum(counts.values())
            rows.append([f"{title}, {label}", total, *(_percent(count / total) for count in counts.values())])
    return rows


def _percent(share):
    return f"{100 * share:.1f}"
