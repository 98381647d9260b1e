import pytest

from memreason_hf.experiments.hops_figure import hops_figure


def test_a_line_for_each_model_and_what_lies_beyond_training():
    accuracy = {"one": {1: 1.0, 2: 0.5, 3: 0.25}, "other": {3: 0.1, 1: 0.9, 2: 0.4}}
    figure = hops_figure(accuracy, trained_hops=2, chance=0.05, title="a test")
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert set(lines) == set(accuracy)
    assert list(lines["other"].get_xdata()) == [1, 2, 3] and list(lines["other"].get_ydata()) == [0.9, 0.4, 0.1]
    assert (
        len({line.get_color() for line in lines.values()}) == len({line.get_marker() for line in lines.values()}) == 2
    )
    assert any(text.get_text() == "longer than in training" for text in axes.texts)
    assert axes.get_xlim() == (0.5, 3.5)
    whole = hops_figure(accuracy, trained_hops=3)
    assert not whole.axes[0].texts


@pytest.mark.parametrize("count", [0, 6])
def test_no_models_and_too_many(count):
    with pytest.raises(ValueError, match=f"There are {count} models"):
        hops_figure({str(index): {1: 1.0} for index in range(count)})
