"""
How a judge agrees with the known truth of the test bed: errors inserted into correct solutions, and changes that are
not errors.

    facts, solutions = known_solutions(20, seed=0)
    rates = measure_judge(judge, facts, solutions, seed=0)
    print(describe_agreement("my judge", rates.to_dict()))

A judge that is a language model cannot know an artificial world, so `world_guide` tells it the facts and how steps are
written: `ChatJudge(chat, background=world_guide(facts))`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.tokenizer import entity_token, relation_token
from memreason_hf.data.chains.world import Facts, build_world, world_facts
from memreason_hf.evaluation.known_truth.variants import ANSWER_ERRORS, RIGHT, WRONG
from memreason_hf.evaluation.known_truth.world import WrittenQuestion, draw_question, write_solution
from memreason_hf.evaluation.solutions.attribution import NO_ANSWER, NOT_JUDGED, attribute_all
from memreason_hf.evaluation.solutions.judges import SolutionToJudge, StepJudge
from memreason_hf.steps import Step


# Of errors that are inserted.
ERROR_KINDS = ("memory", "reason", "answer", NO_ANSWER)
NUM_CHANGES = len(WRONG) + len(ANSWER_ERRORS) + len(RIGHT)
_NUM_NAMES, _MOST_HOPS, _MOST_DISTRACTORS = 16, 6, 2
Solutions = Sequence[tuple[WrittenQuestion, Sequence[Step]]]


@dataclass
class JudgeRates:
    """
    What a judge said about changed solutions.

    Attributes:
        counts: solutions by change.
        hits: errors that the judge found at the right step and kind, by change.
        alarms: solutions without an error in which the judge saw a departure, by change.
        errors, found: inserted errors, and those found at the right step and kind, by kind.
        blamed: solutions, with or without an error, that the judge says first go wrong at a kind.
        false_alarms: solutions without an error of which it says so.
        num_not_judged: solutions at which the judge failed; their errors count as not found.
    """

    counts: Counter = field(default_factory=Counter)
    hits: Counter = field(default_factory=Counter)
    alarms: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    found: Counter = field(default_factory=Counter)
    blamed: Counter = field(default_factory=Counter)
    false_alarms: Counter = field(default_factory=Counter)
    num_not_judged: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the errors of steps that were found at the right step and kind, in 0..1."""
        return self.hits.total() / sum(self.counts[name] for name in WRONG)

    @property
    def false_alarm_rate(self) -> float:
        """Share of the correct solutions in which a step departs, in 0..1."""
        return self.alarms.total() / self._num_right

    @property
    def _num_right(self):
        return sum(self.counts[name] for name in RIGHT)

    def to_dict(self) -> dict:
        """Counts by change, the two rates, and the agreement by kind, as JSON values."""
        wrong = {name: {"count": self.counts[name], "found": self.hits[name]} for name in WRONG}
        right = {name: {"count": self.counts[name], "false_alarms": self.alarms[name]} for name in RIGHT}
        return {
            "errors": wrong,
            "right": right,
            "hit_rate": self.hit_rate,
            "false_alarm_rate": self.false_alarm_rate,
            "kinds": {kind: self._describe_kind(kind) for kind in ERROR_KINDS},
            "num_right": self._num_right,
            "num_not_judged": self.num_not_judged,
        }

    def _describe_kind(self, kind):
        return {
            "errors": self.errors[kind],
            "found": self.found[kind],
            "blamed": self.blamed[kind],
            "false_alarms": self.false_alarms[kind],
        }


def measure_judge(judge: StepJudge, facts: Facts, solutions: Solutions, *, seed: int = 0) -> JudgeRates:
    """
    Applies every error of `WRONG` and `ANSWER_ERRORS` and every change of `RIGHT` to each solution, and compares what
    a judge finds with what was changed.

    Args:
        judge: any judge of steps, or of whole solutions.
        facts: of the world.
        solutions: questions with correct solutions. They also serve as references, which a judge that does without
            (`needs_references`) is not shown.
        seed: decides where the changes are.

    Raises:
        ValueError: there are no solutions.
    """
    if not solutions:
        raise ValueError("There are no solutions: a judge is measured on at least one.")
    needs_references = getattr(judge, "needs_references", True)
    changed = []
    for index, (question, steps) in enumerate(solutions):
        generator = np.random.default_rng([seed, index])
        # The errors of answers last: the others stay those of the first release.
        for name, change in {**WRONG, **RIGHT, **ANSWER_ERRORS}.items():
            variant = change(facts, question, steps, generator)
            shown = steps if needs_references else steps[-1:]
            changed.append((name, variant, SolutionToJudge(variant.steps, shown, question.text, steps[-1].text)))
    rates = JudgeRates()
    judged = attribute_all(judge, [solution for *_, solution in changed])
    for (name, variant, _), entry in zip(changed, judged):
        _count(rates, name, variant, entry.attribution)
    return rates


def _count(rates, name, variant, attribution):
    blamed = attribution.outcome if attribution.outcome in ERROR_KINDS or attribution.step is not None else None
    rates.counts[name] += 1
    rates.num_not_judged += attribution.outcome == NOT_JUDGED
    if blamed is not None:
        rates.blamed[blamed] += 1
    if variant.kind is None:
        rates.alarms[name] += blamed is not None
        rates.false_alarms[blamed] += blamed is not None
        return
    is_hit = (attribution.outcome, attribution.step) == (variant.kind, variant.index)
    rates.errors[variant.kind] += 1
    rates.found[variant.kind] += is_hit
    if name in WRONG:
        rates.hits[name] += is_hit


