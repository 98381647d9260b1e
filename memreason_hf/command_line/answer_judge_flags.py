"""The judge of free-text answers that a command uses: the exact rule alone, or a language model beside it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memreason_hf.command_line.chat_flags import ChatFlags, read_prompt_file
from memreason_hf.command_line.judge_flags import describe_usage
from memreason_hf.command_line.parser import Section
from memreason_hf.evaluation.solutions.answer_judges import PROMPT, check_answer_prompt
from memreason_hf.evaluation.solutions.chat_answer_judges import (
    ChatAnswerJudge,
    describe_known_answers,
    measure_known_answers,
)
from memreason_hf.evaluation.solutions.chat_judges import ChatJudge
from memreason_hf.evaluation.solutions.judges import StepJudge
from memreason_hf.evaluation.solutions.reply_files import ReplyFile
from memreason_hf.locks import locked
from memreason_hf.messages import visible


# Added to the name of an output file for the file of the replies about answers.
ANSWER_REPLIES_SUFFIX = ".answer_replies.jsonl"


@dataclass
class AnswerJudgeFlags:
    """
    Who judges free-text answers in other words than those of the right answers.

    Example:
        >>> flags = AnswerJudgeFlags()
        >>> flags.check(ChatFlags())
        >>> flags.is_llm
        False
    """

    answer_judge: Literal["none", "llm"] = field(
        default="none",
        metadata={
            "help": "Who judges free-text answers that differ from all right ones. llm asks the language model --llm "
            "whether they mean the same; none: they are wrong."
        },
    )
    answer_judge_prompt: str | None = field(
        default=None,
        metadata={
            "help": "File with the request about an answer, to which the reply is yes or no. Its fields are "
            "{question}, {right_answers} and {answer}."
        },
    )

    @property
    def is_llm(self) -> bool:
        """Whether a language model is asked."""
        return self.answer_judge == "llm"

    def check(self, chat: ChatFlags) -> None:
        """
        Refuses impossible values before anything is loaded.

        Raises:
            ValueError, TypeError, OSError: a value is wrong, a file cannot be read, or a prompt is given without a
                language model.
        """
        if self.is_llm:
            chat.check()
            self._prompt()
        elif self.answer_judge_prompt is not None:
            raise ValueError(
                f"answer_judge_prompt={self.answer_judge_prompt!r} is for a language model as judge of answers. Add "
                "--answer_judge llm, or leave it out."
            )

    def settings(self, chat: ChatFlags) -> dict:
        """What verdicts depend on, for the settings of a file: empty for the exact rule."""
        if not self.is_llm:
            return {}
        values = {"name": chat.name}
        if self.answer_judge_prompt is not None:
            values["prompt_digest"] = hashlib.sha256(self._prompt().encode(errors="surrogatepass")).hexdigest()
        return {"answer_judge": values}

    @contextmanager
    def open(
        self,
        chat: ChatFlags,
        replies: Path | None = None,
        *,
        step_judge: StepJudge | None = None,
        progress: bool = False,
    ) -> Iterator[ChatAnswerJudge | None]:
        """
        The judge while the block runs; None for the exact rule.

        Args:
            chat: the flags of the language model.
            replies: the file that keeps its replies.
            step_judge: the judge of steps, whose language model is the same one and is not loaded twice.
            progress: whether to show a progress bar.

        Raises:
            InUseError: another process is adding to the file of replies.
            ValueError, OSError: the file of replies is another one, or the language model cannot be loaded.
        """
        if not self.is_llm:
            yield None
            return
        with nullcontext() if replies is None else locked(replies):
            yield ChatAnswerJudge(
                step_judge.chat if isinstance(step_judge, ChatJudge) else chat.open(),
                prompt=self._prompt(),
                **chat.reply_arguments,
                replies=None if replies is None else ReplyFile(replies),
                progress=progress,
            )

    def _prompt(self):
        given = read_prompt_file("answer_judge_prompt", self.answer_judge_prompt, check_answer_prompt)
        return PROMPT if given is None else given


def measure_answer_judge(judge: ChatAnswerJudge) -> dict:
    """What the summary of a command says of a judge of answers: its name, and what it says about known answers."""
    return {"name": judge.name, "known_answers": measure_known_answers(judge)}


def describe_answer_judge(judge: ChatAnswerJudge, measured: dict | None) -> str:
    """A judge of answers in two lines: what it says about known answers, and what it has cost."""
    lines = [] if measured is None else [describe_known_answers(judge.name, measured["known_answers"])]
    lines.append(
        f"{judge.name} was asked about answers {judge.usage['requests']:,} times, {judge.usage['tokens']:,} tokens in "
        "all"
    )
    return visible("\n".join(lines))


@dataclass(frozen=True)
class AskedJudges:
    """
    The judges that a command has asked.

    Attributes:
        judge: of the steps, if there was one.
        name: what tables call it.
        agreement: from `JudgeFlags.measure`.
        answer_judge: of free-text answers, if there was one.
        known_answers: from `measure_answer_judge`.
    """

    judge: StepJudge | None
    name: str
    agreement: tuple[dict, str] | None
    answer_judge: ChatAnswerJudge | None
    known_answers: dict | None

    def lines(self) -> list[str]:
        """How the judges agree with what is known, and what they have cost."""
        lines = [] if self.agreement is None else [f"\n{visible(self.agreement[1])}"]
        if usage := describe_usage(self.judge):
            lines.append(visible(usage))
        if self.answer_judge is not None:
            lines.append(describe_answer_judge(self.answer_judge, self.known_answers))
        return lines

    def answer_summary(self) -> dict:
        """What a summary says of the judge of answers; empty without one."""
        if self.answer_judge is None:
            return {}
        return {"answer_judge": self.known_answers or {"name": self.answer_judge.name}}


ANSWER_JUDGE = Section("answer_judge", AnswerJudgeFlags, "judge of free-text answers")
