"""How far a model gets, what its measures are, and chains that are made for it."""

import copy
import dataclasses
import re

import numpy as np
import pytest
import torch
from result_schemas import assert_schema_describes_itself

from memreason_hf.data.chains.multi_hop import (
    MultiHopConfig,
    build_multi_hop,
    load_multi_hop_tokenizer,
    save_multi_hop,
    select_chains,
)
from memreason_hf.data.chains.world import build_world, world_facts
from memreason_hf.evaluation.results import describe_environment, new_document, validate_results
from memreason_hf.experiments.depth_extrapolation.evaluation import Evaluation, new_chains
from memreason_hf.experiments.depth_extrapolation.figures import extrapolation_figure
from memreason_hf.experiments.depth_extrapolation.report import report
from memreason_hf.experiments.depth_extrapolation.results import measure_reach
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


WORLD = MultiHopConfig(
    num_entities=7,
    num_relations=3,
    train_hops="2-3",
    test_hops="2-5",
    num_train_chains=20,
    num_test_chains=9,
    cap_to_available=True,
    seed=5,
)


def hop_count(hops, best, late=None, adaptive=None):
    measures = {
        "best_accuracy": best,
        "late_accuracy": late,
        "adaptive_accuracy": best if adaptive is None else adaptive,
    }
    return {"hops": hops, "count": 10, "best_recurrence": hops, "mean_recurrences": hops + 0.5, **measures}


HOP_COUNTS = [
    *(hop_count(hops, 0.99, 0.98, 0.97) for hops in range(2, 11)),
    hop_count(11, 0.9, 0.85, 0.61),
    hop_count(12, 0.6, 0.3, 0.59),
    hop_count(13, 0.59, None, 0.7),
    # A hop count beyond one that is not reached does not count.
    hop_count(14, 0.97, 0.97, 0.97),
    hop_count(21, 0.9, 0.1, 0.1),
]


def document(hop_counts=HOP_COUNTS):
    return new_document(
        "depth_extrapolation",
        recipe={"model": {"hidden_size": 16}},
        training={"steps": 3, "chains": 24, "num_parameters": 7, "trained_hops": 8},
        hop_counts=hop_counts,
        max_recurrences=90,
        deep=[{"hops": 1000, "count": 4, "accuracy": 0.75, "mean_recurrences": 1003.5}],
        reach=measure_reach(hop_counts),
        environment=describe_environment("cpu"),
        seconds=1.0,
    )


def test_reach():
    reach = measure_reach(list(reversed(HOP_COUNTS)))
    assert (reach["fixed"], reach["fixed_well"]) == (12, 10)
    assert (reach["adaptive"], reach["adaptive_well"]) == (11, 10)
    # 21 hops lose more, but overthinking is measured up to 20; 13 hops were not measured so deep.
    assert reach["most_lost"] == pytest.approx(0.3)


def test_a_model_that_reaches_nothing():
    assert set(measure_reach([hop_count(2, 0.5), hop_count(3, 1.0)]).values()) == {None}


def test_the_report_and_the_figure_show_what_was_measured():
    text = report(document())
    assert "deepest hop count at 60%" in text and "1,450,000" in text and "30.0 points" in text
    assert [line for line in text.splitlines() if line.strip().startswith("1,000 ") and "75.0" in line]
    (axes,) = extrapolation_figure(document()).axes
    best, late, adaptive = axes.lines[-3:]
    assert best.get_ydata() == pytest.approx([entry["best_accuracy"] for entry in HOP_COUNTS])
    assert 13 not in late.get_xdata() and list(adaptive.get_xdata()) == [entry["hops"] for entry in HOP_COUNTS]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A random model in a folder with the data: its evaluation, and what was measured."""
    folder = tmp_path_factory.mktemp("extrapolation")
    save_multi_hop(build_multi_hop(WORLD), folder / "data")
    tokenizer = load_multi_hop_tokenizer(str(folder / "data"))
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_recurrent_layers": 1, "initializer_range": 0.5}
    halting = {"halting_criterion": "kl_entropy", "halting_granularity": "sequence", "kl_threshold": 0.05}
    config = RecurrentDepthConfig.gpt2_style(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        position_embedding_type="none",
        sliding_window=2,
        input_injection="add",
        state_norm="layernorm",
        **sizes,
        **halting,
    )
    RecurrentDepthForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    evaluation = Evaluation(folder / "model", folder / "data", num_chains=6, batch_size=4, progress=False)
    return evaluation, evaluation.measure_hop_counts(16)


def answers(evaluation, text, **depth):
    ids = evaluation.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return evaluation.model(ids, use_cache=False, **depth)


def test_measures_equal_those_of_chains_read_one_by_one(measured):
    evaluation, hop_counts = measured
    chains = select_chains(build_multi_hop(WORLD).dataset["test"], kind="test")
    assert [entry["hops"] for entry in hop_counts] == [2, 3, 4, 5]
    for entry in hop_counts:
        rows = [row for row in chains if row["hops"] == entry["hops"]][:6]
        assert entry["count"] == len(rows)
        target = [evaluation.tokenizer.convert_tokens_to_ids(row["entities"][-1]) for row in rows]

        def accuracy(depth, rows=rows, target=target):
            found = [int(answers(evaluation, row["input_text"], **depth).logits[0, -1].argmax()) for row in rows]
            return np.mean(np.equal(found, target))

        by_depth = [accuracy({"num_recurrences": depth, "halting_criterion": "none"}) for depth in range(1, 17)]
        assert entry["best_accuracy"] == pytest.approx(max(by_depth))
        assert entry["best_recurrence"] == int(np.argmax(by_depth)) + 1
        late = 4 * entry["best_recurrence"]
        assert entry["late_accuracy"] == (None if late > 16 else pytest.approx(by_depth[late - 1]))
        halting = {"halting_granularity": "sequence", "max_recurrences": 16}
        counts = [int(answers(evaluation, row["input_text"], **halting).num_recurrences[0]) for row in rows]
        assert entry["mean_recurrences"] == pytest.approx(np.mean(counts))
        assert entry["adaptive_accuracy"] == pytest.approx(accuracy(halting))


def test_deep_chains_are_measured(measured):
    deep = measured[0].measure_deep(WORLD, 30, 3)
    assert (deep["hops"], deep["count"]) == (30, 3) and 1 <= deep["mean_recurrences"] <= 46


def test_new_chains_follow_the_facts_of_the_world_and_are_distinct():
    facts = world_facts(build_world(WORLD))
    chains = new_chains(WORLD, 12, 20)
    assert len(set(chains["input_text"])) == 20 and set(chains["hops"]) == {12}
    for row in chains:
        start, *relations = map(int, re.findall(r"_(\d+)>", row["input_text"]))
        for relation, reached in zip(relations, row["entities"]):
            start = facts[start, relation]
            assert reached == f"<e_{start}>"
    # Control: another seed is another world.
    assert world_facts(build_world(dataclasses.replace(WORLD, seed=6))) != facts


def test_schema():
    assert_schema_describes_itself("depth_extrapolation")
    validate_results(document())
    changed = copy.deepcopy(document())
    changed["reach"]["fixed"] = 13
    with pytest.raises(ValueError, match="reach does not follow"):
        validate_results(changed)
