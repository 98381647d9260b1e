"""Sizes of a multi-hop data set, and the arithmetic of what fits into its world."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field


MAX_HOPS = 1_000  # a mistyped range stops here and not after filling the memory
TEST_SHARE_WHEN_CAPPED = 5  # one chain in so many is a test chain where fewer exist than were asked for


@dataclass(frozen=True)
class MultiHopConfig:
    """
    Sizes of the world, of its chains and of its probes. The defaults are the depth-extrapolation study's.

    Every wrong or impossible value is refused here, before anything is computed: ValueError for a value out of range
    or for more distinct chains than the world has, TypeError for a value of another type.
    """

    num_entities: int = field(default=200, metadata={"help": "Entities, named <e_0>, <e_1>, ..."})
    num_relations: int = field(
        default=10,
        metadata={"help": "Relations, named <r_0>, <r_1>, ...; each is a random permutation of the entities."},
    )
    out_degree: int | None = field(
        default=None,
        metadata={
            "help": "Relations that an entity has, drawn at random for each one. Without it every entity has all of "
            "them, so that the atomic facts are num_entities x num_relations."
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
            "help": "Hop counts of the test chains; they may differ from those of training. 1 stands for the atomic "
            "facts: all of them are in training, so as a test they are a probe of memory."
        },
    )
    num_train_chains: int = field(default=15_000, metadata={"help": "Training chains for each hop count."})
    num_test_chains: int = field(
        default=750, metadata={"help": "Test chains for each hop count; none of them is a training chain."}
    )
    num_small_test_chains: int = field(
        default=50,
        metadata={"help": "Test chains for each hop count that test_small.json repeats (or all, if fewer)."},
    )
    num_atomic_probes: int = field(
        default=2_000, metadata={"help": "Random atomic facts that test.json repeats (or all, if fewer)."}
    )
    num_train_probes: int = field(
        default=2_000,
        metadata={"help": "Random training chains for each hop count that test.json repeats (or all, if fewer)."},
    )
    cap_to_available: bool = field(
        default=False,
        metadata={
            "help": "Where the world has fewer distinct chains of a hop count than were asked for, take those it has: "
            "at most one in five for the test, the others for training. Without this flag such a request is refused."
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
                    f"more relations than there are. Give at most {self.num_relations}."
                )
        if not isinstance(self.cap_to_available, bool):
            raise TypeError(f"cap_to_available must be True or False, not {self.cap_to_available!r}.")
        for name, smallest in (("train_hops", 2), ("test_hops", 1)):
            object.__setattr__(self, name, format_hop_counts(_checked_hop_counts(self, name, smallest)))
        if 1 in self.test_hop_counts and self.num_atomic_probes == 0:
            raise ValueError("test_hops holds 1, the atomic facts, but num_atomic_probes=0 asks for none of them.")
        self.plan_chains()

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
        """Distinct chains of `hops` relations: a start, and one of its relations at every entity on the way."""
        return self.num_entities * self.relations_per_entity**hops

    def plan_chains(self) -> dict[int, tuple[int, int]]:
        """
        Returns, for every hop count above 1, how many (training, test) chains it gets.

        Raises ValueError, with the numbers, where the world has fewer distinct chains than that.
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
            asked = "; ".join(
                f"{hops} hops: {num_train:,} training + {num_test:,} test asked for, {available:,} exist"
                for hops, num_train, num_test, available in impossible
            )
            advice = (
                "Give more entities or relations, or leave the hop count out of train_hops or test_hops."
                if self.cap_to_available
                else "Lower num_train_chains or num_test_chains, give more entities or relations, or leave the hop "
                "count out of train_hops or test_hops; cap_to_available takes the chains that exist."
            )
            raise ValueError(
                f"More distinct chains asked for than the world has (num_entities={self.num_entities} x "
                f"{self.relations_per_entity} relations of an entity ** hops). {asked}. {advice}"
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
    Reads hop counts: "2-8,12,16" (commas or blanks between), one number, or any iterable of numbers.

    Returns them in rising order, each once. Raises ValueError for what cannot be read and for no hop count at all.
    """
    if isinstance(hops, str):
        counts = [count for part in hops.replace(",", " ").split() for count in _parse_range(part, hops)]
    else:
        try:
            counts = [operator.index(hops)] if not isinstance(hops, Iterable) else [operator.index(h) for h in hops]
        except TypeError:
            raise ValueError(f"{hops!r} holds something that is not a hop count.") from None
    if not counts:
        raise ValueError(f"{hops!r} names no hop count; give for example 2-8,12,16.")
    return tuple(sorted(set(counts)))


def format_hop_counts(counts: Iterable[int]) -> str:
    """The shortest text that `parse_hop_counts` reads back as the same counts: "2-8,12,16"."""
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
        raise ValueError(f"{part!r} in {whole!r} is no hop count or range; give for example 2-8,12,16.")
    if max(int(first), int(last or 0)) > MAX_HOPS:
        raise ValueError(f"{part!r} in {whole!r} is too long; the longest chains have {MAX_HOPS:,} hops.")
    if dash and int(last) < int(first):
        raise ValueError(f"The range {part!r} in {whole!r} ends before it begins; write {last}-{first}.")
    return range(int(first), int(last if dash else first) + 1)


def _checked_hop_counts(config: MultiHopConfig, name: str, smallest: int) -> tuple[int, ...]:
    try:
        counts = parse_hop_counts(getattr(config, name))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if counts[-1] > MAX_HOPS:
        raise ValueError(f"{name} holds {counts[-1]}; the longest chains have {MAX_HOPS:,} hops.")
    if counts[0] < smallest:
        why = " (the atomic facts, of 1 hop, are always in training)" if smallest == 2 else ""
        raise ValueError(f"{name} holds {counts[0]}; the smallest hop count there is {smallest}{why}.")
    return counts


def _set_integer(config: MultiHopConfig, name: str, smallest: int):
    value = getattr(config, name)
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an integer, not {value!r} ({type(value).__name__}).")
    if number < smallest:
        raise ValueError(f"{name}={number} is too small; give at least {smallest}.")
    object.__setattr__(config, name, number)
