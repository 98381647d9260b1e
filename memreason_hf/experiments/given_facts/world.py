"""
Worlds of one question each, their questions, and rows to train on.

    tokenizer = make_tokenizer()
    questions = draw_questions(range(1, 7), 10_000, np.random.default_rng(0))
    rows = encode_rows(questions, tokenizer, writes_steps=True)

A world gives every entity one successor by each relation, and no two entities the same one. A question is a chain
through its world: an entity, then a relation and a name for each hop, and one more name, before which `<r_4>` stands
for "answer". A memory step states the fact of a hop. The reason step after it states the entity reached, the next
name, and what the question says before that name:

    <e_3> <r_1> <x_5> <r_0> <x_6> <r_4> <x_7>
    <memory> <e_3> <x_5> <r_1> <e_7>
    <reason> <e_7> <x_6> <r_0>
    <memory> <e_7> <x_6> <r_0> <e_9>
    <reason> <e_9> <x_7> <r_4>
    <answer> The answer is: <e_9>

Where the world is fresh, a table writes the last entity of a memory step (`lookup.TableLookup`), which then has no
label in training. Where the world is the learned one, the model writes it. A model without steps finds the facts of a
fresh world in its prompt, in any order, among others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerFast

from memreason_hf.data.chains.encoding import ENCODED_SCHEMA
from memreason_hf.data.chains.tokenizer import entity_token, relation_token
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.evaluation.known_truth.world import (
    SCHEME,
    Fact,
    NamedFact,
    WrittenQuestion,
    build_written_tokenizer,
    draw_question,
    name_token,
    step_text,
)
from memreason_hf.steps import Step, answer_step


NUM_ENTITIES, NUM_RELATIONS, NUM_NAMES = 20, 4, 16
# Not a relation of the world: it stands before the name at which the answer is due.
ANSWER_NOW = NUM_RELATIONS
# Facts in the prompt of a model without steps that its chain does not need.
NUM_DISTRACTORS = 2


@dataclass(frozen=True)
class GivenQuestion:
    """
    A question about a world.

    Attributes:
        question: the chain.
        world: the entity that each relation leads to, of shape `(relations, entities)`.
        is_fresh: whether the world is this question's own. Otherwise it is the learned one.
    """

    question: WrittenQuestion
    world: np.ndarray
    is_fresh: bool = True

    @property
    def hops(self) -> list[NamedFact]:
        """The facts of the chain, in order."""
        return self.continued(0, self.question.start)

    def continued(self, hop: int, reached: int) -> list[NamedFact]:
        """The facts from a hop on, if `reached` is the entity that it starts from."""
        facts = []
        for name, relation in zip(self.question.names[hop:], self.question.relations[hop:]):
            facts.append(NamedFact(Fact(reached, relation, int(self.world[relation, reached])), name))
            reached = facts[-1].fact.tail
        return facts

    @property
    def answer(self) -> int:
        """The entity that the last hop reaches."""
        return self.hops[-1].fact.tail

    def answer_after(self, hop: int, false_tail: int) -> int:
        """The answer that follows if the memory step of a hop (from 0 on) names another entity."""
        rest = self.continued(hop + 1, false_tail)
        return rest[-1].fact.tail if rest else false_tail


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of all models."""
    return build_written_tokenizer(NUM_ENTITIES, NUM_RELATIONS + 1, NUM_NAMES)


def draw_world(generator: np.random.Generator) -> np.ndarray:
    """A permutation of the entities for each relation, of shape `(relations, entities)`."""
    return np.stack([generator.permutation(NUM_ENTITIES) for _ in range(NUM_RELATIONS)])


def draw_questions(
    hop_counts: Iterable[int],
    num_questions: int,
    generator: np.random.Generator,
    learned_world: np.ndarray | None = None,
) -> list[GivenQuestion]:
    """
    Questions with random starts and relations, equally many of every hop count.

    Args:
        hop_counts: at most 15 hops, because every hop and the answer have a name.
        num_questions: in all hop counts together.
        generator: draws them, and their worlds.
        learned_world: the world of all questions. `None`: each has its own.
    """
    hop_counts = list(hop_counts)
    questions = []
    for index in range(num_questions):
        relations = generator.integers(NUM_RELATIONS, size=hop_counts[index % len(hop_counts)])
        question = draw_question(int(generator.integers(NUM_ENTITIES)), relations, generator, num_names=NUM_NAMES)
        world = draw_world(generator) if learned_world is None else learned_world
        questions.append(GivenQuestion(question, world, learned_world is None))
    return questions


