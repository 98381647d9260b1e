"""
Who knows the truth of a written-out world: a judge of its steps, and what share of known errors a judge finds.

    judge = WorldJudge(facts)
    attribute(solution, references, judge, question=question.text)      # the first step that is wrong, and its kind
    measure_judge(judge, facts, solutions, seed=0)                      # on errors that were put in

The judge is told nothing of where an error was put: it reads the question and the step, and knows the facts.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from memreason_hf.data.chains.tokenizer import entity_token
from memreason_hf.evaluation.solutions.attribution import NO_DEPARTURE, attribute
from memreason_hf.evaluation.solutions.judges import AGREES, DEPARTS, StepJudge
from memreason_hf.experiments.testbed.variants import RIGHT, WRONG, Change
from memreason_hf.experiments.testbed.world import Fact, Facts, NamedFact, WrittenQuestion, read_step
from memreason_hf.steps import Step, answer_step


@dataclass(frozen=True)
class WorldJudge:
    """
    Judges the steps of a written-out world by its facts; the references are not looked at.

    A memory step is right if the world holds its fact, needed or not. A reason step is right if it is the fact of its
    hop: from the entity that the hop before it reaches, by the question's relation. So it does not follow from an
    error before it, which does no harm: only the first departure counts, and before that all that was said is true.
    A text that states no fact under a name departs, and so does a step without a kind.

    Args:
        facts: those of the world.
    """

    facts: Facts

    def __call__(self, step: Step, references: Sequence[Step], question: str) -> str:
        said = read_step(step.text)
        if said is None:
            return DEPARTS
        if step.kind == "memory":
            return AGREES if self.facts.get(said.fact[:2]) == said.fact.tail else DEPARTS
        is_hop = step.kind == "reason" and said in self._hops(question)
        return AGREES if is_hop else DEPARTS

    def _hops(self, question) -> frozenset[NamedFact]:
        return frozenset(_parse(question).hops(self.facts))


@dataclass
class JudgeRates:
    """
    How a judge did on changed solutions.

    Attributes:
        counts: solutions of each change.
        found: errors whose step and kind are those that were put in, by change.
        alarms: solutions without an error in which a step departs, by change.
    """

    counts: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)
    alarms: Counter = field(default_factory=Counter)

    @property
    def hit_rate(self) -> float:
        """Share of the errors at the right step and kind, in 0..1."""
        return sum(self.found.values()) / sum(self.counts[name] for name in WRONG)

    @property
    def false_alarm_rate(self) -> float:
        """Share of the right solutions in which a step departs, in 0..1."""
        return sum(self.alarms.values()) / sum(self.counts[name] for name in RIGHT)

    def to_dict(self) -> dict:
        """Plain values: counts by change, and the two rates."""
        wrong = {name: {"count": self.counts[name], "found": self.found[name]} for name in WRONG}
        right = {name: {"count": self.counts[name], "false_alarms": self.alarms[name]} for name in RIGHT}
        return {"errors": wrong, "right": right, "hit_rate": self.hit_rate, "false_alarm_rate": self.false_alarm_rate}


def measure_judge(
    judge: StepJudge, facts: Facts, solutions: Sequence[tuple[WrittenQuestion, Sequence[Step]]], *, seed: int = 0
) -> JudgeRates:
    """
    Puts every error of `WRONG`, and every change of `RIGHT` that is none, into each solution, and lets a judge look.

    Args:
        judge: any judge of steps.
        facts: those of the world.
        solutions: questions with right solutions, which are the references too.
        seed: decides where the changes are.

    Raises:
        ValueError: no solutions.
    """
    if not solutions:
        raise ValueError("There are no solutions: a judge is measured on at least one.")
    rates = JudgeRates()
    for index, (question, steps) in enumerate(solutions):
        generator = np.random.default_rng([seed, index])
        for name, change in {**WRONG, **RIGHT}.items():
            _measure(rates, judge, name, change, facts, question, steps, generator)
    return rates


def _measure(rates, judge, name, change: Change, facts, question, steps, generator):
    variant = change(facts, question, steps, generator)
    seen = attribute(variant.steps, steps, judge, question=question.text)
    rates.counts[name] += 1
    if variant.kind is None:
        rates.alarms[name] += seen.step is not None
    else:
        rates.found[name] += (seen.outcome, seen.step) == (variant.kind, variant.index)


def attribute_errors(
    facts: Facts, solved: Iterable[tuple[WrittenQuestion, Sequence[Step], Sequence[Step], bool]]
) -> dict:
    """
    Where a model's own solutions first go wrong.

    Args:
        facts: those of the world.
        solved: for each solution the question, its steps, right steps, and whether its answer is right.

    Returns:
        `wrong_answers` and `right_answers`: the number of solutions by the kind of the step that departs first (or
        `"none"`); `reason_errors`: of the wrong answers that depart at a reason step, those where the fact that this
        hop needs was recalled before it (`"recalled"`), was not (`"not recalled"`), and those of no hop of the
        question (`"no hop"`); `answer_errors`: of the wrong answers that depart at the answer, those that give the
        entity which the last reason step reaches, so that hops are missing (`"stopped early"`), and `"another"`.
    """
    judge = WorldJudge(facts)
    outcomes: dict[bool, Counter] = {True: Counter(), False: Counter()}
    reasons: Counter = Counter()
    answers: Counter = Counter()
    for question, steps, references, is_right in solved:
        seen = attribute(steps, references, judge, question=question.text)
        outcomes[is_right][seen.outcome] += 1
        if not is_right and seen.outcome == "reason":
            reasons[_support(facts, question, steps, seen.step)] += 1
        if not is_right and seen.outcome == "answer":
            answers[_last_word(steps, seen.step)] += 1
    kinds = ("memory", "reason", "answer", "step", NO_DEPARTURE)
    return {
        "wrong_answers": {kind: outcomes[False][kind] for kind in kinds},
        "right_answers": {kind: outcomes[True][kind] for kind in kinds},
        "reason_errors": {name: reasons[name] for name in ("recalled", "not recalled", "no hop")},
        "answer_errors": {name: answers[name] for name in ("stopped early", "another")},
    }


def _last_word(steps, index):
    reached = [said.fact.tail for step in steps[:index] if step.kind == "reason" and (said := read_step(step.text))]
    is_reached = bool(reached) and steps[index] == answer_step(entity_token(reached[-1]))
    return "stopped early" if is_reached else "another"


def recalled_facts(steps: Sequence[Step]) -> set[Fact]:
    """What the memory steps among `steps` state, true or not."""
    return {said.fact for step in steps if step.kind == "memory" and (said := read_step(step.text)) is not None}


def _support(facts, question, steps, index):
    said = read_step(steps[index].text)
    needed: Mapping[int, NamedFact] = {hop.name: hop for hop in question.hops(facts)}
    if said is None or said.name not in needed:
        return "no hop"
    return "recalled" if needed[said.name].fact in recalled_facts(steps[:index]) else "not recalled"


@lru_cache(maxsize=1 << 14)
def _parse(question):
    return WrittenQuestion.parse(question)
