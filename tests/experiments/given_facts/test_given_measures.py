"""The measures of a model: reproducible, and false memories are counted by what the answer follows from."""

import numpy as np
import pytest

from memreason_hf.experiments.given_facts.evaluation import count_outcomes, draw_lie
from memreason_hf.experiments.given_facts.process import run_model
from memreason_hf.experiments.given_facts.training import learned_world
from memreason_hf.experiments.given_facts.world import draw_questions


@pytest.mark.parametrize("world", [None, learned_world(1)], ids=["fresh", "learned"])
def test_outcomes_of_models_that_read_and_that_do_not(world):
    generator = np.random.default_rng()
    questions = draw_questions(range(1, 13), 24, generator, world)
    lies = [draw_lie(given, generator) for given in questions]
    readers = [given.answer_after(*lie) for given, lie in zip(questions, lies)]
    knowers = [given.answer for given in questions]

    def counts(answers):
        return tuple(count_outcomes(questions, lies, answers, range(1, 7)).values())

    # Half of the questions have at most 6 hops.
    assert counts(readers) == (12, 0, 0)
    assert counts(knowers) == (0, 12, 0)
    assert counts([None] * 24) == (0, 0, 12)


def test_a_model_is_trained_once_and_measured_alike(tmp_path):
    settings = {"seed": 3, "max_steps": 1, "batch_size": 4, "num_questions": 12}
    results = run_model("steps_learned", tmp_path, settings)
    assert results["training"]["steps"] == 1
    assert [group["count"] for group in results["fresh"]["hops"].values()] == [1] * 12
    assert sum(results["fresh"]["false_memories"]["trained"].values()) == 6
    again = run_model("steps_learned", tmp_path, settings)
    assert again["training"] == results["training"]
    assert again["fresh"] == results["fresh"] and again["learned"] == results["learned"]
