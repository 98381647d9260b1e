"""Facts and their compositions. Pure numpy."""

from dataclasses import dataclass

import numpy as np

from memreason_hf.data.composition.config import CompositionConfig


# Keys of the random streams: no stream depends on how much was drawn from another one.
_RELATION_STREAM, _TAIL_STREAM, _OOD_STREAM, _HELD_OUT_STREAM, _TRAIN_STREAM, _PROBE_STREAM = range(6)
PROBE_GROUPS = ("id_atomic", "ood_atomic", "train_inferred", "test_inferred_iid", "test_inferred_ood")


@dataclass(frozen=True)
class CompositionWorld:
    """
    Facts by number: fact f starts at entity `f // out_degree`.

    Attributes:
        out_degree: facts of an entity.
        relations: the relation of each fact, int64 of shape (number of facts,), increasing for each entity.
        tails: the entity that it leads to, int64 of shape (number of facts,).
        is_ood: whether training never composes it, bool of shape (number of facts,).
    """

    out_degree: int
    relations: np.ndarray
    tails: np.ndarray
    is_ood: np.ndarray

    @property
    def heads(self) -> np.ndarray:
        return np.arange(len(self.tails)) // self.out_degree


@dataclass(frozen=True)
class Compositions:
    """
    The groups of a data set. A fact is a number, shape (n,); a composition two numbers, shape (n, 2).

    Attributes:
        train: the training compositions, in random order.
        probes: for each name of `PROBE_GROUPS` its facts or compositions.
    """

    train: np.ndarray
    probes: dict[str, np.ndarray]


def build_facts(config: CompositionConfig) -> CompositionWorld:
    """Draws the relations of every entity without repeats, their tails among all entities, and which facts are OOD."""
    size = (config.num_entities, config.num_relations)
    relations = np.tile(np.arange(config.num_relations), (config.num_entities, 1))
    if config.out_degree < config.num_relations:
        # The places of the smallest of equally distributed numbers are a draw without repeats.
        keys = _generator(config, _RELATION_STREAM).random(size)
        relations = np.sort(np.argpartition(keys, config.out_degree - 1, axis=1)[:, : config.out_degree], axis=1)
    tails = _generator(config, _TAIL_STREAM).integers(config.num_entities, size=config.num_facts)
    is_ood = np.zeros(config.num_facts, dtype=bool)
    is_ood[_generator(config, _OOD_STREAM).permutation(config.num_facts)[: config.num_ood_facts]] = True
    return CompositionWorld(config.out_degree, relations.ravel(), tails, is_ood)


def compose(config: CompositionConfig, world: CompositionWorld) -> Compositions:
    """
    Sorts the compositions of two facts, the second of which starts where the first one ends, into the study's groups.

    Training takes compositions of two in-distribution facts, of which `held_out_share` is kept for the test. The OOD
    test takes those of two OOD facts. Compositions of one fact of each sort are in no group.

    Raises:
        ValueError: the world has fewer compositions than requested, or none for a group of the test; gives the
            numbers.
    """
    first = np.repeat(np.arange(config.num_facts), config.out_degree)
    second = (world.tails[:, None] * config.out_degree + np.arange(config.out_degree)).ravel()
    pairs = np.stack([first, second], axis=1)
    num_ood = world.is_ood[pairs].sum(axis=1)
    is_held_out = _generator(config, _HELD_OUT_STREAM).random(len(pairs)) < config.held_out_share
    pool, iid, ood = pairs[(num_ood == 0) & ~is_held_out], pairs[(num_ood == 0) & is_held_out], pairs[num_ood == 2]
    _check(config, len(pool), len(iid), len(ood))
    train = pool[_generator(config, _TRAIN_STREAM).permutation(len(pool))[: config.num_train_compositions]]
    facts = np.arange(config.num_facts)
    groups = (facts[~world.is_ood], facts[world.is_ood], train, iid, ood)
    probes = {
        name: rows[_generator(config, _PROBE_STREAM, key).permutation(len(rows))[: config.num_probes]]
        for key, (name, rows) in enumerate(zip(PROBE_GROUPS, groups))
    }
    return Compositions(train, probes)


def _check(config, num_pool, num_iid, num_ood):
    if config.num_train_compositions > num_pool:
        num_id = config.num_facts - config.num_ood_facts
        raise ValueError(
            f"ratio={config.ratio:g} asks for {config.num_train_compositions:,} training compositions of "
            f"{num_id:,} in-distribution facts, but this world has only {num_pool:,}. Lower ratio to at most "
            f"{int(num_pool / num_id * 100) / 100:g}, or raise out_degree."
        )
    if not num_iid:
        raise ValueError(
            f"held_out_share={config.held_out_share:g} of {num_pool:,} in-distribution compositions leaves none for "
            "the test (test_inferred_iid). Raise it, or use more entities."
        )
    if not num_ood:
        expected = config.num_facts * config.out_degree * config.ood_share**2
        raise ValueError(
            f"ood_share={config.ood_share:g} with {config.num_facts:,} facts leaves no composition of two OOD facts "
            f"(test_inferred_ood); {expected:.2g} are expected. Raise ood_share, or use more entities or a higher "
            "out_degree."
        )


def _generator(config, *key) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(config.seed, spawn_key=key)))
