"""
Measures how well the token-overlap judge tells a changed step from a reworded one, on StrategyQA's reference steps.

    python tests/benchmarks/bench_step_attribution.py --data FOLDER          # the study's JSON files; some seconds

In one step of a solution a fact is changed (a number, a name, a negation, an opposite, two names that trade places, a
whole step from another question): a hit is a first departure at that very step. All steps of a solution are reworded
(connectives, synonyms, the order of clauses, contractions, the form of numbers, words left out): a departure is a
false alarm. Rules make both kinds of changes, without a model, so they are milder than the changes of a person or a
model. The judge was developed on the training items, and the figures are those of the test items unless --split is
given.

If the published texts exist, the script also measures texts that a model wrote freely: how often a solution departs
before its answer, for right and for wrong solutions. A right solution can differ from the reference.
"""

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from common import machine

from memreason_hf.data.questions.memory_reason import load_memory_reason, reference_solution
from memreason_hf.evaluation.solutions.answers import end_of_question, read_published
from memreason_hf.evaluation.solutions.attribution import attribute
from memreason_hf.evaluation.solutions.judges import JUDGES, find_judge
from memreason_hf.steps import Step, StepScheme


sys.path.append(str(Path(__file__).parents[1] / "helpers"))
from published_texts import match_items


DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "memory_reason"
PUBLISHED = DATA.parent / "published_outputs" / "stratgeqa_agent_llama-2-7b-chat.json"
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w])")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,}(?: [A-Z][a-z]{2,})*")
VERB = re.compile(r"\b(is|are|was|were|can|could|would|does|do|did|has|have|will|may)\b( not)?\b(?!n't)")
OPPOSITES = [
    ("more", "less"), ("before", "after"), ("higher", "lower"), ("larger", "smaller"), ("longer", "shorter"),
    ("first", "last"), ("true", "false"), ("likely", "unlikely"), ("possible", "impossible"), ("north", "south"),
    # pairs that the judge has no list of
    ("early", "late"), ("same", "different"), ("common", "rare"), ("able", "unable"), ("male", "female"),
    ("strong", "weak"), ("public", "private"), ("safe", "dangerous"), ("large", "small"), ("high", "low"),
]  # fmt: skip
SYNONYMS = [
    ("approximately", "about"), ("typically", "usually"), ("commonly", "often"), ("large", "big"),
    ("located", "situated"), ("primarily", "mainly"), ("various", "several"), ("numerous", "many"), ("made", "built"),
    ("contains", "holds"), ("requires", "needs"), ("individuals", "people"), ("due to", "because of"),
    ("refers to", "means"), ("considered", "regarded as"), ("in order to", "to"), ("significant", "considerable"),
    ("therefore", "thus"), ("additionally", "moreover"), ("involves", "includes"), ("would", "will"),
    ("began", "started"), ("famous", "well-known"), ("purchase", "buy"), ("children", "kids"), ("known as", "called"),
    ("difficult", "hard"), ("occurs", "happens"), ("created", "made"), ("such as", "like"),
]  # fmt: skip
CONNECTIVES = ["Therefore, ", "In fact, ", "It is known that ", "As it happens, ", "To be precise, ", ""]


def lower_first(text):
    return text[0].lower() + text[1:] if text[1:2].islower() else text


def upper_first(text):
    return text[0].upper() + text[1:]


def change_number(text, rng, names):
    matches = list(NUMBER.finditer(text))
    if not matches:
        return None
    match = rng.choice(matches)
    digits = match[0].replace(",", "")
    while (changed := "".join(rng.choice("123456789") if c.isdigit() else c for c in digits)) == digits:
        pass
    return text[: match.start()] + changed + text[match.end() :]


def change_name(text, rng, names):
    matches = list(NAME.finditer(text))
    if not matches:
        return None
    match = rng.choice(matches)
    other = rng.choice([name for name in rng.sample(names, 20) if not set(name.split()) & set(text.split())])
    return text[: match.start()] + other + text[match.end() :]


def change_negation(text, rng, names):
    match = VERB.search(text)
    if match is None:
        return None
    return text[: match.end(1)] + ("" if match[2] else " not") + text[match.end() :]


def change_opposite(text, rng, names):
    pairs = [pair[::order] for pair in OPPOSITES for order in (1, -1) if re.search(rf"\b{pair[::order][0]}\b", text)]
    if not pairs:
        return None
    word, other = rng.choice(pairs)
    return re.sub(rf"\b{word}\b", other, text, count=1)


def trade_names(text, rng, names):
    found = list(dict.fromkeys(match[0] for match in NAME.finditer(text)))
    if len(found) < 2:
        return None
    a, b = rng.sample(found, 2)
    if a in b or b in a:
        return None
    return re.sub(f"{re.escape(a)}|{re.escape(b)}", lambda match: b if match[0] == a else a, text)


CHANGES: dict[str, Callable] = {
    "number": change_number,
    "name": change_name,
    "negation": change_negation,
    "opposite": change_opposite,
    "names trade places": trade_names,
}


