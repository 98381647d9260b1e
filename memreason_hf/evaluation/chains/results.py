"""
Results files: what an evaluation or a sweep found, with enough beside it to run it again.

A results file is one JSON object, UTF-8. Numbers that do not exist (NaN) are `null`. Accuracies are in 0..1, times in
seconds, margins in logits. Version 1:

| key | type | meaning |
|---|---|---|
| `schema_version` | int | 1 |
| `kind` | str | `"evaluation"` or `"depth_sweep"` |
| `created` | str | UTC time, ISO 8601 |
| `model` | object | `name_or_path`, `model_type`, `num_parameters`, `dtype`, `trained_hops` (int or null) |
| `data` | object | `path`, `split`, `kind` (test, train, atomic, all), `group_column`, `num_rows` |
| `settings` | object | what decided the answers: see below |
| `overall` | object | like an entry of `groups` without `group`, over all rows |
| `groups` | list | one object a group, in natural order |
| `seconds` | float | wall time of the pass over the data, without loading |
| `environment` | object | versions of Python and libraries, and the machine |

`settings` of an evaluation: `num_recurrences` (the fixed count, or null where a criterion decides), and, as the config
names them, `halting_criterion` (str or null), `halting_granularity`, `min_recurrences`, `max_recurrences`,
`parameters` (the thresholds of the criterion), and `batch_size`. Those of a sweep: `max_recurrences`, `batch_size`.

A group of an evaluation:

| key | type | meaning |
|---|---|---|
| `group` | int or str | its value in the group column |
| `count` | int | rows |
| `accuracy` | float | share of correct rows |
| `recurrences` | object | used: `mean`, `median`, `standard_deviation` (divisor `count`), `minimum`, `maximum` |
| `fixed` | object or null | the best fixed depth: `best_recurrence`, `best_accuracy`; null without a baseline |

A group of a depth sweep; list entry t - 1 belongs to recurrence t:

| key | type | meaning |
|---|---|---|
| `group`, `count` | | as above |
| `accuracy` | list of float | share of correct rows after each recurrence |
| `margin` | list of float | mean of the correct answer's logit minus the best other |
| `best_recurrence`, `best_accuracy` | int, float | the first recurrence of the highest accuracy, and that accuracy |
| `first_correct` | float or null | mean first recurrence at which the correct answer ranks first, where it does |
| `ever_correct` | float | share of those rows |

Documents of other kinds (`"attention"`, `"generation"`, `"testbed"`) have schemas of their own, described where they
are made: they are about texts, or about several models.
"""

import json
import math
import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from memreason_hf.evaluation.chains.depth_sweep import DepthSweep
from memreason_hf.evaluation.chains.halting_statistics import HaltingStatistics, RecurrenceStatistics
from memreason_hf.files import whole_file


SCHEMA_VERSION = 1
# Documents that are no results of one model over a data set, and where in the package their schemas are.
_OTHER_KINDS = {
    "attention": "analysis/attention_document.py",
    "generation": "analysis/token_depths.py",
    "testbed": "experiments/testbed/report.py",
}

_TEXT = (str,)
_OPTIONAL_TEXT = (str, type(None))
_INTEGER = (int,)
_OPTIONAL_INTEGER = (int, type(None))
_NUMBER = (float, int)
_OPTIONAL_NUMBER = (float, int, type(None))
_NUMBERS = [_OPTIONAL_NUMBER]

_MODEL = {
    "name_or_path": _TEXT,
    "model_type": _TEXT,
    "num_parameters": _INTEGER,
    "dtype": _TEXT,
    "trained_hops": _OPTIONAL_INTEGER,
}
_DATA = {"path": _TEXT, "split": _TEXT, "kind": _TEXT, "group_column": _TEXT, "num_rows": _INTEGER}
_ENVIRONMENT = {
    "python": _TEXT,
    "libraries": {str: _OPTIONAL_TEXT},
    "platform": _TEXT,
    "machine": _TEXT,
    "num_threads": _INTEGER,
    "device": _TEXT,
    "device_name": _TEXT,
    "num_processes": _INTEGER,
}
_RECURRENCES = {
    "mean": _NUMBER,
    "median": _NUMBER,
    "standard_deviation": _NUMBER,
    "minimum": _INTEGER,
    "maximum": _INTEGER,
}
_SETTINGS = {
    "evaluation": {
        "num_recurrences": _OPTIONAL_INTEGER,
        "halting_criterion": _OPTIONAL_TEXT,
        "halting_granularity": _TEXT,
        "min_recurrences": _INTEGER,
        "max_recurrences": _INTEGER,
        "parameters": {str: _NUMBER},
        "batch_size": _INTEGER,
    },
    "depth_sweep": {"max_recurrences": _INTEGER, "batch_size": _INTEGER},
}
_GROUP = {
    "evaluation": {
        "count": _INTEGER,
        "accuracy": _NUMBER,
        "recurrences": _RECURRENCES,
        "fixed": ({"best_recurrence": _INTEGER, "best_accuracy": _NUMBER}, type(None)),
    },
    "depth_sweep": {
        "count": _INTEGER,
        "accuracy": _NUMBERS,
        "margin": _NUMBERS,
        "best_recurrence": _INTEGER,
        "best_accuracy": _NUMBER,
        "first_correct": _OPTIONAL_NUMBER,
        "ever_correct": _NUMBER,
    },
}


