"""The rules side by side, with models that learn nothing in a few steps and with signals made for it."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from small_calibrations import PAD, chain_model, chain_rows, collator

from memreason_hf.commands import reproduce
from memreason_hf.evaluation import read_results
from memreason_hf.experiments.halting_rules.figures import rules_figure
from memreason_hf.experiments.halting_rules.models import MODELS, sections
from memreason_hf.experiments.halting_rules.report import report
from memreason_hf.experiments.halting_rules.rules import all_signals, measure_rules, parts_of, repeat
from memreason_hf.experiments.halting_rules.run import HaltingRulesArguments
from memreason_hf.halting.signals import ChainSignals, read_signals
from memreason_hf.models.exit_gates import add_exit_gate
from memreason_hf.recipes import load_recipe


DEPTH = 12


def made_signals(per_group=400, noise=0.25):
    """Chains of 2 to 5 hops whose answer is right from that recurrence on; the margin says so, with noise."""
    generator = np.random.default_rng()
    hops = np.repeat(np.arange(2, 6), per_group)
    steps = np.arange(1, DEPTH + 1)
    right = steps >= hops[:, None]
    margin = np.where(right, 3.0, 1.0) + noise * generator.standard_normal(right.shape)
    return ChainSignals("margin", margin.astype(np.float32), np.where(right, 7, 3), np.full(len(hops), 7), list(hops))


def test_parts_hold_a_third_of_every_group_each():
    groups = [2] * 9 + [5] * 12 + [2] * 3
    parts = parts_of(groups)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(24))
    for rows in parts.values():
        assert [groups[row] for row in rows].count(2) == [groups[row] for row in rows].count(5) == 4


def test_numbers_are_those_of_a_loop():
    signals = made_signals()
    found = measure_rules({"margin": signals}, risk=0.02, confidence=0.9)
    rows = parts_of(signals.groups)["test"]
    hops = np.array(signals.groups)[rows]
    assert found["oracle"] == {"recurrences": pytest.approx(hops.mean()), "accuracy": 1.0}
    assert found["first_correct"] == found["lasting_correct"] == found["solved"] == pytest.approx(hops.mean())
    assert found["fixed"] == pytest.approx([(hops <= step).mean() for step in range(1, DEPTH + 1)])
    for point in [*found["rules"]["margin"]["points"][::40], found["rules"]["margin"]["calibrated"]]:
        holds = signals.values[rows] >= np.float32(point["threshold"])
        counts = [next((t for t in range(DEPTH) if row[t]), DEPTH - 1) + 1 for row in holds]
        assert point["recurrences"] == pytest.approx(np.mean(counts))
        assert point["accuracy"] == pytest.approx(np.mean(np.array(counts) >= hops))
        assert point["loss"] == pytest.approx(1 - point["accuracy"])
    assert abs(found["rules"]["margin"]["calibrated"]["recurrences"] - hops.mean()) < 1


def test_the_promise_is_kept_and_the_naive_choice_breaks_it():
    found = repeat({"margin": made_signals(200, noise=0.5)}, "margin", risk=0.02, confidence=0.95, times=40, seed=1)
    # 40 draws: with a probability of 0.95 each, fewer than 33 kept are seen once in 10,000 times.
    assert found["kept"] >= 0.82 and found["naive_kept"] < found["kept"] and found["repetitions"] == 40


def test_gates_are_measured_like_criteria():
    """The signals from states equal those of the model with the gate installed."""
    model, rows = add_exit_gate(chain_model(exit_gate=False)), chain_rows(45)
    with torch.no_grad():
        model.model.exit_gate.weight.normal_()
    signals = all_signals(model, rows, PAD, 6, {"settled": "a fitted gate"}, has_gate=True)
    assert list(signals)[-2:] == ["gate as trained", "a fitted gate"] and len(signals) == 10
    own = read_signals(model, rows, collator(), criteria=["exit_gate"], max_recurrences=6, batch_size=45)["exit_gate"]
    found = signals["gate as trained"]
    np.testing.assert_allclose(found.values[:, :-1], own.values[:, :-1], atol=1e-5)
    np.testing.assert_array_equal(found.predictions, own.predictions)
    assert not np.allclose(signals["a fitted gate"].values[:, 0], own.values[:, 0], atol=1e-3)


def test_the_recipe_is_that_of_the_quickstart():
    recipe, ours = load_recipe("quickstart"), sections("plain", "out", "data", 42, 1500, 300)
    # The criterion of the quickstart is one of those that are compared.
    own = ("halting_criterion", "kl_threshold", "max_recurrences")
    assert {name: ours["model"][name] for name in recipe["model"] if name not in own} == {
        name: value for name, value in recipe["model"].items() if name not in own
    }
    own = ("output_dir", "eval_strategy")
    for name in recipe["training"]:
        if name not in own:
            assert ours["training"][name] == recipe["training"][name], name


@pytest.mark.slow
def test_the_whole_experiment_and_the_same_again(tmp_path, capsys):
    line = ["halting", "--output_dir", str(tmp_path), "--max_steps", "8", "--repetitions", "3", "--risk", "0.1"]
    line += ["--num_test_chains", "30", "--confidence", "0.9"]
    assert reproduce.main(line) == 0
    printed = capsys.readouterr().out
    results = read_results(tmp_path / "halting_rules.json")
    assert list(results["models"]) == list(MODELS) and (tmp_path / "halting_rules.png").stat().st_size > 10_000
    for name, entry in results["models"].items():
        assert entry["title"] in printed
        gates = len(MODELS[name].fits) + MODELS[name].has_gate
        assert len(entry["rules"]) == 8 + gates and len(entry["repetitions"]) == 3
        assert entry["oracle"]["accuracy"] >= max(entry["fixed"])
    assert reproduce.main(line) == 0
    again = read_results(tmp_path / "halting_rules.json")
    assert again["models"] == results["models"] and "kept the results" in capsys.readouterr().out


def test_figure_and_report():
    signals = {"margin": made_signals(90), "a fitted gate": made_signals(90)}
    measures = measure_rules(signals, risk=0.1, confidence=0.9)
    repeated = repeat(signals, "margin", risk=0.1, confidence=0.9, times=3, seed=0)
    entry = {"title": "one model", "training": {}, **measures, "repetitions": [repeated], "cpu_seconds": 1.0}
    figure = rules_figure({"plain": entry, "entropy": entry})
    assert isinstance(figure, Figure) and len(figure.axes) == 2
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["fixed depth", "margin", "a fitted gate", "oracle"]
    text = report({"models": {"plain": entry}, "settings": {"risk": 0.1, "confidence": 0.9}})
    assert "the best gate takes" in text and "in 3 calibrations on draws of" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": "plan"}, "models='plan' must name some of plain, entropy, geometric"),
        ({"risk": 0.0}, "risk=0.0 must be above 0"),
        ({"num_test_chains": 30}, "need 598 chains to calibrate on, but num_test_chains=30"),
        ({"repetitions": -1}, "repetitions=-1 must be at least 0"),
    ],
)
def test_arguments_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        HaltingRulesArguments(**values)
