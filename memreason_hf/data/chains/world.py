"""The multi-hop world: random atomic facts, and distinct chains walked over them. Pure numpy."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memreason_hf.data.chains.config import MultiHopConfig


# If a hop count has at most this number of chains, all are listed and shuffled. Otherwise it is faster to draw chains
# and drop repeats.
MAX_LISTED_CHAINS = 1 << 22

# Keys of the random streams: no stream depends on how much was drawn from another one.
_PERMUTATION_STREAM, _OUT_DEGREE_STREAM, _LISTED_STREAM, _START_STREAM, _STEP_STREAM, _PROBE_STREAM = range(6)

# (head, relation) to tail.
Facts = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class MultiHopWorld:
    """
    The atomic facts: from entity i, its j-th relation `relations[i, j]` leads to entity `tails[i, j]`.

    Attributes:
        num_relations: relations of the world; an entity may have fewer of them.
        relations: int64, shape (num_entities, relations of an entity), increasing in each row.
        tails: int64, shape (num_entities, relations of an entity).
    """

    num_relations: int
    relations: np.ndarray
    tails: np.ndarray

    @property
    def num_entities(self) -> int:
        return len(self.relations)


@dataclass(frozen=True)
class Chains:
    """
    Chains of one length.

    Attributes:
        relations: int64, shape (number of chains, hops).
        entities: the start, then the entity reached after every relation; int64, shape (number of chains, hops + 1).
    """

    relations: np.ndarray
    entities: np.ndarray

    @property
    def hops(self) -> int:
        return self.relations.shape[1]

    def __len__(self) -> int:
        return len(self.relations)

    def __getitem__(self, rows) -> "Chains":
        return Chains(self.relations[rows], self.entities[rows])


def build_world(config: MultiHopConfig) -> MultiHopWorld:
    """Draws a permutation of the entities for every relation, and the relations of each entity."""
    generator = _generator(config, _PERMUTATION_STREAM)
    permutations = [generator.permutation(config.num_entities) for _ in range(config.num_relations)]
    tails = np.stack(permutations, axis=1)
    relations = np.tile(np.arange(config.num_relations), (config.num_entities, 1))
    if config.relations_per_entity < config.num_relations:
        shuffled = _generator(config, _OUT_DEGREE_STREAM).permuted(relations, axis=1)
        relations = np.sort(shuffled[:, : config.relations_per_entity], axis=1)
        tails = np.take_along_axis(tails, relations, axis=1)
    return MultiHopWorld(config.num_relations, relations, tails)


def world_facts(world: MultiHopWorld) -> dict[tuple[int, int], int]:
    """The atomic facts: (head, relation) to tail."""
    heads = np.repeat(np.arange(world.num_entities), world.relations.shape[1])
    return {
        (int(head), int(relation)): int(tail)
        for head, relation, tail in zip(heads, world.relations.ravel(), world.tails.ravel())
    }


def atomic_chains(world: MultiHopWorld) -> Chains:
    """All atomic facts as chains of 1 hop, by head and relation."""
    heads = np.repeat(np.arange(world.num_entities), world.relations.shape[1])
    return Chains(world.relations.reshape(-1, 1), np.stack([heads, world.tails.ravel()], axis=1))


def sample_chains(config: MultiHopConfig, world: MultiHopWorld, hops: int, num_chains: int) -> Chains:
    """
    Draws `num_chains` distinct chains of `hops` relations, uniformly among all chains and in random order.

    The draw depends on the seed, the world and `hops`. A smaller `num_chains` gives the first chains of a larger one.

    Raises:
        ValueError: the world has fewer chains.
    """
    available = config.num_available_chains(hops)
    if num_chains > available:
        raise ValueError(f"num_chains={num_chains:,} must be at most {available:,}, the chains of {hops} hops.")
    draw = _listed_steps if available <= MAX_LISTED_CHAINS else _distinct_random_steps
    return walk_steps(world, *draw(config, hops, num_chains))


def walk_steps(world: MultiHopWorld, starts: np.ndarray, steps: np.ndarray) -> Chains:
    """
    Follows relations from each start: at every hop the relation of the current entity with the number in `steps`.

    Args:
        starts: entities, shape (number of chains,).
        steps: numbers below the number of relations of an entity, shape (number of chains, hops).
    """
    num_chains, hops = steps.shape
    relations = np.empty((num_chains, hops), dtype=np.int64)
    entities = np.empty((num_chains, hops + 1), dtype=np.int64)
    entities[:, 0] = current = starts
    for hop in range(hops):
        step = steps[:, hop]
        relations[:, hop] = world.relations[current, step]
        entities[:, hop + 1] = current = world.tails[current, step]
    return Chains(relations, entities)


def sample_probes(config: MultiHopConfig, chains: Chains, num_probes: int) -> Chains:
    """`num_probes` of the chains in random order without repeats, or all chains if there are fewer."""
    order = _generator(config, _PROBE_STREAM, chains.hops).permutation(len(chains))
    return chains[order[:num_probes]]


def _listed_steps(config: MultiHopConfig, hops: int, num_chains: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffles the numbers of all chains. The digits of a number, in base relations of an entity, are the steps."""
    available = config.num_available_chains(hops)
    numbers = _generator(config, _LISTED_STREAM, hops).permutation(available)[:num_chains]
    steps = np.empty((num_chains, hops), dtype=np.int64)
    for hop in reversed(range(hops)):
        numbers, steps[:, hop] = np.divmod(numbers, config.relations_per_entity)
    return numbers, steps


def _distinct_random_steps(config: MultiHopConfig, hops: int, num_chains: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws chains and drops repeats until enough are distinct."""
    start_generator, step_generator = (_generator(config, stream, hops) for stream in (_START_STREAM, _STEP_STREAM))
    available = config.num_available_chains(hops)
    starts = np.empty(0, dtype=np.int64)
    steps = np.empty((0, hops), dtype=np.int64)
    while len(starts) < num_chains:
        # The expected number of draws that give the missing chains, given the share of draws that are repeats.
        num_draws = (num_chains - len(starts)) * available // (available - len(starts)) + 1
        starts = np.concatenate([starts, start_generator.integers(config.num_entities, size=num_draws)])
        steps = np.concatenate([steps, step_generator.integers(config.relations_per_entity, size=(num_draws, hops))])
        first = _first_occurrences(starts, steps, config.num_entities, config.relations_per_entity)
        starts, steps = starts[first], steps[first]
    return starts[:num_chains], steps[:num_chains]


def _first_occurrences(starts: np.ndarray, steps: np.ndarray, num_starts: int, num_steps: int) -> np.ndarray:
    """
    Indices of the rows whose (start, steps...) did not occur before, in increasing order.

    A row becomes several numbers, each with as many digits as fit into 63 bits. This is exact for any length; a single
    number would overflow beyond some 18 hops.
    """
    words, capacity = [starts], num_starts
    for column in steps.T:
        if capacity * num_steps < 1 << 63:
            words[-1] = words[-1] * num_steps + column
            capacity *= num_steps
        else:
            words.append(column)
            capacity = num_steps
    order = np.lexsort(words)  # stable: the first of several equal rows comes first
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = np.any([word[order[1:]] != word[order[:-1]] for word in words], axis=0)
    return np.sort(order[is_new])


def _generator(config: MultiHopConfig, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(config.seed, spawn_key=key)))
