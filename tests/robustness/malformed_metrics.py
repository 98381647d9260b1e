"""Malformed predictions, references and options of the `evaluate` modules."""

import math
import random
from pathlib import Path

import evaluate
from malformed_cases import NO_VALUE, Case, show, some

from memreason_hf.metrics import metric_names, metric_path


SOLUTION = "<prefix><memory> Air scatters light.\n<prefix><answer> The answer is: True\n"
GOOD = {
    "answer_accuracy": {"predictions": [SOLUTION], "references": ["True"]},
    "grouped_accuracy": {"predictions": [1, 2], "references": [1, 3], "groups": ["a", "b"]},
    "step_attribution": {"predictions": [SOLUTION], "references": [SOLUTION]},
    "step_distribution": {"predictions": [SOLUTION], "references": [SOLUTION]},
}
ENTRIES = [5, None, 2.5, b"bytes", ["a"], {"a": 1}, math.nan, True]
COLUMNS = ["a text", 5, None, {"a": 1}, 2.5, True]
SCHEMES = ["text", 5, {"num_prefix": 1}, {"num_prefix_tokens": -1}, {"marks": "x"}, ["tokens"], True]
OPTIONS = ["text", 5, [1], {"A": 1}, [{"label": "A"}], [[{"label": "A", "text": "a"}]] * 2, [{"A": None}], True]
SETTINGS = {
    "answer_accuracy": {
        "scheme": SCHEMES,
        "options": OPTIONS,
        "match_option_text": ["maybe", 5, None, 0.5],
        "bootstrap_samples": [-1, "x", 2.5, None, 10**12],
        "confidence": [0, 1, -1, 95, "x", math.nan, None],
        "seed": [-1, "x", 2.5],
        "questions": ["text", 5, ["a", "b"], [5]],
    },
    "grouped_accuracy": {"groups": ["ab", 5, [1], ["a", None], [["a"], ["b"]], ["a", 2.5], [math.nan, 1]]},
    "step_attribution": {
        "scheme": SCHEMES,
        "judge": ["nonsense", 5, None, [], ""],
        "questions": ["text", 5, ["a", "b"], [5]],
    },
    "step_distribution": {"scheme": SCHEMES, "questions": ["text", 5, ["a", "b"], [5]]},
}


def fault_of_result(result):
    """Every number of a result is finite."""
    for name, value in result.items():
        if isinstance(value, dict):
            if (fault := fault_of_result(value)) is not None:
                return fault
        elif isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}"
    return None


def cases(rng: random.Random, world: Path) -> list[Case]:
    made = []
    for name in metric_names():
        made += _of_metric(rng, name)
    return made


def _of_metric(rng, name):
    good = GOOD[name]

    def compute(values, first=None):
        module = evaluate.load(metric_path(name), cache_dir=str(Path.cwd() / "metrics"))
        if first is not None:
            module.add_batch(**first)
        return module.compute(**values)

    def of(label, values, names, value=NO_VALUE, is_wrong=True):
        run = lambda scratch, values=values: compute(values)  # noqa: E731  one line each
        return Case(name, label, run, tuple(names), value, is_wrong, fault_of_result)

    made = []
    for column in ("predictions", "references"):
        length = len(good[column])
        for entry in ENTRIES:
            right = name == "grouped_accuracy" and isinstance(entry, int)
            values = {**good, column: [entry] * length}
            made.append(of(f"{column} of {show(entry)}", values, [column, column[:-1]], entry, is_wrong=not right))
        for value in COLUMNS:
            made.append(of(f"{column}={show(value)}", {**good, column: value}, [column], value))
        made.append(of(f"no {column}", {k: v for k, v in good.items() if k != column}, [column]))
        made.append(of(f"empty {column}", {**good, column: []}, [column]))
        made.append(of(f"more {column}", {**good, column: good[column] * 2}, [column]))
    made.append(of("nothing", {**good, "predictions": [], "references": []}, ["predictions", "prediction"]))
    made.append(of("an unknown argument", {**good, "prediction_s": [1]}, ["prediction_s"]))
    if name != "grouped_accuracy":
        # Texts that a model may write.
        for text in ("", "\n", "<memory>", "\0", "a" * 20_000, "<prefix>" * 2000, " " * 20_000):
            values = {**good, "predictions": [text]}
            made.append(of(f"a prediction of {show(text)}", values, ["prediction"], is_wrong=False))
        made.append(of("an empty reference", {**good, "references": [""]}, ["reference"], is_wrong=False))
        made.append(of("two answers", {**good, "references": ["True or False"]}, ["reference"], is_wrong=False))
    for field, wrong in SETTINGS[name].items():
        for value in some(rng, wrong, 7):
            allowed = value is None and field not in ("bootstrap_samples", "confidence", "match_option_text")
            made.append(
                of(
                    f"{field}={show(value)}",
                    {**good, field: value},
                    [field, field[:-1]],
                    NO_VALUE if isinstance(value, list) else value,
                    is_wrong=not allowed,
                )
            )
    return made
