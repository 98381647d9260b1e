"""Figures of attention over the steps of one solution."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from memreason_hf.analysis.attention_maps import AttentionMap
from memreason_hf.analysis.kind_colours import kind_colours
from memreason_hf.analysis.solution_tokens import SolutionTokens
from memreason_hf.messages import visible


_MAP = "cividis"
# No token attends to later ones; this is not the colour of little attention.
_AHEAD = "#f2f2f2"
# In inches: the side of the map for a short and for a long text, the side of a token in between, and the margins for
# labels, brackets and the scale.
_SMALLEST, _LARGEST, _TOKEN = 4.6, 8.4, 0.13
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.95, 2.05, 1.15, 0.95
_SCALE = 1.15
_POINTS = 72
# In points: the height of a label, and the least length of a bracket that carries its name.
_LABEL_ROOM, _NAME_ROOM = 7.5, 8.5
_LABEL_SIZE, _NAME_SIZE = 6.0, 7.5
_MOST_LETTERS = 12


def attention_figure(solution: SolutionTokens, shown: AttentionMap, *, title: str | None = None) -> Figure:
    """
    A heat map of attending by attended tokens. Every step has a bracket in the colour of its kind.

    The colour scale is logarithmic, from a tenth of even attention to the whole text up to 1, and the same in all maps
    of a text. Smaller weights have the colour of the smallest one; positions after a token are blank. In a long text
    only some tokens have a label.

    Args:
        solution: the tokens.
        shown: the map, with a row and a column for each token.
        title: a line above the figure.

    Returns:
        A figure with its own Agg canvas; the state of pyplot does not change.

    Raises:
        ValueError: the map has another number of tokens than the solution.

    Example:

    ```python
    (attention_map,) = read_attention(model, solution.ids).select(layer=2)
    save_figure(attention_figure(solution, attention_map), ["attention.png", "attention.pdf"])
    ```
    """
    num_tokens = len(solution)
    if shown.weights.shape != (num_tokens, num_tokens):
        raise ValueError(f"The map has shape {shown.weights.shape}, but the solution has {num_tokens} tokens.")
    side = float(np.clip(_TOKEN * num_tokens, _SMALLEST, _LARGEST))
    width, height = _LEFT + side + _RIGHT, _BOTTOM + side + _TOP
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((_LEFT / width, _BOTTOM / height, side / width, side / height))
    colours = colormaps[_MAP].with_extremes(bad=_AHEAD, under=colormaps[_MAP](0.0))
    least = 0.1 / max(num_tokens, 2)
    values = np.where(np.tri(num_tokens, dtype=bool), np.maximum(shown.weights, least / 10), np.nan)
    image = axes.imshow(values, cmap=colours, norm=LogNorm(least, 1.0), aspect="auto", interpolation="nearest")
    axes.set_xlabel("attended token")
    axes.set_ylabel("attending token")
    for spine in axes.spines.values():
        spine.set_visible(False)

    _label_tokens(axes, solution, side)
    for span in solution.spans:
        _draw_bracket(axes, span, kind_colours(solution.step_kinds)[span.kind], num_tokens, side)
    _draw_boundaries(axes, solution.spans)
    scale_axes = figure.add_axes(((_LEFT + side + _SCALE) / width, _BOTTOM / height, 0.16 / width, side / height))
    scale = figure.colorbar(image, cax=scale_axes, label="attention weight", extend="min", format="{x:g}")
    scale.outline.set_visible(False)
    colours_of = kind_colours(solution.step_kinds)
    present = [kind for kind in colours_of if any(span.kind == kind for span in solution.spans)]
    axes.legend(
        [Line2D([], [], color=colours_of[kind], linewidth=3) for kind in present],
        present,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0 + 0.38 / side),
        ncols=len(present),
        frameon=False,
        fontsize="small",
        borderaxespad=0.0,
    )
    if title:
        figure.suptitle(
            visible(title),
            fontsize="medium",
            parse_math=False,
            x=(_LEFT + side / 2) / width,
            y=1 - 0.3 / height,
            va="center",
        )
    return figure


def _label_tokens(axes: Axes, solution: SolutionTokens, side: float):
    """Draws as many labels as fit, for the same tokens on both axes, in the colours of their steps."""
    step = max(1, int(np.ceil(len(solution) * _LABEL_ROOM / (_POINTS * side))))
    places = range(0, len(solution), step)
    shown = [_shortened(solution.labels[place]) for place in places]
    axes.set_xticks(places, shown, rotation=90, fontsize=_LABEL_SIZE, parse_math=False)
    axes.set_yticks(places, shown, fontsize=_LABEL_SIZE, parse_math=False)
    axes.tick_params(length=2, width=0.5, pad=2)
    kinds, colours = solution.kinds(), kind_colours(solution.step_kinds)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for place, label in zip(places, labels):
            label.set_color(colours[kinds[place]])


def _shortened(label):
    font = get_font(findfont(FontProperties()))
    # A box for a character that the font lacks. Matplotlib would draw one too, but with a warning for each.
    label = "".join(character if font.get_char_index(ord(character)) else "□" for character in label)
    return label if len(label) <= _MOST_LETTERS else label[: _MOST_LETTERS - 1] + "…"


def _draw_bracket(axes, span, colour, num_tokens, side):
    """Draws the bracket of a step on the right with its name, and above the map with its number."""
    first, last = span.start - 0.5, span.end - 0.5
    # A gap between neighbouring brackets.
    gap = min(0.15 * (last - first), 1.5 / _POINTS * num_tokens / side)
    ends = (first + gap, last - gap)
    middle = (first + last) / 2
    right = blended_transform_factory(axes.transAxes, axes.transData)
    above = blended_transform_factory(axes.transData, axes.transAxes)
    line = {"color": colour, "linewidth": 1.5, "clip_on": False, "solid_capstyle": "butt", "solid_joinstyle": "miter"}
    room = (last - first) * _POINTS * side / num_tokens
    for transform, is_right in ((right, True), (above, False)):
        near, far = 1 + 0.05 / side, 1 + 0.12 / side
        across, along = (near, far, far, near), (ends[0], *ends, ends[1])
        axes.plot(*((across, along) if is_right else (along, across)), transform=transform, **line)
        number = "" if span.number is None else str(span.number)
        name = f"{number} {span.kind}".strip() if is_right else number
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
