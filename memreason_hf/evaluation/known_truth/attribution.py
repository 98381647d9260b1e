"""
A judge that knows the facts of a written-out world, and where models go wrong by its verdicts.

    judge = WorldJudge(facts)
    attribute(solution, references, judge, question=question.text)      # the first wrong step, and its kind
    attribute_errors(facts, solved)                                     # of a model's own solutions

The judge reads the question and the step, and knows the facts. `agreement` compares other judges with known errors.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from memreason_hf.data.chains.tokenizer import entity_token
from memreason_hf.evaluation.known_truth.world import Fact, Facts, NamedFact, WrittenQuestion, read_step
from memreason_hf.evaluation.solutions.attribution import NO_ANSWER, NO_DEPARTURE, attribute
from memreason_hf.evaluation.solutions.judges import AGREES, DEPARTS
from memreason_hf.steps import KINDS, Step, answer_step


@dataclass(frozen=True)
class WorldJudge:
    """
    Judges the steps of a written-out world by its facts, without looking at the references.

    A memory step agrees if the world contains its fact, whether the question needs it or not. A reason step agrees if
    it states the fact of its hop: the question's relation, from the entity that the hop before it truly reaches. A
    reason step that follows correctly from an earlier error therefore departs; this does no harm, because only the
    first departure counts. A text that does not state a fact under a name departs, and so does a step without a kind.

    Args:
        facts: of the world.
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


def attribute_errors(
    facts: Facts, solved: Iterable[tuple[WrittenQuestion, Sequence[Step], Sequence[Step], bool]]
) -> dict:
    """
    Where a model's own solutions first go wrong, by the known truth.

    Args:
        facts: of the world.
        solved: for each solution the question, its steps, correct steps, and whether its answer is right.

    Returns:
        Counts as in `ErrorAttribution`.
    """
    judge = WorldJudge(facts)
    outcomes: dict[bool, Counter] = {True: Counter(), False: Counter()}
    reasons: Counter = Counter()
    answers: Counter = Counter()
    for question, steps, references, is_right in solved:
        attribution = attribute(steps, references, judge, question=question.text)
        outcomes[is_right][attribution.outcome] += 1
        if not is_right and attribution.outcome == "reason":
            reasons[_support(facts, question, steps, attribution.step)] += 1
        if not is_right and attribution.outcome == "answer":
            answers[_answer_error(steps, attribution.step)] += 1
    kinds = (*KINDS, NO_ANSWER, NO_DEPARTURE)
    return {
        "wrong_answers": {kind: outcomes[False][kind] for kind in kinds},
        "right_answers": {kind: outcomes[True][kind] for kind in kinds},
        "reason_errors": {name: reasons[name] for name in ("recalled", "not recalled", "no hop")},
        "answer_errors": {name: answers[name] for name in ("stopped early", "another")},
    }


def recalled_facts(steps: Sequence[Step]) -> set[Fact]:
    """The facts that the memory steps among `steps` state, true or not."""
    return {said.fact for step in steps if step.kind == "memory" and (said := read_step(step.text)) is not None}


def _support(facts, question, steps, index):
    said = read_step(steps[index].text)
    needed: Mapping[int, NamedFact] = {hop.name: hop for hop in question.hops(facts)}
    if said is None or said.name not in needed:
        return "no hop"
    return "recalled" if needed[said.name].fact in recalled_facts(steps[:index]) else "not recalled"


def _answer_error(steps, index):
    reached = [said.fact.tail for step in steps[:index] if step.kind == "reason" and (said := read_step(step.text))]
    is_reached = bool(reached) and steps[index] == answer_step(entity_token(reached[-1]))
    return "stopped early" if is_reached else "another"


@lru_cache(maxsize=1 << 14)
def _parse(question):
    return WrittenQuestion.parse(question)
