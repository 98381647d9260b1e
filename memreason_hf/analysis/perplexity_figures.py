"""A figure of perplexity over recurrences, of one model or of several."""

from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from memreason_hf.checks import check_type
from memreason_hf.evaluation.results import expect_kind, validate_results
from memreason_hf.messages import visible


# Colours of Okabe and Ito, which differ with all common kinds of colour blindness; yellow is left out on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "os^Dv<>"
# The vertical axis is logarithmic where the largest perplexity is at least this many times the smallest.
_LOG_FROM = 4.0
_MOST_LINEAR = 16


def perplexity_figure(curves: Mapping[str, dict], *, title: str | None = None) -> Figure:
    """
    Perplexity over recurrences.

    Args:
        curves (`Mapping[str, dict]`): Documents of kind `"perplexity"` by their labels, over the same text. A ring
            marks the best recurrence. A model that is read after one recurrence only, such as one without a loop, is
            a dashed line.
        title (`str`, *optional*): A line above the figure.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.

    Raises:
        ValueError: there are no curves, one is of another kind, or they are over different texts.

    Example:

    ```python
    results = read_results("perplexity.json")
    save_figure(perplexity_figure({"converted": results}), ["perplexity.png"])
    ```
    """
    _check_comparable(curves)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    last = max(results["settings"]["max_recurrences"] for results in curves.values())
    finite = []
    for index, (label, results) in enumerate(curves.items()):
        values = np.array([np.nan if value is None else value for value in results["perplexity"]], dtype=float)
        finite += values[np.isfinite(values)].tolist()
        _draw(axes, values, results["best_recurrence"], label, index, single=len(values) == 1 < last)
    axes.set_xlabel("recurrences")
    axes.set_ylabel("perplexity")
    if finite and max(finite) >= _LOG_FROM * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(ScalarFormatter())
    _show_recurrences(axes, last)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(curves) > 1:
        # It lies inside the axes, whose size must not follow from long labels.
        legend = axes.legend(frameon=False, fontsize="small")
        legend.set_in_layout(False)
        for label in legend.get_texts():
            label.set_parse_math(False)
    if title:
        figure.suptitle(visible(title), fontsize="medium", parse_math=False)
    return figure


def _draw(axes, values, best, label, index, single):
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    if single:
        axes.axhline(values[0], color=colour, linewidth=1.4, linestyle=(0, (5, 3)), label=label)
        return
    recurrences = np.arange(1, len(values) + 1)
    axes.plot(recurrences, values, color=colour, marker=marker, markersize=3.5, linewidth=1.6, label=label)
    axes.plot(best, values[best - 1], marker="o", markersize=10, markerfacecolor="none", markeredgecolor=colour)


def _show_recurrences(axes, last):
    if last > _MOST_LINEAR:
        # Deep recurrences change little, and depths are mostly powers of two.
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator([2**power for power in range(int(np.log2(last)) + 1)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlim(0.9, last * 1.1)
    else:
        axes.set_xlim(0.5, last + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=last, integer=True, steps=[1, 2, 4, 10]))


def _check_comparable(curves):
    check_type("curves", curves, Mapping, "a mapping from labels to results")
    if not curves:
        raise ValueError("curves is empty: a figure needs the results of at least one model.")
    texts = {}
    for label, results in curves.items():
        if isinstance(results, Mapping) and "kind" in results:
            expect_kind(results, "perplexity")
        try:
            validate_results(results)
        except ValueError as error:
            raise ValueError(f"curves[{label!r}]: {error}") from None
        expect_kind(results, "perplexity")
        texts[label] = tuple(results["data"][name] for name in ("num_documents", "num_tokens"))
    if len(set(texts.values())) > 1:
        described = ", ".join(f"{label}: {documents} and {tokens}" for label, (documents, tokens) in texts.items())
        raise ValueError(
            f"The curves are not over the same tokens (documents and tokens of {described}), so their perplexities "
            "cannot be compared. Use the same files and tokenizer, or compare bits per byte."
        )
