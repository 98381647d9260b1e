"""What a language model writes, read as the steps of a plan and as answers to its questions."""

import re

from memreason_hf.checks import check_int, check_type, shortened
from memreason_hf.data.questions.text import one_line
from memreason_hf.steps import Step


# What models call the kinds.
_KIND_OF = {
    **dict.fromkeys(("memory", "knowledge", "rag", "recall", "retrieve", "retrieval"), "memory"),
    **dict.fromkeys(("reason", "reasoning"), "reason"),
    **dict.fromkeys(("answer", "final answer"), "answer"),
}
_NAMES = "|".join(sorted(_KIND_OF, key=len, reverse=True))
# A bullet, or the number of a step.
_BULLET = r"(?:[-*\u2022+]\s+|\(?\d{1,3}[.):](?!\d)\s*|step\s+\d{1,3}\s*[.:)-]?\s*)"
_EMPHASIS = r"[*_`]{0,3}"
_STEP = re.compile(
    rf"\s*{_BULLET}?{_EMPHASIS}(?:[\[(<]\s*({_NAMES})\s*[\])>]|({_NAMES})(?={_EMPHASIS}\s*:)){_EMPHASIS}"
    rf"(?:\s*:{_EMPHASIS})?\s*(.*)",
    re.IGNORECASE,
)
_SECOND_LABEL = re.compile(rf"(?:and|or|/|,|&|\+)?\s*[\[(<]\s*(?:{_NAMES})\s*[\])>]", re.IGNORECASE)
# What begins a step of its own, and does not go on with the one before it.
_LISTED = re.compile(r"[-*\u2022+]\s|\(?\d{1,3}[.):](?!\d)|step\s+\d{1,3}\s*[.:)](?!\d)", re.IGNORECASE)
_NUMBERED = re.compile(rf"\s*{_EMPHASIS}\(?(\d{{1,3}})[.):](?!\d){_EMPHASIS}\s*(.*)")
_THOUGHT_END = "</think>"
_FENCE = re.compile(r"\s*```\w*\s*")
_UNKNOWN = re.compile(
    r"\W*(?:unknown|n/?a|none|(?:i (?:do not|don't|don\u2019t) know)(?: the answer)?|not known|no answer)\W*",
    re.IGNORECASE,
)


class AnnotationProblem(ValueError):
    """What a language model wrote is no annotation; the message says why. Another try may give one."""


def parse_plan(text: str) -> list[Step]:
    """
    The steps of a plan: lines that begin with `[memory]` or `[reason]`.

    Bullets, numbers, bold labels, other names of the kinds (`[rag]`, `Knowledge:`), a code block and the thoughts of a
    reasoning model before its answer are accepted. A line without a label continues the step in the line before it.

    Args:
        text: what the model wrote.

    Returns:
        The steps. The text of a memory step is the question that asks for the knowledge. An `[answer]` line gives a
        step of that kind.

    Raises:
        AnnotationProblem: there are no steps, or one of them has no label, two labels or no text.

    Example:

        >>> parse_plan("1. [memory] What is ice?\\n2. **Reason:** Ice is solid,\\n   so it is no liquid.")
        [Step(kind='memory', text='What is ice?'), Step(kind='reason', text='Ice is solid, so it is no liquid.')]
    """
    check_type("text", text, str, "a text")
    steps, after_blank = [], False
    for line in _lines(text):
        match = _STEP.fullmatch(line)
        if match is not None:
            if _SECOND_LABEL.match(match[3]):
                raise AnnotationProblem(f"step {len(steps) + 1} of the plan has two labels: {shortened(line.strip())}")
            steps.append((_KIND_OF[(match[1] or match[2]).lower()], [match[3]]))
        elif not line.strip():
            after_blank = True
            continue
        elif steps:
            if after_blank or _LISTED.match(line.strip()):
                raise AnnotationProblem(f"a line of the plan has no label: {shortened(line.strip())}")
            steps[-1][1].append(line)
        # What stands before the first step introduces the plan.
        after_blank = False
    if not steps:
        raise AnnotationProblem(f"there are no steps in the plan: {shortened(text.strip())}")
    return [_step(number, kind, lines) for number, (kind, lines) in enumerate(steps, start=1)]


def _step(number, kind, lines):
    text = _plain(one_line("\n".join(lines)))
    if not any(character.isalnum() for character in text):
        raise AnnotationProblem(f"step {number} of the plan ({kind}) has no text")
    return Step(kind, text)


def parse_knowledge(text: str, count: int) -> list[str]:
    """
    The answers to the numbered questions of a plan.

    Args:
        text: what the model wrote: lines that begin with a number.
        count: the number of questions.

    Returns:
        The answers, each in one line.

    Raises:
        AnnotationProblem: an answer is missing, empty, given twice, or says that it is unknown.

    Example:

        >>> parse_knowledge("Here they are:\\n1. Ice is frozen water.\\n2) Snow is\\nice, too.", 2)
        ['Ice is frozen water.', 'Snow is ice, too.']
    """
    check_type("text", text, str, "a text")
    check_int("count", count, least=1)
    answers, last = {}, None
    for line in _lines(text):
        match = _NUMBERED.fullmatch(line)
        if match is not None and 1 <= int(match[1]) <= count:
            last = int(match[1])
            if last in answers:
                raise AnnotationProblem(f"question {last} is answered twice")
            answers[last] = [match[2]]
        elif not line.strip():
            # A remark after the answers belongs to none of them.
            last = None
        elif last is not None:
            answers[last].append(line)
    if not answers and count == 1:
        answers = {1: _lines(text)}
    missing = [number for number in range(1, count + 1) if number not in answers]
    if missing:
        raise AnnotationProblem(f"question {missing[0]} of {count} is not answered: {shortened(text.strip())}")
    return [_answer(number, answers[number]) for number in range(1, count + 1)]


def _answer(number, lines):
    answer = _plain(one_line("\n".join(lines)))
    if not any(character.isalnum() for character in answer):
        raise AnnotationProblem(f"the answer to question {number} is empty")
    if _UNKNOWN.fullmatch(answer):
        raise AnnotationProblem(f"the answer to question {number} is unknown")
    return answer


def _plain(text):
    """A text without the emphasis around all of it, of which the label may have taken the first half."""
    for mark in ("**", "__", "*", "_", "`"):
        if text.endswith(mark) and text.count(mark) % 2:
            text = text.removesuffix(mark).rstrip()
        elif text.startswith(mark) and text.endswith(mark) and text.count(mark) == 2:
            text = text.removeprefix(mark).removesuffix(mark).strip()
    return text


def _lines(text):
    """The lines of a text without thoughts and the marks of code blocks."""
    text = text.rpartition(_THOUGHT_END)[2]
    return [line for line in text.replace("\r\n", "\n").split("\n") if not _FENCE.fullmatch(line)]
