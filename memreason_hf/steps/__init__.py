"""What a step of a solution is: the scheme of its marks, and how tokenizers, attention and depth follow it."""

from memreason_hf.steps.scheme import (
    ANSWER_MARKER,
    KINDS,
    NO_KIND,
    PREFIX,
    QUESTION_MARKER,
    Solution,
    Step,
    StepScheme,
    StepSpan,
    answer_step,
)


__all__ = [
    "ANSWER_MARKER",
    "KINDS",
    "NO_KIND",
    "PREFIX",
    "QUESTION_MARKER",
    "Solution",
    "Step",
    "StepScheme",
    "StepSpan",
    "answer_step",
]
