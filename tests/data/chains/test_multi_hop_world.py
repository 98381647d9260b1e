import random

import numpy as np
import pytest

from memreason_hf.data.chains import world as multi_hop_world
from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.world import atomic_chains, build_world, sample_chains, sample_probes


def small_config(**changes):
    sizes = {"num_entities": 7, "num_relations": 3, "train_hops": "2", "test_hops": "2", "cap_to_available": True}
    return MultiHopConfig(**{**sizes, **changes})


def as_rows(chains):
    return [tuple(row) for row in np.concatenate([chains.entities[:, :1], chains.relations], axis=1).tolist()]


def test_every_relation_is_a_permutation():
    world = build_world(MultiHopConfig())
    assert world.relations.size == 2_000
    for relation in range(10):
        assert sorted(world.tails[:, relation]) == list(range(200))
        assert (world.relations[:, relation] == relation).all()
    assert len({tuple(column) for column in world.tails.T}) == 10


def test_an_out_degree_leaves_each_entity_so_many_relations():
    whole, part = (build_world(MultiHopConfig(out_degree=degree, cap_to_available=True)) for degree in (None, 4))
    assert part.relations.shape == part.tails.shape == (200, 4)
    assert (np.diff(part.relations, axis=1) > 0).all()
    assert len({tuple(row) for row in part.relations.tolist()}) > 50
    assert set(part.relations.ravel()) == set(range(10))
    assert (part.tails == np.take_along_axis(whole.tails, part.relations, axis=1)).all()


def test_atomic_chains_are_all_facts():
    world = build_world(small_config(out_degree=2))
    chains = atomic_chains(world)
    facts = {
        (head, relation, tail)
        for head, (relations, tails) in enumerate(zip(world.relations.tolist(), world.tails.tolist()))
        for relation, tail in zip(relations, tails)
    }
    assert {(*start, tail) for start, tail in zip(as_rows(chains), chains.entities[:, -1])} == facts
    assert len(chains) == world.relations.size == 14


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "drawn"])
def test_all_chains_that_exist_can_be_drawn(monkeypatch, listed):
    monkeypatch.setattr(multi_hop_world, "MAX_LISTED_CHAINS", 1 << 22 if listed else 0)
    config = small_config(out_degree=2)
    world = build_world(config)
    for hops in (2, 5):
        available = config.num_available_chains(hops)
        chains = sample_chains(config, world, hops, available)
        assert len(set(as_rows(chains))) == available == 7 * 2**hops
        message = f"num_chains={available + 1:,} must be at most {available:,}, the chains of {hops} hops"
        with pytest.raises(ValueError, match=message):
            sample_chains(config, world, hops, available + 1)


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "drawn"])
def test_chains_are_walked_over_the_facts(monkeypatch, listed):
    monkeypatch.setattr(multi_hop_world, "MAX_LISTED_CHAINS", 1 << 22 if listed else 0)
    config = small_config(num_relations=5, out_degree=random.randint(1, 5), seed=random.randrange(1_000))
    world = build_world(config)
    facts = {(*start, tail) for start, tail in zip(as_rows(atomic_chains(world)), world.tails.ravel())}
    chains = sample_chains(config, world, 6, 7)
    assert chains.hops == 6 and len(chains) == 7
    for entities, relations in zip(chains.entities.tolist(), chains.relations.tolist()):
        assert all(step in facts for step in zip(entities, relations, entities[1:]))


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "drawn"])
def test_fewer_chains_are_the_first_of_more(monkeypatch, listed):
    monkeypatch.setattr(multi_hop_world, "MAX_LISTED_CHAINS", 1 << 22 if listed else 0)
    config = small_config(num_entities=20)
    world = build_world(config)
    more = as_rows(sample_chains(config, world, 3, 400))
    for fewer in (1, 17, 250):
        assert as_rows(sample_chains(config, world, 3, fewer)) == more[:fewer]


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "drawn"])
def test_all_chains_are_equally_likely(monkeypatch, listed):
    """Of 63 chains, 12 are drawn 400 times: each is expected 76.2 times, with a standard deviation of at most 8."""
    monkeypatch.setattr(multi_hop_world, "MAX_LISTED_CHAINS", 1 << 22 if listed else 0)
    counts = dict.fromkeys(((e, r, s) for e in range(7) for r in range(3) for s in range(3)), 0)
    for seed in range(400):
        config = small_config(seed=seed)
        for row in as_rows(sample_chains(config, build_world(config), 2, 12)):
            counts[row] += 1
    assert all(abs(count - 400 * 12 / 63) < 5 * 8 for count in counts.values())
    assert np.std(list(counts.values())) < 12


def test_long_chains_that_differ_in_one_step_only_are_told_apart():
    """100 steps of base 10 are far beyond 64 bits."""
    steps = np.random.default_rng(0).integers(10, size=(1, 100)).repeat(101, axis=0)
    for column in range(100):
        steps[column + 1, column] = (steps[column + 1, column] + 1) % 10
    starts = np.full(101, 3)
    twice = [np.concatenate([rows, rows]) for rows in (starts, steps)]
    assert multi_hop_world._first_occurrences(*twice, 200, 10).tolist() == list(range(101))
    assert multi_hop_world._first_occurrences(np.array([3, 4]), steps[:2] * 0, 200, 10).tolist() == [0, 1]


def test_first_occurrences_agree_with_a_set():
    rng = np.random.default_rng(random.randrange(1 << 30))
    for num_steps, hops in ((2, 3), (3, 41), (1, 5), (1 << 31, 3)):
        starts, steps = rng.integers(3, size=500), rng.integers(num_steps, size=(40, hops))[rng.integers(40, size=500)]
        seen, expected = set(), []
        for row, key in enumerate(zip(starts.tolist(), map(tuple, steps.tolist()))):
            if key not in seen:
                seen.add(key)
                expected.append(row)
        assert multi_hop_world._first_occurrences(starts, steps, 3, num_steps).tolist() == expected


def test_hop_counts_and_seeds_draw_apart():
    config = small_config(num_entities=200, num_relations=10)
    world = build_world(config)
    two, three = (as_rows(sample_chains(config, world, hops, 100)) for hops in (2, 3))
    assert [row[:3] for row in three] != two
    other = small_config(num_entities=200, num_relations=10, seed=1)
    assert as_rows(sample_chains(other, world, 2, 100)) != two
    assert (build_world(other).tails != world.tails).any()


def test_probes_are_distinct_chains_in_random_order():
    config = small_config()
    chains = sample_chains(config, build_world(config), 2, 40)
    rows = as_rows(chains)
    probes = as_rows(sample_probes(config, chains, 15))
    assert len(set(probes)) == 15 and set(probes) <= set(rows) and probes != rows[:15]
    assert sorted(as_rows(sample_probes(config, chains, 1_000))) == sorted(rows)
    assert as_rows(sample_probes(config, chains, 15)) == probes
