"""Figures of depth sweeps: accuracy and logit margins over groups and recurrences."""

import os
from collections.abc import Iterable
from pathlib import PurePath

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MultipleLocator, PercentFormatter

from memreason_hf.checks import check_path, check_sequence, check_type
from memreason_hf.evaluation.chains.depth_sweep import DepthSweep
from memreason_hf.evaluation.chains.halting_statistics import HaltingStatistics
from memreason_hf.files import check_places, whole_file
from memreason_hf.messages import visible


# Both colour maps keep their order with all common kinds of colour blindness and in grey.
_ACCURACY_MAP = "cividis"
_MARGIN_MAP = "PuOr"
_MOST_GROUP_LABELS = 24
_MOST_RECURRENCE_LABELS = 10


def accuracy_figure(
    sweep: DepthSweep,
    *,
    halting: HaltingStatistics | None = None,
    trained_hops: int | None = None,
    title: str | None = None,
    group_label: str = "hops",
) -> Figure:
    """
    Accuracy over groups and recurrences as a heat map.

    Args:
        sweep: the numbers; each group is a row, the first one at the bottom, and each recurrence a column.
        halting: an adaptive evaluation, whose mean recurrences and standard deviation are drawn for each group.
        trained_hops: the longest chains in training, marked by a line; the groups must be numbers.
        title: a line above the figure.
        group_label: the label of the groups.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.

    Raises:
        ValueError: `halting` has a group that the sweep lacks, or `trained_hops` is given and groups are not numbers.

    Example:

    ```python
    sweep = sweep_depth(model, dataset, collator, max_recurrences=40, batch_size=256)
    save_figure(accuracy_figure(sweep, trained_hops=8), ["depth_sweep.png"])
    ```
    """
    check_type("sweep", sweep, DepthSweep, "a DepthSweep (sweep_depth)")
    figure, axes, image = _heat_map(sweep.accuracy, sweep.groups, _ACCURACY_MAP, (0.0, 1.0), title, group_label)
    colorbar = figure.colorbar(image, ax=axes, label="accuracy", pad=0.02, fraction=0.04, aspect=30)
    colorbar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    colorbar.outline.set_visible(False)
    _draw_marks(axes, sweep, halting, trained_hops)
    return figure


def margin_figure(
    sweep: DepthSweep,
    *,
    halting: HaltingStatistics | None = None,
    trained_hops: int | None = None,
    title: str | None = None,
    group_label: str = "hops",
) -> Figure:
    """
    Logit margins over groups and recurrences, positive where the correct answer ranks first.

    A cross marks the mean first recurrence at which the correct answers of a group rank first. Arguments, result and
    errors are those of `accuracy_figure`.
    """
    check_type("sweep", sweep, DepthSweep, "a DepthSweep (sweep_depth)")
    finite = np.abs(sweep.margins[np.isfinite(sweep.margins)])
    # A quantile, so that one group of large margins does not take the whole colour scale.
    limit = float(np.quantile(finite, 0.99)) if finite.size else 1.0
    limit = limit or 1.0
    figure, axes, image = _heat_map(sweep.margins, sweep.groups, _MARGIN_MAP, (-limit, limit), title, group_label)
    colorbar = figure.colorbar(
        image, ax=axes, label="mean logit margin", pad=0.02, fraction=0.04, aspect=30, extend="both"
    )
    colorbar.outline.set_visible(False)
    rows = np.flatnonzero(np.isfinite(sweep.first_correct))
    axes.plot(
        sweep.first_correct[rows],
        rows,
        linestyle="none",
        marker="x",
        markersize=5,
        color="black",
        label="first correct",
    )
    _draw_marks(axes, sweep, halting, trained_hops)
    return figure


