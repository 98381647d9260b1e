import numpy as np
import pytest
from recurrent_models import tiny_model

from memreason_hf.analysis import perplexity_figure, save_figure
from memreason_hf.evaluation import describe_environment
from memreason_hf.evaluation.text.perplexity import RecurrencePerplexity
from memreason_hf.evaluation.text.results import describe_text_model, perplexity_results


def results(losses, num_tokens=100):
    result = RecurrencePerplexity(np.array(losses, dtype=float), num_tokens, num_documents=7)
    return perplexity_results(
        result,
        model=describe_text_model(tiny_model(), "runs/text"),
        environment=describe_environment("cpu"),
        files=["heldout.txt"],
        max_length=64,
        batch_size=8,
        packed=False,
    )


def test_curves_hold_the_numbers():
    curves = {"looped": results([2.0, 1.5, 1.75]), "kept": results([1.9, 1.6, 1.5]), "static": results([1.9])}
    figure = perplexity_figure(curves, title="on text")
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == list(curves) and figure.get_suptitle() == "on text"
    np.testing.assert_allclose(lines["looped"].get_ydata(), np.exp([2.0, 1.5, 1.75]))
    assert lines["looped"].get_xdata().tolist() == [1, 2, 3]
    # One without recurrences is a line across.
    np.testing.assert_allclose(lines["static"].get_ydata(), np.exp([1.9, 1.9]))
    rings = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [line.get_xdata()[0] for line in rings] == [2, 3]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("recurrences", "perplexity", "linear")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(curves)


def test_large_ranges_are_logarithmic():
    (axes,) = perplexity_figure({"one": results(np.linspace(5, 1, 40))}).axes
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_legend()) == ("log", "log", None)
    assert axes.get_xticks().tolist() == [1, 2, 4, 8, 16, 32]
    # What is no number leaves a gap.
    (axes,) = perplexity_figure({"one": results([1000.0, 1.0])}).axes
    assert np.isnan(axes.lines[0].get_ydata()[0])


def test_curves_that_cannot_be_compared():
    with pytest.raises(ValueError, match="at least one model"):
        perplexity_figure({})
    with pytest.raises(ValueError, match="not over the same tokens"):
        perplexity_figure({"a": results([1.0, 2.0]), "b": results([1.0, 2.0], num_tokens=99)})
    with pytest.raises(ValueError, match="kind='evaluation'"):
        perplexity_figure({"a": {"kind": "evaluation"}})


def test_names_of_models_are_no_formulas(tmp_path):
    curves = {r"runs/$\frac{": results([2.0, 1.5]), "$$": results([1.9, 1.6])}
    save_figure(perplexity_figure(curves, title="$x^{$"), [tmp_path / "figure.png"])
