"""The figure: right answers on fresh worlds by hops, a line for each model."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter

from memreason_hf.experiments.given_facts.world import NUM_ENTITIES


# The colours of Okabe and Ito, which people with common colour blindness can distinguish. Markers help in grey.
_STYLES = (("#0072B2", "o"), ("#56B4E9", "s"), ("#D55E00", "^"), ("#E69F00", "D"), ("#009E73", "v"))


def hops_figure(results: dict) -> Figure:
    """A figure with its own Agg canvas, of the contents of `given_facts.json`."""
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for entry, (colour, marker) in zip(results["models"].values(), _STYLES):
        by_hops = {int(hops): group["accuracy"] for hops, group in entry["fresh"]["hops"].items()}
        axes.plot(list(by_hops), list(by_hops.values()), color=colour, marker=marker, label=entry["title"])
    last = max(by_hops)
    trained = results["trained_hops"]
    axes.axvspan(trained + 0.5, last + 0.5, color="0.93", zorder=0)
    axes.text(last + 0.4, 0.95, "longer than in training", fontsize="small", color="0.35", ha="right")
    axes.axhline(1 / NUM_ENTITIES, color="0.6", linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    axes.set_xlim(0.5, last + 0.5)
    axes.set_ylim(-0.02, 1.04)
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_xlabel("hops")
    axes.set_ylabel("right answers, fresh worlds")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")
    return figure