def known_solutions(num_solutions: int, *, seed: int = 0) -> tuple[Facts, list[tuple[WrittenQuestion, list[Step]]]]:
    """
    A world of the size of the test bed, 20 entities and 4 relations, and correct solutions of questions of 1 to 6 hops
    over it.

    Args:
        num_solutions: how many.
        seed: of the world and the questions.

    Returns:
        The facts, and questions with solutions.
    """
    config = MultiHopConfig(
        num_entities=20, num_relations=4, train_hops="2", test_hops="2", cap_to_available=True, seed=seed
    )
    facts = world_facts(build_world(config))
    generator = np.random.default_rng([seed, 2])
    solutions = []
    for index in range(num_solutions):
        relations = generator.integers(config.num_relations, size=1 + index % _MOST_HOPS)
        start = int(generator.integers(config.num_entities))
        question = draw_question(start, relations, generator, num_names=_NUM_NAMES)
        num_distractors = int(generator.integers(_MOST_DISTRACTORS + 1))
        solutions.append((question, write_solution(facts, question, num_distractors, generator, num_names=_NUM_NAMES)))
    return facts, solutions


def world_guide(facts: Facts) -> str:
    """
    What a language model must be told before it can judge solutions over a world: how questions and steps are written,
    and all facts.
    """
    listed = "\n".join(
        f"{entity_token(head)} {relation_token(relation)} {entity_token(tail)}"
        for (head, relation), tail in sorted(facts.items())
    )
    return (
        "The questions are about an artificial world of entities <e_…> and relations <r_…>. These are all its facts, "
        f"each an entity, a relation, and the entity that the relation leads to:\n{listed}\n\n"
        "A question gives an entity, then names <x_…>, each with a relation: <e_3> <x_5> <r_1> <x_6> <r_0> means: let "
        "<x_5> be what <r_1> leads to from <e_3>, and <x_6> what <r_0> leads to from <x_5>; which entity is last?\n"
        "A step has the form <e_3> <x_5> <r_1> <e_7>: from <e_3>, <r_1> leads to <e_7>, which is called <x_5>. A "
        "[memory] step is right if its entity, relation and entity are a fact above; its name does not matter. A "
        "[reason] step is right if the question gives its name and its relation together, its first entity is the one "
        "that the question truly reaches before that name, and the fact is true."
    )


def agreement_by_kind(results: Mapping) -> dict[str, dict[str, float | None]]:
    """
    Precision, recall and false alarms of a judge, by the kind of error.

    Args:
        results: from `JudgeRates.to_dict`.

    Returns:
        For each kind `precision` (of the solutions that the judge says first go wrong at such a step, the share that
        does, at that very step), `recall` (of the errors, the share that is found) and `false_alarms` (of the
        solutions without an error, the share that is blamed), each in 0..1, or None if there is nothing to divide by.
    """
    return {
        kind: {
            "precision": _share(counts["found"], counts["blamed"]),
            "recall": _share(counts["found"], counts["errors"]),
            "false_alarms": _share(counts["false_alarms"], results["num_right"]),
        }
        for kind, counts in results["kinds"].items()
    }


def describe_agreement(name: str, results: Mapping, kinds: Iterable[str] = ()) -> str:
    """
    One paragraph on a judge: its name, and its agreement with the known truth by kind.

    Args:
        name: of the judge.
        results: from `JudgeRates.to_dict`.
        kinds: of the steps that the judge is asked about. Those that the test bed does not have are named as well.

    Example:

        >>> from memreason_hf.evaluation.known_truth.attribution import WorldJudge
        >>> facts, solutions = known_solutions(6)
        >>> print(describe_agreement("known truth", measure_judge(WorldJudge(facts), facts, solutions).to_dict()))
        judge known truth, against the known truth of the test bed (6 solutions, 14 changes each):
          memory     precision 100.0 %  recall 100.0 %  false alarms 0.0 %
          reason     precision 100.0 %  recall 100.0 %  false alarms 0.0 %
          answer     precision 100.0 %  recall 100.0 %  false alarms 0.0 %
          no answer  precision 100.0 %  recall 100.0 %  false alarms 0.0 %
    """
    num_solutions = results["num_right"] // len(RIGHT)
    measured = f"({num_solutions} solution{'s' * (num_solutions > 1)}, {NUM_CHANGES} changes each)"
    lines = [f"judge {name}, against the known truth of the test bed {measured}:"]
    by_kind = agreement_by_kind(results)
    others = [kind for kind in dict.fromkeys(kinds) if kind not in by_kind]
    width = max(map(len, [*by_kind, *others]))
    for kind, rates in by_kind.items():
        shown = "  ".join(f"{key.replace('_', ' ')} {_percent(rate)}" for key, rate in rates.items())
        lines.append(f"  {kind:<{width}}  {shown}")
    lines += [f"  {kind:<{width}}  not measured: the test bed has no steps of this kind" for kind in others]
    if results["num_not_judged"]:
        lines.append(f"  {results['num_not_judged']} of these solutions could not be judged")
    return "\n".join(lines)


def _share(part, whole):
    return part / whole if whole else None


def _percent(share):
    return "-" if share is None else f"{100 * share:.1f} %"
