"""How judges agree with errors whose place and kind are known, also through the path of a language model."""

import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from chat_servers import chat_server

from memreason_hf.chat import EndpointChat
from memreason_hf.evaluation.known_truth.agreement import (
    ERROR_KINDS,
    NUM_CHANGES,
    agreement_by_kind,
    describe_agreement,
    known_solutions,
    measure_judge,
    world_guide,
)
from memreason_hf.evaluation.known_truth.attribution import WorldJudge
from memreason_hf.evaluation.known_truth.variants import ANSWER_ERRORS, RIGHT, WRONG
from memreason_hf.evaluation.solutions.attribution import attribute
from memreason_hf.evaluation.solutions.chat_judges import ChatJudge
from memreason_hf.evaluation.solutions.judges import VERDICTS, ExactJudge, TokenOverlapJudge
from memreason_hf.steps import Step


@pytest.mark.parametrize("seed", range(6))
def test_errors_that_were_put_in_are_found_and_nothing_else(seed):
    facts, solutions = known_solutions(12, seed=seed)
    rates = measure_judge(WorldJudge(facts), facts, solutions, seed=seed)
    assert rates.hit_rate == 1.0 and rates.false_alarm_rate == 0.0
    assert set(rates.counts) == {*WRONG, *RIGHT, *ANSWER_ERRORS} and set(rates.counts.values()) == {len(solutions)}
    values = rates.to_dict()
    assert values["hit_rate"] == 1.0 and values["errors"]["memory"] == {"count": 12, "found": 12}
    perfect = {"precision": 1.0, "recall": 1.0, "false_alarms": 0.0}
    assert agreement_by_kind(values) == dict.fromkeys(ERROR_KINDS, perfect)
    assert values["num_right"] == 12 * len(RIGHT) and sum(rates.counts.values()) == 12 * NUM_CHANGES


def test_kinds_that_the_world_does_not_have_are_named():
    facts, solutions = known_solutions(2)
    rates = measure_judge(WorldJudge(facts), facts, solutions).to_dict()
    lines = describe_agreement("x", rates, ["memory", "search", "reason", "look_up", "search"]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["memory", "reason", "answer", "no", "search", "look_up"]
    assert all("not measured: the test bed has no steps of this kind" in line for line in lines[-2:])
    assert lines[:-2] == describe_agreement("x", rates, ["memory", "reason"]).splitlines()


def test_a_judge_that_knows_less_finds_less():
    facts, solutions = known_solutions(12, seed=1)
    rates = measure_judge(ExactJudge(), facts, solutions)
    assert rates.hit_rate < 1.0 and rates.false_alarm_rate > 0.0
    assert rates.alarms["one more true fact"] > 0 and rates.alarms["another order"] == 0
    blind = measure_judge(lambda step, references, question: "agrees", facts, solutions)
    assert blind.hit_rate == blind.false_alarm_rate == 0.0
    by_kind = agreement_by_kind(blind.to_dict())
    # Nothing is blamed on memory, so that no share of it is right; the errors that it misses fall to the answer.
    assert by_kind["memory"] == {"precision": None, "recall": 0.0, "false_alarms": 0.0}
    assert by_kind["answer"]["recall"] == 1.0 and by_kind["answer"]["precision"] < 1.0
    assert by_kind["no answer"] == {"precision": 1.0, "recall": 1.0, "false_alarms": 0.0}
    with pytest.raises(ValueError, match="There are no solutions"):
        measure_judge(ExactJudge(), facts, [])


@pytest.mark.parametrize("judge", [ExactJudge(), TokenOverlapJudge(), None])
def test_rates_by_kind_against_a_count_by_hand(judge):
    facts, solutions = known_solutions(8, seed=3)
    rng = random.Random(3)
    said: dict[tuple, str] = {}

    def guess(step, references, question):
        """A judge without a clue, which says the same whenever it is asked the same."""
        return said.setdefault((question, step), rng.choices(VERDICTS, (6, 1, 1))[0])

    judge = guess if judge is None else judge
    values = measure_judge(judge, facts, solutions, seed=9).to_dict()
    changes = {**WRONG, **RIGHT, **ANSWER_ERRORS}
    true, seen = [], []
    for index, (question, steps) in enumerate(solutions):
        generator = np.random.default_rng([9, index])
        for change in changes.values():
            variant = change(facts, question, steps, generator)
            true.append((variant.kind, variant.index))
            found = attribute(variant.steps, steps, judge, question=question.text)
            seen.append((found.outcome if found.outcome in ERROR_KINDS else None, found.step))
    blamed, errors = Counter(kind for kind, _ in seen), Counter(kind for kind, _ in true)
    right = [outcome for (kind, _), (outcome, _) in zip(true, seen) if kind is None]
    for kind, rates in agreement_by_kind(values).items():
        hits = sum(place == found for place, found in zip(true, seen) if place[0] == kind)
        assert rates["recall"] == hits / errors[kind]
        assert rates["precision"] == (hits / blamed[kind] if blamed[kind] else None)
        assert rates["false_alarms"] == right.count(kind) / len(right)
    assert sum(blamed[kind] for kind in ERROR_KINDS) > 0


def knowing_endpoint(facts):
    """An endpoint that reads question and steps from its prompt, and answers by the facts of the world."""
    judge = WorldJudge(facts)

    def answer(call):
        prompt = call.prompt
        question = re.search(r"^Question: (.*)$", prompt, re.MULTILINE)[1]
        steps = re.findall(r"^(\d+)\. \[(\w+)\] (.*)$", prompt, re.MULTILINE)
        verdicts = {number: judge(Step(kind, text), [], question) for number, kind, text in steps}
        return f"Let me see.\n```json\n{json.dumps(verdicts)}\n```"

    return answer


def test_what_an_endpoint_knows_arrives_unchanged():
    facts, solutions = known_solutions(10, seed=4)
    with chat_server(knowing_endpoint(facts)) as server:
        judge = ChatJudge(EndpointChat("scripted", server.url), name="scripted", background=world_guide(facts))
        rates = measure_judge(judge, facts, solutions, seed=4)
    assert rates.hit_rate == 1.0 and rates.false_alarm_rate == 0.0 and rates.num_not_judged == 0
    perfect = {"precision": 1.0, "recall": 1.0, "false_alarms": 0.0}
    assert agreement_by_kind(rates.to_dict()) == dict.fromkeys(ERROR_KINDS, perfect)
    # The judge was told the facts, and was not shown a solution.
    assert all(world_guide(facts) in call.prompt for call in server.calls)
    assert not any("A correct solution" in call.prompt for call in server.calls)


def test_an_endpoint_that_knows_nothing_is_shown_as_such():
    """The control: the same path with an endpoint whose verdicts are wrong."""
    facts, solutions = known_solutions(4, seed=5)
    knowing = knowing_endpoint(facts)
    with chat_server(lambda call: knowing(call).replace("departs", "agrees")) as server:
        judge = ChatJudge(EndpointChat("scripted", server.url), name="blind")
        rates = measure_judge(judge, facts, solutions, seed=5)
    text = describe_agreement("blind", rates.to_dict())
    assert rates.hit_rate == 0.0
    assert "judge blind, against the known truth of the test bed (4 solutions, 14 changes each):" in text
    assert re.search(r"memory +precision - +recall 0\.0 % +false alarms 0\.0 %", text)
