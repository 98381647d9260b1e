"""The artificial world: its English is read again, and every solution follows from the facts, without the package."""

import re

import pytest

from memreason_hf.data.questions.memory_reason import load_memory_reason, save_memory_reason
from memreason_hf.experiments.scheme_comparison.world import PEOPLE, RELATIONS, WorldQuestions, build_world_questions


SIZES = WorldQuestions(num_train=400, num_test=60, seed=3)


@pytest.fixture(scope="module")
def data():
    return build_world_questions(SIZES)


def rows(data):
    return [row for split in data.dataset.values() for row in split]


def read_facts(rows):
    """What the memory steps of some rows state, each fact under what it is about."""
    facts = {}
    for row in rows:
        for step in row["steps"]:
            if step["kind"] != "memory":
                continue
            found = re.fullmatch(r"The (\w+) of (\w+) is (\w+)\.", step["text"])
            about, value = (found[1], found[2]) if found else None, found and found[3]
            if not found:
                found = re.fullmatch(r"(\w+) has (\d+) coins\.", step["text"])
                about, value = ("coins", found[1]), int(found[2])
            assert facts.setdefault(about, value) == value, "one truth for all questions"
    return facts


def follow(facts, text):
    """The person that a description means, and the memory facts on the way."""
    *relations, person = text.split(" of ")
    used = []
    for relation in reversed(relations):
        relation = relation.removeprefix("the ")
        used.append(((relation, person), facts[relation, person]))
        person = facts[relation, person]
    return person, [*used, (("coins", person), facts["coins", person])]


def expected(facts, question):
    """The answer, and the texts of the steps in order."""
    found = re.fullmatch(r"(How many|By how many) coins do (.+) and (.+) (have together|differ)\?", question)
    first, one, other, last = found.groups()
    assert (first, last) in (("How many", "have together"), ("By how many", "differ"))
    texts, numbers = [], []
    for description in (one, other):
        person, used = follow(facts, description)
        texts += [("memory", f"The {about[0]} of {about[1]} is {value}.") for about, value in used[:-1]]
        if description.count(" of ") > 1:
            texts.append(("reason", f"So {description} is {person}."))
        texts.append(("memory", f"{person} has {used[-1][1]} coins."))
        numbers.append(used[-1][1])
    a, b = numbers
    answer = a + b if last == "have together" else abs(a - b)
    reason = f"{a} and {b} {'are' if last == 'have together' else 'differ by'} {answer}."
    return str(answer), [*texts, ("reason", reason)]


def test_every_solution_follows_from_the_facts(data):
    facts = read_facts(rows(data))
    people = {person for name, person in facts if name == "coins"}
    assert people == set(PEOPLE) and len(facts) == len(PEOPLE) * (1 + len(RELATIONS)), "all facts are in training"
    assert read_facts(list(data.dataset["train"])) == facts
    for row in rows(data):
        answer, steps = expected(facts, row["question"])
        assert row["answer"] == answer and [(step["kind"], step["text"]) for step in row["steps"]] == steps
    # Every relation is a permutation.
    for relation in RELATIONS:
        assert len({facts[relation, person] for person in PEOPLE}) == len(PEOPLE)


def test_control_a_false_fact_shows(data):
    changed = [dict(row) for row in rows(data)]
    step = next(step for step in changed[7]["steps"] if step["text"].endswith("coins."))
    number = re.search(r"\d+", step["text"])[0]
    step["text"] = step["text"].replace(number, str(int(number) % 9 + 1))
    with pytest.raises(AssertionError, match="one truth"):
        read_facts(changed)


def test_questions_differ_and_solutions_have_both_kinds(data):
    questions = [row["question"] for row in rows(data)]
    assert len(set(questions)) == len(questions) == 460
    for row in rows(data):
        kinds = [step["kind"] for step in row["steps"]]
        assert kinds.count("memory") >= 2 and kinds[-1] == "reason"
    # Some chains are resolved in the middle, so that memory first is another order.
    assert sum("reason" in [s["kind"] for s in row["steps"][:-1]] for row in rows(data)) > 50
    assert 10 < len({row["answer"] for row in rows(data)}) <= 19


def test_the_seed_decides(data):
    again = build_world_questions(SIZES)
    assert rows(again) == rows(data)
    other = build_world_questions(WorldQuestions(num_train=400, num_test=60, seed=4))
    assert read_facts(rows(other)) != read_facts(rows(data))


def test_it_is_saved_as_any_other_data_set(data, tmp_path):
    save_memory_reason(data, tmp_path / "data")
    loaded = load_memory_reason(tmp_path / "data")
    assert loaded["test"].to_list() == data.dataset["test"].to_list()
    assert "train: 400 of 400 items" in data.report.describe()


@pytest.mark.parametrize("sizes", [{"num_train": 0}, {"num_test": 10**6}, {"seed": -1}])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="must be at"):
        WorldQuestions(**sizes)