@dataclass(frozen=True)
class ResultsHeader:
    """
    What results are about: the parts of a results file that the evaluation itself does not know.

    Attributes:
        model, data, environment: as in the schema (see this module); `describe_model`, `describe_data` and
            `describe_environment` make them.
    """

    model: dict
    data: dict
    environment: dict


def describe_model(model: torch.nn.Module, name_or_path: str, trained_hops: int | None = None) -> dict:
    """The `model` entry of a results file. Tied weights count once."""
    return {
        "name_or_path": str(name_or_path),
        "model_type": model.config.model_type,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "trained_hops": trained_hops,
    }


def describe_data(path: str, split: str, num_rows: int, *, kind: str = "test", group_column: str = "hops"):
    """The `data` entry of a results file."""
    return {"path": str(path), "split": split, "kind": kind, "group_column": group_column, "num_rows": num_rows}


def describe_environment(device: torch.device | str, num_processes: int = 1) -> dict:
    """The `environment` entry of a results file: versions, machine and device; no host or user names."""
    device = torch.device(device)
    libraries = ("torch", "transformers", "datasets", "evaluate", "accelerate", "numpy", "memreason-hf")
    return {
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in libraries},
        "platform": platform.platform(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "num_threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        "num_processes": num_processes,
    }


def _processor_name():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def evaluation_results(
    statistics: HaltingStatistics,
    header: ResultsHeader,
    settings: dict,
    seconds: float,
    baseline: DepthSweep | None = None,
) -> dict:
    """
    The results of an (adaptive) evaluation, valid by the schema of this module.

    Args:
        statistics: from `halting_statistics`.
        header: what was evaluated, and where.
        settings: the `settings` entry of the schema.
        seconds: wall time of the pass.
        baseline: a sweep over the same rows, to compare with the best fixed depth of each group.

    Raises:
        ValueError: the baseline has other groups or counts.
    """
    fixed = dict.fromkeys(statistics.by_group)
    overall_fixed = None
    if baseline is not None:
        counts = {group: entry.count for group, entry in statistics.by_group.items()}
        if counts != dict(zip(baseline.groups, baseline.counts.tolist())):
            raise ValueError("The baseline sweep is over other rows than the evaluation: sweep the same data.")
        for group, best, accuracy in zip(baseline.groups, baseline.best_recurrence, baseline.best_accuracy):
            fixed[group] = {"best_recurrence": int(best), "best_accuracy": float(accuracy)}
        best = int(baseline.overall_accuracy.argmax())
        overall_fixed = {"best_recurrence": best + 1, "best_accuracy": float(baseline.overall_accuracy[best])}
    groups = [
        {"group": group, **_evaluation_group(entry, fixed[group])} for group, entry in statistics.by_group.items()
    ]
    overall = _evaluation_group(statistics.overall, overall_fixed)
    return _results("evaluation", header, settings, overall, groups, seconds)


def _evaluation_group(entry, fixed):
    recurrences = {name: getattr(entry, name) for name in _RECURRENCES}
    return {"count": entry.count, "accuracy": entry.accuracy, "recurrences": recurrences, "fixed": fixed}


def depth_sweep_results(sweep: DepthSweep, header: ResultsHeader, batch_size: int) -> dict:
    """The results of a depth sweep, valid by the schema of this module."""
    best = int(sweep.overall_accuracy.argmax())
    overall = {
        "count": int(sweep.counts.sum()),
        "accuracy": sweep.overall_accuracy.tolist(),
        "margin": _without_nan(sweep.overall_margins.tolist()),
        "best_recurrence": best + 1,
        "best_accuracy": float(sweep.overall_accuracy[best]),
        "first_correct": _without_nan(sweep.overall_first_correct),
        "ever_correct": float(sweep.counts @ sweep.ever_correct / sweep.counts.sum()),
    }
    groups = [
        {
            "group": group,
            "count": int(sweep.counts[index]),
            "accuracy": sweep.accuracy[index].tolist(),
            "margin": _without_nan(sweep.margins[index].tolist()),
            "best_recurrence": int(sweep.best_recurrence[index]),
            "best_accuracy": float(sweep.best_accuracy[index]),
            "first_correct": _without_nan(float(sweep.first_correct[index])),
            "ever_correct": float(sweep.ever_correct[index]),
        }
        for index, group in enumerate(sweep.groups)
    ]
    settings = {"max_recurrences": sweep.max_recurrences, "batch_size": batch_size}
    return _results("depth_sweep", header, settings, overall, groups, sweep.seconds)


def _without_nan(value):
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return value if math.isfinite(value) else None


def _results(kind, header, settings, overall, groups, seconds):
    results = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": header.model,
        "data": header.data,
        "settings": settings,
        "overall": overall,
        "groups": groups,
        "seconds": seconds,
        "environment": header.environment,
    }
    validate_results(results)
    return results


