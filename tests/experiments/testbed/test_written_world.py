import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from memreason_hf.data.chains.multi_hop import MultiHopConfig, build_multi_hop
from memreason_hf.data.chains.world import build_world, world_facts
from memreason_hf.evaluation.known_truth.variants import RIGHT, WRONG
from memreason_hf.evaluation.known_truth.world import (
    SCHEME,
    Fact,
    NamedFact,
    WrittenQuestion,
    build_written_tokenizer,
    draw_question,
    read_chain,
    read_step,
    step_text,
    write_solution,
)
from memreason_hf.experiments.testbed.rows import (
    WrittenRows,
    WrittenWorld,
    encode_written,
    write_solutions,
    written_questions,
)
from memreason_hf.steps import Step, answer_step
from memreason_hf.steps.tokenization import decode_solution, encode_prompt, encode_solution, read_scheme


NUM_NAMES = 16
CONFIG = MultiHopConfig(
    num_entities=7,
    num_relations=3,
    train_hops="2-4",
    test_hops="1-6",
    num_train_chains=40,
    num_test_chains=8,
    cap_to_available=True,
)


@pytest.fixture(scope="module")
def data():
    return build_multi_hop(CONFIG).dataset


@pytest.fixture(scope="module")
def facts():
    return world_facts(build_world(CONFIG))


def draw(facts, seed, max_hops=12):
    generator = np.random.default_rng(seed)
    relations = generator.integers(3, size=int(generator.integers(1, max_hops + 1)))
    question = draw_question(generator.integers(7), relations, generator, num_names=NUM_NAMES)
    return question, generator


def test_the_facts_are_the_worlds(data, facts):
    train = data["train"]
    chains = [row for row in train if row["hops"] == 1]
    assert len(facts) == len(chains) == 21
    for row in chains:
        start, (relation,) = read_chain(row["input_text"])
        assert row["entities"] == [f"<e_{facts[start, relation]}>"]


def test_a_question_is_read_back_and_walked(facts):
    for seed in range(30):
        question, _ = draw(facts, seed)
        assert WrittenQuestion.parse(question.text) == question
        assert WrittenQuestion.parse(f" Question: {question.text}\n") == question
        reached = question.start
        for hop, relation, name in zip(question.hops(facts), question.relations, question.names):
            assert hop == ((reached, relation, facts[reached, relation]), name)
            reached = hop.fact.tail
        assert all((b - a) % NUM_NAMES == 1 for a, b in zip(question.names, question.names[1:]))


def test_what_is_no_question_or_step_is_refused():
    for text in ("", "<e_1>", "<x_1> <r_1>", "<e_1> <r_1> <x_1>", "<e_1> <x_1> <r_1> <e_2>", "<e_1> <x_1>"):
        with pytest.raises(ValueError, match="is not a question about a chain"):
            WrittenQuestion.parse(text)
    for fields in ((3, (), ()), (3, (1,), (1, 2)), (3, (1, 2), (4, 4))):
        with pytest.raises(ValueError, match="a name of its own"):
            WrittenQuestion(*fields)
    with pytest.raises(ValueError, match="num_names=16 is too small for 17 hops"):
        draw_question(0, [0] * 17, np.random.default_rng(0), num_names=16)
    for text in (
        "",
        "<e_1> <x_2> <r_0>",
        "<e_1> <r_0> <e_2>",
        "so <e_1> <x_2> <r_0> <e_3>",
        "<e_1> <x_2> <r_0> <e_3>.",
    ):
        assert read_step(text) is None
    said = NamedFact(Fact(1, 0, 3), 2)
    assert step_text(said) == "<e_1> <x_2> <r_0> <e_3>" and read_step(step_text(said)) == said
    with pytest.raises(ValueError, match="is not a chain"):
        read_chain("<e_1>")


def test_a_solution_recalls_what_is_needed_and_some_more(facts):
    for seed in range(40):
        question, generator = draw(facts, seed, max_hops=5)
        num_distractors = seed % 4
        steps = write_solution(facts, question, num_distractors, generator, num_names=NUM_NAMES)
        hops = question.hops(facts)
        kinds = [step.kind for step in steps]
        assert kinds == ["memory"] * (len(hops) + num_distractors) + ["reason"] * len(hops) + ["answer"]
        memory = [read_step(step.text) for step in steps if step.kind == "memory"]
        assert [read_step(step.text) for step in steps if step.kind == "reason"] == hops
        assert all(facts[said.fact[:2]] == said.fact.tail for said in memory)
        others = [said for said in memory if said not in hops]
        assert len(others) == num_distractors and set(hops) <= set(memory)
        assert not {said.name for said in others} & set(question.names)
        assert not {said.fact for said in others} & {said.fact for said in hops}
        assert steps[-1] == answer_step(f"<e_{hops[-1].fact.tail}>")
    # The three facts of a chain occur in every order.
    question, orders = WrittenQuestion(0, (1, 0, 2), (3, 4, 5)), set()
    for seed in range(60):
        steps = write_solution(facts, question, 0, np.random.default_rng(seed), num_names=NUM_NAMES)
        orders.add(tuple(read_step(step.text).name for step in steps[:3]))
    assert orders == set(itertools.permutations((3, 4, 5)))
    with pytest.raises(ValueError, match="num_distractors=16 is too many"):
        write_solution(facts, WrittenQuestion(0, (1,), (3,)), 16, np.random.default_rng(0), num_names=NUM_NAMES)


