"""
Rows of the written-out world over the chains of a multi-hop data set: solutions to train on, questions to solve.

    world = WrittenWorld.open("runs/testbed/data", config, WrittenRows(num_rows=30_000, seed=0))
    train = encode_written(world.facts, world.chains["train"], world.tokenizer(), world.rows)
    test = written_questions(world.facts, world.test_chains(), WrittenRows(seed=1))
"""

import string
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, concatenate_datasets
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerBase

from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.encoding import ENCODED_SCHEMA, encode_chains
from memreason_hf.data.chains.multi_hop import load_multi_hop, select_chains
from memreason_hf.data.chains.tokenizer import entity_token
from memreason_hf.data.chains.world import build_world, world_facts
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.data.questions.options import options_column
from memreason_hf.evaluation.known_truth.world import (
    SCHEME,
    Facts,
    WrittenQuestion,
    build_written_tokenizer,
    draw_question,
    read_chain,
    read_step,
    write_solution,
)
from memreason_hf.steps import Step


@dataclass(frozen=True)
class WrittenRows:
    """
    How solutions are written.

    Attributes:
        num_rows: number of solutions, shared evenly among the hop counts. Where chains are few they are used several
            times, each time with other names, distractors and order.
        num_names: names of the world; at least as many as the hops and distractors of a solution together.
        max_distractors: the maximum number of distractors of a solution; their number is drawn for each.
        disorder: by how many places a needed fact may come late among the memory steps; None: any order.
        seed: of names, distractors and order.

    Raises:
        ValueError: a number is out of range.
    """

    num_rows: int = 30_000
    num_names: int = 16
    max_distractors: int = 2
    disorder: float | None = None
    seed: int = 0

    def __post_init__(self):
        if self.disorder is not None and self.disorder < 0:
            raise ValueError(f"disorder={self.disorder} must be at least 0, or None.")
        for name, least in (("num_rows", 1), ("num_names", 1), ("max_distractors", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")

    def references(self, seed: int, num_rows: int = 1) -> "WrittenRows":
        """Correct solutions of test chains: in any order, with few distractors, so that 12 hops have enough names."""
        return replace(self, seed=seed, num_rows=num_rows, max_distractors=2, disorder=None)


@dataclass(frozen=True)
class WrittenWorld:
    """
    What the models of the test bed share.

    Attributes:
        facts: of the world.
        chains: the multi-hop data set over them.
        rows: how its chains are written out for training.
        config: what the data set was built with.
    """

    facts: Facts
    chains: DatasetDict
    rows: WrittenRows
    config: MultiHopConfig

    @classmethod
    def open(cls, data: Path | DatasetDict, config: MultiHopConfig, rows: WrittenRows) -> "WrittenWorld":
        """The world of a data set, or of its folder, that was built with `config`."""
        chains = data if isinstance(data, DatasetDict) else load_multi_hop(data)
        return cls(world_facts(build_world(config)), chains, rows, config)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of all models; those that answer at once use a part of its words."""
        return build_written_tokenizer(self.config.num_entities, self.config.num_relations, self.rows.num_names)

    def training_rows(self, tokenizer: PreTrainedTokenizerBase, writes_steps: bool) -> Dataset:
        """Encoded training chains with a label after every relation, or written solutions of the same chains."""
        train = self.chains["train"]
        if writes_steps:
            return encode_written(self.facts, train, tokenizer, self.rows)
        return encode_chains(train, tokenizer)

    def test_chains(self) -> Dataset:
        """The test chains; those of 1 hop are the facts themselves, all of which are in training."""
        test = self.chains["test"]
        return concatenate_datasets([select_chains(test, kind="atomic"), select_chains(test, kind="test")])


def encode_written(
    facts: Facts, chains: Dataset, tokenizer: PreTrainedTokenizerBase, settings: WrittenRows
) -> Dataset:
    """
    Written solutions as token ids, with the columns of `encode_chains`.

    The label at a position is the next token, and -100 within the question. Which distractors a solution recalls is
    chance, so their mark, head, name and relation have no label. The entity that the relation leads to is knowledge
    and has one.

    Args:
        facts: of the world.
        chains: a split of a multi-hop data set, with the columns `input_text` and `hops`.
        tokenizer: from `build_written_tokenizer`.
        settings: how many solutions there are, and how they are written.

    Raises:
        ValueError: there are no chains, or a solution has more hops and distractors than there are names.
    """
    written = write_solutions(facts, chains, settings)
    texts = [
        SCHEME.question_text(question.text) + SCHEME.render(steps) + tokenizer.eos_token for question, steps in written
    ]
    input_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    labels = [_labels(ids, question, steps) for ids, (question, steps) in zip(input_ids, written)]
    hops = [len(question.relations) for question, _ in written]
    columns = {"input_ids": input_ids, "label_ids": labels, "hops": hops, "type": ["written"] * len(hops)}
    return Dataset(InMemoryTable(pa.table(columns, schema=ENCODED_SCHEMA)))


def write_solutions(facts: Facts, chains: Dataset, settings: WrittenRows) -> list[tuple[WrittenQuestion, list[Step]]]:
    """Questions over chains drawn with replacement, equally many of every hop count, with correct solutions."""
    if not len(chains):
        raise ValueError("There are no chains to write questions over.")
    generator = np.random.default_rng([settings.seed, 0])
    groups: dict[int, list[tuple[int, list[int]]]] = {}
    for text in chains["input_text"]:
        start, relations = read_chain(text)
        groups.setdefault(len(relations), []).append((start, relations))
    written = []
    for row in range(settings.num_rows):
        group = groups[sorted(groups)[row % len(groups)]]
        start, relations = group[int(generator.integers(len(group)))]
        written.append(_write(facts, start, relations, settings, generator))
    return written


def written_questions(facts: Facts, chains: Dataset, settings: WrittenRows) -> list[dict]:
    """
    One question over every chain, in order.

    Returns:
        Rows for `generate_solutions`: `question`, `options` (a letter for every entity) and `answer` (a letter). Their
        further keys are `steps`, a correct solution, and `hops`.

    Raises:
        ValueError: there are more entities than letters.
    """
    num_entities = 1 + max(head for head, _ in facts)
    if num_entities > len(string.ascii_uppercase):
        raise ValueError(f"num_entities={num_entities} must be at most 26: the options are letters.")
    letters = dict(enumerate(string.ascii_uppercase[:num_entities]))
    options = options_column({letter: entity_token(entity) for entity, letter in letters.items()})
    rows = []
    for index, text in enumerate(chains["input_text"]):
        generator = np.random.default_rng([settings.seed, 1, index])
        question, steps = _write(facts, *read_chain(text), settings, generator)
        rows.append(
            {
                "question": question.text,
                "options": options,
                "answer": letters[question.hops(facts)[-1].fact.tail],
                "steps": steps,
                "hops": len(question.relations),
            }
        )
    return rows


def _labels(ids, question, steps):
    # The marker and the start, then a name and a relation for each hop; a step is its mark and four words.
    start = 2 + 2 * len(question.relations)
    labels = [IGNORED_LABEL] * (start - 1) + ids[start:] + [IGNORED_LABEL]
    for index, step in enumerate(steps):
        if step.kind == "memory" and read_step(step.text).name not in question.names:
            mark = start + 5 * index
            # The label of a token stands one position before it.
            labels[mark - 1 : mark + 3] = [IGNORED_LABEL] * 4
    return labels


def _write(facts, start, relations, settings, generator):
    question = draw_question(start, relations, generator, num_names=settings.num_names)
    num_distractors = int(generator.integers(settings.max_distractors + 1))
    steps = write_solution(
        facts, question, num_distractors, generator, num_names=settings.num_names, disorder=settings.disorder
    )
    return question, steps
