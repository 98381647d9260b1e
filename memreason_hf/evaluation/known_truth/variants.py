"""
Changed solutions of the written-out world: errors whose step and kind are known, and changes that are not errors.

    variant = WRONG["memory, carried on"](facts, question, steps, np.random.default_rng(0))
    variant.steps, variant.kind, variant.index     # the solution, "memory", the index of the wrong step
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memreason_hf.data.chains.tokenizer import entity_token
from memreason_hf.evaluation.known_truth.world import Fact, Facts, NamedFact, WrittenQuestion, read_step, step_text
from memreason_hf.evaluation.solutions.attribution import NO_ANSWER
from memreason_hf.steps import Step, answer_step


@dataclass(frozen=True)
class Variant:
    """
    A changed solution.

    Attributes:
        steps: the solution.
        kind: the kind of the wrong step, or `"no answer"`; None if nothing is wrong.
        index: the index of the wrong step in `steps`; None if no step is wrong.
    """

    steps: list[Step]
    kind: str | None = None
    index: int | None = None


Change = Callable[[Facts, WrittenQuestion, Sequence[Step], np.random.Generator], Variant]


def wrong_memory(
    facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator: np.random.Generator, *, carried_on=True
) -> Variant:
    """
    Recalls a needed fact with another tail.

    Args:
        carried_on: the reason step of that hop repeats the false fact, the later memory and reason steps state true
            facts from the entity that it leads to, and the answer follows from them.
    """
    hop = int(generator.integers(len(question.relations)))
    head, relation, tail = question.hops(facts)[hop].fact
    false = NamedFact(Fact(head, relation, _another(facts, tail, generator)), question.names[hop])
    changed = list(steps)
    index = _find(steps, "memory", question.names[hop])
    changed[index] = Step("memory", step_text(false))
    if carried_on:
        _carry_on(changed, facts, question, hop, false, ("memory", "reason"))
        changed[_find(steps, "reason", question.names[hop])] = Step("reason", step_text(false))
    return Variant(changed, "memory", index)


def wrong_distractor(
    facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator: np.random.Generator
) -> Variant:
    """Recalls a distractor with another head, relation or tail, so that the world does not contain it."""
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
    facts: Facts,
    question: WrittenQuestion,
    steps: Sequence[Step],
    generator: np.random.Generator,
    *,
    how: str = "tail",
    carried_on: bool = True,
) -> Variant:
    """
    A reason step that does not follow.

    Args:
        how: `"tail"`: the correct fact with another tail. `"selection"`: another fact of the world under the name of
            the hop, one of the recalled facts if possible.
        carried_on: the later reason steps state true facts from the entity that the wrong step leads to, and the
            answer follows from them.
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
        _carry_on(changed, facts, question, hop, said, ("reason",))
    return Variant(changed, "reason", index)


def wrong_answer(
    facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator: np.random.Generator
) -> Variant:
    """Answers with another entity than the last reason step reaches."""
    tail = question.hops(facts)[-1].fact.tail
    return Variant(
        [*steps[:-1], answer_step(entity_token(_another(facts, tail, generator)))], "answer", len(steps) - 1
    )


def no_answer(
    facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator: np.random.Generator
) -> Variant:
    """Ends without an answer, which is an error of its own kind and of no step."""
    return Variant(list(steps[:-1]), NO_ANSWER)


def reordered(
    facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator: np.random.Generator
) -> Variant:
    """Puts the memory steps in another order, each anywhere before the reason step that selects its fact."""
    memory = [step for step in steps if step.kind == "memory"]
    order = [step for step in steps if step.kind != "memory"]
    for index in generator.permutation(len(memory)):
        step = memory[index]
        user = next((i for i, other in enumerate(order) if other.kind == "reason" and _name(other) == _name(step)), 0)
        order.insert(int(generator.integers(user + 1)), step)
    return Variant(order)


def missing(facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator: np.random.Generator) -> Variant:
    """Leaves a memory or reason step out."""
    changed = list(steps)
    del changed[int(generator.integers(len(steps) - 1))]
    return Variant(changed)


def repeated(
    facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator: np.random.Generator
) -> Variant:
    """Repeats a memory or reason step, at once or later, but before the answer."""
    index = int(generator.integers(len(steps) - 1))
    place = int(generator.integers(index + 1, len(steps)))
    return Variant([*steps[:place], steps[index], *steps[place:]])


def more_recalled(
    facts: Facts, question: WrittenQuestion, steps: Sequence[Step], generator: np.random.Generator
) -> Variant:
    """Recalls one more fact of the world, under the name of another memory step, before the first reason step."""
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
# Errors that no judge of steps is needed for, but that it can hide by a false alarm before them.
ANSWER_ERRORS: dict[str, Change] = {"answer, another": wrong_answer, "answer, missing": no_answer}
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


def _carry_on(steps, facts, question, hop, said, kinds):
    """Rewrites the steps of the hops after `hop`, and the answer, so that they follow from `said`."""
    reached = said.fact.tail
    for relation, name in zip(question.relations[hop + 1 :], question.names[hop + 1 :]):
        following = NamedFact(Fact(reached, relation, facts[reached, relation]), name)
        for kind in kinds:
            steps[_find(steps, kind, name)] = Step(kind, step_text(following))
        reached = following.fact.tail
    steps[-1] = answer_step(entity_token(reached))
