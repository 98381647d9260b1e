"""
A world of places and relations, and chains through it: a start, then relations, each labelled with the place reached.

    world = World.draw(seed=0)
    chains = world.chains(1000, hops=16, generator=np.random.default_rng(1))
    chains.input_ids[0]      # [ 3 13 12 14 ...]: place 3, then relations 1, 0, 2
    chains.labels[0]         # [-100 7 0 5 ...]: relation 1 leads from place 3 to place 7, relation 0 from there to 0

Every relation is a permutation of the places, so that no place is reached more often than another and the chance of a
guess is one in the number of places, however long the chain is. The labels stand at the position that predicts them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from memreason_hf.data.labels import IGNORED_LABEL


NUM_PLACES, NUM_RELATIONS, NUM_HOPS = 12, 3, 16
# Independent streams of random numbers of a seed.
_WORLD, _TEST, _SOURCE, _FURTHER = range(4)


@dataclass(frozen=True)
class Chains:
    """
    Attributes:
        input_ids: of shape `(chains, 1 + hops)`.
        labels: of the same shape; -100 at the start.
    """

    input_ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    def select(self, rows: np.ndarray) -> "Chains":
        """The chains at some indices, or where a mask is true."""
        return Chains(self.input_ids[rows], self.labels[rows])

    def without(self, others: "Chains") -> "Chains":
        """The chains that do not occur among `others`."""
        known = {row.tobytes() for row in others.input_ids}
        return self.select(np.array([row.tobytes() not in known for row in self.input_ids], dtype=bool))

    def dataset(self) -> Dataset:
        """Rows for a trainer, with the columns `input_ids` and `labels`."""
        return Dataset.from_dict({"input_ids": self.input_ids.tolist(), "labels": self.labels.tolist()})


@dataclass(frozen=True)
class World:
    """
    Attributes:
        places: where each relation leads, of shape `(relations, places)`.
    """

    places: np.ndarray

    @classmethod
    def draw(cls, seed: int, num_places: int = NUM_PLACES, num_relations: int = NUM_RELATIONS) -> "World":
        """A world whose relations are random permutations."""
        generator = np.random.default_rng([seed, _WORLD])
        return cls(np.stack([generator.permutation(num_places) for _ in range(num_relations)]))

    @property
    def vocab_size(self) -> int:
        """Places come first, then relations."""
        return sum(self.places.shape)

    def chains(self, count: int, hops: int, generator: np.random.Generator) -> Chains:
        """Random chains."""
        num_relations, num_places = self.places.shape
        reached = generator.integers(num_places, size=count)
        relations = generator.integers(num_relations, size=(count, hops))
        input_ids = np.concatenate([reached[:, None], num_places + relations], axis=1)
        labels = np.full_like(input_ids, IGNORED_LABEL)
        for hop in range(hops):
            reached = self.places[relations[:, hop], reached]
            labels[:, hop + 1] = reached
        return Chains(input_ids, labels)


def draw_data(seed: int, num_test: int, num_source: int, num_further: int) -> tuple[World, Chains, Chains, Chains]:
    """
    The world of a seed with its test chains, and those that the source and both models after it are trained on.

    No test chain is trained on. Chains of 16 hops hardly ever occur twice, so that few are left out.
    """
    world = World.draw(seed)
    drawn = (
        world.chains(count, NUM_HOPS, np.random.default_rng([seed, stream]))
        for stream, count in ((_TEST, num_test), (_SOURCE, num_source), (_FURTHER, num_further))
    )
    test, source, further = drawn
    return world, test, source.without(test), further.without(test)


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """A batch of rows of one length."""
    input_ids, labels = (torch.as_tensor(np.stack([row[name] for row in rows])) for name in ("input_ids", "labels"))
    return {"input_ids": input_ids.long(), "shift_labels": labels.long()}
