"""The `evaluate` modules of the package, one folder for each metric, with its script and its card."""

from pathlib import Path


METRICS_FOLDER = Path(__file__).parent


def metric_names() -> list[str]:
    """The names of the metrics, sorted."""
    return sorted(script.stem for script in METRICS_FOLDER.glob("*/*.py") if script.stem == script.parent.name)


def metric_path(name: str) -> str:
    """
    The folder of a metric, for `evaluate.load`. A bare name would be searched for on the Hub.

    Args:
        name: the name of a metric of this package, for example `"grouped_accuracy"`.

    Raises:
        ValueError: there is no metric of this name; the message lists the names.

    Example:

        >>> import evaluate
        >>> metric = evaluate.load(metric_path("grouped_accuracy"), keep_in_memory=True)
        >>> metric.compute(predictions=[1, 2], references=[1, 3], groups=["2", "2"])["accuracy"]
        0.5
    """
    if name not in metric_names():
        raise ValueError(f"There is no metric {name!r} in memreason_hf.metrics; use one of {metric_names()}.")
    return str(METRICS_FOLDER / name)
