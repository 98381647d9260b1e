"""
The scheme of steps: what marks a step of a solution, how a solution is written, and how a text is read back.

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

from memreason_hf.steps.marks import FAMILY_TOKEN, Piece, find_groups, find_lines


PREFIX = "prefix"
NO_KIND = "step"
KINDS = ("memory", "reason", "answer", NO_KIND)
ANSWER_MARKER = "The answer is:"
QUESTION_MARKER = "Question: "

MARKS = ("tokens", "words", "none")
LAYOUTS = ("steps", "front", "plan_first", "plan_only")


@dataclass(frozen=True, slots=True)
class Step:
    """
    One step of a solution.

    Attributes:
        kind: `"memory"` (recalls knowledge), `"reason"` (reasons over it), `"answer"`, or `"step"` for a step without
            a kind.
        text: what the step says; one line.
    """

    kind: str
    text: str

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is no kind of step; there are {', '.join(KINDS)}.")
        if not isinstance(self.text, str):
            raise TypeError(f"text={self.text!r} of a step must be a string.")


@dataclass(frozen=True, slots=True)
class StepSpan:
    """
    Where a step stands in a text.

    Attributes:
        kind: of the step.
        start, mark_end: its mark; the two are the same where it has none.
        text_start, end: what it says; one space after the mark belongs to neither.
        is_plan: it is announced by a plan before the steps, and not written out there.
    """

    kind: str
    start: int
    mark_end: int
    text_start: int
    end: int
    is_plan: bool = False


class Solution(list):
    """
    The steps that were read from a text: a list of `Step`.

    Attributes:
        truncated: the text ends inside the tokens of a step, which is not among the steps.
        plan: the kinds that a plan before the steps announced; None without such a plan.
    """

    def __init__(self, steps: Iterable[Step] = (), *, truncated: bool = False, plan: list[str] | None = None):
        super().__init__(steps)
        self.truncated = truncated
        self.plan = plan


def answer_step(answer: str) -> Step:
    """The last step of a solution: `The answer is: …`."""
    return Step("answer", f"{ANSWER_MARKER} {answer}")


@dataclass(frozen=True)
class StepScheme:
    """
    How the steps of a solution are marked and laid out.

    Args:
        num_prefix_tokens: tokens `<prefix_0>`, `<prefix_1>` … before every step, whatever its kind; may be 0.
        num_step_tokens: tokens `<memory_0>`, `<memory_1>` … of each kind. With one of them the name is plain:
            `<memory>`; so is `<prefix>`.
        marks: `"tokens"`; `"words"` for a hard prompt in plain words (`Memory: …`); `"none"` for no marks at all.
        layout: `"steps"` (each step marked); `"front"` (the prefix tokens once, before the first step, and no kinds);
            `"plan_first"` (the marks of all steps, one a line, then the steps); `"plan_only"` (the same, but of the
            steps only the answer is written out).
        ordered: memory steps come before all others, the answer last.

    Raises:
        ValueError, TypeError: for anything else, and for combinations that say nothing.
    """

    num_prefix_tokens: int = field(default=2, metadata={"help": "Tokens before every step, whatever its kind."})
    num_step_tokens: int = field(default=4, metadata={"help": "Tokens that tell the kind of a step."})
    marks: str = field(default="tokens", metadata={"help": f"What marks a step: {', '.join(MARKS)}."})
    layout: str = field(default="steps", metadata={"help": f"What a text consists of: {', '.join(LAYOUTS)}."})
    ordered: bool = field(default=False, metadata={"help": "All memory steps before the others."})

    def __post_init__(self):
        for name in ("num_prefix_tokens", "num_step_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r} must be a whole number.")
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative.")
        for name, values in (("marks", MARKS), ("layout", LAYOUTS)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; there are {', '.join(values)}.")
        if not isinstance(self.ordered, bool):
            raise TypeError(f"ordered={self.ordered!r} must be True or False.")
        if self.layout == "front" and (self.marks != "tokens" or self.num_prefix_tokens == 0):
            raise ValueError(
                f"layout='front' writes prefix tokens before the first step, but marks={self.marks!r} and "
                f"num_prefix_tokens={self.num_prefix_tokens}: use tokens, and at least one for the prefix."
            )
        if self.marks == "none" and self.layout != "steps":
            raise ValueError(f"layout={self.layout!r} needs marks, but marks='none'. Use layout='steps'.")
        if self.marks == "tokens" and self.layout != "front" and self.num_step_tokens == 0:
            raise ValueError("num_step_tokens=0 leaves no token to tell the kinds apart: give at least 1.")

    @property
    def has_kinds(self) -> bool:
        """Whether a text of this scheme tells the kinds of its steps."""
        return self.marks != "none" and self.layout != "front"

    @property
    def prefix_tokens(self) -> tuple[str, ...]:
        """The tokens before every step, `()` if there are none."""
        return _names(PREFIX, self.num_prefix_tokens) if self.marks == "tokens" else ()

    def kind_tokens(self, kind: str) -> tuple[str, ...]:
        """The tokens of one kind, without the prefix; `()` if the scheme has none."""
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is no kind of step; there are {', '.join(KINDS)}.")
        return _names(kind, self.num_step_tokens) if self.marks == "tokens" and self.has_kinds else ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens, in the order in which a tokenizer gets them: prefix, memory, reason, answer, step."""
        return self.prefix_tokens + tuple(token for kind in KINDS for token in self.kind_tokens(kind))

    @property
    def words(self) -> dict[str, str]:
        """For every token the word that it stands for."""
        words = dict.fromkeys(self.prefix_tokens, PREFIX)
        return words | {token: kind for kind in KINDS for token in self.kind_tokens(kind)}

    def mark(self, kind: str) -> str:
        """What stands before the text of a step: glued tokens, or a word and a colon."""
        if self.marks == "words":
            return f"{kind.capitalize()}:"
        return "".join(self.prefix_tokens + self.kind_tokens(kind)) if self.marks == "tokens" else ""

    def question_text(self, question: str) -> str:
        """The question as it stands before a solution: `Question: …` and a newline."""
        return f"{QUESTION_MARKER}{question.removeprefix(QUESTION_MARKER)}\n"

    def prompt(self, question: str) -> str:
        """The text that a model goes on from: the question, then the prefix tokens of the first step."""
        return self.question_text(question) + "".join(self.prefix_tokens)

    def arrange(self, steps: Iterable[Step | Mapping]) -> list[Step]:
        """
        What a text of this scheme can say of these steps, so that `parse(render(steps)) == arrange(steps)`: all of it,
        but for kinds where it has none, for texts where only a plan is written, and for the order.
        """
        steps = [step if isinstance(step, Step) else Step(**step) for step in steps]
        if self.ordered:
            ranks = {"memory": 0, "answer": 2}
            steps.sort(key=lambda step: ranks.get(step.kind, 1))
        if self.layout == "plan_only":
            steps = [step if step.kind == "answer" else Step(step.kind, "") for step in steps]
        return steps if self.has_kinds else [Step(NO_KIND, step.text) for step in steps]

    def render(self, steps: Iterable[Step | Mapping]) -> str:
        """
        Writes a solution: a line for each step, of its mark, one space and its text.

        Args:
            steps: `Step`s, or mappings with `kind` and `text` as in the rows of a data set.

        Raises:
            ValueError: for a text that could not be read back: one that holds a newline or a token of the scheme, that
                begins with a token of another scheme, or that is empty where nothing would tell it from no step.
        """
        steps = [step if isinstance(step, Step) else Step(**step) for step in steps]
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
        Reads a solution, also one with other numbers of tokens than the scheme's, with spaces between them, or with
        `rag` in place of `memory`.

        A step starts at a complete group of tokens (prefix tokens, if any, then all tokens of a kind in order) at the
        start of a line; in a text without newlines, after white space. Every other line that is not blank is a step
        without a kind, its text kept as it is. The text should begin after the question.
        """
        spans, stop = self.locate(text)
        return Solution(
            [Step(span.kind, text[span.text_start : span.end]) for span in spans if not span.is_plan],
            truncated=stop < len(text),
            plan=[span.kind for span in spans if span.is_plan] if self.layout == "plan_first" else None,
        )

    def locate(self, text: str) -> tuple[list[StepSpan], int]:
        """
        Where the steps that `parse` reads stand in the text, those of a plan first.

        Returns:
            The places, in their order, and where the text stops: before its end if it ends inside a step's tokens.
        """
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
            written = (i for i, piece in enumerate(pieces) if piece.kind is None or _says_something(text, piece))
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
            raise ValueError(f"{shown} holds a newline: a step is one line.")
        for token in self.tokens:
            if token in text:
                raise ValueError(f"{shown} holds {token}, which is a token of the scheme. Take it out of the text.")
        if self.marks == "tokens" and FAMILY_TOKEN.match(text.lstrip()):
            raise ValueError(
                f"{shown} begins with a step token of another scheme, which would be read as part of the mark. Take "
                "it out of the text."
            )
        blank_is_lost = not self.has_kinds or self.layout == "plan_first"
        if blank_is_lost and not text.strip():
            raise ValueError(
                f"{shown} is blank: with marks={self.marks!r} and layout={self.layout!r} it could not be told from no "
                "step. Leave it out."
            )

    def _locate_words(self, text, start, end):
        match = _WORD_MARK.match(text, start, end)
        if match is None:
            return Piece(None, start, start, start, end)
        said = match.end() if match[2] is None else match.start(2)
        return Piece(match[1].lower(), start, match.end(1) + 1, said, end)

    def _locate_front(self, text):
        lines = list(find_lines(text))
        if not lines or (front := _FRONT.match(text, *lines[0])) is None:
            return [Piece(None, start, start, start, end) for start, end in lines], len(text)
        (start, end), *others = lines
        pieces = [Piece(None, first, first, first, last) for first, last in others]
        if text[front.end() : end].strip():
            said = front.end() + text.startswith(" ", front.end(), end)
            return [Piece(None, start, front.end(), said, end), *pieces], len(text)
        return pieces, len(text) if others else start

    def to_dict(self) -> dict:
        """The fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> "StepScheme":
        """
        Raises:
            ValueError: for a key that is no field.
        """
        names = [item.name for item in fields(cls)]
        unknown = [name for name in values if name not in names]
        if unknown:
            raise ValueError(f"A scheme of steps has no {', '.join(map(str, unknown))}; it has {', '.join(names)}.")
        return cls(**values)


_WORD_MARK = re.compile(rf"({'|'.join(kind.capitalize() for kind in KINDS)}):(?: (.*))?$", re.DOTALL)
_FRONT = re.compile(r"\s*(?:<prefix(?:_\d+)?>\s*?)+")


def _says_something(text, piece):
    return bool(text[piece.text_start : piece.end].strip())


def _names(name, count):
    return (f"<{name}>",) if count == 1 else tuple(f"<{name}_{index}>" for index in range(count))
