import evaluate
import numpy as np
import pytest

from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.world import build_world, world_facts
from memreason_hf.evaluation.known_truth.attribution import WorldJudge, attribute_errors, recalled_facts
from memreason_hf.evaluation.known_truth.variants import WRONG
from memreason_hf.evaluation.known_truth.world import (
    SCHEME,
    WrittenQuestion,
    draw_question,
    read_step,
    write_solution,
)
from memreason_hf.evaluation.solutions.attribution import Attribution, attribute
from memreason_hf.metrics import metric_path
from memreason_hf.steps import Step, answer_step


# e0 -r0-> e1 -r0-> e2 -r0-> e0, and r1 the other way round
FACTS = {(head, relation): (head + (1, 2)[relation]) % 3 for head in range(3) for relation in range(2)}
QUESTION = WrittenQuestion(0, (0, 0, 1), (4, 5, 6))
MEMORY = ["<e_1> <x_5> <r_0> <e_2>", "<e_0> <x_9> <r_1> <e_2>", "<e_2> <x_6> <r_1> <e_1>", "<e_0> <x_4> <r_0> <e_1>"]
REASON = ["<e_0> <x_4> <r_0> <e_1>", "<e_1> <x_5> <r_0> <e_2>", "<e_2> <x_6> <r_1> <e_1>"]
RIGHT_STEPS = [Step("memory", text) for text in MEMORY] + [Step("reason", text) for text in REASON]
RIGHT_STEPS.append(answer_step("<e_1>"))


def worlds(seed):
    """A random world, and correct solutions of questions over it."""
    generator = np.random.default_rng(seed)
    config = MultiHopConfig(
        num_entities=int(generator.integers(3, 25)),
        num_relations=int(generator.integers(2, 6)),
        train_hops="2",
        test_hops="2",
        cap_to_available=True,
        seed=seed,
    )
    facts = world_facts(build_world(config))
    solutions = []
    for _ in range(12):
        relations = generator.integers(config.num_relations, size=int(generator.integers(1, 13)))
        question = draw_question(generator.integers(config.num_entities), relations, generator, num_names=16)
        # A small world has no facts left for distractors.
        num_distractors = 0 if config.num_entities < 5 else int(generator.integers(3))
        solutions.append((question, write_solution(facts, question, num_distractors, generator, num_names=16)))
    return facts, solutions


def seen(steps):
    return attribute(steps, RIGHT_STEPS, WorldJudge(FACTS), question=QUESTION.text)


def test_a_right_solution_has_no_departure():
    assert seen(RIGHT_STEPS) == Attribution("none")
    assert seen(RIGHT_STEPS[1:]) == seen(RIGHT_STEPS[:5] + RIGHT_STEPS[4:]) == Attribution("none")


@pytest.mark.parametrize(
    ("place", "text", "kind"),
    [
        (0, "<e_1> <x_5> <r_0> <e_0>", "memory"),  # the world does not hold it
        (1, "<e_0> <x_9> <r_1> <e_1>", "memory"),  # not needed, and false all the same
        (2, "the fact that is needed", "memory"),
        (4, "<e_0> <x_4> <r_0> <e_2>", "reason"),  # another entity reached
        (4, "<e_0> <x_4> <r_1> <e_2>", "reason"),  # true, but not the question's relation
        (5, "<e_2> <x_5> <r_0> <e_0>", "reason"),  # true, but not from the entity reached
        (5, "<e_2> <x_6> <r_1> <e_0>", "reason"),
        (6, "<e_0> <x_9> <r_1> <e_2>", "reason"),  # true and recalled, but no hop of the question
        (7, "The answer is: <e_2>", "answer"),
    ],
)
def test_a_wrong_step_is_seen_where_it_is(place, text, kind):
    steps = list(RIGHT_STEPS)
    steps[place] = Step(kind, text)
    assert seen(steps) == Attribution(kind, place)
    # A later error does not matter.
    steps[-1] = answer_step("<e_0>")
    assert seen(steps) == Attribution(kind, place)


def test_true_facts_that_are_not_needed_and_skipped_hops_are_no_errors():
    more = [Step("memory", "<e_2> <x_5> <r_0> <e_0>")]
    assert seen([*more, *RIGHT_STEPS]) == Attribution("none")
    assert seen([step for step in RIGHT_STEPS if step.text != REASON[1]]) == Attribution("none")
    assert seen([*RIGHT_STEPS[:4], RIGHT_STEPS[5], RIGHT_STEPS[4], *RIGHT_STEPS[6:]]) == Attribution("none")
    assert seen([Step("step", MEMORY[0]), *RIGHT_STEPS]) == Attribution("step", 0)


def test_the_metric_takes_the_judge(tmp_path):
    facts, solutions = worlds(2)
    metric = evaluate.load(metric_path("step_attribution"), keep_in_memory=True, cache_dir=str(tmp_path))
    generator = np.random.default_rng(0)
    variants = [WRONG["memory, carried on"](facts, *solution, generator) for solution in solutions]
    results = metric.compute(
        predictions=[SCHEME.render(variant.steps) for variant in variants] + [SCHEME.render(s) for _, s in solutions],
        references=[SCHEME.render(steps) for _, steps in solutions] * 2,
        questions=[question.text for question, _ in solutions] * 2,
        scheme=SCHEME,
        judge=WorldJudge(facts),
    )
    found = [(a["outcome"], a["step"]) for a in results["attributions"]]
    assert found == [("memory", variant.index) for variant in variants] + [("none", None)] * len(solutions)


def test_errors_of_a_models_own():
    def changed(*changes):
        steps = list(RIGHT_STEPS)
        for place, kind, text in changes:
            steps[place] = Step(kind, text)
        return steps

    wrong_fact = (4, "reason", "<e_0> <x_4> <r_0> <e_2>")
    not_recalled = [step for step in changed(wrong_fact) if step.text != REASON[0]]
    solved = [
        (RIGHT_STEPS, True),
        (changed((1, "memory", "<e_0> <x_9> <r_1> <e_0>")), True),
        (changed((1, "memory", "<e_0> <x_9> <r_1> <e_0>"), (7, "answer", "The answer is: <e_0>")), False),
        (changed(wrong_fact), False),
        (not_recalled, False),
        (changed((4, "reason", "<e_0> <x_8> <r_0> <e_1>")), False),
        (changed((4, "reason", "no fact")), False),
        (changed((7, "answer", "The answer is: <e_0>")), False),
        (RIGHT_STEPS[:-1], False),
        ([*RIGHT_STEPS[:6], answer_step("<e_2>")], False),
        # The entity of a memory step is not one that a hop reaches.
        ([*RIGHT_STEPS[1:3], RIGHT_STEPS[0], answer_step("<e_2>")], False),
    ]
    found = attribute_errors(FACTS, [(QUESTION, steps, RIGHT_STEPS, is_right) for steps, is_right in solved])
    assert found["right_answers"] == {"memory": 1, "reason": 0, "answer": 0, "step": 0, "no answer": 0, "none": 1}
    assert found["wrong_answers"] == {"memory": 1, "reason": 4, "answer": 3, "step": 0, "no answer": 1, "none": 0}
    assert found["reason_errors"] == {"recalled": 1, "not recalled": 1, "no hop": 2}
    assert found["answer_errors"] == {"stopped early": 1, "another": 2}
    assert recalled_facts(RIGHT_STEPS) == {read_step(text).fact for text in MEMORY}
