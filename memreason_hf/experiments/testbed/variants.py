"""
Solutions of the written-out world with something changed: errors whose place and kind are known, and changes that are
none.

    variant = WRONG["memory, carried on"](facts, question, steps, np.random.default_rng(0))
    variant.steps, variant.kind, variant.index     # the solution, "memory", where the wrong step is
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memreason_hf.data.chains.tokenizer import entity_token
from memreason_hf.experiments.testbed.world import Fact, Facts, NamedFact, WrittenQuestion, read_step, step_text
from memreason_hf.steps import Step, answer_step


@dataclass(frozen=True)
class Variant:
    """
    A changed solution.

    Attributes:
        steps: the solution.
        kind: the kind of the step that is wrong; None if none is.
        index: where that step is among `steps`; None if none is wrong.
    """

    steps: list[Step]
    kind: str | None = None
    index: int | None = None


Change = Callable[[Facts, WrittenQuestion, Sequence[Step], np.random.Generator], Variant]


def wrong_memory(facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator, *, carried_on=True):
    """
    A needed fact is recalled with another tail. `carried_on`: its reason step selects it as recalled, what follows
    recalls and selects true facts from there on, and the answer is where that leads.
    """
    hop = int(generator.integers(len(question.relations)))
    head, relation, tail = question.hops(facts)[hop].fact
    false = NamedFact(Fact(head, relation, _another(facts, tail, generator)), question.names[hop])
    changed = list(steps)
    index = _find(steps, "memory", question.names[hop])
    changed[index] = Step("memory", step_text(false))
    if carried_on:
        _go_on(changed, facts, question, hop, false, ("memory", "reason"))
        # The step itself states the false fact in both phases.
        changed[_find(steps, "reason", question.names[hop])] = Step("reason", step_text(false))
    return Variant(changed, "memory", index)


def wrong_distractor(facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator) -> Variant:
    """A fact that is not needed is recalled with another head, relation or tail so that the world does not hold it."""
    places = [index for index, step in enumerate(steps) if step.kind == "memory" and _name(step) not in question.names]
    if not places:
        return wrong_memory(facts, question, steps, generator, carried_on=False)
    index = places[int(generator.integers(len(places)))]
    said = read_step(steps[index].text)
    entities, relations = sorted({head for head, _ in facts}), sorted({relation for _, relation in facts})
    false = [Fact(head, said.fact.relation, said.fact.tail) for head in entities]
    false += [Fact(said.fact.head, relation, said.fact.tail) for relation in relations]
    false += [Fact(said.fact.head, said.fact.relation, tail) for tail in entities]
    false = [fact for fact in false if facts.get(fact[:2]) != fact.tail]
    changed = list(steps)
    changed[index] = Step("memory", step_text(NamedFact(false[int(generator.integers(len(false)))], said.name)))
    return Variant(changed, "memory", index)


def wrong_reason(
    facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator, *, how="tail", carried_on=True
) -> Variant:
    """
    A reason step that does not follow.

    Args:
        how: `"tail"`: the right fact with another tail; `"selection"`: another fact of the world, one that is recalled
            if there is one, under the name of the hop.
        carried_on: the reason steps after it go on from where it leads, by true facts, and so does the answer.
    """
    hop = int(generator.integers(len(question.relations)))
    right = question.hops(facts)[hop].fact
    if how == "tail":
        wrong = Fact(right.head, right.relation, _another(facts, right.tail, generator))
    else:
        recalled = {read_step(step.text).fact for step in steps if step.kind == "memory"} - {right}
        others = sorted(recalled) or [Fact(*key, tail) for key, tail in sorted(facts.items()) if key != right[:2]]
        wrong = others[int(generator.integers(len(others)))]
    said = NamedFact(wrong, question.names[hop])
    changed = list(steps)
    index = _find(steps, "reason", said.name)
    changed[index] = Step("reason", step_text(said))
    if carried_on:
        _go_on(changed, facts, question, hop, said, ("reason",))
    return Variant(changed, "reason", index)


def reordered(facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator) -> Variant:
    """Memory steps in another order, each anywhere before the reason step that selects its fact."""
    memory = [step for step in steps if step.kind == "memory"]
    order = [step for step in steps if step.kind != "memory"]
    for index in generator.permutation(len(memory)):
        step = memory[index]
        user = next((i for i, other in enumerate(order) if other.kind == "reason" and _name(other) == _name(step)), 0)
        order.insert(int(generator.integers(user + 1)), step)
    return Variant(order)


def missing(facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator) -> Variant:
    """A memory or reason step is left out."""
    changed = list(steps)
    del changed[int(generator.integers(len(steps) - 1))]
    return Variant(changed)


def repeated(facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator) -> Variant:
    """A memory or reason step is said again, at once or later, before the answer."""
    index = int(generator.integers(len(steps) - 1))
    place = int(generator.integers(index + 1, len(steps)))
    return Variant([*steps[:place], steps[index], *steps[place:]])


def more_recalled(facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator) -> Variant:
    """One more fact of the world is recalled, under a name of another memory step, before the first reason step."""
    keys = sorted(facts)
    key = keys[int(generator.integers(len(keys)))]
    memory = [index for index, step in enumerate(steps) if step.kind == "memory"]
    name = _name(steps[memory[int(generator.integers(len(memory)))]])
    place = int(generator.integers(len(memory) + 1))
    more = Step("memory", step_text(NamedFact(Fact(*key, facts[key]), name)))
    return Variant([*steps[:place], more, *steps[place:]])


def _variant_of(change, **settings) -> Change:
    return lambda facts, question, steps, generator: change(facts, question, steps, generator, **settings)


WRONG: dict[str, Change] = {
    "memory": _variant_of(wrong_memory, carried_on=False),
    "memory, carried on": _variant_of(wrong_memory),
    "memory, not needed": wrong_distractor,
    "reason, entity": _variant_of(wrong_reason, carried_on=False),
    "reason, entity, carried on": _variant_of(wrong_reason),
    "reason, selection": _variant_of(wrong_reason, how="selection", carried_on=False),
    "reason, selection, carried on": _variant_of(wrong_reason, how="selection"),
}
RIGHT: dict[str, Change] = {
    "as written": lambda facts, question, steps, generator: Variant(list(steps)),
    "another order": reordered,
    "a step missing": missing,
    "a step repeated": repeated,
    "one more true fact": more_recalled,
}


def _another(facts, tail, generator):
    others = sorted({head for head, _ in facts} - {tail})
    return others[int(generator.integers(len(others)))]


def _name(step):
    return read_step(step.text).name


def _find(steps, kind, name):
    return next(index for index, step in enumerate(steps) if step.kind == kind and _name(step) == name)


def _go_on(steps, facts, question, hop, said, kinds):
    """Rewrites the steps of the hops after `hop`, and the answer, to follow from what was said there."""
    reached = said.fact.tail
    for relation, name in zip(question.relations[hop + 1 :], question.names[hop + 1 :]):
        following = NamedFact(Fact(reached, relation, facts[reached, relation]), name)
        for kind in kinds:
            steps[_find(steps, kind, name)] = Step(kind, step_text(following))
        reached = following.fact.tail
    steps[-1] = answer_step(entity_token(reached))
