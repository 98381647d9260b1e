"""
The scheme of steps: how the steps of a solution are marked, and how a solution is written and parsed.

    scheme = StepScheme(num_prefix_tokens=2, num_step_tokens=4)
    solution = [Step("memory", "Air scatters blue light."), answer_step("True")]
    text = scheme.question_text("Is the sky blue?") + scheme.render(solution)
    scheme.parse(scheme.render(solution)) == solution

The kinds and their tokens are those of "Disentangling Memory and Reasoning Ability in Large Language Models"
(arXiv 2411.13504).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields

from memreason_hf.checks import check_row, check_sequence, check_type, shortened
from memreason_hf.steps.marks import FAMILY_TOKEN, Piece, find_groups, find_lines


PREFIX = "prefix"
NO_KIND = "step"
KINDS = ("memory", "reason", "answer", NO_KIND)
ANSWER_MARKER = "The answer is:"
QUESTION_MARKER = "Question: "

# The most tokens of a group. Published schemes have at most 10.
MOST_TOKENS = 1000
MARKS = ("tokens", "words", "none")
LAYOUTS = ("steps", "front", "plan_first", "plan_only")


@dataclass(frozen=True, slots=True)
class Step:
    """
    One step of a solution.

    Attributes:
        kind (`str`):
            `"memory"` (recalls knowledge), `"reason"` (reasons over it), `"answer"`, or `"step"` for a step without a
            kind.
        text (`str`): What the step says, in one line.

    Raises:
        ValueError, TypeError: another kind, or a text that is not a string.
    """

    kind: str
    text: str

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}.")
        if not isinstance(self.text, str):
            raise TypeError(f"text={self.text!r} must be a string.")


def as_step(step: Step | Mapping) -> Step:
    """
    A step, or a mapping with `kind` and `text`, as a step.

    Raises:
        ValueError, TypeError: `step` is neither, or lacks one of the two.
    """
    if isinstance(step, Step):
        return step
    check_row("step", step, ("kind", "text"))
    return Step(**step)


@dataclass(frozen=True, slots=True)
class StepSpan:
    """
    The place of a step in a text.

    Attributes:
        kind (`str`): The kind of the step.
        start, mark_end (`int`): Where its mark starts and ends. Without a mark the two are the same.
        text_start, end (`int`): Where its text starts and ends. One space after the mark belongs to neither.
        is_plan (`bool`): Whether a plan before the steps announces it, without its text.
    """

    kind: str
    start: int
    mark_end: int
    text_start: int
    end: int
    is_plan: bool = False


class Solution(list):
    """
    The steps of a parsed text: a list of `Step`.

    Attributes:
        truncated (`bool`): Whether the text ends inside the tokens of a step, which is not among the steps.
        plan (`list[str]`, *optional*): The kinds that a plan before the steps announces, if there is a plan.
    """

    def __init__(self, steps: Iterable[Step] = (), *, truncated: bool = False, plan: list[str] | None = None):
        super().__init__(steps)
        self.truncated = truncated
        self.plan = plan


def answer_step(answer: str) -> Step:
    """The last step of a solution: `The answer is: …`."""
    return Step("answer", f"{ANSWER_MARKER} {answer}")


# The published texts have 2 to 6 of a kind.


@dataclass(frozen=True)
class StepScheme:
    """
    How the steps of a solution are marked and laid out.

    Args:
        num_prefix_tokens (`int`, *optional*, defaults to 2):
            The tokens `<prefix_0>`, `<prefix_1>`, … before every step of any kind. May be 0.
        num_step_tokens (`int`, *optional*, defaults to 4):
            The tokens `<memory_0>`, `<memory_1>`, … of each kind. If there is only one, its name has no number:
            `<memory>`. The same holds for `<prefix>`.
        marks (`str`, *optional*, defaults to `"tokens"`):
            `"tokens"`; `"words"` for a hard prompt in plain words (`Memory: …`); `"none"` for no marks at all.
        layout (`str`, *optional*, defaults to `"steps"`):
            `"steps"`: each step is marked. `"front"`: the prefix tokens once, before the first step, and no kinds.
            `"plan_first"`: the marks of all steps, one on each line, then the steps. `"plan_only"`: the same, but only
            the answer has a text.
        ordered (`bool`, *optional*, defaults to `False`): Memory steps come before all others, and the answer last.

    Raises:
        ValueError, TypeError: a value out of range, or values that contradict each other.

    Example:

    ```python
    >>> from memreason_hf import StepScheme
    >>> from memreason_hf.steps import Step, answer_step

    >>> scheme = StepScheme(num_prefix_tokens=1, num_step_tokens=1)
    >>> text = scheme.render([Step("memory", "Air scatters blue light."), answer_step("True")])
    >>> print(text, end="")
    <prefix><memory> Air scatters blue light.
    <prefix><answer> The answer is: True
    >>> scheme.parse(text)[0]
    Step(kind='memory', text='Air scatters blue light.')
    ```
    """

    num_prefix_tokens: int = field(default=2, metadata={"help": "Tokens before every step of any kind."})
    num_step_tokens: int = field(default=4, metadata={"help": "Tokens of the kind of a step."})
    marks: str = field(default="tokens", metadata={"help": f"What marks a step: {', '.join(MARKS)}."})
    layout: str = field(default="steps", metadata={"help": f"The layout of a text: {', '.join(LAYOUTS)}."})
    ordered: bool = field(default=False, metadata={"help": "All memory steps before the others."})

    def __post_init__(self):
        for name in ("num_prefix_tokens", "num_step_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r} must be a whole number.")
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative.")
            if value > MOST_TOKENS:
                raise ValueError(
                    f"{name}={shortened(value)} must be at most {MOST_TOKENS:,}: each has a row of the "
                    "embedding, and every step begins with all of them."
                )
        for name, values in (("marks", MARKS), ("layout", LAYOUTS)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(values)}.")
        if not isinstance(self.ordered, bool):
            raise TypeError(f"ordered={self.ordered!r} must be True or False.")
        if self.layout == "front" and (self.marks != "tokens" or self.num_prefix_tokens == 0):
            raise ValueError(
                f"layout='front' writes prefix tokens before the first step, but marks={self.marks!r} and "
                f"num_prefix_tokens={self.num_prefix_tokens}. Use marks='tokens' and at least one prefix token."
            )
        if self.marks == "none" and self.layout != "steps":
            raise ValueError(f"layout={self.layout!r} needs marks, but marks='none'. Use layout='steps'.")
        if self.marks == "tokens" and self.layout != "front" and self.num_step_tokens == 0:
            raise ValueError("num_step_tokens=0 leaves no token for the kinds. Use at least 1.")

    @property
    def has_kinds(self) -> bool:
        """Whether a text of this scheme shows the kinds of its steps."""
        return self.marks != "none" and self.layout != "front"

    @property
    def prefix_tokens(self) -> tuple[str, ...]:
        """The tokens before every step; empty if there are none."""
        return _names(PREFIX, self.num_prefix_tokens) if self.marks == "tokens" else ()

    def kind_tokens(self, kind: str) -> tuple[str, ...]:
        """The tokens of one kind, without the prefix; empty if the scheme has none."""
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}.")
        return _names(kind, self.num_step_tokens) if self.marks == "tokens" and self.has_kinds else ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens in the order of their ids: prefix, memory, reason, answer, step."""
        return self.prefix_tokens + tuple(token for kind in KINDS for token in self.kind_tokens(kind))

    @property
    def words(self) -> dict[str, str]:
        """The word that each token stands for."""
        words = dict.fromkeys(self.prefix_tokens, PREFIX)
        return words | {token: kind for kind in KINDS for token in self.kind_tokens(kind)}

    def mark(self, kind: str) -> str:
        """The mark before the text of a step: tokens without spaces, or a word and a colon."""
        if self.marks == "words":
            return f"{kind.capitalize()}:"
        return "".join(self.prefix_tokens + self.kind_tokens(kind)) if self.marks == "tokens" else ""

    def question_text(self, question: str) -> str:
        """The question before a solution: `Question: …` and a newline."""
        check_type("question", question, str, "a text")
        return f"{QUESTION_MARKER}{question.removeprefix(QUESTION_MARKER)}\n"

    def prompt(self, question: str) -> str:
        """The text that a model continues: the question, then the prefix tokens of the first step."""
        return self.question_text(question) + "".join(self.prefix_tokens)

    def arrange(self, steps: Iterable[Step | Mapping]) -> list[Step]:
        """
        The steps as a text of this scheme can express them: `parse(render(steps)) == arrange(steps)`.

        The kinds are lost where the scheme has none, the texts where only a plan is written, and the order where the
        scheme is ordered.
        """
        check_sequence("steps", steps, "a list of steps")
        steps = [as_step(step) for step in steps]
        if self.ordered:
            ranks = {"memory": 0, "answer": 2}
            steps.sort(key=lambda step: ranks.get(step.kind, 1))
        if self.layout == "plan_only":
            steps = [step if step.kind == "answer" else Step(step.kind, "") for step in steps]
        return steps if self.has_kinds else [Step(NO_KIND, step.text) for step in steps]

    def render(self, steps: Iterable[Step | Mapping]) -> str:
        """
        Writes a solution: for each step a line with its mark, one space and its text.

        Args:
            steps (`Iterable[Step]`): The steps, or mappings with `kind` and `text` as in the rows of a dataset.

        Raises:
            ValueError: a text that could not be parsed: it contains a newline or a token of the scheme, starts with a
                token of another scheme, or is empty where an empty step would not show.
        """
        check_sequence("steps", steps, "a list of steps")
        steps = [as_step(step) for step in steps]
        arranged = self.arrange(steps)
        for step in steps:
            self._check(step)
        if self.layout == "front":
            front = f"{self.mark(NO_KIND)} " if arranged else ""
            return front + "".join(f"{step.text}\n" for step in arranged)
        if self.marks == "none":
            return "".join(f"{step.text}\n" for step in arranged)
        plan = "".join(f"{self.mark(step.kind)}\n" for step in arranged) if self.layout == "plan_first" else ""
        return plan + "".join(
            f"{self.mark(step.kind)}\n" if self._is_plan_only(step) else f"{self.mark(step.kind)} {step.text}\n"
            for step in arranged
        )

    def parse(self, text: str) -> Solution:
        """
        Parses a solution, also one with other numbers of tokens than the scheme's, with spaces between them, or with
        `rag` in place of `memory`.

        A step starts at a complete group of tokens (prefix tokens, if any, then all tokens of a kind in order) at the
        start of a line or, in a text without newlines, after white space. Every other line that is not blank is a step
        without a kind. The text should begin after the question.
        """
        check_type("text", text, str, "a text")
        spans, stop = self.locate(text)
        return Solution(
            [Step(span.kind, text[span.text_start : span.end]) for span in spans if not span.is_plan],
            truncated=stop < len(text),
            plan=[span.kind for span in spans if span.is_plan] if self.layout == "plan_first" else None,
        )

    def locate(self, text: str) -> tuple[list[StepSpan], int]:
        """
        The places of the steps that `parse` reads, those of a plan first.

        Returns:
            The places in their order, and the end of the last step: before the end of the text if the text ends inside
            the tokens of a step.
        """
        check_type("text", text, str, "a text")
        stop = len(text)
        if self.marks == "none":
            pieces = [Piece(None, start, start, start, end) for start, end in find_lines(text)]
        elif self.marks == "words":
            pieces = [self._locate_words(text, start, end) for start, end in find_lines(text)]
        elif self.layout == "front":
            pieces, stop = self._locate_front(text)
        else:
            pieces, stop = find_groups(text, self.num_prefix_tokens, self.num_step_tokens)
        num_planned = 0
        if self.layout == "plan_first":
            written = (i for i, piece in enumerate(pieces) if piece.kind is None or _has_text(text, piece))
            num_planned = next(written, len(pieces))
        spans = [
            StepSpan(piece.kind or NO_KIND, piece.start, piece.mark_end, piece.text_start, piece.end, i < num_planned)
            for i, piece in enumerate(pieces)
        ]
        return spans, stop

    def _is_plan_only(self, step):
        return self.layout == "plan_only" and step.kind != "answer"

    def _check(self, step):
        text, shown = step.text, f"The text of a {step.kind} step, {step.text[:80]!r},"
        if "\n" in text:
            raise ValueError(f"{shown} holds a newline, but a step is one line. Replace it with a space.")
        for token in self.tokens:
            if token in text:
                raise ValueError(f"{shown} holds {token}, a token of the scheme. Remove it from the text.")
        if self.marks == "tokens" and FAMILY_TOKEN.match(text.lstrip()):
            raise ValueError(
                f"{shown} begins with a step token of another scheme, which would be parsed as part of its mark. "
                "Remove it from the text."
            )
        blank_is_lost = not self.has_kinds or self.layout == "plan_first"
        if blank_is_lost and not text.strip():
            raise ValueError(
                f"{shown} is blank, which would be lost with marks={self.marks!r} and layout={self.layout!r}. "
                "Leave it out."
            )

    def _locate_words(self, text, start, end):
        match = _WORD_MARK.match(text, start, end)
        if match is None:
            return Piece(None, start, start, start, end)
        text_start = match.end() if match[2] is None else match.start(2)
        return Piece(match[1].lower(), start, match.end(1) + 1, text_start, end)

    def _locate_front(self, text):
        lines = list(find_lines(text))
        if not lines or (front := _FRONT.match(text, *lines[0])) is None:
            return [Piece(None, start, start, start, end) for start, end in lines], len(text)
        (start, end), *others = lines
        pieces = [Piece(None, first, first, first, last) for first, last in others]
        if text[front.end() : end].strip():
            text_start = front.end() + text.startswith(" ", front.end(), end)
            return [Piece(None, start, front.end(), text_start, end), *pieces], len(text)
        return pieces, len(text) if others else start

    def to_dict(self) -> dict:
        """The fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> "StepScheme":
        """
        The scheme with the fields of `to_dict`.

        Raises:
            ValueError: an unknown field.
        """
        check_type("values", values, Mapping, "a mapping with the fields of a scheme")
        names = [item.name for item in fields(cls)]
        unknown = [name for name in values if name not in names]
        if unknown:
            raise ValueError(
                f"A StepScheme has no field {', '.join(map(str, unknown))}. Its fields are {', '.join(names)}."
            )
        return cls(**values)


_WORD_MARK = re.compile(rf"({'|'.join(kind.capitalize() for kind in KINDS)}):(?: (.*))?$", re.DOTALL)
_FRONT = re.compile(r"\s*(?:<prefix(?:_\d+)?>\s*?)+")


def _has_text(text, piece):
    return bool(text[piece.text_start : piece.end].strip())


def _names(name, count):
    return (f"<{name}>",) if count == 1 else tuple(f"<{name}_{index}>" for index in range(count))