def test_disorder_is_how_late_a_fact_may_come(facts):
    late = set()
    for seed in range(60):
        question, generator = draw(facts, seed, max_hops=9)
        steps = write_solution(facts, question, seed % 3, generator, num_names=NUM_NAMES, disorder=2.0)
        hops = question.hops(facts)
        order = [hops.index(said) for step in steps if (said := read_step(step.text)) in hops][: len(hops)]
        assert sorted(order) == list(range(len(hops)))
        late |= {hop - min(order[place:]) for place, hop in enumerate(order)}
        straight = write_solution(facts, question, 0, generator, num_names=NUM_NAMES, disorder=0.0)
        assert [read_step(step.text) for step in straight[: len(hops)]] == hops
    assert late == {0, 1}


def test_the_tokenizer_reads_and_writes_solutions(facts, tmp_path):
    tokenizer = build_written_tokenizer(7, 3, NUM_NAMES)
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert read_scheme(loaded) == SCHEME and loaded.eos_token == "</a>"
    for seed in range(10):
        question, generator = draw(facts, seed)
        steps = write_solution(facts, question, 2, generator, num_names=NUM_NAMES)
        ids = encode_solution(tokenizer, steps)
        assert encode_solution(loaded, steps) == ids
        assert len(ids) == 5 * (len(steps) - 1) + 3
        assert SCHEME.parse(decode_solution(loaded, [*ids, loaded.eos_token_id])) == steps
        assert len(encode_prompt(loaded, question.text)) == 2 + 2 * len(question.relations)


def test_encoded_rows_are_the_rendered_texts(data, facts):
    tokenizer = build_written_tokenizer(7, 3, NUM_NAMES)
    settings = WrittenRows(num_rows=50, seed=3)
    rows = encode_written(facts, data["train"], tokenizer, settings)
    written = write_solutions(facts, data["train"], settings)
    assert rows["hops"] == [len(question.relations) for question, _ in written] == [1 + row % 4 for row in range(50)]
    for row, (question, steps) in zip(rows, written):
        prompt = encode_prompt(tokenizer, question.text)
        solution = [*encode_solution(tokenizer, steps), tokenizer.eos_token_id]
        assert row["input_ids"] == prompt + solution
        assert len(row["label_ids"]) == len(row["input_ids"])
        labels = list(row["label_ids"])
        for index, step in enumerate(steps):
            if step.kind == "memory" and read_step(step.text).name not in question.names:
                first = len(prompt) + 5 * index - 1
                assert labels[first : first + 4] == [-100] * 4
                labels[first : first + 4] = row["input_ids"][first + 1 : first + 5]
        assert labels == [-100] * (len(prompt) - 1) + [*solution, -100]
    counts = [len(steps) - 1 - 2 * len(question.relations) for question, steps in written]
    assert set(counts) == {0, 1, 2}
    more = write_solutions(facts, data["train"], WrittenRows(num_rows=50, max_distractors=4, seed=3))
    assert {len(steps) - 1 - 2 * len(question.relations) for question, steps in more} == {0, 1, 2, 3, 4}
    again = encode_written(facts, data["train"], tokenizer, settings)
    assert again["input_ids"] == rows["input_ids"]
    other = encode_written(facts, data["train"], tokenizer, WrittenRows(num_rows=50, seed=4))
    assert other["input_ids"] != rows["input_ids"]
    chains = {tuple(read_chain(text)[1]) for text in data["train"]["input_text"]}
    assert all(question.relations in chains for question, _ in written)


def test_the_world_of_a_data_set(data, facts):
    rows = WrittenRows(num_rows=9, num_names=12, max_distractors=4, disorder=1.5, seed=3)
    world = WrittenWorld.open(data, CONFIG, rows)
    assert world.facts == facts and world.chains is data
    chains = world.test_chains()
    assert set(chains["type"]) == {"atomic_facts", *(f"{hops}hop_test" for hops in range(2, 7))}
    assert chains["hops"] == sorted(chains["hops"])
    tokenizer = world.tokenizer()
    assert {"<x_11>", "<e_6>", "<r_2>"} <= set(tokenizer.get_vocab()) and "<x_12>" not in tokenizer.get_vocab()
    written = world.training_rows(tokenizer, writes_steps=True)
    assert written.to_dict() == encode_written(facts, data["train"], tokenizer, rows).to_dict() and len(written) == 9
    plain = world.training_rows(tokenizer, writes_steps=False)
    assert len(plain) == len(data["train"]) and plain["hops"] == data["train"]["hops"]
    expected = WrittenRows(num_rows=5, num_names=12, max_distractors=2, disorder=None, seed=8)
    assert rows.references(8, 5) == expected and rows.references(8) == replace(expected, num_rows=1)


