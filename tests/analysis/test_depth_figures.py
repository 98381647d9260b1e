import itertools
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from memreason_hf.analysis import accuracy_figure, margin_figure, save_figure
from memreason_hf.evaluation import DepthSweep, HaltingStatistics, RecurrenceStatistics


def make_sweep(groups, recurrences):
    rng = np.random.default_rng(0)
    return DepthSweep(
        groups=list(groups),
        counts=np.full(len(groups), 10),
        accuracy=rng.random((len(groups), recurrences)),
        margins=rng.normal(0, 3, (len(groups), recurrences)),
        first_correct=np.arange(len(groups)) + 0.5,
        ever_correct=np.ones(len(groups)),
    )


def make_halting(groups):
    entries = {
        group: RecurrenceStatistics(10, 0.9, mean=2.0 + i, median=2, standard_deviation=0.5, minimum=1, maximum=9)
        for i, group in enumerate(groups)
    }
    return HaltingStatistics(entries[groups[0]], entries)


HOPS = [2, 3, 5, 8, 16, 40]


@pytest.mark.parametrize(("draw", "name"), [(accuracy_figure, "accuracy"), (margin_figure, "margins")])
def test_draws_every_value_in_its_place(draw, name):
    sweep = make_sweep(HOPS, 12)
    axes = draw(sweep).axes[0]
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), getattr(sweep, name))
    # Recurrence r and group g are at the centres of their cells; the first group is at the bottom.
    assert image.get_extent() == [0.5, 12.5, -0.5, 5.5]
    assert image.origin == "lower"
    assert axes.get_xlim() == (0.5, 12.5)
    assert axes.get_ylim() == (-0.5, 5.5)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "3", "5", "8", "16", "40"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recurrences", "hops")


def test_colours_mean_the_same_in_every_figure():
    low = make_sweep(HOPS, 4)
    low.accuracy *= 0.1
    assert accuracy_figure(low).axes[0].images[0].get_clim() == (0, 1)
    below, above = margin_figure(low).axes[0].images[0].get_clim()
    assert below == -above < 0


def test_halting_points_are_drawn_at_their_groups():
    sweep, halting = make_sweep(HOPS, 12), make_halting([3, 8, 40])
    axes = accuracy_figure(sweep, halting=halting).axes[0]
    (bars,) = axes.containers
    np.testing.assert_allclose(bars.lines[0].get_xydata(), [[2, 1], [3, 3], [4, 5]])
    segments = bars.lines[2][0].get_segments()
    np.testing.assert_allclose(segments, [[[1.5, 1], [2.5, 1]], [[2.5, 3], [3.5, 3]], [[3.5, 5], [4.5, 5]]])
    with pytest.raises(ValueError, match=r"lacks: \[7\]"):
        accuracy_figure(sweep, halting=make_halting([3, 7]))


@pytest.mark.parametrize(("trained", "boundary"), [(8, 3.5), (10, 3.5), (2, 0.5), (99, 5.5)])
def test_trained_range_ends_between_two_groups(trained, boundary):
    axes = accuracy_figure(make_sweep(HOPS, 12), trained_hops=trained).axes[0]
    lines = [line for line in axes.lines if line.get_label() == f"trained up to {trained} hops"]
    assert [tuple(line.get_ydata()) for line in lines] == [(boundary, boundary)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"trained up to {trained} hops"]


def test_nothing_is_marked_below_the_first_group():
    axes = accuracy_figure(make_sweep(HOPS, 12), trained_hops=1).axes[0]
    assert not axes.lines and axes.get_legend() is None


def test_trained_range_needs_numbers():
    with pytest.raises(ValueError, match="trained_hops=8 needs groups that are numbers"):
        accuracy_figure(make_sweep(["2hop_test", "3hop_test"], 4), trained_hops=8)
    axes = accuracy_figure(make_sweep(["2", "3", "40"], 4), trained_hops=8).axes[0]
    assert tuple(axes.lines[0].get_ydata()) == (1.5, 1.5)


def test_halting_beyond_the_sweep_is_still_seen():
    sweep = make_sweep(HOPS, 5)
    axes = accuracy_figure(sweep, halting=make_halting(HOPS)).axes[0]
    assert axes.get_xlim() == (0.5, 8.5)
    assert axes.images[0].get_extent() == [0.5, 5.5, -0.5, 5.5]
    assert accuracy_figure(sweep, halting=make_halting([2])).axes[0].get_xlim() == (0.5, 5.5)


def test_first_correct_is_marked_where_it_exists():
    sweep = make_sweep(HOPS, 12)
    sweep.first_correct[2] = np.nan
    (marks,) = margin_figure(sweep).axes[0].lines
    np.testing.assert_allclose(marks.get_xydata(), [[0.5, 0], [1.5, 1], [3.5, 3], [4.5, 4], [5.5, 5]])


@pytest.mark.parametrize("recurrences", [1, 40, 128])
def test_labels_of_large_figures_do_not_collide(recurrences):
    hops = range(2, 41)
    figure = accuracy_figure(
        make_sweep(hops, recurrences), halting=make_halting(hops), trained_hops=8, title="a model, test split"
    )
    figure.canvas.draw()
    axes = figure.axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels if label.get_visible() and label.get_text()]
        assert not any(first.overlaps(second) for first, second in itertools.pairwise(boxes))
    assert figure.bbox.contains(*axes.get_legend().get_window_extent().min)


@pytest.mark.parametrize("margins", [0.0, np.nan])
def test_margins_without_a_range(margins, tmp_path):
    sweep = make_sweep(HOPS, 3)
    sweep.margins[:] = margins
    save_figure(margin_figure(sweep), [tmp_path / "margins.png"])


def test_writes_png_and_pdf_and_keeps_what_is_there(tmp_path):
    figure = accuracy_figure(make_sweep(HOPS, 12), halting=make_halting(HOPS), trained_hops=8)
    paths = [tmp_path / "new" / "sweep.png", tmp_path / "new" / "sweep.pdf"]
    save_figure(figure, paths)
    assert imread(paths[0]).shape[1] == 1600
    assert paths[1].read_bytes().startswith(b"%PDF")
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)

    paths[1].write_bytes(b"precious")
    paths[0].unlink()
    with pytest.raises(FileExistsError, match=r"sweep\.pdf"):
        save_figure(figure, paths)
    assert not paths[0].exists()
    save_figure(figure, paths, overwrite=True)
    assert paths[0].exists() and paths[1].read_bytes() != b"precious"


def test_pyplot_is_left_alone():
    code = "import sys, memreason_hf.analysis; print('matplotlib.pyplot' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("title", ["runs/$x", r"a$\frac{1}$b", "$$", "a\x1b[2Jb"])
def test_titles_and_groups_are_no_formulas(title, tmp_path):
    """Matplotlib would refuse `$x^{$` when it draws, after all the computation."""
    sweep = make_sweep([title, "$_{", "plain"], 4)
    figure = accuracy_figure(sweep, title=title, group_label="$y_")
    save_figure(figure, [tmp_path / "figure.png", tmp_path / "figure.pdf"])
    assert figure.get_suptitle() == title.replace("\x1b", "␛")
