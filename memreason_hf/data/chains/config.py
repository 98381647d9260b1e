"""Sizes of a multi-hop data set, and how many chains its world has."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field


# A data set is built in memory. The study's has 10,000 facts and a million chains.
MOST_FACTS = 10**8
MOST_CHAINS = 10**9
MAX_HOPS = 1_000  # a mistyped range is refused before it fills the memory
TEST_SHARE_WHEN_CAPPED = 5  # one chain in five is a test chain if the world has fewer than requested


@dataclass(frozen=True)
class MultiHopConfig:
    """
    Sizes of the world, of its chains and of its probes. The defaults are those of the depth-extrapolation study.

    Raises:
        ValueError: a value is out of range, or more distinct chains are requested than the world has.
        TypeError: a value has another type.

    Example:

        >>> config = MultiHopConfig(num_entities=20, num_relations=4, train_hops="2-8", cap_to_available=True)
        >>> config.num_available_chains(2), config.plan_chains()[2]
        (320, (256, 64))
    """

    num_entities: int = field(default=200, metadata={"help": "Entities, named <e_0>, <e_1>, ..."})
    num_relations: int = field(
        default=10,
        metadata={"help": "Relations, named <r_0>, <r_1>, ...; each is a random permutation of the entities."},
    )
    out_degree: int | None = field(
        default=None,
        metadata={
            "help": "Number of relations of an entity, drawn at random for each entity. By default every entity has "
            "all relations, which gives num_entities x num_relations atomic facts."
        },
    )
    train_hops: str = field(
        default="2-40",
        metadata={
            "help": "Hop counts of the training chains, as ranges and numbers, for example 2-8 or 2-8,12,16. "
            "The atomic facts, which are the chains of 1 hop, are always in training."
        },
    )
    test_hops: str = field(
        default="2-40",
        metadata={
            "help": "Hop counts of the test chains, which may differ from those of training. 1 stands for the atomic "
            "facts; all of them are in training, so they probe memory."
        },
    )
    num_train_chains: int = field(default=15_000, metadata={"help": "Training chains for each hop count."})
    num_test_chains: int = field(
        default=750, metadata={"help": "Test chains for each hop count. No test chain is a training chain."}
    )
    num_small_test_chains: int = field(
        default=50,
        metadata={"help": "Test chains for each hop count that test_small.json repeats (all of them if fewer)."},
    )
    num_atomic_probes: int = field(
        default=2_000, metadata={"help": "Random atomic facts that test.json repeats (all of them if fewer)."}
    )
    num_train_probes: int = field(
        default=2_000,
        metadata={"help": "Random training chains for each hop count that test.json repeats (all of them if fewer)."},
    )
    cap_to_available: bool = field(
        default=False,
        metadata={
            "help": "If the world has fewer distinct chains of a hop count than requested, use those that it has: at "
            "most one in five for the test, the others for training. Without this flag such a request is an error."
        },
    )
    seed: int = field(default=42, metadata={"help": "The same seed and sizes give the same data set."})

    def __post_init__(self):
        for name, smallest in _SMALLEST_VALUES.items():
            _set_integer(self, name, smallest)
        if self.out_degree is not None:
            _set_integer(self, "out_degree", 1)
            if self.out_degree > self.num_relations:
                raise ValueError(
                    f"out_degree={self.out_degree} is above num_relations={self.num_relations}: an entity cannot have "
                    "more relations than the world."
                )
        if not isinstance(self.cap_to_available, bool):
            raise TypeError(f"cap_to_available={self.cap_to_available!r} must be True or False.")
        for name, smallest in (("train_hops", 2), ("test_hops", 1)):
            object.__setattr__(self, name, format_hop_counts(_checked_hop_counts(self, name, smallest)))
        if 1 in self.test_hop_counts and self.num_atomic_probes == 0:
            raise ValueError(
                f"test_hops={self.test_hops} holds 1, the atomic facts, so num_atomic_probes=0 must be at least 1."
            )
        facts = self.num_entities * self.num_relations
        if facts > MOST_FACTS:
            raise ValueError(
                f"num_entities={self.num_entities:,} and num_relations={self.num_relations:,} make {facts:,} atomic "
                f"facts, which are all in training. Use at most {MOST_FACTS:,}."
            )
        chains = sum(num_train + num_test for num_train, num_test in self.plan_chains().values())
        if chains > MOST_CHAINS:
            raise ValueError(
                f"num_train_chains={self.num_train_chains:,} and num_test_chains={self.num_test_chains:,} make "
                f"{chains:,} chains over all hop counts. Use at most {MOST_CHAINS:,}."
            )

    @property
    def train_hop_counts(self) -> tuple[int, ...]:
        return parse_hop_counts(self.train_hops)

    @property
    def test_hop_counts(self) -> tuple[int, ...]:
        return parse_hop_counts(self.test_hops)

    @property
    def relations_per_entity(self) -> int:
        return self.num_relations if self.out_degree is None else self.out_degree

    def num_available_chains(self, hops: int) -> int:
        """The number of distinct chains of `hops` relations: entities times relations of an entity to the `hops`."""
        return self.num_entities * self.relations_per_entity**hops

    def plan_chains(self) -> dict[int, tuple[int, int]]:
        """
        The numbers of (training, test) chains of every hop count above 1.

        Raises:
            ValueError: the world has fewer distinct chains; the message gives the numbers.
        """
        train_hops, test_hops = set(self.train_hop_counts), set(self.test_hop_counts)
        plan, impossible = {}, []
        for hops in sorted(train_hops | test_hops - {1}):
            num_train = self.num_train_chains if hops in train_hops else 0
            num_test = self.num_test_chains if hops in test_hops else 0
            available = self.num_available_chains(hops)
            if num_train + num_test > available:
                if not self.cap_to_available or (num_train and num_test and available < 2):
                    impossible.append((hops, num_train, num_test, available))
                    continue
                if num_train:
                    num_test = min(num_test, max(1, available // TEST_SHARE_WHEN_CAPPED))
                num_test = min(num_test, available)
                num_train = min(num_train, available - num_test)
            plan[hops] = (num_train, num_test)
        if impossible:
            requests = "; ".join(
                f"{hops} hops: {num_train:,} training + {num_test:,} test requested, {available:,} exist"
                for hops, num_train, num_test, available in impossible
            )
            advice = (
                "Increase num_entities or num_relations, or leave the hop count out of train_hops or test_hops."
                if self.cap_to_available
                else "Lower num_train_chains or num_test_chains, increase num_entities or num_relations, leave the "
                "hop count out of train_hops or test_hops, or set cap_to_available to use the chains that exist."
            )
            raise ValueError(
                f"More distinct chains are requested than the world has (num_entities={self.num_entities} x "
                f"{self.relations_per_entity} relations of an entity ** hops). {requests}. {advice}"
            )
        return plan


_SMALLEST_VALUES = {
    "num_entities": 1,
    "num_relations": 1,
    "num_train_chains": 1,
    "num_test_chains": 1,
    "num_small_test_chains": 1,
    "num_atomic_probes": 0,
    "num_train_probes": 0,
    "seed": 0,
}


def parse_hop_counts(hops: str | int | Iterable[int]) -> tuple[int, ...]:
    """
    Reads hop counts: a text of ranges and numbers between commas or blanks, one number, or an iterable of numbers.

    Returns:
        The distinct hop counts in increasing order.

    Raises:
        ValueError: an entry is not a hop count or range, or there is none.

    Example:

        >>> parse_hop_counts("2-4, 12")
        (2, 3, 4, 12)
    """
    if isinstance(hops, str):
        counts = [count for part in hops.replace(",", " ").split() for count in _parse_range(part, hops)]
    else:
        try:
            counts = [operator.index(hops)] if not isinstance(hops, Iterable) else [operator.index(h) for h in hops]
        except TypeError:
            raise ValueError(f"hops={hops!r} must hold hop counts only.") from None
    if not counts:
        raise ValueError(f"hops={hops!r} names no hop count. Write for example 2-8,12,16.")
    return tuple(sorted(set(counts)))


def format_hop_counts(counts: Iterable[int]) -> str:
    """The inverse of `parse_hop_counts`, as short as possible: `"2-8,12,16"`."""
    runs: list[list[int]] = []
    for count in sorted(set(counts)):
        if runs and count == runs[-1][1] + 1:
            runs[-1][1] = count
        else:
            runs.append([count, count])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _parse_range(part: str, whole: str) -> range:
    first, dash, last = part.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError(f"{part!r} in hops={whole!r} is not a hop count or range. Write for example 2-8,12,16.")
    if max(int(first), int(last or 0)) > MAX_HOPS:
        raise ValueError(f"{part!r} in {whole!r} must be at most {MAX_HOPS:,} hops.")
    if dash and int(last) < int(first):
        raise ValueError(f"The range {part!r} in {whole!r} ends before it begins; write {last}-{first}.")
    return range(int(first), int(last if dash else first) + 1)


def _checked_hop_counts(config: MultiHopConfig, name: str, smallest: int) -> tuple[int, ...]:
    try:
        counts = parse_hop_counts(getattr(config, name))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    given = f"{name}={getattr(config, name)!r}"
    if counts[-1] > MAX_HOPS:
        raise ValueError(f"{given} holds {counts[-1]}, which must be at most {MAX_HOPS:,} hops.")
    if counts[0] < smallest:
        why = " (the atomic facts, of 1 hop, are always in training)" if smallest == 2 else ""
        raise ValueError(f"{given} holds {counts[0]}, which must be at least {smallest}{why}.")
    return counts


def _set_integer(config: MultiHopConfig, name: str, smallest: int):
    value = getattr(config, name)
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name}={value!r} must be an integer, got a {type(value).__name__}.")
    if number < smallest:
        raise ValueError(f"{name}={number} is too small. Pass at least {smallest}.")
    object.__setattr__(config, name, number)
