"""Steps of a solution: the scheme of their marks, and tokenizers, attention and depth that follow it."""

from memreason_hf.steps.kinds import KINDS, NO_KIND, PREFIX, STUDY_KINDS, check_kind, is_kind, kind_order
from memreason_hf.steps.scheme import (
    ANSWER_MARKER,
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
    "STUDY_KINDS",
    "Solution",
    "Step",
    "StepScheme",
    "StepSpan",
    "answer_step",
    "check_kind",
    "is_kind",
    "kind_order",
]