def test_questions_to_solve(data, facts):
    test = data["test"]
    rows = written_questions(facts, test, WrittenRows(seed=5))
    assert len(rows) == len(test)
    for row, chain in zip(rows, test):
        options = {option["label"]: option["text"] for option in row["options"]}
        assert options[row["answer"]] == chain["entities"][-1] and row["hops"] == chain["hops"]
        assert row["steps"][-1] == answer_step(chain["entities"][-1])
        question = WrittenQuestion.parse(row["question"])
        assert (question.start, list(question.relations)) == read_chain(chain["input_text"])
    with pytest.raises(ValueError, match="There are no chains to write questions over"):
        write_solutions(facts, test.select([]), WrittenRows())
    # A row does not depend on the other rows.
    assert written_questions(facts, test.select(range(3)), WrittenRows(seed=5)) == rows[:3]
    with pytest.raises(ValueError, match="num_entities=27"):
        written_questions({(head, 0): 0 for head in range(27)}, test, WrittenRows())
    for fields in ({"num_rows": 0}, {"num_names": 0}, {"max_distractors": -1}, {"disorder": -0.5}):
        with pytest.raises(ValueError, match="must be at least"):
            WrittenRows(**fields)


def follows(facts, question, steps):
    """By brute force, the first reason step that does not follow from the step before it and the question."""
    reached = question.start
    for relation, step in zip(question.relations, [step for step in steps if step.kind == "reason"]):
        said = read_step(step.text).fact
        if (said.head, said.relation) != (reached, relation):
            return step
        reached = said.tail
    return reached


@pytest.mark.parametrize("name", WRONG)
def test_an_error_is_one_wrong_step_and_what_follows_from_it(facts, name):
    changed_places = set()
    for seed in range(60):
        question, generator = draw(facts, seed, max_hops=6)
        steps = write_solution(facts, question, seed % 3, generator, num_names=NUM_NAMES)
        before = list(steps)
        variant = WRONG[name](facts, question, steps, generator)
        assert steps == before
        assert len(variant.steps) == len(steps) and variant.kind == name.split(",")[0]
        assert variant.steps[variant.index] != steps[variant.index]
        assert variant.steps[variant.index].kind == variant.kind == steps[variant.index].kind
        differing = [i for i, (a, b) in enumerate(zip(variant.steps, steps)) if a != b]
        if "carried on" not in name:
            assert differing == [variant.index]
        else:
            # Only that step is false, and the step that uses its fact; later steps follow from it.
            false = [
                i
                for i, step in enumerate(variant.steps[:-1])
                if facts[read_step(step.text).fact[:2]] != read_step(step.text).fact.tail
            ]
            wrong = read_step(variant.steps[variant.index].text)
            assert {read_step(variant.steps[i].text) for i in false} <= {wrong}
            if "selection" not in name:
                reached = follows(facts, question, variant.steps)
                assert variant.steps[-1] == answer_step(f"<e_{reached}>")
            if variant.kind == "memory":
                assert len(false) == 2
        changed_places.add(variant.index)
    assert len(changed_places) > 3


def test_a_wrong_selection_is_never_the_right_fact():
    """In the smallest world every other fact has another head."""
    facts = {(0, 0): 1, (1, 0): 0}
    question = WrittenQuestion(0, (0,), (3,))
    steps = write_solution(facts, question, 0, np.random.default_rng(0), num_names=NUM_NAMES)
    for seed in range(8):
        variant = WRONG["reason, selection"](facts, question, steps, np.random.default_rng(seed))
        assert read_step(variant.steps[variant.index].text) == NamedFact(Fact(1, 0, 0), 3)


@pytest.mark.parametrize("name", RIGHT)
def test_a_change_that_is_no_error_says_nothing_new_that_is_false(facts, name):
    rng = random.Random(0)
    changed = 0
    for seed in range(40):
        question, generator = draw(facts, seed, max_hops=rng.randint(1, 6))
        steps = write_solution(facts, question, seed % 3, generator, num_names=NUM_NAMES)
        variant = RIGHT[name](facts, question, steps, generator)
        assert variant.kind is variant.index is None and variant.steps[-1] == steps[-1]
        changed += variant.steps != steps
        said = [read_step(step.text) for step in variant.steps[:-1]]
        assert all(facts[fact.fact[:2]] == fact.fact.tail for fact in said)
        hops = question.hops(facts)
        assert all(read_step(step.text) in hops for step in variant.steps if step.kind == "reason")
        if name == "another order":
            assert sorted(map(repr, variant.steps)) == sorted(map(repr, steps))
            for i, step in enumerate(variant.steps):
                if step.kind == "reason":
                    assert Step("memory", step.text) in variant.steps[:i]
    assert changed == 0 if name == "as written" else changed > 20
