"""The figure of the sweep: accuracy over the number of step tokens."""

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter


# The colours of Okabe and Ito, which people with common colour blindness can distinguish.
_SWEEP, _LINES = "#D55E00", (("#0072B2", (0, (5, 2))), ("#009E73", (0, (1, 1.5))), ("#CC79A7", (0, (3, 1, 1, 1))))


def token_counts_figure(
    by_count: Mapping[int, tuple[float, float, float]],
    others: Mapping[str, float],
    *,
    num_prefix_tokens: int,
    title: str = "memory and reason",
) -> Figure:
    """
    Accuracy over the number of step tokens, with intervals, and other schemes as lines.

    Args:
        by_count: accuracy and both ends of its interval, in 0..1, by the number of step tokens.
        others: accuracy by title of schemes that do not belong to the sweep, at most three.
        num_prefix_tokens: tokens before those of the kind, for the label of the axis.
        title: of the scheme whose tokens are counted.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.

    Raises:
        ValueError: there are no numbers of tokens, or too many other schemes.
    """
    if not by_count:
        raise ValueError("by_count={} must hold the accuracy of at least one number of step tokens.")
    if len(others) > len(_LINES):
        raise ValueError(f"others holds {len(others)} schemes; the figure takes at most {len(_LINES)}.")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    counts = sorted(by_count)
    # At even distances, because numbers such as 1, 2, 4 and 8 are usual.
    places = range(len(counts))
    values, lows, highs = zip(*(by_count[count] for count in counts))
    errors = [
        [max(0.0, value - low) for value, low in zip(values, lows)],
        [max(0.0, high - value) for value, high in zip(values, highs)],
    ]
    axes.errorbar(places, values, yerr=errors, color=_SWEEP, marker="o", capsize=4, label=title)
    for (title, value), (colour, dashes) in zip(others.items(), _LINES):
        axes.axhline(value, color=colour, linestyle=dashes, label=title)
    axes.set_xticks(places, [str(count) for count in counts])
    axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    prefix = f"{num_prefix_tokens} prefix token{'s' * (num_prefix_tokens != 1)}"
    alone = " (0: prefix tokens alone)" if 0 in by_count else ""
    axes.set_xlabel(f"tokens of the kind of a step, after {prefix}{alone}")
    axes.set_ylabel("right answers")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")
    return figure
