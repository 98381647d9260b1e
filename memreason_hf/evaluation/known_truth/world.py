"""
The multi-hop world written out: questions over chains of facts, and solutions in memory and reason steps.

    question = WrittenQuestion(start=3, relations=(1, 0), names=(5, 6))     # <e_3> <x_5> <r_1> <x_6> <r_0>
    steps = write_solution(facts, question, 1, np.random.default_rng(0), num_names=16)

A question gives an entity and a list of relations. Before each relation stands a name for the entity that the relation
leads to, as a puzzle says "let x_5 be the mother of Ann". Names follow each other in a circle from a random start, so
the names of long chains also occur in short ones. A step states a fact under a name: `<e_3> <x_5> <r_1> <e_7>`. Memory
steps recall, in shuffled order, the facts that the question needs, and distractors: other facts, under names that the
question does not give. Reason steps select the fact of each hop, one after the other. The answer comes last. The
question does not contain the facts: a model has to learn them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from memreason_hf.data.chains.tokenizer import (
    END_OF_ANSWER,
    build_tokenizer,
    build_vocabulary,
    entity_token,
    relation_token,
)
from memreason_hf.data.chains.world import Facts
from memreason_hf.steps import ANSWER_MARKER, QUESTION_MARKER, Step, StepScheme, answer_step
from memreason_hf.steps.tokenization import extend_tokenizer


SCHEME = StepScheme(num_prefix_tokens=0, num_step_tokens=1, ordered=True)

_STEP = re.compile(r"<e_(\d+)>\s*<x_(\d+)>\s*<r_(\d+)>\s*<e_(\d+)>")
_START = re.compile(r"\s*<e_(\d+)>\s*")
_CHAIN = re.compile(r"<e_(\d+)>((?:<r_\d+>)+)")
_HOP = re.compile(r"<x_(\d+)>\s*<r_(\d+)>\s*")


class Fact(NamedTuple):
    """`relation` leads from `head` to `tail`."""

    head: int
    relation: int
    tail: int


class NamedFact(NamedTuple):
    """What a memory or reason step says: a fact, and the name of the entity that it determines."""

    fact: Fact
    name: int


@dataclass(frozen=True)
class WrittenQuestion:
    """
    A question about a chain.

    Attributes:
        start: the entity that the chain starts from.
        relations: one for each hop.
        names: distinct names of the entities that the hops reach, one for each hop.

    Raises:
        ValueError: there are no relations, not as many names as relations, or a name occurs twice.
    """

    start: int
    relations: tuple[int, ...]
    names: tuple[int, ...]

    def __post_init__(self):
        if not self.relations or len(self.names) != len(self.relations) or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"relations={self.relations} and names={self.names}: a question needs at least one relation, and a "
                "name of its own for each."
            )

    @property
    def text(self) -> str:
        """`<e_3> <x_5> <r_1> <x_6> <r_0>`."""
        return " ".join([entity_token(self.start), *map(_hop_text, self.names, self.relations)])

    @classmethod
    def parse(cls, text: str) -> "WrittenQuestion":
        """
        The inverse of `text`. A `Question:` before it is skipped.

        Raises:
            ValueError: the text is not a question about a chain.
        """
        rest = text.strip().removeprefix(QUESTION_MARKER.strip())
        start = _START.match(rest)
        position = start.end() if start else 0
        hops = []
        while start and (hop := _HOP.match(rest, position)):
            hops.append(hop)
            position = hop.end()
        if not hops or position < len(rest):
            raise ValueError(
                f"{text[:80]!r} is not a question about a chain, which is an entity, then relations with names."
            )
        return cls(int(start[1]), tuple(int(hop[2]) for hop in hops), tuple(int(hop[1]) for hop in hops))

    def hops(self, facts: Facts) -> list[NamedFact]:
        """The facts that answer the question, in order. Raises KeyError if the world lacks one of them."""
        hops, reached = [], self.start
        for relation, name in zip(self.relations, self.names):
            fact = Fact(reached, relation, facts[reached, relation])
            hops.append(NamedFact(fact, name))
            reached = fact.tail
        return hops


def read_chain(text: str) -> tuple[int, list[int]]:
    """The start and the relations of a chain, `<e_3><r_1><r_0>`. Raises ValueError for anything else."""
    match = _CHAIN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:80]!r} is not a chain, which is an entity and relations without blanks between.")
    return int(match[1]), [int(relation) for relation in re.findall(r"\d+", match[2])]


def name_token(index: int) -> str:
    return f"<x_{index}>"


def step_text(said: NamedFact) -> str:
    """`<e_3> <x_5> <r_1> <e_7>`."""
    (head, relation, tail), name = said
    return f"{entity_token(head)} {_hop_text(name, relation)} {entity_token(tail)}"


def read_step(text: str) -> NamedFact | None:
    """What a memory or reason step says; None if the text does not state exactly one fact under one name."""
    match = _STEP.fullmatch(text.strip())
    if match is None:
        return None
    head, name, relation, tail = map(int, match.groups())
    return NamedFact(Fact(head, relation, tail), name)


def compose(memory: Sequence[NamedFact], reason: Sequence[NamedFact], answer: int) -> list[Step]:
    """A solution: memory steps, reason steps, the answer."""
    steps = [Step("memory", step_text(said)) for said in memory] + [Step("reason", step_text(said)) for said in reason]
    return [*steps, answer_step(entity_token(answer))]


def write_solution(
    facts: Facts,
    question: WrittenQuestion,
    num_distractors: int,
    generator: np.random.Generator,
    *,
    num_names: int,
    disorder: float | None = None,
) -> list[Step]:
    """
    A correct solution of a question.

    Args:
        facts: of the world.
        num_distractors: facts among the memory steps that no hop needs.
        generator: draws the distractors and the order of the memory steps.
        num_names: names of the world; distractors get names that the question does not give.
        disorder: by how many places a needed fact may come late among the needed ones; None: any order. Distractors
            stand anywhere.

    Raises:
        ValueError: the world has too few facts or names for `num_distractors`.
    """
    hops = question.hops(facts)
    memory = [*hops, *_distractors(facts, question, hops, num_distractors, generator, num_names)]
    places = generator.random(len(memory))
    if disorder is not None:
        places[: len(hops)] = np.arange(len(hops)) + disorder * places[: len(hops)]
        places[len(hops) :] *= len(hops) - 1 + disorder
    return compose([memory[index] for index in np.argsort(places)], hops, hops[-1].fact.tail)


def draw_question(
    start: int, relations: Sequence[int], generator: np.random.Generator, *, num_names: int
) -> WrittenQuestion:
    """
    A question about a chain, with a random first name.

    Raises:
        ValueError: the chain has more hops than there are names.
    """
    if len(relations) > num_names:
        raise ValueError(f"num_names={num_names} is too small for {len(relations)} hops: each needs a name.")
    first = int(generator.integers(num_names))
    names = tuple((first + hop) % num_names for hop in range(len(relations)))
    return WrittenQuestion(int(start), tuple(int(relation) for relation in relations), names)


def build_written_tokenizer(num_entities: int, num_relations: int, num_names: int) -> PreTrainedTokenizerFast:
    """
    The word-level tokenizer of written questions and solutions, extended by the tokens of `SCHEME`.

    Its first words are those of the chains (`build_vocabulary`). Decoding puts a space between words, which parsing
    needs. The end token is `</a>`.
    """
    words = build_vocabulary(num_entities, num_relations) + [name_token(index) for index in range(num_names)]
    tokenizer = build_tokenizer(words)
    tokenizer.add_tokens([QUESTION_MARKER.strip(), ANSWER_MARKER])
    tokenizer.eos_token = END_OF_ANSWER
    # Joins words with spaces; no word here begins with its prefix.
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    extend_tokenizer(tokenizer, SCHEME)
    return tokenizer


def _hop_text(name, relation):
    return f"{name_token(name)} {relation_token(relation)}"


def _distractors(facts, question, hops, num_distractors, generator, num_names):
    if not num_distractors:
        return []
    needed = {(said.fact.head, said.fact.relation) for said in hops}
    others = [key for key in sorted(facts) if key not in needed]
    names = [name for name in range(num_names) if name not in question.names]
    if num_distractors > min(len(others), len(names)):
        raise ValueError(
            f"num_distractors={num_distractors} is too many: the world has {len(others)} facts and {len(names)} names "
            "that the question does not use."
        )
    keys = generator.choice(len(others), num_distractors, replace=False)
    chosen = generator.choice(names, num_distractors, replace=False)
    return [NamedFact(Fact(*others[key], facts[others[key]]), int(name)) for key, name in zip(keys, chosen)]
