"""Labels of attention maps: every step token has one, none collide, and they move as little as they must."""

import itertools
import random

import numpy as np
import pytest
from matplotlib.colors import to_hex
from test_attention_figures import assert_all_inside, brackets, make_map

from memreason_hf.analysis.attention_figures import attention_figure, map_side
from memreason_hf.analysis.attention_labels import LABEL_ROOM, POINTS, _apart, choose_labels
from memreason_hf.analysis.kind_colours import KIND_COLOURS
from memreason_hf.analysis.solution_tokens import SolutionTokens, TokenSpan


def marked_solution(lengths, num_marks):
    """Steps of the given lengths, each of which begins with marks."""
    kinds = itertools.cycle(["memory", "reason"])
    spans, is_mark, start = [TokenSpan("question", 0, 5)], [False] * 5, 5
    for number, (length, kind) in enumerate(zip(lengths, kinds), start=1):
        spans.append(TokenSpan(kind, start, start + num_marks + length, number))
        is_mark += [True] * num_marks + [False] * length
        start += num_marks + length
    labels = [f"<mark_{i}>" if mark else f"unabbreviated{i}" for i, mark in enumerate(is_mark)]
    return SolutionTokens(tuple(range(start)), tuple(labels), tuple(spans), tuple(is_mark))


def test_every_mark_has_a_label_and_none_collide():
    rng = random.Random()
    for _ in range(30):
        lengths = [rng.randint(0, 60) for _ in range(rng.randint(1, 20))]
        solution = marked_solution(lengths, rng.randint(1, 6))
        side = map_side(solution)
        labels = choose_labels(solution, side)
        assert {index for index, is_mark in enumerate(solution.is_mark) if is_mark} <= set(labels.tokens)
        assert list(labels.tokens) == sorted(labels.tokens)
        inches = np.diff(labels.places) * side / len(solution)
        assert len(inches) == 0 or inches.min() >= 0.998 * LABEL_ROOM / POINTS
        assert labels.places[0] >= -0.5 and labels.places[-1] <= len(solution) - 0.499
        # Only marks move, and no other token could have had a label.
        for token, place in zip(labels.tokens, labels.places):
            assert solution.is_mark[token] or place == token
        gap = LABEL_ROOM / POINTS / side * len(solution)
        for token in set(range(len(solution))) - set(labels.tokens):
            assert min(abs(place - token) for place in labels.places) < gap
        assert all(text == solution.labels[token] for token, text in zip(labels.tokens, labels.texts))


def test_labels_move_as_little_as_they_must():
    """No other places that keep the gap, found by random search, are nearer to the tokens."""
    rng = np.random.default_rng()
    for _ in range(20):
        wanted = np.sort(rng.choice(60, size=rng.integers(1, 9), replace=False)).astype(float)
        places = np.array(_apart(wanted, 4.0, -0.5, 59.5))
        assert np.all(np.diff(places) >= 4 - 1e-9)
        cost = np.square(places - wanted).sum()
        for scale in (0.01, 0.1, 1.0, 5.0):
            for _ in range(50):
                other = places + rng.normal(size=len(places)) * scale
                # Made feasible from the left.
                for index in range(1, len(other)):
                    other[index] = max(other[index], other[index - 1] + 4)
                if other[0] >= -0.5 and other[-1] <= 59.5:
                    assert np.square(other - wanted).sum() >= cost - 1e-9
    assert _apart([3.0, 9.0], 4.0, 0.0, 20.0) == [3.0, 9.0] and _apart([], 4.0, 0.0, 20.0) == []


@pytest.mark.parametrize(("lengths", "num_marks"), [([3, 4, 2], 3), ([60] * 4, 6), ([1] * 15, 6)])
def test_the_figure_has_them(lengths, num_marks):
    solution = marked_solution(lengths, num_marks)
    figure = attention_figure(solution, make_map(len(solution)), title="a model", text_length=len(solution))
    figure.canvas.draw()
    axes = figure.axes[0]
    marks = [label for label, is_mark in zip(solution.labels, solution.is_mark) if is_mark]
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        shown = [label.get_text() for label in ticks]
        assert [text for text in shown if text.startswith("<mark")] == marks
        # Whole words, however long.
        assert {text for text in shown if not text.startswith("<mark")} <= set(solution.labels)
        boxes = [label.get_window_extent() for label in ticks]
        assert not any(first.overlaps(second) for first, second in itertools.pairwise(boxes))
        for label, box in zip(ticks, boxes):
            assert not box.overlaps(axes.get_window_extent()), label
    assert_all_inside(figure)
    # A line leads from each label's token to the label.
    below, left = axes.collections
    for collection in (below, left):
        ends = [path.vertices for path in collection.get_paths()]
        along = 0 if collection is below else 1
        labels = choose_labels(solution, map_side(solution))
        np.testing.assert_allclose([end[0, along] for end in ends], labels.tokens)
        np.testing.assert_allclose([end[-1, along] for end in ends], labels.places)


def test_more_marks_than_fit_into_a_picture_are_refused():
    with pytest.raises(ValueError, match=r"has 600 step tokens, whose labels need .* Choose some of its steps"):
        map_side(marked_solution([1] * 100, 6))


def test_marks_apart_in_the_picture():
    solution = marked_solution([8, 9], 3)
    for apart in (True, False):
        figure = attention_figure(solution, make_map(len(solution)), marks_apart=apart)
        figure.canvas.draw()
        axes = figure.axes[0]
        kinds = solution.kinds(apart)
        labels = choose_labels(solution, map_side(solution))
        assert [to_hex(label.get_color()) for label in axes.get_xticklabels()] == [
            KIND_COLOURS[kinds[token]].lower() for token in labels.tokens
        ]
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend == ["question", "memory", "reason", *["marks"] * apart]
        runs = [(kind, len(list(group))) for kind, group in itertools.groupby(kinds)]
        for side in brackets(axes):
            assert [colour for colour, *_ in side] == [KIND_COLOURS[kind].lower() for kind, _ in runs]
            ends = np.cumsum([length for _, length in runs])
            for (_, first, last), end, (_, length) in zip(side, ends, runs, strict=True):
                assert end - length - 0.5 <= first < end - length + 0.5 and end - 1.5 < last <= end - 0.5
        assert {text.get_text() for text in axes.texts} == {"question", "1 memory", "2 reason", "1", "2"}
