"""
The scheme of steps: how the steps of a solution are marked, and how a solution is written and parsed.

    scheme = StepScheme(num_prefix_tokens=2, num_step_tokens=4)
    solution = [Step("memory", "Air scatters blue light."), answer_step("True")]
    text = scheme.question_text("Is the sky blue?") + scheme.render(solution)
    scheme.parse(scheme.render(solution)) == solution

The kinds and their tokens are those of "Disentangling Memory and Reasoning Ability in Large Language Models"
(arXiv 2411.13504), or kinds of one's own:

    StepScheme(kinds=("search", "compute"), kind_words={"search": "look up"})
"""

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache

from memreason_hf.checks import check_row, check_sequence, check_type, shortened
from memreason_hf.steps.kinds import (
    ALIASES,
    ANSWER,
    NO_KIND,
    PREFIX,
    STUDY_KINDS,
    all_kinds,
    check_kind,
    default_word,
    random_groups,
    read_kinds,
    read_words,
)
from memreason_hf.steps.marks import Piece, find_groups, find_lines, token_pattern


ANSWER_MARKER = "The answer is:"
QUESTION_MARKER = "Question: "

# The most tokens of a group. Published schemes have at most 10.
MOST_TOKENS = 1000
MARKS = ("tokens", "words", "none")
LAYOUTS = ("steps", "front", "plan_first", "plan_only", "answer_only")


@dataclass(frozen=True, slots=True)
class Step:
    """
    One step of a solution.

    Attributes:
        kind (`str`):
            `"memory"` (recalls knowledge), `"reason"` (reasons over it), `"answer"`, `"step"` for a step without a
            kind, or a kind that the scheme names.
        text (`str`): What the step says, in one line.

    Raises:
        ValueError, TypeError: a name that no kind can have, or a text that is not a string.
    """

    kind: str
    text: str

    def __post_init__(self):
        check_kind("kind", self.kind)
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
    return Step(ANSWER, f"{ANSWER_MARKER} {answer}")