def sweep_from_results(results: dict) -> DepthSweep:
    """The `DepthSweep` that valid results of kind `"depth_sweep"` were made of, for example to draw it again."""
    _expect_kind(results, "depth_sweep")
    groups = results["groups"]

    def column(name):
        # None becomes NaN.
        return np.array([group[name] for group in groups], dtype=np.float64)

    return DepthSweep(
        groups=[group["group"] for group in groups],
        counts=np.array([group["count"] for group in groups]),
        accuracy=column("accuracy"),
        margins=column("margin"),
        first_correct=column("first_correct"),
        ever_correct=column("ever_correct"),
        seconds=results["seconds"],
    )


def statistics_from_results(results: dict) -> HaltingStatistics:
    """The `HaltingStatistics` that valid results of kind `"evaluation"` were made of."""
    _expect_kind(results, "evaluation")

    def statistics(entry):
        return RecurrenceStatistics(count=entry["count"], accuracy=entry["accuracy"], **entry["recurrences"])

    by_group = {group["group"]: statistics(group) for group in results["groups"]}
    return HaltingStatistics(statistics(results["overall"]), by_group)


def _expect_kind(results, kind):
    if results["kind"] != kind:
        raise ValueError(f"kind={results['kind']!r}: results of kind {kind!r} are needed here.")


def validate_results(results: dict) -> None:
    """
    Checks results against the schema of this module.

    Raises:
        ValueError: names the entry that is missing, unknown or of the wrong type or length.
    """
    if not isinstance(results, dict):
        raise ValueError(f"Results are one JSON object, not a {type(results).__name__}.")
    if results.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version={results.get('schema_version')!r}: this release of memreason-hf reads {SCHEMA_VERSION}."
        )
    kind = results.get("kind")
    if not isinstance(kind, str) or kind not in _GROUP:
        where = _OTHER_KINDS.get(kind) if isinstance(kind, str) else None
        hint = f" Documents of this kind are described in memreason_hf/{where}." if where else ""
        raise ValueError(f"kind={kind!r} must be one of {sorted(_GROUP)}.{hint}")
    schema = {
        "schema_version": _INTEGER,
        "kind": _TEXT,
        "created": _TEXT,
        "model": _MODEL,
        "data": _DATA,
        "settings": _SETTINGS[kind],
        "overall": _GROUP[kind],
        "groups": [{"group": (int, str), **_GROUP[kind]}],
        "seconds": _NUMBER,
        "environment": _ENVIRONMENT,
    }
    _check(results, schema, "")
    if not results["groups"]:
        raise ValueError("groups is empty: results have at least one group.")
    if kind == "depth_sweep":
        expected = results["settings"]["max_recurrences"]
        numbered = {f"groups[{index}]": group for index, group in enumerate(results["groups"])}
        for place, entry in {"overall": results["overall"], **numbered}.items():
            for name in ("accuracy", "margin"):
                if len(entry[name]) != expected:
                    raise ValueError(
                        f"{place}.{name} has {len(entry[name])} entries, settings.max_recurrences is {expected}."
                    )


def _check(value, schema, place):
    # A schema is a tuple of types, one of which may be an object's schema; a list of one schema; or keys and schemas.
    if isinstance(schema, tuple):
        for alternative in schema:
            if isinstance(alternative, dict):
                if isinstance(value, dict):
                    return _check(value, alternative, place)
            elif isinstance(value, alternative) and not isinstance(value, bool):
                return None
        names = " or ".join("an object" if isinstance(a, dict) else a.__name__ for a in schema)
        raise ValueError(f"{place}={value!r} must be {names}.")
    if isinstance(schema, list):
        if not isinstance(value, list):
            raise ValueError(f"{place}={value!r} must be a list.")
        for index, entry in enumerate(value):
            _check(entry, schema[0], f"{place}[{index}]")
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{place}={value!r} must be an object.")
    if str in schema:
        schema = dict.fromkeys(value, schema[str])
    missing, unknown = sorted(schema.keys() - value.keys()), sorted(value.keys() - schema.keys())
    if missing or unknown:
        raise ValueError(f"{place or 'results'}: missing keys {missing}, unknown keys {unknown}.")
    for key, entry in value.items():
        _check(entry, schema[key], f"{place}.{key}" if place else key)
    return None


def write_results(path: str | os.PathLike, results: dict, *, overwrite: bool = False) -> None:
    """
    Writes valid results as JSON. The file appears whole or not at all.

    Raises:
        ValueError: results that break the schema.
        FileExistsError: `path` exists and `overwrite` is false.
    """
    validate_results(results)
    with whole_file(path, overwrite=overwrite) as temporary:
        text = json.dumps(results, indent=2, allow_nan=False)
        # One line a list of numbers. Strings cannot match: JSON has no bare line breaks in them.
        text = re.sub(r"\[\n\s+([^\[\]{}\"]*?)\n\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_results(path: str | os.PathLike) -> dict:
    """
    Reads and checks a results file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, or not by the schema; names the file and the entry.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        validate_results(results)
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is no results file: {error}") from error
    return results
