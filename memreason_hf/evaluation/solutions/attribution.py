"""Where a solution first departs from the reference, and at a step of which kind."""

from collections.abc import Sequence
from dataclasses import dataclass

from memreason_hf.checks import check_sequence, check_type
from memreason_hf.evaluation.solutions.judges import AGREES, DEPARTS, UNDECIDED, VERDICTS, StepJudge
from memreason_hf.steps import ANSWER_MARKER, Step


NO_DEPARTURE, NO_REFERENCE = "none", "no reference"


@dataclass(frozen=True)
class Attribution:
    """
    The first departure of one solution.

    Attributes:
        outcome: the kind of the first departing step; `"none"` if all steps agree; `"undecided"` if no step departs
            but some could not be judged; `"no reference"` if there are no reference steps.
        step: the index of the departing step; None without one.
        num_undecided: number of steps that could not be judged, up to the departing step.
    """

    outcome: str
    step: int | None = None
    num_undecided: int = 0


def attribute(
    solution: Sequence[Step], references: Sequence[Step], judge: StepJudge, *, question: str = ""
) -> Attribution:
    """
    Finds the first step of a solution that departs from the reference.

    The order of the steps, a missing step and a repeated step do not count as departures. An answer is compared with
    the answer of the reference, every other step with all other reference steps, whatever their kinds.

    Args:
        solution: generated steps.
        references: reference steps, with or without the answer.
        judge: judges the steps other than the answer.
        question: passed to the judge.

    Raises:
        ValueError: the judge returns something other than a verdict.

    Example:

        >>> from memreason_hf.evaluation.solutions.judges import ExactJudge
        >>> references = [Step("memory", "Iron is heavy."), Step("reason", "So it sinks.")]
        >>> solution = [Step("memory", "Iron is heavy."), Step("reason", "So it floats.")]
        >>> attribute(solution, references, ExactJudge())
        Attribution(outcome='reason', step=1, num_undecided=0)
    """
    for name, steps in (("solution", solution), ("references", references)):
        check_sequence(name, steps, "a list of steps")
        for step in steps:
            check_type(name, step, Step, "a list of steps")
    known = [step for step in references if step.kind != "answer"]
    answers = [step for step in references if step.kind == "answer"]
    if not known:
        return Attribution(NO_REFERENCE)
    num_undecided = 0
    for index, step in enumerate(solution):
        verdict = _compare_answers(step, answers) if step.kind == "answer" else judge(step, known, question)
        if verdict not in VERDICTS:
            raise ValueError(f"The judge returned {verdict!r}; it must return one of {', '.join(VERDICTS)}.")
        if verdict == DEPARTS:
            return Attribution(step.kind, index, num_undecided)
        num_undecided += verdict == UNDECIDED
    return Attribution(UNDECIDED if num_undecided else NO_DEPARTURE, None, num_undecided)


def _compare_answers(step, answers):
    if not answers:
        return UNDECIDED
    return AGREES if _plain_answer(step.text) == _plain_answer(answers[-1].text) else DEPARTS


def _plain_answer(text):
    """The text after the marker, in lower case and without a full stop."""
    position = text.casefold().rfind(ANSWER_MARKER.casefold())
    text = text[position + len(ANSWER_MARKER) :] if position >= 0 else text
    return " ".join(text.casefold().split()).rstrip(" .")
