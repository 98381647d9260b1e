import numpy as np
import pytest
from datasets import Dataset
from small_runs import small_chains

from memreason_hf.training import ChainCollator
from memreason_hf.training.scheduled.batches import ROW_INFO, BatchSchedule, Position, TokenRows, TrainBatches


LENGTHS = np.array([2, 3, 3, 4, 5, 5, 2, 3, 4, 6, 6])
GROUPS = LENGTHS - 1


def schedule(batch_size=3, length_pool=2, seed=1):
    return BatchSchedule(LENGTHS, GROUPS, batch_size, length_pool, seed)


def at(step, stage_index=0, limit=None):
    return Position(stage_index, limit, step)


def test_a_step_can_be_reached_from_anywhere():
    in_order = [schedule().rows(at(step)).tolist() for step in range(40)]
    one = schedule()
    backwards = {step: one.rows(at(step)).tolist() for step in reversed(range(40))}
    assert in_order == [backwards[step] for step in range(40)]


def test_every_row_comes_once_before_any_comes_twice():
    # 11 batches of 3 rows are 3 passes over 11 rows. With one batch in a pool the stream is read in its order.
    stream = np.concatenate([schedule(length_pool=1).rows(at(step)) for step in range(11)])
    counts = np.bincount(stream, minlength=11)
    assert counts.tolist() == [3] * 11
    several = schedule(length_pool=11)
    pool = np.concatenate([several.rows(at(step)) for step in range(11)])
    assert np.bincount(pool, minlength=11).tolist() == [3] * 11


def test_rows_of_a_pool_are_sorted_by_length_and_its_batches_shuffled():
    rows = schedule(batch_size=4, length_pool=11)
    batches = [LENGTHS[rows.rows(at(step))] for step in range(11)]
    assert all(np.all(np.diff(batch) >= 0) for batch in batches)
    assert np.mean([batch.max() - batch.min() for batch in batches]) < 1
    means = [batch.mean() for batch in batches]
    assert means != sorted(means)


def test_fewer_rows_than_a_batch():
    few = BatchSchedule(np.array([2, 3]), None, 5, 2, 0)
    rows = [few.rows(at(step)) for step in range(4)]
    assert all(len(batch) == 5 for batch in rows)
    assert np.bincount(np.concatenate(rows)).tolist() == [10, 10]


def test_the_order_depends_on_seed_stage_and_pass():
    """Rows of one length and batches of all rows: a batch is a permutation, and nothing else changes its order."""
    size = 50

    def permutation(step, stage_index=0, seed=1):
        return tuple(BatchSchedule(np.full(size, 4), None, size, 1, seed).rows(at(step, stage_index)).tolist())

    passes = [permutation(step) for step in range(5)]
    assert {tuple(sorted(rows)) for rows in passes} == {tuple(range(size))}
    assert len(set(passes)) == 5
    assert len({permutation(0, seed=seed) for seed in range(5)}) == 5
    assert len({permutation(0, stage_index=stage) for stage in range(5)}) == 5
    # A control: the same arguments give the same order.
    assert permutation(3, 1, 2) == permutation(3, 1, 2)


def test_the_batches_of_each_pool_are_shuffled_anew():
    """Each batch is one row, and each row has a length of its own, so the order of the lengths is the shuffle."""
    size = 50

    def shuffle(pool, stage_index=0, seed=1):
        one = BatchSchedule(np.arange(2, size + 2), None, 1, size, seed)
        return tuple(int(one.rows(at(pool * size + step, stage_index))[0]) for step in range(size))

    pools = [shuffle(pool) for pool in range(4)]
    assert {tuple(sorted(rows)) for rows in pools} == {tuple(range(size))}
    assert len(set(pools)) == 4
    assert len({shuffle(0, seed=seed) for seed in range(4)}) == 4
    assert len({shuffle(0, stage_index=stage) for stage in range(4)}) == 4
    # Permutations and shuffles are independent.
    whole = BatchSchedule(np.full(size, 4), None, size, 1, 1)
    assert pools[0] != tuple(whole.rows(at(0)).tolist())


