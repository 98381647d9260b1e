"""
An artificial world of questions, written in English: people who are related, and the coins that each of them has.

    data = build_world_questions(WorldQuestions(num_train=1000, num_test=300, seed=0))
    data.dataset["train"][0]["question"]    # "How many coins do Nora and the friend of the boss of Ann have together?"

A solution recalls who is who and how many coins they have (memory), and says who a chain of relations leads to and
what the two numbers give (reason). The questions do not contain the facts: a model has to learn them. All questions
are different, so no test question is in training. The people and their relations are those of a multi-hop world.
"""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict, NamedSplit

from memreason_hf.checks import check_int
from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.world import Facts, build_world, world_facts
from memreason_hf.data.questions.memory_reason import (
    FEATURES,
    TRAINING_SPLIT,
    MemoryReasonData,
    MemoryReasonReport,
    SplitReport,
)
from memreason_hf.steps import Step


PEOPLE = ("Ann", "Bob", "Carl", "Dora", "Emil", "Fay", "Gus", "Hope", "Ivan", "Jill", "Kurt", "Lena")
PEOPLE += ("Max", "Nora", "Otto", "Pia")
RELATIONS = ("boss", "friend", "neighbour")
MOST_COINS = 9
MOST_RELATIONS = 2
NAME = "people and coins"
_TEST_SPLIT = "test"
# Two people, each described by a chain of up to two relations. Far fewer questions are drawn, so that drawing
# different ones ends soon.
_MOST_QUESTIONS = (len(PEOPLE) * sum(len(RELATIONS) ** length for length in range(MOST_RELATIONS + 1))) ** 2 // 2


@dataclass(frozen=True)
class WorldQuestions:
    """
    How many questions are drawn.

    Attributes:
        num_train, num_test: questions of the splits `train` and `test`.
        seed: of the relations, the coins and the questions.

    Raises:
        ValueError: a number is out of range.
    """

    num_train: int = 1000
    num_test: int = 300
    seed: int = 0

    def __post_init__(self):
        for name in ("num_train", "num_test"):
            check_int(name, getattr(self, name), 1, _MOST_QUESTIONS, "the world has few different questions")
        check_int("seed", self.seed, least=0)


@dataclass(frozen=True)
class CoinWorld:
    """
    The facts of the world.

    Attributes:
        facts: (person, relation) to person, all by their numbers.
        coins: of each person.
    """

    facts: Facts
    coins: tuple[int, ...]

    @classmethod
    def draw(cls, seed: int) -> "CoinWorld":
        """The relations of a multi-hop world of this seed, and 1 to 9 coins for everybody."""
        config = MultiHopConfig(
            num_entities=len(PEOPLE), num_relations=len(RELATIONS), cap_to_available=True, seed=seed
        )
        coins = np.random.default_rng([seed, 1]).integers(1, MOST_COINS, len(PEOPLE), endpoint=True)
        return cls(world_facts(build_world(config)), tuple(int(count) for count in coins))

    def solve(self, person: int, relations: tuple[int, ...]) -> tuple[list[Step], int]:
        """The steps that lead to the coins of the person that a chain of relations leads to, and their number."""
        steps, reached = [], person
        for relation in relations:
            tail = self.facts[reached, relation]
            steps.append(Step("memory", f"The {RELATIONS[relation]} of {PEOPLE[reached]} is {PEOPLE[tail]}."))
            reached = tail
        if len(relations) > 1:
            steps.append(Step("reason", f"So {described(person, relations)} is {PEOPLE[reached]}."))
        steps.append(Step("memory", f"{PEOPLE[reached]} has {self.coins[reached]} coins."))
        return steps, self.coins[reached]

    def draw_row(self, generator: np.random.Generator) -> dict:
        """A random question with its solution, as a row of annotated questions."""
        chains = []
        for _ in range(2):
            relations = generator.integers(len(RELATIONS), size=generator.integers(MOST_RELATIONS, endpoint=True))
            chains.append((int(generator.integers(len(PEOPLE))), tuple(map(int, relations))))
        (first_steps, first), (second_steps, second) = (self.solve(*chain) for chain in chains)
        one, other = (described(*chain) for chain in chains)
        if generator.integers(2):
            question, answer = f"How many coins do {one} and {other} have together?", first + second
            reason = f"{first} and {second} are {answer}."
        else:
            question, answer = f"By how many coins do {one} and {other} differ?", abs(first - second)
            reason = f"{first} and {second} differ by {answer}."
        steps = [*first_steps, *second_steps, Step("reason", reason)]
        return {
            "question": question,
            "options": [],
            "answer": str(answer),
            "accepted_answers": [],
            "answer_type": "number",
            "steps": [{"kind": step.kind, "text": step.text} for step in steps],
        }


def described(person: int, relations: tuple[int, ...]) -> str:
    """`the friend of the boss of Ann`: the first relation of the chain stands last."""
    text = PEOPLE[person]
    for relation in relations:
        text = f"the {RELATIONS[relation]} of {text}"
    return text


def build_world_questions(sizes: WorldQuestions) -> MemoryReasonData:
    """The data set, in memory. The same sizes and seed give the same rows."""
    world, generator = CoinWorld.draw(sizes.seed), np.random.default_rng([sizes.seed, 2])
    counts = {TRAINING_SPLIT: sizes.num_train, _TEST_SPLIT: sizes.num_test}
    rows: dict[str, dict] = {}
    while len(rows) < sum(counts.values()):
        row = world.draw_row(generator)
        rows.setdefault(row["question"], {name: row[name] for name in FEATURES})
    drawn = list(rows.values())
    parts, start = {}, 0
    for split, count in counts.items():
        part = drawn[start : start + count]
        parts[split] = Dataset.from_list(part, features=FEATURES, split=NamedSplit(split))
        start += count
    reports = {
        split: SplitReport(num_items=len(part), num_rows=len(part), num_steps=sum(map(len, part["steps"])))
        for split, part in parts.items()
    }
    return MemoryReasonData(DatasetDict(parts), MemoryReasonReport(NAME, f"seed {sizes.seed}", reports))
