"""The judges of steps and of answers that a command uses: rules, or a language model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from memreason_hf.checks import check_int
from memreason_hf.command_line.chat_flags import ChatFlags
from memreason_hf.command_line.parser import Section
from memreason_hf.evaluation.known_truth.agreement import (
    NUM_CHANGES,
    describe_agreement,
    known_solutions,
    measure_judge,
    world_guide,
)
from memreason_hf.evaluation.solutions.answer_judges import PROMPT, AnswerJudge, check_answer_prompt
from memreason_hf.evaluation.solutions.answer_judges import PROMPT_FIELDS as ANSWER_FIELDS
from memreason_hf.evaluation.solutions.chat_answers import ChatAnswers
from memreason_hf.evaluation.solutions.chat_judges import ChatJudge, check_prompt
from memreason_hf.evaluation.solutions.judges import JUDGES, StepJudge
from memreason_hf.evaluation.solutions.reply_files import ReplyFile
from memreason_hf.files import read_text
from memreason_hf.locks import locked


NO_JUDGE, LANGUAGE_MODEL, RULE = "none", "llm", "rule"
# Added to the name of an output file for the file of a language model's replies.
REPLIES_SUFFIX = ".replies.jsonl"
# Flags of the language model that `--help` lists.
SHOWN_FLAGS = ("llm", "endpoint", "provider", "concurrency")
# Rules cost nothing, and a request for each change does.
_NUM_CHECKED, _NUM_CHECKED_BY_RULE = 5, 60
_MOST_CHECKED = 10_000
_OF_STEPS = ("judge_prompt", "judge_background", "judge_tries")


@dataclass(frozen=True)
class Judges:
    """
    The judges of a command, while `JudgeFlags.open` runs.

    Attributes:
        steps: judges steps; None if nobody does.
        answers: judges free-text answers in other words; None where the rule alone does.
        name: what tables call the judge of steps.
        llm: the name of the language model, if one is asked.
    """

    steps: StepJudge | None = None
    answers: AnswerJudge | None = None
    name: str = NO_JUDGE
    llm: str | None = None

    def describe_answers(self, num_judged: int, num_unjudged: int) -> str | None:
        """What the judge of answers said, as a line; None where there is none."""
        if self.answers is None:
            return None
        line = f"free-text answers in other words, judged by {self.llm}: {num_judged + num_unjudged:,}"
        if num_unjudged:
            line += f", of which {num_unjudged:,} got no verdict and count as wrong ({self.answers.ask.fault})"
        return line

    def describe_usage(self) -> str | None:
        """What the language model has cost, as a line; None if none is asked."""
        usages = [self.steps.usage] if isinstance(self.steps, ChatJudge) else []
        usages += [] if self.answers is None else [self.answers.ask.usage]
        if not usages:
            return None
        requests, tokens = (sum(usage[name] for usage in usages) for name in ("requests", "tokens"))
        return f"{self.llm} was asked {requests:,} times, {tokens:,} tokens in all"


@dataclass
class JudgeFlags:
    """
    Who judges the steps, and free-text answers.

    Example:
        >>> flags = JudgeFlags()
        >>> flags.check(ChatFlags())
        >>> flags.name(ChatFlags())
        'overlap'
    """

    judge: Literal["overlap", "exact", "llm", "none"] = field(
        default="overlap",
        metadata={
            "help": "Who judges the steps. overlap and exact compare with reference steps; llm asks the language "
            "model --llm, which does without them; none: nobody."
        },
    )
    judge_prompt: str | None = field(
        default=None,
        metadata={
            "help": "File with the request to the language model. Its fields are {question}, {steps}, {references}, "
            "{right_answer} and {background}. Default: memreason_hf/evaluation/solutions/judge_prompt.txt."
        },
    )
    judge_background: str | None = field(
        default=None,
        metadata={"help": "File with a text that the language model is told first, for example facts of the field."},
    )
    judge_tries: int = field(
        default=3, metadata={"help": "How often the language model is asked if its reply cannot be read."}
    )
    answer_judge: Literal["rule", "llm"] = field(
        default="rule",
        metadata={
            "help": "Who decides whether a free-text answer in other words is right. rule: it is wrong; llm asks the "
            "language model --llm."
        },
    )
    answer_prompt: str | None = field(
        default=None,
        metadata={
            "help": "File with the request about an answer, which must be replied to with yes or no. Its fields are "
            f"{', '.join(f'{{{name}}}' for name in ANSWER_FIELDS)}. Default: PROMPT of "
            "memreason_hf/evaluation/solutions/answer_judges.py."
        },
    )
    agreement: int | None = field(
        default=None,
        metadata={
            "help": "Solutions of the test bed, whose truth is known, on which the judge is measured; each costs a "
            f"language model {NUM_CHANGES} requests. 0: none. Default: {_NUM_CHECKED} for a language model, "
            f"{_NUM_CHECKED_BY_RULE} for a rule."
        },
    )

    def check(self, chat: ChatFlags) -> None:
        """
        Refuses impossible values before anything is loaded.

        Raises:
            ValueError, TypeError, OSError: a value is wrong, a file cannot be read, or a language model is named that
                is not asked.
        """
        check_int("judge_tries", self.judge_tries, least=1)
        if self.agreement is not None:
            check_int("agreement", self.agreement, 0, _MOST_CHECKED, "more do not change the rates")
        if self._asks:
            chat.check()
        usual = JudgeFlags()
        given = {name: getattr(self, name) for name in (*_OF_STEPS, "answer_prompt")}
        given = {name: value for name, value in given.items() if value != getattr(usual, name)}
        if self.judge != LANGUAGE_MODEL:
            refuse_unused({name: value for name, value in given.items() if name in _OF_STEPS}, "Add --judge llm")
        if self.answer_judge != LANGUAGE_MODEL:
            given = {name: value for name, value in given.items() if name not in _OF_STEPS}
            refuse_unused(given, "Add --answer_judge llm")
        if not self._asks:
            refuse_unused(given_chat_flags(chat), "Add --judge llm or --answer_judge llm")
        self._step_texts()
        self._answer_prompt()

    @property
    def _asks(self):
        return LANGUAGE_MODEL in (self.judge, self.answer_judge)

    def name(self, chat: ChatFlags) -> str:
        """What tables call the judge of steps."""
        return chat.name if self.judge == LANGUAGE_MODEL else self.judge

    @contextmanager
    def open(self, chat: ChatFlags, replies: Path | None = None, *, progress: bool = False) -> Iterator[Judges]:
        """
        The judges while the block runs.

        Args:
            chat: the flags of the language model.
            replies: the file that keeps the replies of a language model.
            progress: whether a language model shows a progress bar.

        Raises:
            InUseError: another process is adding to the file of replies.
            ValueError, OSError: the file of replies is another one, or the language model cannot be loaded.
        """
        if not self._asks:
            yield Judges(self._rule(), name=self.judge)
        elif replies is None:
            yield self._judges(chat, progress=progress)
        else:
            with locked(replies):
                yield self._judges(chat, replies=ReplyFile(replies), progress=progress)

    def measure(self, judge: StepJudge, name: str) -> tuple[dict, str] | None:
        """
        How a judge agrees with the known truth of the test bed.

        Args:
            judge: from `open`.
            name: of the judge.

        Returns:
            The counts, and a paragraph on them; None if `agreement` is 0.
        """
        usual = _NUM_CHECKED if isinstance(judge, ChatJudge) else _NUM_CHECKED_BY_RULE
        num_solutions = usual if self.agreement is None else self.agreement
        if not num_solutions:
            return None
        facts, solutions = known_solutions(num_solutions)
        if isinstance(judge, ChatJudge):
            judge = judge.told(world_guide(facts))
        rates = measure_judge(judge, facts, solutions).to_dict()
        return rates, describe_agreement(name, rates)

    def _rule(self):
        return None if self.judge == NO_JUDGE else JUDGES[self.judge]()

    def _judges(self, chat, **settings):
        """The judges, of which at least one is the language model: it is loaded once."""
        model = chat.open()
        settings |= reply_settings(chat)
        steps = answers = None
        if self.judge != LANGUAGE_MODEL:
            steps = self._rule()
        else:
            prompt, background = self._step_texts()
            own = {"prompt": prompt, "background": background or "", "max_tries": self.judge_tries}
            steps = ChatJudge(model, **own, **settings)
        if self.answer_judge == LANGUAGE_MODEL:
            answers = AnswerJudge(ChatAnswers(model, **settings), prompt=self._answer_prompt() or PROMPT)
        return Judges(steps, answers, self.name(chat), chat.name)

    def _step_texts(self):
        prompt = _read_prompt("judge_prompt", self.judge_prompt, check_prompt)
        return prompt, _read_prompt("judge_background", self.judge_background)

    def _answer_prompt(self):
        return _read_prompt("answer_prompt", self.answer_prompt, check_answer_prompt)


def _read_prompt(name, path, check=None):
    """The text of a file that a flag names; None without one."""
    if path is None:
        return None
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}={path!r} must be a text in UTF-8 ({error}).") from None
    if check is not None:
        try:
            check(text)
        except ValueError as error:
            raise ValueError(f"{name}={path!r}: {error}") from None
    return text


def given_chat_flags(chat: ChatFlags) -> dict[str, object]:
    """The flags of the language model that differ from their defaults, with their values."""
    usual = {field.name: field.default for field in fields(chat)}
    return {name: getattr(chat, name) for name, value in usual.items() if getattr(chat, name) != value}


def reply_settings(chat: ChatFlags) -> dict[str, object]:
    """The arguments of a judge that follow from the flags of the language model."""
    return {"name": chat.name, "max_tokens": chat.llm_max_tokens, "temperature": chat.llm_temperature}


def refuse_unused(given: Mapping[str, object], remedy: str) -> None:
    """
    Refuses flags of a language model as judge where none is asked.

    Raises:
        ValueError: there is one; the message names it.
    """
    for name, value in given.items():
        raise ValueError(f"{name}={value!r} is for a language model as judge. {remedy}, or leave it out.")


JUDGE = Section("judge", JudgeFlags, "judges of steps and of answers")
