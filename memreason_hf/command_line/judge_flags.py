"""The judge of steps that a command uses: a rule, or a language model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from memreason_hf.chat.endpoint import shown_address
from memreason_hf.checks import check_int
from memreason_hf.command_line.chat_flags import ChatFlags, read_prompt_file
from memreason_hf.command_line.parser import Section
from memreason_hf.evaluation.known_truth.agreement import (
    NUM_CHANGES,
    describe_agreement,
    known_solutions,
    measure_judge,
    world_guide,
)
from memreason_hf.evaluation.solutions.chat_judges import ChatJudge, check_prompt
from memreason_hf.evaluation.solutions.judges import JUDGES, StepJudge
from memreason_hf.evaluation.solutions.reply_files import ReplyFile
from memreason_hf.locks import locked


NO_JUDGE, LANGUAGE_MODEL = "none", "llm"
# Added to the name of an output file for the file of a language model's replies.
REPLIES_SUFFIX = ".replies.jsonl"
# Flags of the language model that `--help` lists.
SHOWN_FLAGS = ("llm", "endpoint", "provider", "concurrency")
# Rules cost nothing, and a request for each change does.
_NUM_CHECKED, _NUM_CHECKED_BY_RULE = 5, 60
_MOST_CHECKED = 10_000
_OF_LANGUAGE_MODELS = ("judge_prompt", "judge_background", "judge_tries")


@dataclass
class JudgeFlags:
    """
    Who judges the steps.

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
    agreement: int | None = field(
        default=None,
        metadata={
            "help": "Solutions of the test bed, whose truth is known, on which the judge is measured; each costs a "
            f"language model {NUM_CHANGES} requests. 0: none. Default: {_NUM_CHECKED} for a language model, "
            f"{_NUM_CHECKED_BY_RULE} for a rule."
        },
    )

    def check(self, chat: ChatFlags, *, is_asked: bool = False) -> None:
        """
        Refuses impossible values before anything is loaded.

        Args:
            chat: the flags of the language model.
            is_asked: whether the language model is asked about something else.

        Raises:
            ValueError, TypeError, OSError: a value is wrong, a file cannot be read, or a language model is named that
                is not asked.
        """
        check_int("judge_tries", self.judge_tries, least=1)
        if self.agreement is not None:
            check_int("agreement", self.agreement, 0, _MOST_CHECKED, "more do not change the rates")
        if self.judge == LANGUAGE_MODEL:
            chat.check()
            self._texts()
            return
        usual = JudgeFlags()
        given = {name: getattr(self, name) for name in _OF_LANGUAGE_MODELS}
        given = {name: value for name, value in given.items() if value != getattr(usual, name)}
        refuse_unused({**given, **({} if is_asked else given_chat_flags(chat))}, "Add --judge llm")

    def name(self, chat: ChatFlags) -> str:
        """What tables call the judge."""
        return chat.name if self.judge == LANGUAGE_MODEL else self.judge

    @contextmanager
    def open(
        self, chat: ChatFlags, replies: Path | None = None, *, progress: bool = False
    ) -> Iterator[StepJudge | None]:
        """
        The judge while the block runs; None if nobody judges.

        Args:
            chat: the flags of the language model.
            replies: the file that keeps the replies of a language model.
            progress: whether a language model shows a progress bar.

        Raises:
            InUseError: another process is adding to the file of replies.
            ValueError, OSError: the file of replies is another one, or the language model cannot be loaded.
        """
        if self.judge != LANGUAGE_MODEL:
            yield None if self.judge == NO_JUDGE else JUDGES[self.judge]()
        elif replies is None:
            yield self._chat_judge(chat, progress=progress)
        else:
            with locked(replies):
                yield self._chat_judge(chat, replies=ReplyFile(replies), progress=progress)

    def measure(self, judge: StepJudge, name: str, kinds: Iterable[str] = ()) -> tuple[dict, str] | None:
        """
        How a judge agrees with the known truth of the test bed.

        Args:
            judge: from `open`.
            name: of the judge.
            kinds: of the steps that it is asked about.

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
        return rates, describe_agreement(name, rates, kinds)

    def _chat_judge(self, chat, **settings):
        prompt, background = self._texts()
        return chat_judge(chat, prompt=prompt, background=background or "", max_tries=self.judge_tries, **settings)

    def _texts(self):
        prompt = read_prompt_file("judge_prompt", self.judge_prompt, check_prompt)
        return prompt, read_prompt_file("judge_background", self.judge_background)


def given_chat_flags(chat: ChatFlags) -> dict[str, object]:
    """The flags of the language model that differ from their defaults, with their values."""
    usual = {field.name: field.default for field in fields(chat)}
    return {name: getattr(chat, name) for name, value in usual.items() if getattr(chat, name) != value}


def refuse_unused(given: Mapping[str, object], remedy: str) -> None:
    """
    Refuses flags of a language model as judge where none is asked.

    Raises:
        ValueError: there is one; the message names it.
    """
    for name, value in given.items():
        value = shown_address(value) if name == "endpoint" else value
        raise ValueError(f"{name}={value!r} is for a language model as judge. {remedy}, or leave it out.")


def chat_judge(chat: ChatFlags, **settings) -> ChatJudge:
    """
    The language model of the flags as a judge.

    Args:
        settings: for `ChatJudge`.

    Raises:
        ValueError, OSError: see `ChatFlags.open`.
    """
    return ChatJudge(chat.open(), **chat.reply_arguments, **settings)


def describe_usage(judge: StepJudge | None) -> str | None:
    """What a language model as judge has cost, as a line; None for another judge."""
    if not isinstance(judge, ChatJudge):
        return None
    return f"{judge.name} was asked {judge.usage['requests']:,} times, {judge.usage['tokens']:,} tokens in all"


JUDGE = Section("judge", JudgeFlags, "judge of the steps")
