"""The figure of the experiment: accuracy over mean recurrences, all rules of a model in one panel."""

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


# The colours of Okabe and Ito, which people with common colour blindness can distinguish.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def rules_figure(models: Mapping[str, dict]) -> Figure:
    """
    Accuracy over mean recurrences, a line for each rule, a panel for each model; calibrated thresholds are dots.

    Args:
        models: `ModelResults` by name.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.
    """
    figure = Figure(figsize=(5.6 * len(models), 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, entry in zip(panels, models.values()):
        _panel(axes, entry)
    panels[0].set_ylabel("right answers")
    return figure


def _panel(axes, entry):
    fixed = entry["fixed"]
    axes.plot(range(1, len(fixed) + 1), fixed, color="0.6", linewidth=3, label="fixed depth", zorder=1)
    for index, (title, rule) in enumerate(entry["rules"].items()):
        points = sorted(rule["points"], key=lambda point: (point["recurrences"], point["accuracy"]))
        colour, dashes = _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]
        xs, ys = [point["recurrences"] for point in points], [point["accuracy"] for point in points]
        axes.plot(xs, ys, color=colour, linestyle=dashes, linewidth=1.4, label=title, zorder=2)
        if (found := rule["calibrated"]) is not None:
            axes.plot(found["recurrences"], found["accuracy"], "o", color=colour, markersize=6, zorder=3)
    oracle = entry["oracle"]
    axes.plot(oracle["recurrences"], oracle["accuracy"], "k*", markersize=13, label="oracle", zorder=4)
    axes.set_title(entry["title"], fontsize="medium")
    axes.set_xlabel("mean recurrences")
    axes.set_ylim(-0.02, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize="x-small", loc="lower right")
