"""The heat map of attention over the steps of one solution."""

import dataclasses

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from memreason_hf.analysis.attention_labels import LEADER, POINTS, choose_labels, draw_labels, least_side
from memreason_hf.analysis.attention_maps import AttentionMap
from memreason_hf.analysis.kind_colours import kind_colours
from memreason_hf.analysis.solution_tokens import MARKS, SolutionTokens, TokenSpan
from memreason_hf.messages import visible


_MAP = "cividis"
# No token attends to later ones; this is not the colour of little attention.
_AHEAD = "#f2f2f2"
# In inches: the side of the map for a short and for a long text, the side of a token in between, and the margins for
# the names of the axes and the legend, brackets and the scale. Long labels need more.
_SMALLEST, _LARGEST, _TOKEN = 4.6, 8.4, 0.13
_AXIS_NAME, _LEAST_MARGIN, _RIGHT, _TOP = 0.4, 1.05, 2.05, 1.15
_SCALE = 1.15
# A larger picture could hardly be opened.
_MOST_INCHES = 60.0
# In points: the least length of a bracket that carries its name.
_NAME_ROOM = 8.5
_NAME_SIZE = 7.5


def colours_of_kinds(solution: SolutionTokens) -> dict[str, str]:
    """The colour of everything that a token of a solution can belong to, in the order of a text."""
    return kind_colours(solution.step_kinds)


def heat_scale(text_length: int) -> tuple[Colormap, LogNorm]:
    """The colours of weights and their logarithmic scale, the same in all maps of a text of so many tokens."""
    colours = colormaps[_MAP].with_extremes(bad=_AHEAD, under=colormaps[_MAP](0.0))
    return colours, LogNorm(0.1 / max(text_length, 2), 1.0)


def heat_values(weights: np.ndarray, norm: LogNorm) -> np.ndarray:
    """The weights as they are drawn, shape `(..., tokens, tokens)`: NaN after each token, none below the scale."""
    seen = np.tri(weights.shape[-1], dtype=bool)
    return np.where(seen, np.maximum(weights, norm.vmin / 10), np.nan)


def draw_legend(axes: Axes, solution: SolutionTokens, marks_apart: bool, height: float) -> None:
    """Draws the colours of the kinds that occur above a map, `height` in shares of it."""
    kinds = set(solution.kinds(marks_apart))
    present = {kind: colour for kind, colour in colours_of_kinds(solution).items() if kind in kinds}
    axes.legend(
        [Line2D([], [], color=colour, linewidth=3) for colour in present.values()],
        list(present),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0 + height),
        ncols=len(present),
        frameon=False,
        fontsize="small",
        borderaxespad=0.0,
    )


def attention_figure(
    solution: SolutionTokens,
    shown: AttentionMap,
    *,
    title: str | None = None,
    marks_apart: bool = False,
    text_length: int | None = None,
) -> Figure:
    """
    A heat map of attending by attended tokens. Every step has a bracket in the colour of its kind.

    The colour scale is logarithmic, from a tenth of even attention to the whole text up to 1, and the same in all maps
    of a text. Smaller weights have the colour of the smallest one; positions after a token are blank. All step tokens
    have labels; of the others, in a long text, only some.

    Args:
        solution: the tokens, or the words of `show_tokens`.
        shown: the map, with a row and a column for each token.
        title: a line above the figure.
        marks_apart: whether the marks of steps have a colour and brackets of their own.
        text_length: the tokens of the whole text where only a part is shown.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.

    Raises:
        ValueError: the map has another number of tokens than the solution, or the text has so many step tokens that
            their labels fit into no picture.

    Example:

    ```python
    (attention_map,) = read_attention(model, solution.ids).select(layer=2)
    save_figure(attention_figure(solution, attention_map), ["attention.png", "attention.pdf"])
    ```
    """
    num_tokens = len(solution)
    if shown.weights.shape != (num_tokens, num_tokens):
        raise ValueError(f"The map has shape {shown.weights.shape}, but the solution has {num_tokens} tokens.")
    side = map_side(solution)
    labels = choose_labels(solution, side)
    margin = max(_AXIS_NAME + LEADER + labels.length, _LEAST_MARGIN)
    width, height = margin + side + _RIGHT, margin + side + _TOP
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    colours, norm = heat_scale(text_length or num_tokens)
    image = axes.imshow(
        heat_values(shown.weights, norm), cmap=colours, norm=norm, aspect="auto", interpolation="nearest"
    )
    axes.set_xlabel("attended token")
    axes.set_ylabel("attending token")
    for spine in axes.spines.values():
        spine.set_visible(False)

    kinds = colours_of_kinds(solution)
    draw_labels(axes, labels, [kinds[kind] for kind in solution.kinds(marks_apart)], side)
    for span in solution.spans:
        for part in _parts(solution, span, marks_apart):
            _draw_bracket(axes, part, kinds[part.kind], num_tokens, side)
    _draw_boundaries(axes, solution.spans)
    scale_axes = figure.add_axes(((margin + side + _SCALE) / width, margin / height, 0.16 / width, side / height))
    scale = figure.colorbar(image, cax=scale_axes, label="attention weight", extend="min", format="{x:g}")
    scale.outline.set_visible(False)
    draw_legend(axes, solution, marks_apart, 0.38 / side)
    if title:
        figure.suptitle(
            visible(title),
            fontsize="medium",
            parse_math=False,
            x=(margin + side / 2) / width,
            y=1 - 0.3 / height,
            va="center",
        )
    return figure