@dataclass(frozen=True)
class StepScheme:
    """
    How the steps of a solution are marked and laid out.

    Args:
        num_prefix_tokens (`int`, *optional*, defaults to 2):
            The tokens `<prefix_0>`, `<prefix_1>`, … before every step of any kind. May be 0.
        num_step_tokens (`int`, *optional*, defaults to 4):
            The tokens `<memory_0>`, `<memory_1>`, … of each kind. If there is only one, its name has no number:
            `<memory>`. The same holds for `<prefix>`. With 0, the prefix tokens alone mark a step, and no kinds show.
        marks (`str`, *optional*, defaults to `"tokens"`):
            `"tokens"`; `"words"` for a hard prompt in plain words (`Memory: …`); `"none"` for no marks at all.
        layout (`str`, *optional*, defaults to `"steps"`):
            `"steps"`: each step is marked. `"front"`: the prefix tokens once, before the first step, and no kinds.
            `"plan_first"`: the marks of all steps, one on each line, then the steps. `"plan_only"`: the same, but only
            the answer has a text. `"answer_only"`: the answer alone, without the steps.
        ordered (`bool`, *optional*, defaults to `False`):
            Steps of the first kind, memory, come before all others, and the answer last.
        kinds (`Sequence[str]` or `str`, *optional*, defaults to `("memory", "reason")`):
            The kinds of steps, or their names separated by commas. Every scheme has the kinds `"answer"` and `"step"`,
            for a step without a kind, in addition.
        kind_words (`Mapping[str, str]` or `str`, *optional*):
            The words that the rows of a kind's tokens start from, and the marks of `"words"`. Default: the names of
            the kinds, with a space for `_`. A text reads `search=look up,compute=calculate`.
        random_marks (`bool`, *optional*, defaults to `False`):
            A control for the meaning of the tokens: `<random1_0>`, `<random2_0>`, … in as many groups as there are
            kinds, of which each step gets one that depends on nothing but a hash of its text, and rows that start from
            random vectors. No kinds show.

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
    ordered: bool = field(default=False, metadata={"help": "All steps of the first kind, memory, before the others."})
    kinds: tuple[str, ...] | list[str] | str = field(
        default=",".join(STUDY_KINDS),
        metadata={"help": "The kinds of steps, separated by commas. Answers, and steps without a kind, come on top."},
    )
    kind_words: dict[str, str] | str | None = field(
        default=None,
        hash=False,
        metadata={
            "help": "The words that the rows of kinds start from: search=look up,compute=calculate. Default: the "
            "names of the kinds."
        },
    )
    random_marks: bool = field(
        default=False,
        metadata={"help": "A control: each step gets the tokens of a random group, which show no kind."},
    )

    def __post_init__(self):
        # A frozen dataclass. What users may spell in several ways is kept in one.
        object.__setattr__(self, "kinds", read_kinds(self.kinds))
        object.__setattr__(self, "kind_words", read_words(self.kind_words, self.all_kinds))
        self._check_values()
        self._check_together()

    def _check_values(self):
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
        for name in ("ordered", "random_marks"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r} must be True or False.")

    def _check_together(self):
        if self.layout == "front" and (self.marks != "tokens" or self.num_prefix_tokens == 0):
            raise ValueError(
                f"layout='front' writes prefix tokens before the first step, but marks={self.marks!r} and "
                f"num_prefix_tokens={self.num_prefix_tokens}. Use marks='tokens' and at least one prefix token."
            )
        if self.marks == "none" and self.layout not in ("steps", "answer_only"):
            raise ValueError(
                f"layout={self.layout!r} needs marks, but marks='none'. Use layout='steps' or 'answer_only'."
            )
        if self.random_marks and (self.marks != "tokens" or self.layout != "steps" or self.num_step_tokens == 0):
            raise ValueError(
                f"random_marks=True draws the tokens of every step, but marks={self.marks!r}, layout={self.layout!r} "
                f"and num_step_tokens={self.num_step_tokens}. Use marks='tokens', layout='steps' and at least one "
                "step token."
            )
        if self.marks == "tokens" and self.layout != "front" and self.num_step_tokens == 0:
            if self.num_prefix_tokens == 0:
                raise ValueError(
                    "num_prefix_tokens=0 and num_step_tokens=0 leave no token that marks a step. Use at least one of "
                    "them, or marks='none'."
                )
            if self.layout.startswith("plan"):
                raise ValueError(
                    f"layout={self.layout!r} announces the kinds of the steps, but num_step_tokens=0 leaves no token "
                    "for the kinds. Use at least 1, or layout='steps'."
                )
        words = [self.word(kind).casefold() for kind in self.all_kinds]
        if self.marks == "words" and len(set(words)) < len(words):
            raise ValueError(
                f"marks='words' needs a word of its own for each kind, but the words are {', '.join(words)}. Change "
                "kind_words."
            )

    @property
    def all_kinds(self) -> tuple[str, ...]:
        """The kinds that a user names, then `"answer"`, and `"step"` for a step without a kind."""
        return all_kinds(self.kinds)

    @property
    def has_kinds(self) -> bool:
        """Whether a text of this scheme shows the kinds of its steps."""
        return self._has_groups and not self.random_marks if self.marks == "tokens" else self.marks == "words"

    @property
    def has_kind_tokens(self) -> bool:
        """Whether tokens of this scheme show the kinds of steps, so that they can be found in ids."""
        return self.marks == "tokens" and self.has_kinds

    @property
    def _has_groups(self):
        return self.marks == "tokens" and self.layout != "front" and self.num_step_tokens > 0

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """
        The tokens of each group: `"prefix"`, then those of each kind, or the groups that random marks are drawn from.
        Some are empty.
        """
        names = random_groups(len(self.all_kinds)) if self.random_marks else self.all_kinds
        groups = {name: _names(name, self.num_step_tokens) if self._has_groups else () for name in names}
        return {PREFIX: self.prefix_tokens, **groups}

    @property
    def prefix_tokens(self) -> tuple[str, ...]:
        """The tokens before every step; empty if there are none."""
        return _names(PREFIX, self.num_prefix_tokens) if self.marks == "tokens" else ()

    def kind_tokens(self, kind: str) -> tuple[str, ...]:
        """The tokens of one kind, without the prefix; empty if the scheme has none."""
        self._check_kind(kind)
        return _names(kind, self.num_step_tokens) if self.has_kind_tokens else ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens in the order of their ids: prefix, then the kinds, answer and step last."""
        return tuple(token for group in self.groups.values() for token in group)

    def word(self, kind: str) -> str:
        """The word that the tokens of a kind, or of `"prefix"`, stand for."""
        return self.kind_words.get(kind, default_word(kind))

    @property
    def words(self) -> dict[str, str | None]:
        """The word that each token stands for; `None` for tokens that stand for nothing (`random_marks`)."""
        return {
            token: None if self.random_marks else self.word(name)
            for name, group in self.groups.items()
            for token in group
        }

    def mark(self, kind: str, text: str = "") -> str:
        """
        The mark before the text of a step: tokens without spaces, or a word and a colon.

        Args:
            kind (`str`): The kind of the step.
            text (`str`, *optional*): What the step says. With `random_marks` the mark depends on it.
        """
        self._check_kind(kind)
        if self.marks == "words":
            return f"{self.word(kind).capitalize()}:"
        if self.marks == "none":
            return ""
        if self.random_marks:
            _, *groups = self.groups.values()
            # Of the text alone, so that a solution always gets the same marks. They say nothing about the kind.
            return "".join(self.prefix_tokens + groups[zlib.crc32(text.encode(errors="surrogatepass")) % len(groups)])
        return "".join(self.prefix_tokens + self.kind_tokens(kind))

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

        The kinds are lost where the scheme has none, the texts where only a plan is written, the steps where only the
        answer is, and the order where the scheme is ordered.
        """
        check_sequence("steps", steps, "a list of steps")
        steps = [as_step(step) for step in steps]
        if self.has_kinds or self.ordered:
            for step in steps:
                self._check_kind(step.kind, f" of the step {shortened(step.text)}")
        if self.ordered:
            ranks = {self.kinds[0]: 0, ANSWER: 2}
            steps.sort(key=lambda step: ranks.get(step.kind, 1))
        if self.layout == "answer_only":
            steps = [step for step in steps if step.kind == ANSWER]
        if self.layout == "plan_only":
            steps = [step if step.kind == ANSWER else Step(step.kind, "") for step in steps]
        return steps if self.has_kinds else [Step(NO_KIND, step.text) for step in steps]

    def render(self, steps: Iterable[Step | Mapping]) -> str:
        """
        Writes a solution: for each step a line with its mark, one space and its text.

        Args:
            steps (`Iterable[Step]`): The steps, or mappings with `kind` and `text` as in the rows of a dataset.

        Raises:
            ValueError: a kind that the scheme does not have; a text that could not be parsed: it contains a newline or
                a token of the scheme, starts with a token of another scheme, or is empty where an empty step would not
                show.
        """
        check_sequence("steps", steps, "a list of steps")
        steps = [as_step(step) for step in steps]
        arranged = self.arrange(steps)
        for step in arranged if self.layout == "answer_only" else steps:
            self._check(step)
        if self.layout == "front":
            front = f"{self.mark(NO_KIND)} " if arranged else ""
            return front + "".join(f"{step.text}\n" for step in arranged)
        if self.marks == "none":
            return "".join(f"{step.text}\n" for step in arranged)
        plan = "".join(f"{self.mark(step.kind)}\n" for step in arranged) if self.layout == "plan_first" else ""
        return plan + "".join(
            f"{self.mark(step.kind)}\n"
            if self._is_plan_only(step)
            else f"{self.mark(step.kind, step.text)} {step.text}\n"
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
            pieces, stop = find_groups(text, self.num_prefix_tokens, self.num_step_tokens, self._kinds_by_name)
        num_planned = 0
        if self.layout == "plan_first":
            written = (i for i, piece in enumerate(pieces) if piece.kind is None or _has_text(text, piece))
            num_planned = next(written, len(pieces))
        spans = [
            StepSpan(piece.kind or NO_KIND, piece.start, piece.mark_end, piece.text_start, piece.end, i < num_planned)
            for i, piece in enumerate(pieces)
        ]
        return spans, stop

    @property
    def _kinds_by_name(self):
        """The kind that the tokens of each name mark, also in the spellings of published texts."""
        if self.random_marks:
            return dict.fromkeys(random_groups(len(self.all_kinds)), NO_KIND)
        kinds = {kind: kind for kind in self.all_kinds}
        return kinds | {alias: kind for alias, kind in ALIASES.items() if kind in kinds}

    def _check_kind(self, kind, where=""):
        if kind not in self.all_kinds:
            raise ValueError(
                f"kind={kind!r}{where} must be one of {', '.join(self.all_kinds)}. For other kinds, "
                "name them in the scheme (kinds)."
            )

    def _is_plan_only(self, step):
        return self.layout == "plan_only" and step.kind != ANSWER

    def _check(self, step):
        text, shown = step.text, f"The text of a {step.kind} step, {step.text[:80]!r},"
        if "\n" in text:
            raise ValueError(f"{shown} holds a newline, but a step is one line. Replace it with a space.")
        for token in self.tokens:
            if token in text:
                raise ValueError(f"{shown} holds {token}, a token of the scheme. Remove it from the text.")
        if self.marks == "tokens" and token_pattern(self._kinds_by_name).match(text.lstrip()):
            raise ValueError(
                f"{shown} begins with a step token of another scheme, which would be parsed as part of its mark. "
                "Remove it from the text."
            )
        blank_is_lost = self.marks == "none" or self.layout in ("front", "plan_first")
        if blank_is_lost and not text.strip():
            raise ValueError(
                f"{shown} is blank, which would be lost with marks={self.marks!r} and layout={self.layout!r}. "
                "Leave it out."
            )

    def _locate_words(self, text, start, end):
        kinds = {self.word(kind).capitalize(): kind for kind in self.all_kinds}
        match = _word_mark(tuple(kinds)).match(text, start, end)
        if match is None:
            return Piece(None, start, start, start, end)
        text_start = match.end() if match[2] is None else match.start(2)
        return Piece(kinds[match[1]], start, match.end(1) + 1, text_start, end)

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
        """
        The fields as plain values, for JSON. Fields that the first releases did not have are left out where they have
        their default, so that a scheme of the study is saved as it always was.
        """
        values = {**asdict(self), "kinds": list(self.kinds)}
        usual = {"kinds": list(STUDY_KINDS), "kind_words": {}, "random_marks": False}
        return {name: value for name, value in values.items() if name not in usual or value != usual[name]}

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


@lru_cache
def _word_mark(words):
    return re.compile(rf"({'|'.join(map(re.escape, words))}):(?: (.*))?$", re.DOTALL)


_FRONT = re.compile(r"\s*(?:<prefix(?:_\d+)?>\s*?)+")


def _has_text(text, piece):
    return bool(text[piece.text_start : piece.end].strip())


def _names(name, count):
    return (f"<{name}>",) if count == 1 else tuple(f"<{name}_{index}>" for index in range(count))
