"""
Depth sweeps of several models over the same rows, side by side (after arXiv 2604.07822, Figure 8).

Documents of kind `"depth_comparison"` (`depth_comparison`) have the schema `DepthComparison`.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from typing_extensions import TypedDict

from memreason_hf.checks import check_type
from memreason_hf.evaluation.chains.results import ChainModel, SweepGroup, SweepNumbers, SweepSettings
from memreason_hf.evaluation.results import (
    DataDescription,
    Document,
    expect_kind,
    new_document,
    register_kind,
    validate_results,
)
from memreason_hf.messages import visible
from memreason_hf.tables import format_table


# Colours of Okabe and Ito, which differ with all common kinds of colour blindness; yellow is left out on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "os^Dv<>"


class ComparedSweep(TypedDict):
    """The depth sweep of one model; the entries are those of a document of kind `depth_sweep`."""

    label: str
    """What tables and figures call the model."""
    model: ChainModel
    settings: SweepSettings
    overall: SweepNumbers
    groups: list[SweepGroup]
    seconds: float


class DepthComparison(Document):
    """Depth sweeps of several models over the same rows."""

    kind: Literal["depth_comparison"]
    data: DataDescription
    models: list[ComparedSweep]


register_kind("depth_comparison", DepthComparison)


def depth_comparison(sweeps: Mapping[str, dict]) -> dict:
    """
    A document of kind `"depth_comparison"`.

    Args:
        sweeps: documents of kind `"depth_sweep"` by label, over the same rows.

    Raises:
        ValueError: there are no sweeps, one is of another kind, or they are over different rows.

    Example:

    ```python
    sweeps = {"window": read_results("a/depth_sweep.json"), "full": read_results("b/depth_sweep.json")}
    print(comparison_table(depth_comparison(sweeps)))
    ```
    """
    check_type("sweeps", sweeps, Mapping, "a mapping from labels to results")
    if not sweeps:
        raise ValueError("sweeps is empty: a comparison needs the results of at least one model.")
    for label, results in sweeps.items():
        try:
            validate_results(results)
            expect_kind(results, "depth_sweep")
        except ValueError as error:
            raise ValueError(f"sweeps[{label!r}]: {error}") from None
    (first_label, first), *others = sweeps.items()
    for label, results in others:
        if _rows_of(results) != _rows_of(first):
            raise ValueError(
                f"{label!r} was swept over {_describe_rows(results)}, but {first_label!r} over "
                f"{_describe_rows(first)}: they cannot be compared. Sweep the same rows."
            )
    keys = ("model", "settings", "overall", "groups", "seconds")
    models = [{"label": label, **{key: results[key] for key in keys}} for label, results in sweeps.items()]
    return new_document("depth_comparison", data=first["data"], models=models, environment=first["environment"])


def _rows_of(results):
    data = results["data"]
    counts = [(group["group"], group["count"]) for group in results["groups"]]
    return data["split"], data["kind"], data["group_column"], counts


def _describe_rows(results):
    data = results["data"]
    names = [str(group["group"]) for group in results["groups"]]
    shown = ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])
    return f"{data['num_rows']} rows ({data['split']}, {data['kind']}; {data['group_column']} {shown})"


def comparison_table(results: dict) -> str:
    """
    A table of a document of kind `"depth_comparison"`, one line for each model: the best accuracy over all rows and
    the recurrence where it is first reached, the accuracy after the last recurrence, the largest mean margin and where
    it is, the margin after the last recurrence, and the mean first recurrence at which the correct answer ranks first.
    """
    validate_results(results)
    expect_kind(results, "depth_comparison")
    header = ["model", "best %", "at", "last %", "best margin", "at", "last margin", "first correct", "ever %"]
    lines = []
    for model in results["models"]:
        overall, margins = model["overall"], _margins(model["overall"])
        best = int(np.nanargmax(margins)) if np.isfinite(margins).any() else None
        first = overall["first_correct"]
        lines.append(
            [
                visible(model["label"]),
                f"{100 * overall['best_accuracy']:.1f}",
                overall["best_recurrence"],
                f"{100 * overall['accuracy'][-1]:.1f}",
                "-" if best is None else f"{margins[best]:.2f}",
                "-" if best is None else best + 1,
                f"{margins[-1]:.2f}",
                "-" if first is None else f"{first:.1f}",
                f"{100 * overall['ever_correct']:.1f}",
            ]
        )
    return format_table(header, lines)


def _margins(numbers):
    return np.array([np.nan if margin is None else margin for margin in numbers["margin"]], dtype=float)


def comparison_figure(results: dict, *, title: str | None = None) -> Figure:
    """
    Three panels, with a line for each model: the mean logit margin of the correct answer after each recurrence (a ring
    marks the mean first recurrence at which it ranks first), the accuracy, and that mean by group.

    Args:
        results: a document of kind `"depth_comparison"`.
        title: a line above the figure.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.

    Raises:
        ValueError: the document is of another kind or breaks its schema.
    """
    validate_results(results)
    expect_kind(results, "depth_comparison")
    figure = Figure(figsize=(13.0, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    margins, accuracy, first = figure.subplots(1, 3)
    for index, model in enumerate(results["models"]):
        style = {"color": _COLOURS[index % len(_COLOURS)], "linewidth": 1.6}
        _draw_margins(margins, model, style)
        values = model["overall"]["accuracy"]
        accuracy.plot(range(1, len(values) + 1), [100 * value for value in values], **style)
        _draw_first(first, model, style, _MARKERS[index % len(_MARKERS)])
    margins.axhline(0, color="0.4", linewidth=1, linestyle=(0, (5, 3)))
    margins.set_ylabel("mean logit margin of the correct answer")
    accuracy.set_ylabel("accuracy in percent")
    accuracy.set_ylim(-2, 102)
    first.set_ylabel("mean first recurrence where it ranks first")
    first.set_xlabel(visible(results["data"]["group_column"]), parse_math=False)
    last = max(model["settings"]["max_recurrences"] for model in results["models"])
    for axes in (margins, accuracy):
        axes.set_xlabel("recurrences")
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (margins, accuracy, first):
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    handles, labels = margins.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
    if title:
        figure.suptitle(visible(title), fontsize="medium", parse_math=False)
    return figure


def _draw_margins(axes, model, style):
    values, reached = _margins(model["overall"]), model["overall"]["first_correct"]
    at = np.arange(1, len(values) + 1)
    axes.plot(at, values, label=visible(model["label"]), **style)
    if reached is not None:
        height = float(np.interp(reached, at, values))
        axes.plot(reached, height, marker="o", markersize=8, markerfacecolor="white", color=style["color"])


def _draw_first(axes, model, style, marker):
    groups = [group["group"] for group in model["groups"]]
    numeric = all(isinstance(group, int) for group in groups)
    places = groups if numeric else list(range(len(groups)))
    values = [np.nan if group["first_correct"] is None else group["first_correct"] for group in model["groups"]]
    axes.plot(places, values, marker=marker, markersize=4, **style)
    if not numeric:
        axes.set_xticks(places, [visible(str(group)) for group in groups], rotation=45, ha="right", parse_math=False)
