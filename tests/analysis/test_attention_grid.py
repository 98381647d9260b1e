"""The grid of attention maps: every map in its place, on the scale of the single maps."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from test_attention_figures import assert_all_inside, make_solution

from memreason_hf.analysis.attention_grid import attention_grid, choose_maps
from memreason_hf.analysis.attention_maps import LayerAttention, TextAttention
from memreason_hf.analysis.kind_colours import KIND_COLOURS
from memreason_hf.analysis.shown_tokens import show_tokens


def make_attention(num_tokens, rows, num_heads=3, num_recurrences=None):
    """`rows` holds (layer, recurrence)."""
    weights = torch.rand(len(rows), num_heads, num_tokens, num_tokens).tril() ** 4
    weights = weights / weights.sum(-1, keepdim=True)
    entries = [LayerAttention(*row, weights[i]) for i, row in enumerate(rows)]
    return TextAttention(tuple(entries), num_recurrences)


LOOPED = [(1, None), (2, 1), (3, 1), (2, 2), (3, 2), (4, None)]


def tiles_of(figure, num_rows, num_columns):
    """The part of the image that belongs to each map."""
    (image,) = figure.axes[0].images
    values = np.ma.getdata(image.get_array())
    assert image.get_extent() == [0, num_columns, num_rows, 0]
    return [np.split(row, num_columns, axis=1) for row in np.split(values, num_rows, axis=0)], image


def test_every_map_is_in_its_place():
    solution = make_solution([3, 4, 4], ("question", "memory", "answer"))
    attention = make_attention(11, LOOPED, num_recurrences=2)
    rows, heads = choose_maps(attention)
    figure = attention_grid(show_tokens(solution, unit="token"), rows, heads, title="a model")
    figure.canvas.draw()
    tiles, image = tiles_of(figure, 6, 3)
    assert (image.norm.vmin, image.norm.vmax) == (pytest.approx(0.1 / 11), 1.0)
    for entry, row in zip(attention.layers, tiles, strict=True):
        for head, tile in enumerate(row):
            inside = tile[1:-1, 1:-1]
            assert inside.shape == (11, 11) and np.isnan(tile).sum() == tile.size - 66
            seen = np.tri(11, dtype=bool)
            expected = np.maximum(entry.by_head()[head], 0.01 / 11)
            np.testing.assert_allclose(inside[seen], expected[seen], rtol=1e-5)
            assert np.isnan(inside[~seen]).all()
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "layer 1",
        "layer 2, recurrence 1",
        "layer 3, recurrence 1",
        "layer 2, recurrence 2",
        "layer 3, recurrence 2",
        "layer 4",
    ]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "3"]
    assert_all_inside(figure)


def test_bars_show_the_steps_of_every_map():
    solution = make_solution([3, 4, 4], ("question", "memory", "answer"))
    rows, heads = choose_maps(make_attention(11, [(1, None), (2, None)]))
    figure = attention_grid(show_tokens(solution, unit="token"), rows, heads)
    above, left = figure.axes[0].collections
    for collection, count, along in ((above, 3, 0), (left, 2, 1)):
        assert len(collection.get_paths()) == 3 * count
        colours = [KIND_COLOURS[kind].lower() for kind in ("question", "memory", "answer")]
        assert [to_hex(colour) for colour in collection.get_facecolors()] == colours * count
        for index, path in enumerate(collection.get_paths()):
            low, high = path.vertices[:, along].min(), path.vertices[:, along].max()
            # In pixels of the image: a map of 11 with one pixel around it.
            place, (first, last) = index // 3, ((0, 3), (3, 7), (7, 11))[index % 3]
            assert (low, high) == pytest.approx((place + (1 + first) / 13, place + (1 + last) / 13))
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["question", "memory", "answer"]


def test_long_texts_show_the_largest_weight_under_each_pixel():
    num_tokens = 400
    solution = make_solution([num_tokens], ("memory",))
    attention = make_attention(num_tokens, [(1, None)], num_heads=40)
    rows, heads = choose_maps(attention)
    figure = attention_grid(show_tokens(solution, unit="token"), rows, heads)
    tiles, _ = tiles_of(figure, 1, 40)
    weights = attention.layers[0].by_head()[7]
    tile = tiles[0][7]
    factor = -(-num_tokens // 120)
    size = -(-num_tokens // factor)
    room = (len(tile) - size) // 2
    inside = tile[room : room + size, room : room + size]
    for row, column in ((0, 0), (5, 3), (size - 1, 2), (size - 1, size - 1)):
        block = weights[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert inside[row, column] == pytest.approx(max(block.max(), 0.01 / num_tokens), rel=1e-5)
    assert np.isnan(inside[0, 1])


def test_layers_with_fewer_heads_have_blank_places():
    solution = make_solution([4], ("memory",))
    few, many = make_attention(4, [(1, None)], 1).layers, make_attention(4, [(2, None)], 2).layers
    rows, heads = choose_maps(TextAttention((*few, *many)))
    tiles, _ = tiles_of(attention_grid(show_tokens(solution, unit="token"), rows, heads), 2, 2)
    assert np.isnan(tiles[0][1]).all() and not np.isnan(tiles[1][1]).all()


def test_choices():
    attention = make_attention(4, LOOPED, num_recurrences=2)
    rows, heads = choose_maps(attention, layers=[3, 1], heads=[2, 2], recurrence=None)
    assert [(entry.layer, entry.recurrence) for entry in rows] == [(1, None), (3, 1), (3, 2)] and heads == [2]
    rows, _ = choose_maps(attention, recurrence=2)
    assert [(entry.layer, entry.recurrence) for entry in rows] == [(2, 2), (3, 2)]
    for arguments, message in (
        ({"layers": [5]}, "layer=5 cannot be in the grid: there are layers 1 to 4"),
        ({"heads": [0]}, "head=0 cannot be in the grid: there are heads 1 to 3"),
        ({"recurrence": 3}, "recurrence=3 cannot be in the grid: there are recurrences 1 to 2"),
        ({"layers": [1], "recurrence": 1}, r"The layers \[1\] did not run in recurrence 1"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_maps(attention, **arguments)
    with pytest.raises(ValueError, match="there are no recurrences"):
        choose_maps(make_attention(4, [(1, None)]), recurrence=1)
    many = TextAttention(tuple(LayerAttention(i, None, torch.zeros(100, 1, 1)) for i in range(1, 91)))
    with pytest.raises(ValueError, match="The grid would have 90 x 100 maps"):
        choose_maps(many)
