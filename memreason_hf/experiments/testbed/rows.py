"""
Rows of the written-out world over the chains of a multi-hop data set: encoded ones to train on, questions to solve.

    data = load_multi_hop("runs/testbed/data")
    train = encode_written(facts, data["train"], tokenizer, WrittenRows(num_rows=30_000, seed=0))
    test = written_questions(facts, data["test"], WrittenRows(seed=1))
"""

import string
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerBase

from memreason_hf.data.chains.encoding import ENCODED_SCHEMA
from memreason_hf.data.chains.tokenizer import entity_token
from memreason_hf.data.padding import IGNORED_LABEL
from memreason_hf.data.questions.options import options_column
from memreason_hf.experiments.testbed.world import (
    SCHEME,
    Facts,
    WrittenQuestion,
    draw_question,
    read_chain,
    read_step,
    write_solution,
)
from memreason_hf.steps import Step


@dataclass(frozen=True)
class WrittenRows:
    """
    Sizes of a set of written solutions.

    Attributes:
        num_rows: solutions, as many of every hop count; chains that are few come again, written anew.
        num_names: names that there are; at least as many as hops and distractors together.
        max_distractors: the most facts that are recalled without need; how many is drawn for each solution.
        disorder: how many places a needed fact may come late among the memory steps; None: any order.
        seed: decides names, distractors and order.

    Raises:
        ValueError: a number out of range.
    """

    num_rows: int = 30_000
    num_names: int = 16
    max_distractors: int = 2
    disorder: float | None = None
    seed: int = 0

    def __post_init__(self):
        if self.disorder is not None and self.disorder < 0:
            raise ValueError(f"disorder={self.disorder} must be at least 0, or not given.")
        for name, least in (("num_rows", 1), ("num_names", 1), ("max_distractors", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")


def encode_written(
    facts: Facts, chains: Dataset, tokenizer: PreTrainedTokenizerBase, settings: WrittenRows
) -> Dataset:
    """
    Written solutions as token ids, with the columns of `encode_chains`: the label at a position is the token that
    comes next, -100 within the question. That a fact is recalled without need, and which, is chance: its mark, head,
    name and relation have no labels; where the relation leads is knowledge, and has.

    Args:
        facts: those of the world.
        chains: a split of a multi-hop data set, with `input_text` and `hops`.
        tokenizer: `build_written_tokenizer`'s.
        settings: how many, and how they are written.

    Raises:
        ValueError: no chains, or more hops and distractors than names.
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
    """Questions over chains that are drawn with repeats, as many of every hop count, with right solutions."""
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
    One question over every chain, in order, as rows that `generate_solutions` takes: `question`, `options` (letters
    for the entities), `answer` (a letter), and beside them `steps` (a right solution) and `hops`.

    Raises:
        ValueError: more entities than letters.
    """
    num_entities = 1 + max(head for head, _ in facts)
    if num_entities > len(string.ascii_uppercase):
        raise ValueError(f"num_entities={num_entities}: options have letters, of which there are 26.")
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
            # A label stands before its token: those of the mark, the head, the name and the relation.
            labels[mark - 1 : mark + 3] = [IGNORED_LABEL] * 4
    return labels


def _write(facts, start, relations, settings, generator):
    question = draw_question(start, relations, generator, num_names=settings.num_names)
    num_distractors = int(generator.integers(settings.max_distractors + 1))
    steps = write_solution(
        facts, question, num_distractors, generator, num_names=settings.num_names, disorder=settings.disorder
    )
    return question, steps
