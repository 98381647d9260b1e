"""The figure: accuracy and perplexity over recurrences, the static model as a line."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter, StrMethodFormatter


# Colours of Okabe and Ito, which people with common colour blindness can distinguish.
_LOOPED, _STATIC = "#D55E00", "#0072B2"


def depth_figure(results: dict) -> Figure:
    """
    Accuracy and perplexity of the looped models over recurrences: a thin line for each seed, a thick one for the mean.
    The static models that were trained on by as much are horizontal lines.

    Args:
        results: the contents of `retrofit.json`.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.
    """
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, perplexity = figure.subplots(1, 2)
    most = results["recipe"]["most_recurrences"]
    for axes, name, values_of in ((accuracy, "accuracies", np.asarray), (perplexity, "losses", np.exp)):
        _draw(axes, results["seeds"].values(), name, values_of)
        last = axes.get_xlim()[1]
        if most < last:
            axes.axvspan(most, last, color="0.93", zorder=0, linewidth=0)
            place = axes.get_xaxis_transform()
            axes.text(most * 1.08, 0.45, "deeper than\nin training", transform=place, color="0.35", fontsize="small")
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    accuracy.set_ylabel("places predicted correctly")
    accuracy.set_ylim(top=1.02)
    perplexity.set_ylabel("perplexity of a place")
    perplexity.set_ylim(bottom=0.95)
    accuracy.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def _draw(axes, seeds, name, values_of):
    looped = np.stack([values_of(entry["looped"][name]) for entry in seeds])
    static = np.stack([values_of(entry["static"][name]) for entry in seeds])[:, 0]
    recurrences = np.arange(1, looped.shape[1] + 1)
    for values, level in zip(looped, static):
        axes.plot(recurrences, values, color=_LOOPED, linewidth=0.8, alpha=0.5)
        axes.axhline(level, color=_STATIC, linewidth=0.8, alpha=0.5, linestyle=(0, (4, 2)))
    axes.plot(recurrences, looped.mean(0), color=_LOOPED, linewidth=2, label="with a loop")
    axes.axhline(static.mean(), color=_STATIC, linewidth=2, linestyle=(0, (4, 2)), label="static, trained on")
    axes.set_xscale("log", base=2)
    axes.set_xlim(1, recurrences[-1])
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("recurrences")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
