import dataclasses

import pytest
from transformers import HfArgumentParser

from memreason_hf.data.chains.config import MultiHopConfig, format_hop_counts, parse_hop_counts


def test_the_defaults_are_the_study():
    config = MultiHopConfig()
    assert (config.num_entities, config.num_relations) == (200, 10)
    assert config.train_hop_counts == config.test_hop_counts == tuple(range(2, 41))
    assert config.plan_chains() == dict.fromkeys(range(2, 41), (15_000, 750))


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("2-4", (2, 3, 4)),
        ("7", (7,)),
        ("12,2-4 3, 9", (2, 3, 4, 9, 12)),
        (range(2, 5), (2, 3, 4)),
        ([9, 2, 9], (2, 9)),
        (6, (6,)),
    ],
)
def test_hop_counts_are_read_and_written(text, counts):
    assert parse_hop_counts(text) == counts
    assert parse_hop_counts(format_hop_counts(counts)) == counts


def test_hop_counts_are_written_as_short_as_they_can_be():
    assert format_hop_counts([16, 2, 3, 4, 12, 13]) == "2-4,12-13,16"
    assert MultiHopConfig(train_hops=range(2, 9)) == MultiHopConfig(train_hops="2,3-8")


@pytest.mark.parametrize(
    "text", ["", "x", "2-", "-3", "5-2", "2.5", "2-4-6", "1001", "2-100000000000", None, [2.5], []]
)
def test_what_is_no_hop_count_is_refused(text):
    with pytest.raises(ValueError):
        MultiHopConfig(train_hops=text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_entities": 0}, "num_entities=0 is too small"),
        ({"num_relations": -1}, "num_relations=-1 is too small"),
        ({"num_train_chains": 0}, "num_train_chains=0"),
        ({"num_test_chains": 0}, "num_test_chains=0"),
        ({"num_small_test_chains": 0}, "num_small_test_chains=0"),
        ({"num_train_probes": -5}, "num_train_probes=-5"),
        ({"seed": -1}, "seed=-1"),
        ({"out_degree": 11}, "out_degree=11 is above num_relations=10"),
        ({"out_degree": 0}, "out_degree=0"),
        ({"train_hops": "1-4"}, "train_hops='1-4' holds 1"),
        ({"test_hops": "0-4"}, "test_hops='0-4' holds 0"),
        ({"train_hops": "oops"}, "train_hops: 'oops'"),
        ({"test_hops": "1-4", "num_atomic_probes": 0}, "num_atomic_probes=0"),
    ],
)
def test_bad_values_are_refused_with_their_numbers(changes, message):
    with pytest.raises(ValueError, match=message):
        MultiHopConfig(**changes)


@pytest.mark.parametrize(
    "changes", [{"num_entities": 2.0}, {"seed": "1"}, {"num_relations": True}, {"cap_to_available": 1}]
)
def test_values_of_another_type_are_refused(changes):
    with pytest.raises(TypeError, match=next(iter(changes))):
        MultiHopConfig(**changes)


def test_unknown_sizes_are_refused():
    with pytest.raises(TypeError, match="num_entites"):
        MultiHopConfig(num_entites=20)


def test_more_chains_than_exist_are_refused_with_the_numbers():
    with pytest.raises(ValueError) as raised:
        MultiHopConfig(num_entities=20, num_relations=4, train_hops="2-8", test_hops="2-8,12")
    message = str(raised.value)
    for number in ("num_entities=20", "2 hops: 15,000 training + 750 test", "320 exist", "1,280 exist", "5,120 exist"):
        assert number in message
    assert "cap_to_available" in message and "5 hops" not in message


def test_exactly_as_many_chains_as_exist_are_allowed():
    sizes = {"num_entities": 3, "num_relations": 2, "train_hops": "2", "test_hops": "2", "num_test_chains": 4}
    assert MultiHopConfig(num_train_chains=8, **sizes).plan_chains() == {2: (8, 4)}
    with pytest.raises(ValueError, match="9 training \\+ 4 test requested, 12 exist"):
        MultiHopConfig(num_train_chains=9, **sizes)


def test_the_out_degree_limits_what_exists():
    assert MultiHopConfig().num_available_chains(40) == 200 * 10**40
    assert MultiHopConfig(out_degree=9).num_available_chains(40) == 200 * 9**40
    with pytest.raises(ValueError, match="200 exist"):
        MultiHopConfig(out_degree=1)


def test_capping_takes_one_test_chain_in_five():
    config = MultiHopConfig(
        num_entities=20, num_relations=4, train_hops="2-4,8", test_hops="2,8,12", cap_to_available=True
    )
    assert config.plan_chains() == {2: (256, 64), 3: (1_280, 0), 4: (5_120, 0), 8: (15_000, 750), 12: (0, 750)}
    few = {"num_entities": 2, "num_relations": 1, "train_hops": "2", "test_hops": "2"}
    assert MultiHopConfig(**few, cap_to_available=True).plan_chains() == {2: (1, 1)}


def test_capping_keeps_what_was_asked_where_it_is_less():
    sizes = {"num_entities": 20, "num_relations": 4, "train_hops": "2", "cap_to_available": True}
    assert MultiHopConfig(**sizes, test_hops="2", num_test_chains=10).plan_chains() == {2: (310, 10)}
    assert MultiHopConfig(**sizes, test_hops="2", num_train_chains=10, num_test_chains=319).plan_chains() == {
        2: (10, 64)
    }
    assert MultiHopConfig(**sizes, test_hops="3", num_test_chains=9_999).plan_chains() == {2: (320, 0), 3: (0, 1_280)}


def test_capping_cannot_make_two_groups_of_one_chain():
    with pytest.raises(ValueError, match="1 exist"):
        MultiHopConfig(num_entities=1, num_relations=1, train_hops="2", test_hops="2", cap_to_available=True)


def test_one_hop_as_a_test_needs_no_further_chains():
    assert MultiHopConfig(test_hops="1-3", train_hops="2").plan_chains() == {2: (15_000, 750), 3: (0, 750)}


def test_every_field_can_be_given_on_a_command_line():
    parser = HfArgumentParser(MultiHopConfig)
    (config,) = parser.parse_args_into_dataclasses(["--out_degree", "4", "--test_hops", "1-3,7", "--cap_to_available"])
    assert config == MultiHopConfig(out_degree=4, test_hops="1-3,7", cap_to_available=True)
    assert all(field.metadata["help"] for field in dataclasses.fields(MultiHopConfig))
