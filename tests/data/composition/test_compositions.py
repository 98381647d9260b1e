"""The composition data set against a plain loop over its facts, and what cannot exist."""

import collections
import random
import re

import pytest

from memreason_hf.data.chains.encoding import encode_chains
from memreason_hf.data.chains.tokenizer import build_tokenizer
from memreason_hf.data.composition.compositions import build_compositions
from memreason_hf.data.composition.config import CompositionConfig


SIZES = {"num_entities": 120, "num_relations": 18, "out_degree": 12, "ratio": 6.5, "num_probes": 40}


def tokens(text):
    return re.findall("<[^>]+>", text)


@pytest.fixture(scope="module")
def config():
    return CompositionConfig(**SIZES, seed=random.randrange(2**31))


@pytest.fixture(scope="module")
def data(config):
    return build_compositions(config)


@pytest.fixture(scope="module")
def facts(data):
    """`{(head, relation): (tail, type)}` of the training split."""
    rows = (row for row in data.dataset["train"] if row["hops"] == 1)
    return {tuple(tokens(row["input_text"])): (tokens(row["target_text"])[2], row["type"]) for row in rows}


def expected_groups(facts):
    """Every composition of two facts, by the sorts of its facts."""
    by_head = collections.defaultdict(list)
    for (head, relation), (tail, sort) in facts.items():
        by_head[head].append((relation, tail, sort))
    groups = collections.defaultdict(dict)
    for (head, first), (bridge, sort) in facts.items():
        for second, tail, other in by_head[bridge]:
            groups[sort, other][f"{head}{first}{second}"] = [bridge, tail]
    return groups


def test_facts_are_those_of_the_protocol(config, facts):
    assert len(facts) == 120 * 12
    by_head = collections.Counter(head for head, _ in facts)
    assert set(by_head.values()) == {12} and len(by_head) == 120
    assert sum(sort == "ood_atomic" for _, sort in facts.values()) == config.num_ood_facts == 72
    # Tails are drawn among all entities with repeats, and relations among all without.
    assert len({tail for tail, _ in facts.values()}) > 110
    assert len({relation for _, relation in facts}) == 18
    assert any(len({tail for (head, _), (tail, _) in facts.items() if head == one}) < 12 for one in by_head)


def test_compositions_follow_the_facts_and_their_sorts(config, data, facts):
    groups = expected_groups(facts)
    both_id, both_ood = groups["id_atomic", "id_atomic"], groups["ood_atomic", "ood_atomic"]
    train = {row["input_text"]: row for row in data.dataset["train"] if row["hops"] == 2}
    assert len(train) == data.dataset["train"].num_rows - 1440 == config.num_train_compositions == round(6.5 * 1368)
    test = collections.defaultdict(dict)
    for row in data.dataset["test"]:
        test[row["type"]][row["input_text"]] = row
    for text, row in train.items():
        assert row["type"] == "train_inferred" and row["entities"] == both_id[text]
        assert row["target_text"] == f"{text}{both_id[text][1]}</a>"
    assert set(test) == {"id_atomic", "ood_atomic", "train_inferred", "test_inferred_iid", "test_inferred_ood"}
    assert set(test["train_inferred"]) <= set(train)
    assert set(test["test_inferred_iid"]) <= set(both_id) - set(train)
    assert set(test["test_inferred_ood"]) <= set(both_ood)
    # Without the rule, one of the two tests would hold mixed ones.
    mixed = {*groups["id_atomic", "ood_atomic"], *groups["ood_atomic", "id_atomic"]}
    assert mixed and mixed.isdisjoint(set(train).union(*test.values()))
    for group, most in (("id_atomic", 40), ("ood_atomic", 40), ("train_inferred", 40)):
        assert len(test[group]) == most
    assert 0 < len(test["test_inferred_iid"]) <= 40
    assert len(test["test_inferred_ood"]) == min(40, len(both_ood))
    for sort in ("id_atomic", "ood_atomic"):
        assert all(facts[tuple(tokens(text))][1] == sort for text in test[sort])
    ood = [row["input_text"] for row in data.dataset["test"] if row["type"] == "test_inferred_ood"]
    assert data.dataset["validation"]["input_text"][:] == ood


def test_the_draw_of_training_compositions_is_not_the_order_of_the_facts(data):
    heads = [int(tokens(row["input_text"])[0][3:-1]) for row in data.dataset["train"] if row["hops"] == 2]
    assert heads != sorted(heads) and len(set(heads[:200])) > 60


def test_a_seed_repeats_and_another_does_not(config, data):
    again = build_compositions(config)
    assert {k: v.to_dict() for k, v in again.dataset.items()} == {k: v.to_dict() for k, v in data.dataset.items()}
    other = build_compositions(CompositionConfig(**SIZES, seed=config.seed + 1))
    assert other.dataset["train"]["input_text"][:] != data.dataset["train"]["input_text"][:]


def test_ratios_share_world_and_test(config, data):
    other = build_compositions(CompositionConfig(**{**SIZES, "ratio": 3.6}, seed=config.seed))
    few = set(other.dataset["train"]["target_text"])
    assert few < set(data.dataset["train"]["target_text"]) and len(few) == 1440 + round(3.6 * 1368)
    for group in ("id_atomic", "ood_atomic", "test_inferred_iid", "test_inferred_ood"):
        pick = [[row["target_text"] for row in part.dataset["test"] if row["type"] == group] for part in (data, other)]
        assert pick[0] == pick[1]


def test_rows_are_encoded_with_a_label_at_every_relation(data):
    tokenizer = build_tokenizer(data.vocabulary)
    encoded = encode_chains(data.dataset["test"], tokenizer)
    for row, plain in zip(encoded, data.dataset["test"]):
        assert tokenizer.decode(row["input_ids"]) == plain["input_text"]
        assert row["label_ids"][0] == -100
        assert tokenizer.convert_ids_to_tokens(row["label_ids"][1:]) == plain["entities"]


def test_the_study_has_these_numbers():
    config = CompositionConfig()
    assert (config.num_facts, config.num_ood_facts, config.num_train_compositions) == (40_000, 2_000, 273_600)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ratio": 40},
            r"ratio=40 asks for 54,720 training compositions of 1,368 .* only \d\d,\d\d\d. Lower ratio",
        ),
        ({"ood_share": 0.001, "num_entities": 20}, r"ood_share=0.001 makes 0 of 240 facts OOD"),
        ({"ood_share": 0.01, "num_entities": 10, "ratio": 1}, "leaves no composition of two OOD facts"),
        ({"held_out_share": 1e-9}, "leaves none for the test"),
        ({"out_degree": 19}, "out_degree=19 is above num_relations=18"),
        ({"ratio": 0}, "ratio=0.0 must be above 0"),
        ({"ratio": float("nan")}, "ratio=nan must be finite"),
        ({"ood_share": 1}, "ood_share=1.0 must be above 0 and below 1"),
        ({"num_entities": 0}, "num_entities=0 must be at least 1"),
        ({"num_entities": 10**9}, "fit into memory"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_what_cannot_exist_is_refused_with_the_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        build_compositions(CompositionConfig(**{**SIZES, "seed": 3, **changes}))


@pytest.mark.parametrize("value", ["7", True, None])
def test_numbers_are_numbers(value):
    with pytest.raises(TypeError, match="ratio="):
        CompositionConfig(ratio=value)