def test_a_stage_sees_only_its_groups():
    rows = schedule()
    for step in range(20):
        assert GROUPS[rows.rows(at(step, limit=2))].max() <= 2
    assert {int(row) for step in range(20) for row in rows.rows(at(step, limit=2))} == {0, 1, 2, 6, 7}
    with pytest.raises(ValueError, match="up to 0"):
        rows.rows(at(0, limit=0))


@pytest.mark.parametrize("world_size, accumulation, per_device", [(2, 1, 3), (1, 2, 3), (1, 1, 6), (3, 2, 1)])
def test_ranks_and_micro_batches_share_the_global_batch(world_size, accumulation, per_device):
    tokenizer, train, _ = small_chains()
    rows = TokenRows(train)
    plan = BatchSchedule(rows.lengths, rows.groups, 6, 4, 0)
    whole = Position(0, None, 5)
    shares = [
        TrainBatches(
            rows,
            plan,
            ChainCollator(tokenizer.pad_token_id),
            lambda: whole,
            per_device_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    batches = [iter(share) for share in shares]
    seen, tokens = [], set()
    for _ in range(accumulation):
        for batch in (next(iterator) for iterator in batches):
            tokens.add(batch[ROW_INFO].tokens_of_step)
            mask = batch.get("attention_mask", np.ones_like(batch["input_ids"]))
            seen += [tuple(ids[np.asarray(m, bool)].tolist()) for ids, m in zip(batch["input_ids"], mask)]
            assert len(batch["input_ids"]) == per_device
    expected = [tuple(rows[row]["input_ids"].tolist()) for row in plan.rows(whole)]
    # In the order of the global batch, so that ranks compute rows of similar length at the same time.
    assert seen == expected
    assert tokens == {sum(map(len, expected))}


def test_nothing_is_fetched_ahead():
    tokenizer, train, _ = small_chains()
    rows = TokenRows(train)
    now = [Position(0, 2, 0)]
    batches = iter(
        TrainBatches(
            rows,
            BatchSchedule(rows.lengths, rows.groups, 8, 4, 0),
            ChainCollator(tokenizer.pad_token_id),
            lambda: now[0],
            per_device_batch_size=8,
        )
    )
    assert next(batches)[ROW_INFO].groups.max() <= 2
    now[0] = Position(1, 4, 0)
    later = []
    for step in range(12):
        now[0] = Position(1, 4, step)
        later.append(next(batches)[ROW_INFO].groups.max())
    assert max(later) == 4


def test_rows_survive_selection_and_hash_by_content():
    _, train, _ = small_chains()
    rows = TokenRows(train)
    assert all(rows[i]["input_ids"].tolist() == train[i]["input_ids"] for i in (0, 17, len(train) - 1))
    assert all(rows[i]["label_ids"].tolist() == train[i]["label_ids"] for i in (0, 17, len(train) - 1))
    picked = train.select([5, 3, 60])
    assert TokenRows(picked)[1]["input_ids"].tolist() == train[3]["input_ids"]
    copy = Dataset.from_list([picked[i] for i in range(3)])
    assert TokenRows(picked).fingerprint() == TokenRows(copy).fingerprint() != TokenRows(train).fingerprint()
    assert TokenRows(picked).fingerprint() != TokenRows(train.select([3, 5, 60])).fingerprint()
    # The names of the columns and the groups count, too.
    for other in (
        picked.rename_column("label_ids", "other_ids"),
        picked.map(lambda row: {"hops": row["hops"] + 1}),
        picked.remove_columns("hops"),
    ):
        assert TokenRows(other).fingerprint() != TokenRows(picked).fingerprint()


def test_data_that_cannot_be_trained_on():
    with pytest.raises(ValueError, match="empty"):
        TokenRows(Dataset.from_dict({"input_ids": []}))
    with pytest.raises(ValueError, match="input_ids"):
        TokenRows(Dataset.from_dict({"text": ["a"]}))
