"""The figure: accuracy over hops."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from memreason_hf.experiments.depth_extrapolation.report import STUDY
from memreason_hf.experiments.depth_extrapolation.results import DEEPER, REACHED


# Colours of Okabe and Ito, which people with common colour blindness can distinguish.
_BEST, _LATE, _ADAPTIVE = "#0072B2", "#E69F00", "#009E73"


def extrapolation_figure(results: dict) -> Figure:
    """
    Accuracy over the hops of test chains: at the best fixed depth, at four times as many recurrences, and where every
    chain halts by itself.

    Args:
        results: the contents of `extrapolation.json`.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.
    """
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    entries = results["hop_counts"]
    trained = results["training"]["trained_hops"]
    first, last = entries[0]["hops"], entries[-1]["hops"]
    axes.axvspan(first, trained, color="0.92", zorder=0, linewidth=0)
    place = axes.get_xaxis_transform()
    axes.text((first + trained) / 2, 0.04, "trained", transform=place, color="0.35", fontsize="small", ha="center")
    axes.axhline(REACHED, color="0.6", linewidth=0.8, linestyle=(0, (4, 2)))
    if first < STUDY["reach"] < last:
        axes.plot([STUDY["reach"]], [REACHED], marker="x", markersize=8, color="0.3", linestyle="none", zorder=4)
        axes.annotate(
            "the study's deepest",
            (STUDY["reach"], REACHED),
            xytext=(6, -12),
            textcoords="offset points",
            color="0.3",
            fontsize="small",
        )
    hops = [entry["hops"] for entry in entries]
    axes.plot(hops, [entry["best_accuracy"] for entry in entries], color=_BEST, linewidth=2, label="best fixed depth")
    late = [(entry["hops"], entry["late_accuracy"]) for entry in entries if entry["late_accuracy"] is not None]
    if late:
        axes.plot(*zip(*late), color=_LATE, linewidth=1.5, linestyle=(0, (4, 1)), label=f"{DEEPER} times as deep")
    values = [entry["adaptive_accuracy"] for entry in entries]
    axes.plot(hops, values, color=_ADAPTIVE, linewidth=1.5, linestyle=(0, (1, 1)), label="halting by itself")
    axes.set_ylim(0, 1.03)
    axes.set_xlim(first, last)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_xlabel("hops")
    axes.set_ylabel("chains answered correctly")
    axes.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
