"""The figure of experiments on chains: accuracy by hops, a line for each model."""

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter

from memreason_hf.messages import visible


# The colours of Okabe and Ito, which people with common colour blindness can distinguish. Markers help in grey.
_STYLES = (("#0072B2", "o"), ("#56B4E9", "s"), ("#D55E00", "^"), ("#E69F00", "D"), ("#009E73", "v"))


def hops_figure(
    accuracy: Mapping[str, Mapping[int, float]],
    *,
    trained_hops: int | None = None,
    chance: float | None = None,
    title: str | None = None,
    label: str = "right answers",
) -> Figure:
    """
    Accuracy over hops.

    Args:
        accuracy: accuracy in 0..1 by title of the model and hop count.
        trained_hops: the longest chains in training; longer ones are shaded.
        chance: accuracy of a guess, drawn as a line.
        title: a line above the figure.
        label: of the axis of accuracies.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.

    Raises:
        ValueError: there are no models, or more models than line styles.
    """
    if not 0 < len(accuracy) <= len(_STYLES):
        raise ValueError(f"There are {len(accuracy)} models; the figure takes 1 to {len(_STYLES)}.")
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    last = max(max(by_hops) for by_hops in accuracy.values())
    if trained_hops is not None and trained_hops < last:
        axes.axvspan(trained_hops + 0.5, last + 0.5, color="0.93", zorder=0)
        axes.text(last + 0.4, 0.95, "longer than in training", fontsize="small", color="0.35", ha="right")
    if chance is not None:
        axes.axhline(chance, color="0.6", linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    for (name, by_hops), (colour, marker) in zip(accuracy.items(), _STYLES):
        hops = sorted(by_hops)
        axes.plot(hops, [by_hops[hop] for hop in hops], color=colour, marker=marker, markersize=5, label=name)
    axes.set_xlim(0.5, last + 0.5)
    axes.set_ylim(-0.02, 1.04)
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_xlabel("hops")
    axes.set_ylabel(label)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")
    if title:
        figure.suptitle(visible(title), fontsize="medium", parse_math=False)
    return figure
