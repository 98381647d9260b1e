"""One picture of many attention maps: a row for each layer and recurrence, and a column for each head."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from memreason_hf.analysis.attention_figures import colours_of_kinds, draw_legend, heat_scale, heat_values
from memreason_hf.analysis.attention_maps import LayerAttention, TextAttention
from memreason_hf.analysis.shown_tokens import ShownTokens
from memreason_hf.messages import visible


# In pixels: the sides of the whole picture and of a map, at least and at most, and the gap between maps.
_WHOLE, _SMALLEST, _LARGEST, _GAP = 4800, 12, 160, 2
# In inches: the sides of a map, at least and at most, of all maps, and the margins.
_LEAST_SIDE, _MOST_SIDE, _MOST_MAPS = 0.22, 1.4, 14.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 1.8, 1.1, 1.2, 0.55
_MOST_MAPS_SHOWN = 8192


def choose_maps(
    attention: TextAttention,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    recurrence: int | None = None,
) -> tuple[list[LayerAttention], list[int]]:
    """
    The rows and columns of a grid: layers in the order in which they ran, and heads.

    Args:
        attention: the attention over the text.
        layers, heads: counted from 1; None for all.
        recurrence: counted from 1; only the layers that ran in it. None for all.

    Raises:
        ValueError: the model has no such layer, head or recurrence, or there are too many maps.
    """
    wanted = {"layer": layers, "head": heads, "recurrence": None if recurrence is None else [recurrence]}
    present = {
        "layer": {entry.layer for entry in attention.layers},
        "head": set(range(1, attention.num_heads + 1)),
        "recurrence": {entry.recurrence for entry in attention.layers} - {None},
    }
    for name, values in wanted.items():
        missing = set(values or ()) - present[name]
        if missing:
            known = f"{name}s 1 to {max(present[name])}" if present[name] else f"no {name}s"
            raise ValueError(f"{name}={min(missing)} cannot be in the grid: there are {known}.")
    rows = [
        entry
        for entry in attention.layers
        if (layers is None or entry.layer in layers) and recurrence in (None, entry.recurrence)
    ]
    heads = sorted(present["head"] if heads is None else set(heads))
    if not rows:
        raise ValueError(f"The layers {layers} did not run in recurrence {recurrence}. Leave one of them out.")
    if len(rows) * len(heads) > _MOST_MAPS_SHOWN:
        raise ValueError(
            f"The grid would have {len(rows)} x {len(heads)} maps, but at most {_MOST_MAPS_SHOWN:,} can be seen. "
            "Choose layers or heads."
        )
    return rows, heads


def attention_grid(
    shown: ShownTokens,
    rows: Sequence[LayerAttention],
    heads: Sequence[int],
    *,
    title: str | None = None,
    marks_apart: bool = False,
) -> Figure:
    """
    A grid of small maps on one colour scale, that of `attention_figure`. Bars in the colours of the kinds show where
    the steps lie. A map of more tokens than pixels shows the largest weight under each pixel.

    Args:
        shown: what the maps show of the text, from `show_tokens`.
        rows, heads: from `choose_maps`. A layer with fewer heads has blank places.
        title: a line above the grid.
        marks_apart: whether the marks of steps have a colour of their own in the bars.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.

    Example:

    ```python
    rows, heads = choose_maps(read_attention(model, solution.ids), layers=[1, 2])
    save_figure(attention_grid(show_tokens(solution), rows, heads), ["grid.png"])
    ```
    """
    num_tokens, shape = len(shown.solution), (len(rows), len(heads))
    pixels = int(np.clip(_WHOLE // max(shape), _SMALLEST, _LARGEST))
    side = float(np.clip(_MOST_MAPS / max(shape), _LEAST_SIDE, _MOST_SIDE))
    width, height = _LEFT + side * shape[1] + _RIGHT, _BOTTOM + side * shape[0] + _TOP
    figure = Figure(figsize=(max(width, 6.0), height))
    width = figure.get_size_inches()[0]
    FigureCanvasAgg(figure)
    axes = figure.add_axes(
        (_LEFT / width, _BOTTOM / height, side * shape[1] / width, side * shape[0] / height), facecolor="white"
    )
    colours, norm = heat_scale(shown.text_length)
    colours = colours.with_extremes(bad="white", under=colours.get_under())
    tiles, margin = _tiles(shown, rows, heads, norm, -(-num_tokens // pixels))
    extent = (0, shape[1], shape[0], 0)
    image = axes.imshow(tiles, cmap=colours, norm=norm, aspect="auto", interpolation="nearest", extent=extent)
    for spine in axes.spines.values():
        spine.set_visible(False)
    places = np.arange(max(shape)) + 0.5
    size = float(np.clip(side * 22, 4.5, 8.0))
    axes.set_xticks(places[: shape[1]], heads, fontsize=size)
    axes.set_yticks(places[: shape[0]], [_row_name(entry) for entry in rows], fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlabel("head")
    _draw_bars(axes, shown, shape, marks_apart, margin, side)
    draw_legend(axes, shown.solution, marks_apart, 0.2 / (side * shape[0]))
    scale_axes = figure.add_axes(
        ((_LEFT + side * shape[1] + 0.2) / width, _BOTTOM / height, 0.14 / width, side * shape[0] / height)
    )
    scale = figure.colorbar(image, cax=scale_axes, label="attention weight", extend="min", format="{x:g}")
    scale.outline.set_visible(False)
    if title:
        figure.suptitle(visible(title), fontsize="medium", parse_math=False, y=1 - 0.3 / height, va="center")
    return figure


def _row_name(entry):
    return f"layer {entry.layer}" + ("" if entry.recurrence is None else f", recurrence {entry.recurrence}")


def _tiles(shown, rows, heads, norm, factor) -> tuple[np.ndarray, float]:
    """All maps in one array, with NaN between them, and the room before each map as a share of its place."""
    size = -(-len(shown.solution) // factor)
    gap = max(_GAP, size // 16)
    # An even gap, so that it is the same on both sides.
    gap += gap % 2
    step = size + gap
    tiles = np.full((len(rows) * step, len(heads) * step), np.nan, dtype=np.float32)
    for row, entry in enumerate(rows):
        maps = heat_values(shown.weights(entry.by_head()), norm)
        for column, head in enumerate(heads):
            if head <= len(maps):
                top, left = row * step + gap // 2, column * step + gap // 2
                tiles[top : top + size, left : left + size] = _largest(maps[head - 1], factor)
    return tiles, (gap // 2) / step


def _largest(values, factor):
    """The largest value of every block of `factor` times `factor`; NaN where a block holds nothing else."""
    if factor == 1:
        return values
    room = -len(values) % factor
    padded = np.pad(values, (0, room), constant_values=np.nan)
    blocks = padded.reshape(len(padded) // factor, factor, -1, factor)
    largest = np.where(np.isnan(blocks), -np.inf, blocks).max(axis=(1, 3))
    return np.where(np.isinf(largest), np.nan, largest)


def _draw_bars(axes: Axes, shown: ShownTokens, shape: tuple[int, int], marks_apart: bool, margin: float, side: float):
    """Draws the steps as bars above every column and left of every row."""
    solution = shown.solution
    kinds, colours = solution.kinds(marks_apart), colours_of_kinds(solution)
    edges = [0, *(i for i in range(1, len(kinds)) if _part(solution, kinds, i) != _part(solution, kinds, i - 1))]
    parts = list(zip(edges, [*edges[1:], len(kinds)]))
    near, far = 0.04 / side, 0.1 / side
    above = blended_transform_factory(axes.transData, axes.transAxes)
    left = blended_transform_factory(axes.transAxes, axes.transData)
    for count, transform, length in ((shape[1], above, shape[0]), (shape[0], left, shape[1])):
        boxes, own = [], []
        for index in range(count):
            for start, end in parts:
                first, last = (index + margin + (1 - 2 * margin) * place / len(kinds) for place in (start, end))
                if transform is above:
                    low, high = 1 + near / length, 1 + far / length
                    boxes.append([(first, low), (last, low), (last, high), (first, high)])
                else:
                    low, high = -far / length, -near / length
                    boxes.append([(low, first), (low, last), (high, last), (high, first)])
                own.append(colours[kinds[start]])
        axes.add_collection(
            PolyCollection(boxes, facecolors=own, edgecolors="none", transform=transform, clip_on=False), autolim=False
        )
    axes.tick_params(axis="y", pad=9)


def _part(solution, kinds, index):
    span = next(place for place, span in enumerate(solution.spans) if span.start <= index < span.end)
    return span, kinds[index]
