"""The labels of tokens on the axes of an attention map: which tokens have one, and where it stands."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path
from matplotlib.transforms import blended_transform_factory

from memreason_hf.analysis.solution_tokens import SolutionTokens


LABEL_SIZE = 6.0
# In points: the height of a label with the room around it.
LABEL_ROOM = 7.5
# In inches: the lines from the tokens to their labels.
LEADER = 0.16
POINTS = 72
_MOST_LETTERS = 40


@dataclass(frozen=True)
class TokenLabels:
    """
    The labels of one axis, and of the other.

    Attributes:
        tokens: index of each token that has a label.
        places: where the label stands, in tokens; next to its token wherever there is room.
        texts: the labels.
    """

    tokens: tuple[int, ...]
    places: tuple[float, ...]
    texts: tuple[str, ...]

    @property
    def length(self) -> float:
        """The length of the longest label in inches."""
        font = FontProperties(size=LABEL_SIZE)
        widths = [text_to_path.get_text_width_height_descent(text, font, False)[0] for text in self.texts]
        return max(widths, default=0.0) / POINTS


def least_side(solution: SolutionTokens) -> float:
    """The side of a map in inches on which the labels of all step tokens fit."""
    return (sum(solution.is_mark) + 1) * LABEL_ROOM / POINTS


def choose_labels(solution: SolutionTokens, side: float) -> TokenLabels:
    """
    Chooses the labels of a map: those of all step tokens, which move apart where they stand too close, and as many
    others as fit between them without moving.

    Args:
        solution: the tokens.
        side: the side of the map in inches, at least `least_side`.
    """
    num_tokens = len(solution)
    gap = LABEL_ROOM / POINTS / side * num_tokens
    marks = [index for index, is_mark in enumerate(solution.is_mark) if is_mark]
    # Half of a label may stand beyond the ends of the map.
    placed = dict(zip(marks, _apart(marks, gap, -0.5, num_tokens - 0.5)))
    taken = sorted(placed.values())
    for index in range(num_tokens):
        after = bisect_left(taken, index)
        near = taken[max(after - 1, 0) : after + 1]
        if index not in placed and all(abs(place - index) >= gap * 0.999 for place in near):
            placed[index] = float(index)
            insort(taken, float(index))
    tokens = sorted(placed)
    return TokenLabels(
        tuple(tokens),
        tuple(placed[index] for index in tokens),
        tuple(_drawable(solution.labels[index]) for index in tokens),
    )


def draw_labels(axes: Axes, labels: TokenLabels, colours: Sequence[str], side: float) -> None:
    """
    Draws the labels on both axes, each with a line from its token.

    Args:
        colours: the colour of each token.
        side: the side of the map in inches.
    """
    style = {"fontsize": LABEL_SIZE, "parse_math": False}
    axes.set_xticks(labels.places, labels.texts, rotation=90, **style)
    axes.set_yticks(labels.places, labels.texts, **style)
    axes.tick_params(length=0, pad=LEADER * POINTS + 1)
    own = [colours[index] for index in labels.tokens]
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label, colour in zip(ticks, own):
            label.set_color(colour)
    # Across the axis in shares of it: a short stub at the token, a slope, a short stub at the label.
    depths = [-part * LEADER / side for part in (0.0, 0.2, 0.8, 1.0)]
    below = blended_transform_factory(axes.transData, axes.transAxes)
    left = blended_transform_factory(axes.transAxes, axes.transData)
    for transform, is_left in ((below, False), (left, True)):
        lines = []
        for token, place in zip(labels.tokens, labels.places):
            points = list(zip((token, token, place, place), depths))
            lines.append([(depth, along) for along, depth in points] if is_left else points)
        axes.add_collection(
            LineCollection(lines, colors=own, linewidths=0.4, transform=transform, clip_on=False), autolim=False
        )


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """
    The places nearest to the given ones, in squares, that keep a gap to each other, inside of two limits.

    Without their gaps the places must not decrease: this is isotonic regression, by merging neighbours that collide.
    """
    blocks: list[list[float]] = []  # sum and number of the places of each block
    for index, place in enumerate(places):
        blocks.append([place - index * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, number = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += number
    most = max(high - (len(places) - 1) * gap, low)
    means = [min(max(total / number, low), most) for total, number in blocks for _ in range(int(number))]
    return [mean + index * gap for index, mean in enumerate(means)]


def _drawable(label: str) -> str:
    font = get_font(findfont(FontProperties()))
    # A box for a character that the font lacks. Matplotlib would draw one too, but with a warning for each.
    label = "".join(character if font.get_char_index(ord(character)) else "□" for character in label)
    return label if len(label) <= _MOST_LETTERS else label[: _MOST_LETTERS - 1] + "…"
