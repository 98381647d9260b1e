"""Sizes of a composition data set."""

import math
from dataclasses import dataclass, field

from memreason_hf.checks import check_int


# A data set is built in memory. The study's has 40,000 facts and 800,000 compositions.
MOST_FACTS = 10**7
MOST_COMPOSITIONS = 10**8


@dataclass(frozen=True)
class CompositionConfig:
    """
    Sizes of the world, of its compositions and of its probes. The defaults are those of the systematicity study.

    Raises:
        ValueError: a value is out of range, or the sizes leave no fact of one of the two sorts.
        TypeError: a value has another type.

    Example:

        >>> config = CompositionConfig(num_entities=100, num_relations=20, out_degree=10, ratio=5)
        >>> config.num_facts, config.num_ood_facts, config.num_train_compositions
        (1000, 50, 4750)
    """

    num_entities: int = field(default=2000, metadata={"help": "Entities, named <e_0>, <e_1>, ..."})
    num_relations: int = field(default=200, metadata={"help": "Relations, named <r_0>, <r_1>, ..."})
    out_degree: int = field(
        default=20,
        metadata={
            "help": "Facts of an entity. Their relations are drawn without repeats, their tails among all entities."
        },
    )
    ratio: float = field(
        default=7.2,
        metadata={
            "help": "Training compositions for each in-distribution fact. The study before this one went from 3.6 to "
            "18: the higher, the sooner a model generalizes."
        },
    )
    ood_share: float = field(
        default=0.05,
        metadata={"help": "Share of the facts that training never composes (out of distribution, OOD)."},
    )
    held_out_share: float = field(
        default=0.005,
        metadata={"help": "Share of the in-distribution compositions that are kept for the test."},
    )
    num_probes: int = field(default=3000, metadata={"help": "The most items of each of the five groups of test.json."})
    seed: int = field(default=42, metadata={"help": "The same seed and sizes give the same data set."})

    def __post_init__(self):
        for name in ("num_entities", "num_relations", "out_degree", "num_probes"):
            check_int(name, getattr(self, name), least=1)
        check_int("seed", self.seed, least=0)
        if self.out_degree > self.num_relations:
            raise ValueError(
                f"out_degree={self.out_degree:,} is above num_relations={self.num_relations:,}: the relations of an "
                "entity do not repeat. Lower out_degree."
            )
        for name in ("ratio", "ood_share", "held_out_share"):
            self._set_number(name)
        for name in ("ood_share", "held_out_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0 and below 1.")
        if self.ratio <= 0:
            raise ValueError(f"ratio={self.ratio} must be above 0.")
        drawn = self.num_entities * self.num_relations
        if drawn > MOST_FACTS or self.num_facts * self.out_degree > MOST_COMPOSITIONS:
            raise ValueError(
                f"num_entities={self.num_entities:,}, num_relations={self.num_relations:,} and out_degree="
                f"{self.out_degree:,} make {self.num_facts * self.out_degree:,} compositions, of which at most "
                f"{MOST_COMPOSITIONS:,} fit into memory, with at most {MOST_FACTS:,} pairs of entity and relation."
            )
        if not 0 < self.num_ood_facts < self.num_facts:
            raise ValueError(
                f"ood_share={self.ood_share} makes {self.num_ood_facts:,} of {self.num_facts:,} facts OOD, but both "
                "sorts need at least one. Use more facts or another share."
            )

    @property
    def num_facts(self) -> int:
        """The atomic facts: out_degree for every entity."""
        return self.num_entities * self.out_degree

    @property
    def num_ood_facts(self) -> int:
        return round(self.num_facts * self.ood_share)

    @property
    def num_train_compositions(self) -> int:
        """The compositions in training: ratio times the in-distribution facts."""
        return round(self.ratio * (self.num_facts - self.num_ood_facts))

    def _set_number(self, name):
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}={value!r} must be a number, got a {type(value).__name__}.")
        if not math.isfinite(value):
            raise ValueError(f"{name}={value} must be finite.")
        object.__setattr__(self, name, float(value))
