"""
Where solutions first depart from the reference, or from what is right, and at a step of which kind.

    attribute(solution, references, TokenOverlapJudge(), question=question)     # one solution
    judged = attribute_all(judge, solutions)                                    # many, with any judge
    count_outcomes(judged, verdicts)                                            # right and wrong solutions apart
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from memreason_hf.checks import check_sequence, check_type
from memreason_hf.evaluation.solutions.judges import (
    AGREES,
    DEPARTS,
    UNDECIDED,
    VERDICTS,
    JudgeFault,
    SolutionToJudge,
    StepJudge,
)
from memreason_hf.steps import ANSWER_MARKER, Step


NO_DEPARTURE, NO_ANSWER, NO_REFERENCE, NOT_JUDGED = "none", "no answer", "no reference", "not judged"
# What a solution can end as in addition to the kinds of its first departing step.
OUTCOMES = (NO_ANSWER, NO_DEPARTURE, UNDECIDED, NO_REFERENCE, NOT_JUDGED)
# What the answer rule says of the answer of a solution.
RIGHT, WRONG, MISSING = "right", "wrong", "missing"
ANSWERS = (RIGHT, WRONG, MISSING)


@dataclass(frozen=True)
class Attribution:
    """
    The first departure of one solution.

    Attributes:
        outcome: the kind of the first departing step. If no step departs: `"no answer"` if the solution gives no
            answer, which is an error of its own kind; otherwise `"undecided"` if some step could not be judged, and
            `"none"` if all steps agree. `"no reference"` if the judge compares with reference steps and there are
            none; `"not judged"` if the judge failed.
        step: the index of the departing step; None without one.
        num_undecided: number of steps that could not be judged, up to the departing step.
    """

    outcome: str
    step: int | None = None
    num_undecided: int = 0


@dataclass(frozen=True)
class JudgedSolution:
    """
    What a judge said about one solution.

    Attributes:
        attribution: the first departure.
        verdicts: the verdict on each step; None for the answer, which is not the judge's, and for steps after the
            first departure if the judge was not asked about them.
        fault: why the judge failed; None if it did not.
    """

    attribution: Attribution
    verdicts: tuple[str | None, ...]
    fault: str | None = None


def attribute(
    solution: Sequence[Step],
    references: Sequence[Step],
    judge: StepJudge,
    *,
    question: str = "",
    answer: str | None = None,
) -> Attribution:
    """
    Finds the first step of a solution that departs from the reference.

    The order of the steps, a missing step and a repeated step do not count as departures. Every step but the answer
    is compared with all reference steps but the answer, whatever their kinds. A solution whose answer is missing
    although the reference has one does not count as free of departures.

    Args:
        solution: generated steps.
        references: reference steps, with or without the answer.
        judge: judges the steps other than the answer.
        question: passed to the judge.
        answer: what the answer rule says of the solution: `"right"`, `"wrong"`, or `"missing"` if there is no valid
            answer. None: the words of every answer step are compared with those of the reference's answer.

    Raises:
        ValueError: the judge returns something other than a verdict.

    Example:

        >>> from memreason_hf.evaluation.solutions.judges import ExactJudge
        >>> references = [Step("memory", "Iron is heavy."), Step("reason", "So it sinks.")]
        >>> solution = [Step("memory", "Iron is heavy."), Step("reason", "So it floats.")]
        >>> attribute(solution, references, ExactJudge())
        Attribution(outcome='reason', step=1, num_undecided=0)
        >>> attribute(references, references, ExactJudge(), answer="missing").outcome
        'no answer'
    """
    return _judge_steps(judge, SolutionToJudge(solution, references, question, answer=answer)).attribution


def attribute_all(judge: StepJudge, solutions: Iterable[SolutionToJudge]) -> list[JudgedSolution]:
    """
    Finds the first departure of every solution.

    Args:
        judge: a judge of steps, or a judge of whole solutions (`ChatJudge`), which is asked about all of them at once.
        solutions: what is judged.

    Returns:
        One entry for each solution, in their order.

    Raises:
        ValueError: the judge returns something other than verdicts.
    """
    solutions = list(solutions)
    if not hasattr(judge, "judge_solutions"):
        return [_judge_steps(judge, solution) for solution in solutions]
    judged: list = [None] * len(solutions)
    for index, said in judge.judge_solutions(solutions):
        judged[index] = _read_verdicts(solutions[index], said)
    return judged


def count_outcomes(
    judged: Iterable[JudgedSolution], answers: Iterable[str], kinds: Sequence[str]
) -> dict[str, dict[str, int]]:
    """
    The outcomes of right and of wrong solutions apart.

    Args:
        judged: from `attribute_all`.
        answers: for each solution `"right"`, `"wrong"` or `"missing"`, which counts as wrong.
        kinds: the kinds of steps.

    Returns:
        `{"right": {outcome: count}, "wrong": {outcome: count}}`, with an entry for every kind and every one of
        `OUTCOMES`.

    Example:

        >>> judged = [JudgedSolution(Attribution("memory", 0), ("departs",)), JudgedSolution(Attribution("none"), ())]
        >>> counts = count_outcomes(judged, ["wrong", "right"], ["memory", "reason", "answer", "step"])
        >>> counts["wrong"]["memory"], counts["right"]["none"], counts["right"]["memory"]
        (1, 1, 0)
    """
    counts: dict[str, Counter] = {RIGHT: Counter(), WRONG: Counter()}
    for entry, answer in zip(judged, answers, strict=True):
        counts[RIGHT if answer == RIGHT else WRONG][entry.attribution.outcome] += 1
    return {name: {outcome: count[outcome] for outcome in (*kinds, *OUTCOMES)} for name, count in counts.items()}


def _judge_steps(judge, solution):
    """Asks a judge about one step after the other, up to the first departure."""
    _check(solution)
    known = [step for step in solution.references if step.kind != "answer"]
    verdicts: list = [None] * len(solution.steps)
    if not known and getattr(judge, "needs_references", True):
        return JudgedSolution(Attribution(NO_REFERENCE), tuple(verdicts))

    def ask(index):
        verdict = judge(solution.steps[index], known, solution.question)
        if verdict not in VERDICTS:
            raise ValueError(f"The judge returned {verdict!r}; it must return one of {', '.join(VERDICTS)}.")
        verdicts[index] = verdict
        return verdict

    return JudgedSolution(_first_departure(solution, ask), tuple(verdicts))


def _read_verdicts(solution, said):
    """What a judge of whole solutions said about one of them."""
    _check(solution)
    if isinstance(said, JudgeFault):
        return JudgedSolution(Attribution(NOT_JUDGED), (None,) * len(solution.steps), said.reason)
    if len(said) != len(solution.steps):
        raise ValueError(f"The judge returned {len(said)} verdicts for {len(solution.steps)} steps.")
    for step, verdict in zip(solution.steps, said):
        if verdict not in VERDICTS and not (step.kind == "answer" and verdict is None):
            raise ValueError(f"The judge returned {verdict!r}; it must return one of {', '.join(VERDICTS)}.")
    return JudgedSolution(_first_departure(solution, said.__getitem__), tuple(said))


def _check(solution):
    for name, steps in (("solution", solution.steps), ("references", solution.references)):
        check_sequence(name, steps, "a list of steps")
        for step in steps:
            check_type(name, step, Step, "a list of steps")
    if solution.answer is not None and solution.answer not in ANSWERS:
        raise ValueError(f"answer={solution.answer!r} must be one of {', '.join(ANSWERS)}, or None.")


def _first_departure(solution: SolutionToJudge, verdict_of: Callable[[int], str]) -> Attribution:
    steps, num_undecided = solution.steps, 0
    expected = [step for step in solution.references if step.kind == "answer"]
    said = _place_of_answer(steps) if solution.answer is not None else None
    for index, step in enumerate(steps):
        if step.kind == "answer" and solution.answer is not None:
            # Only the last answer counts.
            verdict = AGREES
        elif step.kind == "answer":
            verdict = _compare_answers(step, expected)
        else:
            verdict = verdict_of(index)
        if verdict == DEPARTS:
            return Attribution(step.kind, index, num_undecided)
        if index == said and solution.answer == WRONG:
            return Attribution("answer", index, num_undecided)
        num_undecided += verdict == UNDECIDED
    if solution.answer == WRONG:
        return Attribution("answer", None, num_undecided)
    has_answer = any(step.kind == "answer" for step in steps)
    if solution.answer == MISSING or (solution.answer is None and expected and not has_answer):
        return Attribution(NO_ANSWER, None, num_undecided)
    return Attribution(UNDECIDED if num_undecided else NO_DEPARTURE, None, num_undecided)


def _place_of_answer(steps):
    """The index of the last answer; of the last step that says `The answer is:` if no step is an answer."""
    marker = ANSWER_MARKER.casefold()
    answers = [index for index, step in enumerate(steps) if step.kind == "answer"]
    said = [index for index, step in enumerate(steps) if marker in step.text.casefold()]
    return next(reversed(answers or said), None)


def _compare_answers(step, expected):
    if not expected:
        return UNDECIDED
    return AGREES if _plain_answer(step.text) == _plain_answer(expected[-1].text) else DEPARTS


def _plain_answer(text):
    """The text after the marker, in lower case and without a full stop."""
    position = text.casefold().rfind(ANSWER_MARKER.casefold())
    text = text[position + len(ANSWER_MARKER) :] if position >= 0 else text
    return " ".join(text.casefold().split()).rstrip(" .")
