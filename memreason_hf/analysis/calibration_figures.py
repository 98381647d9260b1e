"""A figure of a calibration: what halting loses, against the recurrences that it takes."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from memreason_hf.evaluation.results import expect_kind, validate_results
from memreason_hf.messages import visible


# Colours of Okabe and Ito, which differ with all common kinds of colour blindness; yellow is left out on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#666666", "#999933")
# Losses of more than so many times the risk are cut off: there, no threshold is of interest.
_MOST_RISKS = 6.0


def calibration_figure(results: dict, *, title: str | None = None) -> Figure:
    """
    Mean loss over mean recurrences, one curve for each criterion, with the risk, the chosen and the naive threshold.

    Args:
        results (`dict`): A document of kind `"calibration"`.
        title (`str`, *optional*): A line above the figure.

    Returns:
        A figure with its own Agg canvas. Filled points are covered by the guarantee. Where recurrences are not known,
        the axis counts candidates.
    """
    validate_results(results)
    expect_kind(results, "calibration")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    known = all(one["recurrences"] is not None for one in results["candidates"])
    by_criterion: dict[str, list] = {}
    for one in results["candidates"]:
        by_criterion.setdefault(one["criterion"], []).append(one)
    places = {}
    for index, (criterion, candidates) in enumerate(by_criterion.items()):
        xs = [one["recurrences"] if known else number for number, one in enumerate(candidates, start=1)]
        ys = [one["loss"] for one in candidates]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(xs, ys, color=colour, linewidth=1.2, marker="o", markersize=3.5, markerfacecolor="white", zorder=2)
        safe = [(x, y) for x, y, one in zip(xs, ys, candidates) if one["is_safe"]]
        axes.plot(*(zip(*safe) if safe else ([], [])), "o", color=colour, markersize=4, label=criterion, zorder=3)
        places |= {(criterion, one["threshold"]): (x, y) for x, y, one in zip(xs, ys, candidates)}
    risk = results["promise"]["risk"]
    axes.axhline(risk, color="0.4", linewidth=1.2, linestyle=(0, (5, 3)), label=f"risk {risk:g}")
    for name, marker, size in (("naive", "X", 9), ("chosen", "*", 15)):
        if (one := results[name]) is not None:
            place = places[one["criterion"], one["threshold"]]
            axes.plot(*place, marker, color="black", markersize=size, linestyle="none", label=name, zorder=4)
    for name, style, label in (("first_correct", ":", "first right"), ("lasting_correct", "-", "right for good")):
        if results[name] is not None and known:
            axes.axvline(results[name], color="0.6", linewidth=1.2, linestyle=style, label=label, zorder=1)
    axes.set_ylim(-0.15 * risk, _MOST_RISKS * risk)
    axes.set_xlabel("mean recurrences" if known else "candidate")
    axes.set_ylabel("nats lost" if results["promise"]["unit"] == "nats" else "share of rows lost")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    if title:
        figure.suptitle(visible(title), fontsize="medium", parse_math=False)
    return figure


__all__ = ["calibration_figure"]
