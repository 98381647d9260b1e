"""
What a language model answers to the calls of annotation: a function of the request alone, so that two runs get the
same, and often wrong.

The right answer of a question has 1 to 3 memory steps and 1 or 2 reason steps, which name the question, so that a
swapped answer shows.
"""

import hashlib
import random
import re

from memreason_hf.data.questions.schema import question_row


BAD_PLANS = {
    "no memory": lambda plan: [line for line in plan if "[memory]" not in line],
    "no reason": lambda plan: [line for line in plan if "[reason]" not in line],
    "no label": lambda plan: [*plan, "", "And so it is."],
    "empty step": lambda plan: [*plan, "[reason]"],
    "two labels": lambda plan: [*plan, "[reason] and [memory]: both"],
    "nothing": lambda plan: [],
    "refusal": lambda plan: ["I cannot help with that."],
    "another answer": lambda plan: [*plan, "[answer] nothing of the kind"],
}
BAD_FACTS = {
    "one missing": lambda facts: facts[:-1],
    "unknown": lambda facts: [*facts[:-1], f"{len(facts)}. unknown"],
    "empty": lambda facts: [*facts[:-1], f"{len(facts)}. "],
    "twice": lambda facts: [*facts, facts[0]],
}
_TAIL = "Answer the numbered questions"


def question_rows(count, seed=None):
    """Questions whose answers are numbers that stand in neither the question nor a step."""
    chance = random.Random(seed)
    names = chance.sample(range(10_000, 99_999), count)
    return [question_row(f"How heavy is the stone {name}?", str(chance.randrange(100, 999))) for name in names]


def draw(*parts):
    """A generator that follows from some values."""
    return random.Random(hashlib.sha256(repr(parts).encode()).digest())


def right_steps(name, seed):
    """`(kind, question or None, text)` of the right steps for a stone; the texts are what a row then holds."""
    chance = draw(name, seed, "steps")
    steps = []
    for number in range(chance.randint(1, 3)):
        asked = f"What is fact {number} of stone {name}, drawn with {seed}?"
        steps.append(("memory", asked, f"Fact: {asked.removesuffix('?')}."))
    for number in range(chance.randint(1, 2)):
        steps.insert(chance.randint(1, len(steps)), ("reason", None, f"Thought {number} about stone {name}."))
    return steps


class Annotated:
    """
    Answers both calls, wrongly for some requests.

    Args:
        bad: the share of wrong plans and of wrong answers to their questions.
        never: names of stones whose plans are always wrong.
    """

    def __init__(self, bad=0.0, never=()):
        self.bad, self.never = bad, set(never)

    def __call__(self, request):
        prompt, seed = request.prompt, request.body.get("seed")
        if prompt.startswith(_TAIL):
            return self._facts(prompt, seed)
        name = re.findall(r"stone (\d+)", prompt)[-1]
        plan = [f"[{kind}] {asked or text}" for kind, asked, text in right_steps(name, seed)]
        chance = draw(name, seed, "plan")
        if name in self.never or chance.random() < self.bad:
            return "\n".join(BAD_PLANS[chance.choice(sorted(BAD_PLANS))](plan))
        return chance.choice(["", "Here is the plan:\n", "<think>[memory] no\n</think>\n\n"]) + "\n".join(plan)

    def _facts(self, prompt, seed):
        asked = re.findall(r"^(\d+)\. (.*)\?$", prompt, re.MULTILINE)
        facts = [f"{number}. Fact: {text}." for number, text in asked]
        chance = draw(asked, seed, "facts")
        if chance.random() < self.bad:
            return "\n".join(BAD_FACTS[chance.choice(sorted(BAD_FACTS))](facts))
        return "\n".join(facts)


def call_of(request):
    """What a request asks for, by which repeated calls are seen."""
    return request.prompt, request.body.get("seed")
