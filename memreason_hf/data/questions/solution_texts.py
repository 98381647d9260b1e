"""Solutions as texts: the steps and the answer of a text of any scheme, of labelled lines or of plain lines."""

import re
from collections.abc import Mapping

from memreason_hf.checks import shortened
from memreason_hf.data.questions.text import one_line
from memreason_hf.steps import ANSWER_MARKER, NO_KIND, Step, StepScheme
from memreason_hf.steps.scheme import as_step


# Labels before a step. A step with labels of both kinds gets no kind.
KIND_LABELS = {"rag": "memory", "memory": "memory", "reason": "reason", "step": NO_KIND}
_LABEL = re.compile(r"\s*\[([^\[\]]*)\](?:\s+and\s+\[([^\[\]]*)\])?\s*:?")
_ANSWER = re.compile(rf"{ANSWER_MARKER[:-1]}[^\S\n]*:", re.IGNORECASE)
_ANSWER_INSIDE = re.compile(rf"\b{_ANSWER.pattern}", re.IGNORECASE)


def labelled_step(text: str) -> tuple[set[str], str]:
    """
    The kinds that the labels before a step name (`[rag]: …`, `[reason] and [rag]: …`), and its text on one line.

    Raises:
        ValueError: a label is unknown.

    Example:

        >>> labelled_step("[rag]: Iron is heavy."), labelled_step("It sinks.")
        (({'memory'}, 'Iron is heavy.'), (set(), 'It sinks.'))
    """
    match = _LABEL.match(text)
    if match is None:
        return set(), one_line(text)
    labels = [label for label in match.groups() if label is not None]
    unknown = [label for label in labels if label not in KIND_LABELS]
    if unknown:
        raise ValueError(f"the step {text[:60]!r} has the unknown label [{unknown[0]}]. Labels are {known_labels()}.")
    return {KIND_LABELS[label] for label in labels}, one_line(text[match.end() :])


def known_labels() -> str:
    """The labels of steps, for messages."""
    return ", ".join(f"[{label}]" for label in KIND_LABELS)


def read_steps(steps: object, scheme: StepScheme | None = None) -> list[Step]:
    """
    The steps of a row.

    Args:
        steps: None; a list of steps, of mappings with `kind` and `text`, or of texts, with labels (`[rag]: …`) or
            without; or one text with a step on each line.
        scheme: how a text marks its steps. Default: by the tokens of any scheme, or not at all.

    Raises:
        ValueError, TypeError: another value, an unknown kind or label, or a step without a text.

    Example:

        >>> read_steps(["[rag]: Iron is heavy.", "So it sinks."])
        [Step(kind='memory', text='Iron is heavy.'), Step(kind='step', text='So it sinks.')]
    """
    if steps is None:
        return []
    if isinstance(steps, str):
        steps = [_line_step(step) for step in (scheme or StepScheme()).parse(steps)]
    if not isinstance(steps, list | tuple):
        raise ValueError(f"steps={shortened(steps)} must be a list of steps or a text, got {type(steps).__name__}.")
    return [_read_step(f"steps[{index}]", step) for index, step in enumerate(steps)]


def _line_step(step):
    """A step of a text, whose line may begin with a label. Other brackets are a part of the text."""
    if step.kind != NO_KIND:
        return step
    try:
        return _labelled(step.text)
    except ValueError:
        return step


def _labelled(text):
    kinds, text = labelled_step(text)
    return Step(kinds.pop() if len(kinds) == 1 else NO_KIND, text)


def _read_step(name, step):
    if isinstance(step, str):
        step = _labelled(step)
    elif isinstance(step, Mapping):
        extra = [str(key) for key in step if key not in ("kind", "text")]
        if extra:
            raise ValueError(f"{name} has {', '.join(extra)} beside kind and text. Leave it out.")
    elif not isinstance(step, Step):
        raise ValueError(f"{name}={shortened(step)} must be a text, or an object with kind and text.")
    step = as_step(step)
    text = one_line(step.text)
    if not text:
        raise ValueError(f"{name}, a {step.kind} step, has no text. Leave it out, or write one.")
    return Step(step.kind, text)


def split_answer(steps: list[Step]) -> tuple[list[Step], str | None]:
    """
    Steps without their answer, and the answer: what follows `The answer is:` in the last step, or the text of a last
    step of the kind `answer`. None if the last step gives no answer.

    Example:

        >>> split_answer([Step("step", "It floats."), Step("step", "The answer is: True")])
        ([Step(kind='step', text='It floats.')], 'True')
    """
    if not steps:
        return steps, None
    last = steps[-1]
    marker = _ANSWER.match(last.text)
    if marker:
        return steps[:-1], last.text[marker.end() :].strip()
    return (steps[:-1], last.text) if last.kind == "answer" else (steps, None)


def read_solution_text(text: str, scheme: StepScheme | None = None) -> tuple[list[Step], str]:
    """
    The steps and the answer of a solution, as in the replies of conversations.

    The answer follows the last `The answer is:` of the last step, whose text before it stays a step. A text of one
    line without a mark and without these words is an answer alone.

    Args:
        text: of the solution.
        scheme: as for `read_steps`.

    Raises:
        ValueError: the text is blank, or its last step gives no answer.

    Example:

        >>> read_solution_text("It floats.\\nThe answer is: True")
        ([Step(kind='step', text='It floats.')], 'True')
        >>> read_solution_text("Paris")
        ([], 'Paris')
        >>> read_solution_text("It floats. The answer is: True")
        ([Step(kind='step', text='It floats.')], 'True')
    """
    steps, answer = split_answer(read_steps(text, scheme))
    if answer is None and steps and (markers := list(_ANSWER_INSIDE.finditer(steps[-1].text))):
        last, marker = steps[-1], markers[-1]
        steps = [*steps[:-1], Step(last.kind, last.text[: marker.start()].strip())]
        answer = last.text[marker.end() :].strip()
    if answer is None and len(steps) == 1 and steps[0].kind == NO_KIND:
        steps, answer = [], steps[0].text
    if not answer:
        shown = steps[-1].text[:60] if steps else ""
        raise ValueError(f"the solution ends with {shown!r}, not with '{ANSWER_MARKER} …', so it has no answer.")
    return steps, answer
