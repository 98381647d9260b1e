"""Where a solution first departs from the reference, and at a step of which kind."""

from collections.abc import Sequence
from dataclasses import dataclass

from memreason_hf.evaluation.solutions.judges import AGREES, DEPARTS, UNDECIDED, VERDICTS, StepJudge
from memreason_hf.steps import ANSWER_MARKER, Step


NO_DEPARTURE, NO_REFERENCE = "none", "no reference"


@dataclass(frozen=True)
class Attribution:
    """
    The first departure of one solution.

    Attributes:
        outcome: the kind of the step that departs first; `"none"` if all agree; `"undecided"` if none departs but some
            could not be judged; `"no reference"` where there are no reference steps.
        step: the index of that step, None without one.
        num_undecided: steps that could not be judged, of those before it or of all.
    """

    outcome: str
    step: int | None = None
    num_undecided: int = 0


def attribute(
    solution: Sequence[Step], references: Sequence[Step], judge: StepJudge, *, question: str = ""
) -> Attribution:
    """
    The first step of a solution that departs from the reference.

    The order of the steps, a missing step and a repeated one are no departures. An answer is compared with the
    answer of the reference, all other steps with all its other steps, whatever their kinds.

    Args:
        solution: generated steps.
        references: reference steps, the answer among them or not.
        judge: decides on the steps other than the answer.
        question: what judges may also refer to.

    Raises:
        ValueError: the judge returns something else than a verdict.
    """
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
    return AGREES if _said(step.text) == _said(answers[-1].text) else DEPARTS


def _said(text):
    """What follows the marker, without its case and a full stop."""
    position = text.casefold().rfind(ANSWER_MARKER.casefold())
    text = text[position + len(ANSWER_MARKER) :] if position >= 0 else text
    return " ".join(text.casefold().split()).rstrip(" .")
