import itertools
import json
import warnings

import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_hex
from matplotlib.image import imread
from paths import PUBLISHED
from small_tokenizers import byte_level, llama

from memreason_hf.analysis import save_figure
from memreason_hf.analysis.attention_figures import attention_figure
from memreason_hf.analysis.attention_maps import AttentionMap, read_attention
from memreason_hf.analysis.kind_colours import KIND_COLOURS
from memreason_hf.analysis.solution_tokens import TOKEN_KINDS, SolutionTokens, TokenSpan, encode_solution_tokens
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer


KINDS = ("question", "memory", "memory", "reason", "step", "answer")


def make_solution(lengths, kinds=KINDS, labels=None):
    ends = np.cumsum(lengths)
    numbers = itertools.count(1)
    spans = [
        TokenSpan(kind, int(end - length), int(end), None if kind in ("begin", "question") else next(numbers))
        for kind, length, end in zip(kinds, lengths, ends, strict=True)
    ]
    num_tokens = int(ends[-1])
    labels = [f"word{i}" for i in range(num_tokens)] if labels is None else labels
    return SolutionTokens(tuple(range(num_tokens)), tuple(labels), tuple(spans), (False,) * num_tokens)


def make_map(num_tokens):
    weights = np.tril(np.random.default_rng(0).exponential(size=(num_tokens, num_tokens)))
    return AttentionMap(None, (weights / weights.sum(-1, keepdims=True)).astype(np.float32))


def draw(lengths, kinds=KINDS, labels=None, title=None):
    solution = make_solution(lengths, kinds, labels)
    figure = attention_figure(solution, make_map(len(solution)), title=title)
    figure.canvas.draw()
    return solution, figure


def assert_all_inside(figure):
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height, box


def brackets(axes):
    """(colour, first, last) of the brackets on the right and above, in tokens."""
    right, above = [], []
    for line in axes.lines:
        if len(line.get_xdata()) == 4:
            x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
            side, along = (right, y) if x.min() > 1 and x.max() < 1.2 else (above, x)
            side.append((to_hex(line.get_color()), along.min(), along.max()))
    return right, above


def test_draws_every_weight_in_its_place():
    solution, figure = draw([3, 4, 4, 3, 2, 5])
    axes, scale = figure.axes
    (image,) = axes.images
    weights = make_map(21).weights
    shown = image.get_array()
    seen = np.tri(21, dtype=bool)
    np.testing.assert_allclose(shown[seen], np.maximum(weights, 0.01 / 21)[seen])
    assert np.ma.getmaskarray(shown)[~seen].all()
    assert image.get_extent() == [-0.5, 20.5, 20.5, -0.5]
    assert axes.get_xlim() == (-0.5, 20.5) and axes.get_ylim() == (20.5, -0.5)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("attended token", "attending token")
    assert scale.get_ylabel() == "attention weight"
    # The colour scale is the same for all maps of a text.
    assert isinstance(image.norm, LogNorm) and (image.norm.vmin, image.norm.vmax) == (0.1 / 21, 1.0)
    assert len(solution.labels) == 21


@pytest.mark.parametrize("lengths", [[3, 4, 4, 3, 2, 5], [40, 70, 60, 80, 20, 30]])
def test_every_step_is_bracketed_in_the_colour_of_its_kind(lengths):
    solution, figure = draw(lengths)
    axes = figure.axes[0]
    for side in brackets(axes):
        assert len(side) == len(solution.spans)
        for span, (colour, first, last) in zip(solution.spans, side):
            assert colour == KIND_COLOURS[span.kind].lower()
            assert span.start - 0.5 <= first < span.start + 0.5 and span.end - 1.5 < last <= span.end - 0.5
        assert all(before[2] < after[1] for before, after in itertools.pairwise(side))
    names = [text.get_text() for text in axes.texts if " " in text.get_text()]
    assert names == ["1 memory", "2 memory", "3 reason", "4 step", "5 answer"]
    assert {text.get_text() for text in axes.texts} == {*names, "question", *"12345"}
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["question", "memory", "reason", "answer", "step"]
    colours = [to_hex(line.get_color()) for line in axes.get_legend().get_lines()]
    assert colours == [KIND_COLOURS[kind].lower() for kind in legend]