def write_steps(given: GivenQuestion) -> list[Step]:
    """The correct solution of a question."""
    steps = []
    slots = _slots(given)
    for hop, (relation, name) in zip(given.hops, slots[1:]):
        steps.append(Step("memory", step_text(hop)))
        words = (entity_token(hop.fact.tail), name_token(name), relation_token(relation))
        steps.append(Step("reason", " ".join(words)))
    return [*steps, answer_step(entity_token(given.answer))]


def question_text(given: GivenQuestion) -> str:
    """`<e_3> <r_1> <x_5> <r_4> <x_6>`: one hop, whose relation is 1."""
    words = [entity_token(given.question.start)]
    for relation, name in _slots(given):
        words += [relation_token(relation), name_token(name)]
    return " ".join(words)


def steps_prompt(given: GivenQuestion) -> str:
    """The question alone: its facts are learned, or come from the table."""
    return SCHEME.prompt(question_text(given))


def facts_prompt(given: GivenQuestion, generator: np.random.Generator) -> str:
    """The facts of the chain, and some that it does not need, in any order; then the question."""
    facts = {(hop.fact.head, hop.fact.relation) for hop in given.hops}
    others = [(e, r) for e in range(NUM_ENTITIES) for r in range(NUM_RELATIONS) if (e, r) not in facts]
    chosen = [others[index] for index in generator.choice(len(others), NUM_DISTRACTORS, replace=False)]
    listed = [*sorted(facts), *chosen]
    texts = []
    for index in generator.permutation(len(listed)):
        head, relation = listed[index]
        words = (entity_token(head), relation_token(relation), entity_token(int(given.world[relation, head])))
        texts.append(" ".join(words))
    return SCHEME.question_text(" ".join([*texts, question_text(given)]))


def encode_rows(
    questions: Sequence[GivenQuestion],
    tokenizer: PreTrainedTokenizerFast,
    *,
    writes_steps: bool,
    generator: np.random.Generator | None = None,
) -> Dataset:
    """
    Rows to train on, with the columns of `encode_chains`.

    With steps the label at a position is the next token; the question has none, and neither has an entity that a table
    writes. Without steps the labels are the entities reached, at the names of the question.

    Args:
        generator: draws the order of the facts in prompts of models without steps, which need it.
    """
    if writes_steps:
        encoded = [_encode_steps(given, tokenizer) for given in questions]
    else:
        encoded = [_encode_answers(given, tokenizer, generator) for given in questions]
    columns = {
        "input_ids": [ids for ids, _ in encoded],
        "label_ids": [labels for _, labels in encoded],
        "hops": [len(given.question.relations) for given in questions],
        "type": ["fresh" if given.is_fresh else "learned" for given in questions],
    }
    return Dataset(InMemoryTable(pa.table(columns, schema=ENCODED_SCHEMA)))


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _slots(given):
    """The relation and the name of each hop, then those of the answer."""
    names = given.question.names
    after = (names[-1] + 1) % NUM_NAMES
    return list(zip((*given.question.relations, ANSWER_NOW), (*names, after)))


def _encode_steps(given, tokenizer):
    prompt = encode(tokenizer, steps_prompt(given))
    steps = write_steps(given)
    ids, labels = list(prompt), [IGNORED_LABEL] * len(prompt)
    for step in steps:
        words = encode(tokenizer, SCHEME.render([step]))
        ids += words
        is_looked_up = step.kind == "memory" and given.is_fresh
        labels += [*words[:-1], IGNORED_LABEL] if is_looked_up else words
    ids.append(tokenizer.eos_token_id)
    # The label of a token stands one position before it.
    return ids, [*labels[1:], tokenizer.eos_token_id, IGNORED_LABEL]


def _encode_answers(given, tokenizer, generator):
    ids = encode(tokenizer, facts_prompt(given, generator))
    labels = [IGNORED_LABEL] * len(ids)
    tails = [entity_token(hop.fact.tail) for hop in given.hops]
    # The chain ends the prompt: a relation and a name for each hop, then those of the answer.
    labels[len(ids) - 2 * len(tails) - 1 : -2 : 2] = tokenizer.convert_tokens_to_ids(tails)
    return ids, labels
