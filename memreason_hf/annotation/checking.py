"""Whether steps are an annotation: both kinds, in order, and no answer given away."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memreason_hf.annotation.parsing import AnnotationProblem
from memreason_hf.annotation.prompt_texts import ORDERS
from memreason_hf.checks import check_choice, check_int, check_type, shortened
from memreason_hf.data.questions.answer_types import normalized_text, read_letter, same_answer
from memreason_hf.data.questions.options import options_by_label
from memreason_hf.data.questions.schema import type_of_row
from memreason_hf.steps import ANSWER_MARKER, Step


_MARKER = re.compile(rf"\W*(?:{re.escape(ANSWER_MARKER.rstrip(':'))}|answer)?\s*:?\s*", re.IGNORECASE)
# `The answer is B`, `the correct option is (B)`, `Answer: True`.
_STATED = (
    r"(?:\banswer(?:\s+(?:is|would be|must be))?|\b(?:correct|right|best)\s+(?:option|choice)(?:\s+is)?)"
    r"\s*:?\s*[\"'(\[*]*{}(?!\w)"
)


@dataclass(frozen=True)
class StepRules:
    """
    What the steps of an annotation must be.

    Args:
        order: `"memory_first"`: no memory step after a reason step; `"natural"`: any order.
        keep_answer_out: whether no memory step may give the answer away: state it (`The answer is B`), or, for numbers
            and free texts, hold it where the question does not.
        most_steps: the maximum number of steps.

    Example:

        >>> from memreason_hf.data.questions.schema import question_row
        >>> row = question_row("6 times 7?", "42")
        >>> steps = [Step("memory", "6 times 7 is 42."), Step("reason", "So it is 42.")]
        >>> StepRules().check(steps, row)
        >>> StepRules(keep_answer_out=True).check(steps, row)
        Traceback (most recent call last):
        memreason_hf.annotation.parsing.AnnotationProblem: memory step 1 gives the answer 42 away
    """

    order: str = "natural"
    keep_answer_out: bool = False
    most_steps: int = 30

    def __post_init__(self):
        check_choice("order", self.order, ORDERS)
        check_type("keep_answer_out", self.keep_answer_out, bool, "True or False")
        check_int("most_steps", self.most_steps, least=2)

    def check_plan(self, plan: Sequence[Step], row: Mapping) -> list[Step]:
        """
        Checks a plan before its questions are asked.

        Args:
            plan: as from `parse_plan`.
            row: of the data set.

        Returns:
            The steps without the answer, which may stand at the end of a plan.

        Raises:
            AnnotationProblem: the plan breaks a rule, or arrives at another answer.
        """
        steps = [step for step in plan if step.kind != "answer"]
        if any(step.kind == "answer" for step in plan[:-1]):
            raise AnnotationProblem("the plan answers before its end")
        if len(steps) < len(plan):
            self._check_answer(plan[-1].text, row)
        for kind in ("memory", "reason"):
            if not any(step.kind == kind for step in steps):
                raise AnnotationProblem(f"the plan has no {kind} step")
        if len(steps) > self.most_steps:
            raise AnnotationProblem(f"the plan has {len(steps)} steps, at most {self.most_steps} are allowed")
        kinds = [step.kind for step in steps]
        if self.order == "memory_first" and kinds != sorted(kinds):
            raise AnnotationProblem("a memory step comes after a reason step")
        return steps

    def check(self, steps: Sequence[Step], row: Mapping) -> None:
        """
        Checks the finished steps.

        Raises:
            AnnotationProblem: a memory step gives the answer away, which only `keep_answer_out` forbids.
        """
        self.check_plan(steps, row)
        for number, step in enumerate(steps, start=1):
            if self.keep_answer_out and step.kind == "memory" and _gives_away(step.text, row):
                raise AnnotationProblem(f"memory step {number} gives the answer {row['answer']} away")

    def _check_answer(self, text, row):
        said = _MARKER.sub("", text, count=1).strip(" *_`\"'")
        answer_type, options = type_of_row(row), options_by_label(row["options"])
        if answer_type in ("true_false", "yes_no", "letters"):
            first = said.split(" ")[0].strip(".,:;") if said else ""
            label = read_letter(first) if answer_type == "letters" else first.capitalize()
            texts = [name for name, option in options.items() if normalized_text(option) == normalized_text(said)]
            agrees = row["answer"] in (label, *texts)
        else:
            agrees = any(same_answer(answer_type, said, one) for one in (row["answer"], *row["accepted_answers"]))
        if not agrees:
            raise AnnotationProblem(
                f"the plan answers {shortened(said)}, but the answer is {shortened(row['answer'])}"
            )


def _gives_away(text, row):
    answers = [row["answer"], *row["accepted_answers"]]
    named = [option["text"] for option in row["options"] if option["label"] in answers]
    for answer in (*answers, *named):
        # A label of one letter is no article.
        wanted = f"(?-i:{answer})" if len(answer) == 1 and answer.isalpha() else re.escape(answer)
        if re.search(_STATED.format(wanted), text, re.IGNORECASE):
            return True
    # The texts of options are in the question, and knowledge about the right one must name it.
    if row["options"]:
        return False
    question, step = _plain(row["question"]), _plain(text)
    alone = [rf"(?<![\w.]){re.escape(_plain(answer))}(?![\w+#]|\.\d)" for answer in answers]
    return any(re.search(answer, step) and not re.search(answer, question) for answer in alone)


def _plain(text):
    """A text for comparison, without commas inside numbers."""
    return normalized_text(re.sub(r"(?<=\d),(?=\d{3})", "", text))
