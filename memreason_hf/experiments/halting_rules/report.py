"""What `memreason reproduce halting` prints: a table for each model, and what it says."""

from memreason_hf.experiments.halting_rules.results import reaches
from memreason_hf.tables import format_table


HEADER = ["rule", "calibrated: recurrences", "accuracy %", "loss %", "best threshold: recurrences"]


def report(results: dict) -> str:
    """The tables of the contents of `halting_rules.json`, and sentences about them."""
    return "\n\n".join(_model(entry, results["settings"]) for entry in results["models"].values())


def _model(entry, settings):
    least = entry["fixed"][-1] - settings["risk"]
    rows = []
    for title, rule in entry["rules"].items():
        found, best = rule["calibrated"], reaches(rule, least)
        numbers = ["-"] * 3
        if found is not None:
            numbers = [f"{found['recurrences']:.2f}", f"{100 * found['accuracy']:.2f}", f"{100 * found['loss']:.2f}"]
        rows.append([title, *numbers, "-" if best is None else f"{best['recurrences']:.2f}"])
    oracle = entry["oracle"]
    rows.append(["oracle", f"{oracle['recurrences']:.2f}", f"{100 * oracle['accuracy']:.2f}", "-", "-"])
    lines = [
        f"{entry['title']}: {entry['num_rows']['test']:,} test chains, {100 * entry['fixed'][-1]:.2f} % right at full "
        f"depth, {len(entry['fixed'])} recurrences",
        "",
        format_table(HEADER, rows),
        "",
        f"Calibrated: at most {100 * settings['risk']:g} % lost with a confidence of {100 * settings['confidence']:g} "
        f"%, on {entry['num_rows']['calibration']:,} other chains. Best threshold: chosen on the test chains, for an "
        f"accuracy of at least {100 * least:.2f} %.",
        _first_right(entry),
    ]
    return "\n".join([*lines, *map(_repeated, entry["repetitions"]), _winner(entry, least)])


def _first_right(entry):
    text = (
        f"Answers are first right after {entry['first_correct']:.2f} recurrences in the mean, by luck included, and "
        f"stay right from {entry['lasting_correct']:.2f} on"
    )
    if entry["solved"] is None:
        return f"{text}."
    return f"{text}; 95 % of the chains of the same length are right from {entry['solved']:.2f} on."


def _repeated(one):
    return (
        f"{one['criterion']}: in {one['repetitions']} calibrations on draws of {one['num_rows']:,} chains, the "
        f"promise was kept in {100 * one['kept']:.1f} % (largest loss {100 * one['largest_loss']:.2f} %), without a "
        f"guarantee in {100 * one['naive_kept']:.1f} % (largest loss {100 * one['naive_largest_loss']:.2f} %)."
    )


def _winner(entry, least):
    """The best gate beside the best criterion, at the same accuracy."""
    gates, others = {}, {}
    for title, rule in entry["rules"].items():
        point = reaches(rule, least)
        if point is not None:
            # Criteria have names without spaces, gates have titles.
            (gates if " " in title else others)[title] = point["recurrences"]
    if not gates or not others:
        return "No gate, or no criterion, keeps this accuracy at any threshold."
    gate, other = min(gates, key=gates.get), min(others, key=others.get)
    return (
        f"At this accuracy the best gate takes {gates[gate]:.2f} recurrences ({gate}), and the best criterion "
        f"{others[other]:.2f} ({other})."
    )