def test_token_labels_have_the_colours_of_their_steps():
    solution, figure = draw([3, 4, 4, 3, 2, 5])
    kinds = solution.kinds()
    for ticks in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert [label.get_text() for label in ticks] == list(solution.labels)
        assert [label.get_color() for label in ticks] == [KIND_COLOURS[kind] for kind in kinds]


def test_every_kind_has_its_own_colour():
    assert set(KIND_COLOURS) == set(TOKEN_KINDS)
    assert len(set(KIND_COLOURS.values())) == len(KIND_COLOURS)


@pytest.mark.parametrize("lengths", [[1, 2, 3, 4, 1, 3], [20, 4, 4, 3, 2, 5], [40, 70, 60, 80, 20, 30], [100] * 6])
def test_nothing_collides_or_is_cut_off(lengths):
    labels = ["<prefix_and_more>"] * sum(lengths)
    _, figure = draw(lengths, labels=labels, title="owner/a-model-of-some-name\nlayer 12 of 32, mean over 32 heads")
    axes = figure.axes[0]
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent() for label in ticks]
        assert not any(first.overlaps(second) for first, second in itertools.pairwise(boxes))
    # No more labels are left out than necessary.
    assert len(axes.get_yticklabels()) >= min(sum(lengths), 40)
    names = [text.get_window_extent() for text in axes.texts]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(names, 2))
    assert_all_inside(figure)
    for label in axes.get_xticklabels():
        assert not label.get_window_extent().overlaps(axes.xaxis.label.get_window_extent())


def test_all_kinds_fit_beside_each_other():
    kinds = TOKEN_KINDS[:-1]
    _, figure = draw([1, *[3] * (len(kinds) - 1)], kinds=kinds)
    assert_all_inside(figure)


def test_labels_are_shown_as_they_are():
    labels = ["$5", "$x^2$", "a_b^c", "\\frac", "式", "🜁", "⏎", "␣", "→", "é"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, figure = draw([10], kinds=["memory"], labels=labels)
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == ["$5", "$x^2$", "a_b^c", "\\frac", "□", "□", "⏎", "␣", "→", "é"]
    assert not any(label.get_parse_math() for label in figure.axes[0].get_xticklabels())


def test_a_map_of_another_text():
    with pytest.raises(ValueError, match=r"The map has shape \(4, 4\), but the solution has 3 tokens"):
        attention_figure(make_solution([3], ["memory"]), make_map(4))


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_texts(length, tmp_path):
    _, figure = draw([length], kinds=["answer"])
    save_figure(figure, [tmp_path / "map.png"])


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published texts in ../shared/data/published_outputs")
def test_a_published_solution_as_png_and_pdf(tmp_path):
    tokenizer = byte_level()
    model = llama(len(tokenizer), max_position_embeddings=2048)
    extend_tokenizer(tokenizer, StepScheme(2, 4), model)
    items = json.loads((PUBLISHED / "stratgeqa_agent_llama-2-7b-chat.json").read_text(encoding="utf-8"))
    solution = encode_solution_tokens(tokenizer, items[0]["generated_text"])
    assert len(solution) > 300
    assert [span.kind for span in solution.spans] == ["question", "memory", "memory", "reason", "answer"]
    (shown,) = read_attention(model, solution.ids).select()
    paths = [tmp_path / "attention.png", tmp_path / "attention.pdf"]
    save_figure(attention_figure(solution, shown), paths)
    pixels = imread(paths[0])
    # Each token has several pixels, and both sides of the diagonal are drawn.
    assert min(pixels.shape[:2]) > 5 * len(solution)
    assert pixels[..., :3].std() > 0.1
    assert paths[1].read_bytes().startswith(b"%PDF") and paths[1].stat().st_size > 10_000
