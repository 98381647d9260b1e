import numpy as np
import pytest
import torch

from memreason_hf.experiments.retrofit.world import NUM_HOPS, World, collate, draw_data


@pytest.fixture(scope="module")
def data():
    return draw_data(seed=3, num_test=20, num_source=50, num_further=40)


def test_every_relation_reaches_every_place_once(data):
    world = data[0]
    assert world.places.shape == (3, 12) and world.vocab_size == 15
    assert all(sorted(places) == list(range(12)) for places in world.places.tolist())


def test_labels_are_the_places_that_the_relations_lead_to(data):
    world, test, source, further = data
    for chains, count in ((test, 20), (source, 50), (further, 40)):
        assert chains.input_ids.shape == chains.labels.shape == (count, 1 + NUM_HOPS)
        for ids, labels in zip(chains.input_ids.tolist(), chains.labels.tolist()):
            place = ids[0]
            assert 0 <= place < 12 and labels[0] == -100
            for token, label in zip(ids[1:], labels[1:]):
                place = int(world.places[token - 12][place])
                assert label == place


def test_a_seed_decides_everything_and_parts_are_independent(data):
    again, other = draw_data(3, 20, 50, 40), draw_data(4, 20, 50, 40)
    longer = draw_data(3, 20, 60, 40)
    assert np.array_equal(again[0].places, data[0].places) and not np.array_equal(other[0].places, data[0].places)
    for one, same, different in zip(data[1:], again[1:], other[1:]):
        assert np.array_equal(one.input_ids, same.input_ids) and np.array_equal(one.labels, same.labels)
        assert not np.array_equal(one.input_ids, different.input_ids)
    assert np.array_equal(longer[1].input_ids, data[1].input_ids)
    assert np.array_equal(longer[3].input_ids, data[3].input_ids)
    assert not np.array_equal(data[2].input_ids[:20], data[1].input_ids)


def test_no_test_chain_is_trained_on():
    world = World(np.array([[1, 0]]))
    test = world.chains(1, 2, np.random.default_rng(0))
    # A world of two places and one relation has two chains only.
    every = world.chains(50, 2, np.random.default_rng(1))
    kept = every.without(test)
    assert 0 < len(kept) < 50
    assert len(np.unique(np.concatenate([kept.input_ids, test.input_ids]), axis=0)) == 2
    assert all(not np.array_equal(row, test.input_ids[0]) for row in kept.input_ids)


def test_rows_of_a_trainer(data):
    chains = data[1]
    rows = chains.dataset()
    assert rows.column_names == ["input_ids", "labels"] and len(rows) == 20
    batch = collate([{name: np.array(values) for name, values in rows[index].items()} for index in (4, 2)])
    assert batch["input_ids"].dtype == batch["shift_labels"].dtype == torch.int64
    assert torch.equal(batch["input_ids"], torch.from_numpy(chains.input_ids[[4, 2]]))
    assert torch.equal(batch["shift_labels"], torch.from_numpy(chains.labels[[4, 2]]))
