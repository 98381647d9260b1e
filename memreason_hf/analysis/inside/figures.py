"""Figures of what is inside a loop: the lens, trajectories, and patches."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from memreason_hf.analysis.inside.lens_document import target_values
from memreason_hf.evaluation.results import expect_kind, validate_results
from memreason_hf.messages import visible


# It keeps its order with all common kinds of colour blindness and in grey.
_MAP = "cividis"
# Larger maps have no room for tokens in their cells.
_MOST_CELLS_ACROSS, _MOST_CELLS_DOWN = 16, 24
_LONGEST_TOKEN = 10
_MOST_LABELS = 30
_MARKED = {"linestyle": "none", "marker": "o", "color": "white", "markeredgecolor": "black", "markersize": 4.5}


def lens_figure(results: dict, *, title: str | None = None) -> Figure:
    """
    A heat map of positions and recurrences: for one row the probability of each target, with the most probable tokens
    written into the cells of small maps; for several rows the share in which the target is the most probable token.
    A point marks the recurrence from which on it is (for several rows, on average). Chains have a second map: which of
    their entities is the most probable token at the last position.

    Args:
        results: a document of kind `"lens"`.
        title: a line above the figure.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.

    Raises:
        ValueError: the document is of another kind or breaks its schema.

    Example:

    ```python
    save_figure(lens_figure(read_results("lens.json")), ["lens.png"])
    ```
    """
    validate_results(results)
    expect_kind(results, "lens")
    positions, entities = results["positions"], results["entities"]
    alone = results["data"]["num_rows"] == 1
    height = float(np.clip(1.8 + 0.24 * len(positions), 3.8, 11.0))
    figure = _new_figure(13.0 if entities else 8.5, height, title)
    panels = figure.subplots(1, 2, width_ratios=(1.4, 1), squeeze=False)[0] if entities else [figure.add_subplot()]
    values = target_values(results, "target_probability" if alone else "first_share")
    label = "probability of the target" if alone else "share of rows with the target first"
    labels = [_position_label(position) for position in positions]
    image = _heat_map(panels[0], values, labels, first=1)
    figure.colorbar(image, ax=panels[0], label=label, pad=0.02, aspect=30).outline.set_visible(False)
    _mark(panels[0], [position["settled_from"] for position in positions], "settled")
    panels[0].set_ylabel("position")
    if alone:
        _write_tokens(panels[0], [[step[0]["token"] for step in position["top"]] for position in positions], values)
    if entities:
        shares = np.array([entity["at_answer"] for entity in entities])
        image = _heat_map(panels[1], shares, [entity["hop"] for entity in entities], first=1)
        panels[1].set_ylabel("entity after so many hops")
        panels[1].set_title("read at the last position", fontsize="small")
        bar = figure.colorbar(image, ax=panels[1], label="share of rows", pad=0.02, aspect=30)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        bar.outline.set_visible(False)
    return figure


def _position_label(position):
    if position["token"] is None:
        return str(position["index"] + 1)
    target = position["target"]
    return _short(position["token"]) + ("" if target is None else f" → {_short(target)}")


def patch_figure(results: dict, *, title: str | None = None) -> Figure:
    """
    A heat map of the effect of patches over positions and recurrences; the lowest line is a patch of all positions.

    Args:
        results: a document of kind `"patch"`.
        title: a line above the figure.

    Returns, raises: as `lens_figure`.

    Example:

    ```python
    save_figure(patch_figure(read_results("patch.json")), ["patch.png"])
    ```
    """
    validate_results(results)
    expect_kind(results, "patch")
    effect = np.vstack([np.array(results["effect"]).T, results["whole_effect"]])
    height = float(np.clip(1.8 + 0.24 * len(effect), 3.8, 11.0))
    figure = _new_figure(8.5, height, title)
    axes = figure.add_subplot()
    labels = [str(position + 1) for position in range(len(effect) - 1)]
    if results["tokens"] is not None:
        labels = [
            _short(first) if first == second else f"{_short(first)} ← {_short(second)}"
            for first, second in zip(*results["tokens"])
        ]
    image = _heat_map(axes, effect, [*labels, "all"], first=0)
    axes.set_xlabel("patched after recurrence")
    axes.set_ylabel("patched position")
    axes.axhline(len(effect) - 1.5, color="white", linewidth=2)
    label = "effect (1: as for the second text)"
    figure.colorbar(image, ax=axes, label=label, pad=0.02, aspect=30, extend="both").outline.set_visible(False)
    return figure


def trajectory_figure(results: dict, *, title: str | None = None) -> Figure:
    """
    Four panels: the step of the state and its distance to the last state over recurrences (mean, and the range of
    80 % of the rows), the spectral radius where it was computed, and the paths in two principal components.

    Args:
        results: a document of kind `"trajectories"`.
        title: a line above the figure.

    Returns, raises: as `lens_figure`.

    Example:

    ```python
    save_figure(trajectory_figure(read_results("trajectories.json")), ["trajectories.png"])
    ```
    """
    validate_results(results)
    expect_kind(results, "trajectories")
    figure = _new_figure(11.0, 7.6, title)
    (steps, distances), (radii, paths) = figure.subplots(2, 2)
    colours = _group_colours(len(results["groups"]))
    for group, colour in zip(results["groups"], colours):
        _draw_curve(steps, group["step"], colour, str(group["group"]))
        _draw_curve(distances, group["to_last"], colour, str(group["group"]))
        spectral = group["spectral_radius"]
        if spectral:
            at = [entry["recurrence"] for entry in spectral]
            radii.plot(at, [entry["mean"] for entry in spectral], color=colour, marker="o", markersize=3.5)
        _draw_paths(paths, group, colour)
    for axes, label in ((steps, "step |s_t - s_{t-1}| / |s_t|"), (distances, "distance |s_t - s_R| / |s_R|")):
        axes.set_yscale("log")
        axes.set_ylabel(label, parse_math=False)
    _finish_radii(radii, any(group["spectral_radius"] for group in results["groups"]))
    for axes in (steps, distances, radii):
        axes.set_xlabel("recurrences")
        axes.set_xlim(0.5, results["settings"]["num_recurrences"] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shares = [f"component {index} ({100 * share:.0f} %)" for index, share in enumerate(results["explained"], 1)]
    paths.set_xlabel(shares[0])
    paths.set_ylabel(shares[1] if len(shares) > 1 else "")
    for axes in (steps, distances, radii, paths):
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    _add_legend(figure, steps, results["groups"])
    return figure


def _add_legend(figure, axes, groups):
    if len(groups) > 1:
        handles, labels = axes.get_legend_handles_labels()
        name = "hops" if isinstance(groups[0]["group"], int) else None
        legend = figure.legend(
            handles, labels, title=name, loc="outside right upper", frameon=False, fontsize="small", ncols=1
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _finish_radii(axes, has_values):
    axes.set_ylabel("spectral radius of the next recurrence")
    axes.axhline(1, color="0.4", linewidth=1, linestyle=(0, (5, 3)))
    if not has_values:
        axes.text(0.5, 0.5, "not computed", ha="center", va="center", color="0.4", transform=axes.transAxes)
        axes.yaxis.set_major_locator(NullLocator())


def _draw_curve(axes, curve, colour, label):
    at = np.arange(1, len(curve["mean"]) + 1)
    # The distance of the last state to itself is 0, which a logarithmic axis cannot show.
    mean, low, high = (np.where(np.array(curve[name]) > 0, curve[name], np.nan) for name in ("mean", "low", "high"))
    axes.plot(at, mean, color=colour, linewidth=1.6, label=visible(label))
    axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def _draw_paths(axes, group, colour):
    for path in group["paths"]:
        points = np.array(path["coordinates"])
        axes.plot(points[:, 0], _second(points), color=colour, linewidth=0.7, alpha=0.45)
    points = np.array(group["mean_path"])
    axes.plot(points[:, 0], _second(points), color=colour, linewidth=1.6, marker=".", markersize=4)
    axes.plot(points[-1, 0], _second(points)[-1], color=colour, marker="s", markersize=6, markeredgecolor="black")


def _second(points):
    return points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))


def _group_colours(count):
    return colormaps[_MAP](np.linspace(0, 0.9, count)) if count > 1 else colormaps[_MAP]([0.2])


def _new_figure(width, height, title):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(visible(title), fontsize="medium", parse_math=False)
    return figure


def _heat_map(axes, values, labels: Sequence, first: int):
    """Lines from the top down, columns for the recurrences from `first` on; grey where there is no number."""
    down, across = values.shape
    colours = colormaps[_MAP].with_extremes(bad="0.85")
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
        extent=(first - 0.5, first + across - 0.5, down - 0.5, -0.5),
    )
    step = -(-down // _MOST_LABELS)
    # The last line is always named: it is the answer, or the patch of all positions.
    places = sorted({*range(0, down - step // 2, step), down - 1})
    axes.set_yticks(places, [str(labels[place]) for place in places], parse_math=False, fontsize="small")
    axes.set_xlabel("recurrences")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(length=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _mark(axes, recurrences, label):
    places = [index for index, recurrence in enumerate(recurrences) if recurrence is not None]
    if places:
        axes.plot([recurrences[place] for place in places], places, label=label, **_MARKED)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize="small")


def _write_tokens(axes, tokens, values):
    if len(tokens) > _MOST_CELLS_DOWN or len(tokens[0]) > _MOST_CELLS_ACROSS:
        return
    for line, (names, numbers) in enumerate(zip(tokens, values)):
        for recurrence, (name, number) in enumerate(zip(names, numbers), 1):
            colour = "black" if not number < 0.5 else "white"
            # Above the point that marks a cell.
            axes.text(
                recurrence,
                line - 0.18,
                _short(name),
                ha="center",
                va="center",
                fontsize=6,
                color=colour,
                parse_math=False,
            )


def _short(token):
    text = visible(token).replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= _LONGEST_TOKEN else f"{text[: _LONGEST_TOKEN - 1]}…"