def reword(text, rng):
    text = re.sub(r"^(?:Therefore|Thus|Hence|In fact|However|Additionally|So), ", "", text)
    since = re.fullmatch(r"(Since|Because|Although|While|If) ([^,.]+), ([^.]+)\.", text)
    if since:
        text = upper_first(f"{since[3]}, {since[1].lower()} {since[2]}.")
    text = re.sub(r" \([^()]*\)", "", text)
    text = re.sub(r"\b(typically|generally|usually|often|very|also|specifically) ", "", text)
    for a, b in rng.sample(SYNONYMS, len(SYNONYMS)):
        text = re.sub(rf"\b{a}\b", b, text)
    text = re.sub(r"\b(is|are|was|were|does|do|did|would|could|has) not\b", r"\1n't", text).replace("cannot", "can't")
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    return upper_first(rng.choice(CONNECTIVES) + (lower_first(text) if rng.random() < 0.5 else text))


def changed_solutions(items, rng, names):
    """(kind of change, question, references, solution, index of the changed step) for every change that applies."""
    for question, references in items:
        steps = references[:-1]
        for change, apply in CHANGES.items():
            order = rng.sample(range(len(steps)), len(steps))
            for index in order:
                text = apply(steps[index].text, rng, names)
                if text is not None and text != steps[index].text:
                    yield change, question, references, with_step(references, index, text), index
                    break
        index = rng.randrange(len(steps))
        foreign = rng.choice(rng.choice(items)[1][:-1]).text
        yield "a step of another question", question, references, with_step(references, index, foreign), index


def with_step(steps, index, text):
    return [*steps[:index], Step(steps[index].kind, text), *steps[index + 1 :]]


def published(rows, judge):
    """Outcomes for the published texts, right and wrong, their answers aside."""
    texts, verdicts = read_published(PUBLISHED)
    outcomes = {True: Counter(), False: Counter()}
    for text, is_right, item in zip(texts, verdicts, match_items(texts, rows["question"][:])):
        row = rows[item]
        solution = StepScheme().parse(text[end_of_question(text, row["question"]) :])
        solution = [step for step in solution if step.kind != "answer"]
        outcomes[is_right][attribute(solution, reference_solution(row), judge, question=row["question"]).outcome] += 1
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA), help="folder with the JSON files (default: ../shared)")
    parser.add_argument("--split", default="test", help="split of StrategyQA (default: test)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        rows = load_memory_reason(arguments.data, "strategy_qa")[arguments.split]
    except (OSError, ValueError, KeyError) as error:
        parser.error(str(error))
    print(machine())
    items = [(row["question"], reference_solution(row)) for row in rows if row["steps"]]
    names = sorted({match[0] for _, steps in items for step in steps for match in NAME.finditer(step.text)})
    print(f"StrategyQA {arguments.split}: {len(items)} items with steps, {len(names):,} names\n")

    for name in JUDGES:
        judge = find_judge(name)
        rng = random.Random(arguments.seed)
        counts, hits, elsewhere, undecided = Counter(), Counter(), Counter(), Counter()
        for change, question, references, solution, index in changed_solutions(items, rng, names):
            found = attribute(solution, references, judge, question=question)
            counts[change] += 1
            hits[change] += found.step == index
            elsewhere[change] += found.step not in (index, None)
            undecided[change] += found.outcome == "undecided"
        print(f"judge {name!r}: changed                  solutions   hits   other step   undecided")
        for change, count in [*counts.items(), ("all", sum(counts.values()))]:
            shares = [sum(c.values()) if change == "all" else c[change] for c in (hits, elsewhere, undecided)]
            print(f"  {change:<32}{count:>10,}" + "".join(f"{share / count:>10.1%}" for share in shares))
        outcomes, steps = Counter(), Counter()
        for question, references in items:
            solution = [*(Step(step.kind, reword(step.text, rng)) for step in references[:-1]), references[-1]]
            outcomes[attribute(solution, references, judge, question=question).outcome] += 1
            steps.update(judge(step, references[:-1], question) for step in solution[:-1])
        alarms = sum(count for outcome, count in outcomes.items() if outcome not in ("none", "undecided"))
        print(
            f"  reworded: false alarms {alarms / len(items):.1%} of {len(items)} solutions, {steps['departs']:,} of "
            f"{sum(steps.values()):,} steps ({steps['departs'] / sum(steps.values()):.1%}); undecided "
            f"{outcomes['undecided'] / len(items):.1%} of solutions"
        )
        if PUBLISHED.is_file() and arguments.split == "test":
            for is_right, found in published(rows, judge).items():
                total = sum(found.values()) - found["no reference"]
                shares = ", ".join(
                    f"{outcome} {found[outcome] / total:.1%}" for outcome in ("memory", "reason", "undecided", "none")
                )
                print(f"  published, {'right' if is_right else 'wrong'} ({total}), first departure: {shares}")
        print()


if __name__ == "__main__":
    main()