def map_side(solution: SolutionTokens) -> float:
    """
    The side of a map in inches.

    Raises:
        ValueError: there are so many step tokens that their labels fit into no picture.
    """
    side = max(float(np.clip(_TOKEN * len(solution), _SMALLEST, _LARGEST)), least_side(solution))
    if side > _MOST_INCHES:
        raise ValueError(
            f"The text has {sum(solution.is_mark):,} step tokens, whose labels need a picture of {side:.0f} inches. "
            "Choose some of its steps (steps='1-20')."
        )
    return side


def _parts(solution, span, marks_apart) -> list[TokenSpan]:
    """A span, or with `marks_apart` its mark, which has no name, and the rest."""
    end = span.start
    while marks_apart and end < span.end and solution.is_mark[end]:
        end += 1
    mark = [dataclasses.replace(span, kind=MARKS, number=None, end=end)] if end > span.start else []
    return [*mark, *([dataclasses.replace(span, start=end)] if end < span.end else [])]


def _draw_bracket(axes, span, colour, num_tokens, side):
    """Draws the bracket of a step on the right with its name, and above the map with its number."""
    first, last = span.start - 0.5, span.end - 0.5
    # A gap between neighbouring brackets.
    gap = min(0.15 * (last - first), 1.5 / POINTS * num_tokens / side)
    ends = (first + gap, last - gap)
    middle = (first + last) / 2
    right = blended_transform_factory(axes.transAxes, axes.transData)
    above = blended_transform_factory(axes.transData, axes.transAxes)
    line = {"color": colour, "linewidth": 1.5, "clip_on": False, "solid_capstyle": "butt", "solid_joinstyle": "miter"}
    room = (last - first) * POINTS * side / num_tokens
    for transform, is_right in ((right, True), (above, False)):
        near, far = 1 + 0.05 / side, 1 + 0.12 / side
        across, along = (near, far, far, near), (ends[0], *ends, ends[1])
        axes.plot(*((across, along) if is_right else (along, across)), transform=transform, **line)
        number = "" if span.number is None else str(span.number)
        name = f"{number} {span.kind}".strip() if is_right and span.kind != MARKS else number
        needed = _NAME_ROOM if is_right else 0.62 * _NAME_SIZE * len(name) + 2
        if name and room >= needed:
            outside = 1 + 0.17 / side
            axes.text(
                *((outside, middle) if is_right else (middle, outside)),
                name,
                transform=transform,
                color=colour,
                fontsize=_NAME_SIZE,
                ha="left" if is_right else "center",
                va="center" if is_right else "bottom",
            )


def _draw_boundaries(axes, spans):
    """Draws thin lines where steps end, inside the triangle that is not blank."""
    for span in spans[:-1]:
        edge, end = span.end - 0.5, spans[-1].end - 0.5
        style = {"color": "white", "linewidth": 0.5, "alpha": 0.7}
        axes.plot((edge, edge), (edge, end), **style)
        axes.plot((-0.5, edge), (edge, edge), **style)
    axes.set_xlim(-0.5, spans[-1].end - 0.5)
    axes.set_ylim(spans[-1].end - 0.5, -0.5)