def _heat_map(values, groups, colour_map, limits, title, group_label):
    num_groups, num_recurrences = values.shape
    figure = Figure(figsize=(8.0, float(np.clip(1.6 + 0.13 * num_groups, 3.2, 9.0))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(
        values,
        cmap=colour_map,
        vmin=limits[0],
        vmax=limits[1],
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0.5, num_recurrences + 0.5, -0.5, num_groups - 0.5),
    )
    axes.set_xlabel("recurrences")
    axes.set_ylabel(visible(group_label), parse_math=False)
    _show_recurrences(axes, num_recurrences)
    step = -(-num_groups // _MOST_GROUP_LABELS)
    # A group may be named "$x": it is no formula.
    labels = [visible(str(group)) for group in groups[::step]]
    axes.set_yticks(range(0, num_groups, step), labels, parse_math=False)
    axes.tick_params(length=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        figure.suptitle(visible(title), fontsize="medium", parse_math=False)
    return figure, axes, image


def _show_recurrences(axes, last):
    axes.set_xlim(0.5, last + 0.5)
    # Steps that are powers of two, as most depths are.
    axes.xaxis.set_major_locator(MultipleLocator(2 ** int(np.ceil(np.log2(max(last / _MOST_RECURRENCE_LABELS, 1))))))


def _draw_marks(axes, sweep, halting, trained_hops):
    if trained_hops is not None:
        _mark_trained_range(axes, sweep.groups, trained_hops)
    if halting is not None:
        _draw_halting_points(axes, sweep, halting)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # Outside the axes, because every corner of the map holds data.
        axes.legend(
            handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize="small"
        )


def _mark_trained_range(axes, groups, trained_hops):
    numbers = [group for group in groups if isinstance(group, int | float) or str(group).isdecimal()]
    if len(numbers) < len(groups):
        raise ValueError(
            f"trained_hops={trained_hops} needs groups that are numbers of hops, got {groups[:3]}, ... Group by hops, "
            "or leave trained_hops out."
        )
    trained = sum(int(group) <= trained_hops for group in groups)
    if trained:
        label = f"trained up to {trained_hops} {axes.get_ylabel()}"
        axes.axhline(trained - 0.5, color="white", linewidth=2.6, zorder=2)
        axes.axhline(trained - 0.5, color="black", linewidth=1.2, linestyle=(0, (5, 3)), zorder=2.1, label=label)


def _draw_halting_points(axes, sweep, halting):
    position = {group: index for index, group in enumerate(sweep.groups)}
    missing = [group for group in halting.by_group if group not in position]
    if missing:
        raise ValueError(f"halting has groups that the sweep lacks: {missing}. Both must use the same data.")
    rows = [position[group] for group in halting.by_group]
    means = [entry.mean for entry in halting.by_group.values()]
    deviations = [entry.standard_deviation for entry in halting.by_group.values()]
    _, _, bars = axes.errorbar(
        means,
        rows,
        xerr=deviations,
        fmt="o",
        markersize=4,
        color="white",
        markeredgecolor="black",
        markeredgewidth=0.8,
        ecolor="white",
        elinewidth=1.1,
        zorder=3,
        label="halting (mean ± std)",
    )
    # Points of rows that went deeper than the sweep lie right of the map.
    _show_recurrences(axes, max(sweep.max_recurrences, int(np.ceil(np.add(means, deviations).max()))))
    for bar in bars:
        bar.set_path_effects([withStroke(linewidth=2.3, foreground="black")])


def save_figure(figure: Figure, paths: Iterable[str | os.PathLike], *, overwrite: bool = False) -> None:
    """
    Writes a figure to each of `paths`, in the format of its suffix (`.png`, `.pdf`, ...), each whole or not at all.

    Raises:
        FileExistsError: one of them exists and `overwrite` is false; then none is written.
    """
    check_sequence("paths", paths, "a list of paths")
    paths = list(paths)
    if not paths:
        raise ValueError("paths=[] must name at least one file.")
    formats = figure.canvas.get_supported_filetypes()
    for path in paths:
        check_path("path", path)
        if PurePath(path).suffix[1:].lower() not in formats:
            raise ValueError(f"path={str(path)!r} must end in the format of the figure: {', '.join(sorted(formats))}.")
    check_places(paths, overwrite=overwrite)
    for path in paths:
        with whole_file(path, overwrite=overwrite) as temporary:
            figure.savefig(temporary, dpi=200)
