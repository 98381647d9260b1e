"""Questions, solutions, labels and the table, against a walk through the world by hand."""

import re

import numpy as np
import pytest
import torch

from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.experiments.given_facts.evaluation import draw_lie
from memreason_hf.experiments.given_facts.lookup import TableLookup
from memreason_hf.experiments.given_facts.training import learned_world
from memreason_hf.experiments.given_facts.world import (
    draw_questions,
    encode,
    encode_rows,
    facts_prompt,
    make_tokenizer,
    steps_prompt,
    write_steps,
)


TOKENIZER = make_tokenizer()


def numbers(letter, text):
    return [int(number) for number in re.findall(rf"<{letter}_(\d+)>", text)]


@pytest.fixture
def generator():
    return np.random.default_rng()


def test_a_solution_walks_through_its_own_world(generator):
    for given in draw_questions(range(1, 13), 48, generator):
        *relations, done = numbers("r", steps_prompt(given))
        (reached,) = numbers("e", steps_prompt(given))
        assert done == 4
        *steps, answer = write_steps(given)
        assert [step.kind for step in steps] == ["memory", "reason"] * len(relations)
        for index, relation in enumerate(relations):
            head, tail = numbers("e", steps[2 * index].text)
            assert (head, numbers("r", steps[2 * index].text)) == (reached, [relation])
            assert tail == given.world[relation, head]
            assert numbers("e", steps[2 * index + 1].text) == [tail]
            assert numbers("r", steps[2 * index + 1].text) == [[*relations, done][index + 1]]
            reached = tail
        assert numbers("e", answer.text) == [reached] == [given.answer]


def test_only_what_the_table_writes_has_no_label(generator):
    fresh = draw_questions([3], 5, generator)
    learned = draw_questions([3], 5, generator, learned_world(0))
    for given, row in zip(fresh + learned, encode_rows(fresh + learned, TOKENIZER, writes_steps=True)):
        ids, labels = row["input_ids"], row["label_ids"]
        start = len(encode(TOKENIZER, steps_prompt(given)))
        unlabelled = [place + 1 for place in range(start - 1, len(ids) - 1) if labels[place] == IGNORED_LABEL]
        assert all(labels[place] in (ids[place + 1], IGNORED_LABEL) for place in range(start - 1, len(ids) - 1))
        assert set(labels[: start - 1]) == {IGNORED_LABEL}
        # A memory step has five tokens and a reason step four.
        tails = [start + 9 * hop + 4 for hop in range(3)]
        assert unlabelled == (tails if given.is_fresh else [])
        assert TOKENIZER.convert_ids_to_tokens([ids[place] for place in tails]) == [
            f"<e_{hop.fact.tail}>" for hop in given.hops
        ]


def test_prompts_of_models_without_steps_hold_the_facts(generator):
    given = draw_questions([6], 1, generator)[0]
    (row,) = encode_rows([given], TOKENIZER, writes_steps=False, generator=generator)
    text = TOKENIZER.decode(row["input_ids"])
    facts = re.findall(r"<e_(\d+)> <r_(\d)> <e_(\d+)>", text)
    stated = {(int(head), int(relation)): int(tail) for head, relation, tail in facts}
    assert {(hop.fact.head, hop.fact.relation) for hop in given.hops} < set(stated)
    assert all(given.world[relation, head] == tail for (head, relation), tail in stated.items())
    labels = [label for label in row["label_ids"] if label != IGNORED_LABEL]
    assert TOKENIZER.convert_ids_to_tokens(labels) == [f"<e_{hop.fact.tail}>" for hop in given.hops]
    # The last label stands where the evaluation reads the answer.
    answer_place = encode(TOKENIZER, facts_prompt(given, generator))
    assert len(answer_place) == len(row["input_ids"]) and row["label_ids"][-3] == labels[-1]


def test_the_table_writes_the_fact_of_a_memory_step_and_nothing_else(generator):
    given, other = draw_questions([4], 2, generator)
    (row,) = encode_rows([given], TOKENIZER, writes_steps=True)
    ids = torch.tensor([row["input_ids"]] * 4)
    hop, false = draw_lie(given, generator)
    assert false != given.hops[hop].fact.tail
    tables = [given.world, other.world, None, given.world]
    lookup = TableLookup(TOKENIZER, tables, [None, None, (hop, false), (hop, false)])
    start = len(encode(TOKENIZER, steps_prompt(given)))
    tails = {start + 9 * index + 4: fact.fact for index, fact in enumerate(given.hops)}
    scores = torch.randn(4, len(TOKENIZER))
    for place in range(4, ids.shape[1]):
        after = lookup(ids[:, :place], scores)
        if place not in tails:
            assert after.equal(scores)
            continue
        fact = tails[place]
        is_false = place == start + 9 * hop + 4
        wanted = [fact.tail, int(other.world[fact.relation, fact.head]), *[false if is_false else None] * 2]
        wanted[3] = false if is_false else fact.tail
        for line, entity in enumerate(wanted):
            if entity is None:
                assert after[line].equal(scores[line])
            else:
                assert TOKENIZER.convert_ids_to_tokens([int(after[line].argmax())]) == [f"<e_{entity}>"]
                assert after[line].isfinite().sum() == 1


def test_a_lie_always_leads_to_another_answer(generator):
    for given in draw_questions(range(1, 13), 120, generator):
        hop, false = draw_lie(given, generator)
        reached = false
        for relation in given.question.relations[hop + 1 :]:
            reached = int(given.world[relation, reached])
        assert given.answer_after(hop, false) == reached != given.answer


def test_there_is_a_lie_for_each_table():
    with pytest.raises(ValueError, match="There are 1 lies for 2 tables"):
        TableLookup(TOKENIZER, [None, None], [None])
