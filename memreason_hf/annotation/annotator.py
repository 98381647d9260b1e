"""One question: a plan, the knowledge that it asks for, and new tries until both make an annotation."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from memreason_hf.annotation.checking import StepRules
from memreason_hf.annotation.corpus import Corpus
from memreason_hf.annotation.journal import KNOWLEDGE, PLAN, Journal
from memreason_hf.annotation.parsing import AnnotationProblem, parse_knowledge, parse_plan
from memreason_hf.annotation.prompt_texts import PromptTexts
from memreason_hf.chat import ChatError, ChatReply
from memreason_hf.chat.concurrent import Chat
from memreason_hf.checks import check_int, check_number
from memreason_hf.steps import Step


@dataclass(frozen=True)
class Annotation:
    """
    What became of an item.

    Attributes:
        item: its index.
        steps: without the answer; None if there is no annotation.
        problems: why the tries before failed; for an item without an annotation, why all did.
    """

    item: int
    steps: list[Step] | None
    problems: list[str] = field(default_factory=list)

    @property
    def num_tries(self) -> int:
        return len(self.problems) + (self.steps is not None)


class NeedsCall(Exception):
    """An item is not finished by the replies of an earlier run."""


class Annotator:
    """
    Annotates items by two calls: a plan whose steps say what they need, and the knowledge for its memory steps.

    Args:
        chat: the language model; None: only replies of the journal are used, and others raise `NeedsCall`.
        journal: where replies are kept.
        prompts: the texts of the calls.
        corpus: where knowledge comes from in place of the second call.
        rules: what the steps must be.
        max_tries: how often an item is tried.
        max_tokens, temperature: of the calls.
        seed: from which each call draws its own.

    Raises:
        ValueError, TypeError: an argument is wrong, or new tries could not differ from the first.
    """

    def __init__(
        self,
        chat: Chat | None,
        journal: Journal,
        prompts: PromptTexts,
        *,
        corpus: Corpus | None = None,
        rules: StepRules | None = None,
        max_tries: int = 20,
        max_tokens: int = 1024,
        temperature: float = 0.7,
        seed: int = 0,
    ):
        check_annotation_values(max_tries, max_tokens, temperature, seed)
        self.chat, self.journal, self.prompts, self.corpus = chat, journal, prompts, corpus
        self.rules = StepRules() if rules is None else rules
        self._max_tries, self._max_tokens, self._temperature, self._seed = max_tries, max_tokens, temperature, seed
        self._is_stopping = False

    def stop(self) -> None:
        """Lets calls that are under way end, and makes no others."""
        self._is_stopping = True

    async def annotate(self, item: int, row: Mapping) -> Annotation:
        """
        Annotates an item.

        Args:
            item: its index, by which the journal knows it.
            row: with the columns of `load_questions`. Its steps are not used.

        Raises:
            ChatError: no item can be annotated any more (`is_fatal`).
        """
        problems = []
        for number in range(1, self._max_tries + 1):
            try:
                return Annotation(item, await self._try(item, row, number), problems)
            except AnnotationProblem as problem:
                problems.append(str(problem))
            except ChatError as error:
                if error.is_fatal:
                    raise
                return Annotation(item, None, [*problems, error.reason.rstrip(".")])
        return Annotation(item, None, problems)

    async def _try(self, item, row, number):
        reply = await self._ask(item, number, PLAN, self.prompts.plan_prompt(row))
        steps = self.rules.check_plan(parse_plan(reply.text), row)
        questions = [step.text for step in steps if step.kind == "memory"]
        if self.corpus is None:
            prompt = self.prompts.knowledge_prompt(row["question"], questions)
            reply = await self._ask(item, number, KNOWLEDGE, prompt)
            facts = parse_knowledge(reply.text, len(questions))
        else:
            facts = self._look_up(questions)
        facts = iter(facts)
        steps = [Step("memory", next(facts)) if step.kind == "memory" else step for step in steps]
        self.rules.check(steps, row)
        return steps

    def _look_up(self, questions):
        facts = []
        for question in questions:
            passage = self.corpus.best(question, exclude=facts)
            if passage is None:
                raise AnnotationProblem(f"no passage of the corpus has the words of {question!r}")
            facts.append(passage)
        return facts

    async def _ask(self, item, number, call, prompt) -> ChatReply:
        reply = self.journal.get(item, number, call)
        if reply is None:
            if self.chat is None:
                raise NeedsCall
            if self._is_stopping:
                raise asyncio.CancelledError
            reply = await self.chat.ask(
                [{"role": "user", "content": prompt}],
                max_tokens=self._max_tokens,
                temperature=self._temperature,
                seed=call_seed(self._seed, item, number, call),
            )
            self.journal.add(item, number, call, reply)
        if reply.is_cut:
            raise AnnotationProblem(f"the {call} was cut off after {self._max_tokens:,} tokens (llm_max_tokens)")
        return reply


def call_seed(seed: int, item: int, number: int, call: str) -> int:
    """The seed of a call, from 0 to 2**31 - 1: another one for each try, and the same in each run."""
    digest = hashlib.sha256(f"{seed}/{item}/{number}/{call}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def check_annotation_values(max_tries: int, max_tokens: int, temperature: float, seed: int) -> None:
    """
    Checks the values that calls depend on.

    Raises:
        ValueError, TypeError: one is wrong. The message names it.
    """
    check_int("max_tries", max_tries, least=1)
    check_int("max_tokens", max_tokens, least=1)
    check_number("temperature", temperature, 0, 2)
    check_int("seed", seed)
    if temperature == 0 and max_tries > 1:
        raise ValueError(
            f"max_tries={max_tries}: at temperature 0 each try gives the answer of the first. Choose a temperature "
            "above 0, or one try."
        )
