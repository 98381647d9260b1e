"""
A language model as judge of free-text answers: whether an answer in other words is one of the right answers.

    def ask(requests):
        for key, reply in ask_all(chat, requests, max_tokens=10):
            yield key, getattr(reply, "text", None)

    verdicts = judge_texts(texts, dataset["test"], answer_judge=AnswerJudge(ask))

Only answers that differ from all right answers after `normalized_text` are asked about, and equal ones once.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from memreason_hf.checks import check_callable, check_sequence, check_type
from memreason_hf.data.questions.answer_types import normalized_text
from memreason_hf.data.questions.schema import type_of_row
from memreason_hf.evaluation.solutions.answers import Verdict, judge_row


# Gives a reply for each request by its key, in any order; None where there is none.
Ask = Callable[[Mapping[int, list[dict[str, str]]]], Iterable[tuple[int, str | None]]]

PROMPT_FIELDS = ("question", "right_answers", "answer")
PROMPT = """\
Question: {question}
Right answers: {right_answers}
Given answer: {answer}

Does the given answer mean the same as one of the right answers? It may use other words, but must neither leave out nor
add anything that matters for the question. Reply with yes or no, and nothing else."""
_FIELD = re.compile(rf"\{{({'|'.join(PROMPT_FIELDS)})\}}")
_REPLY = re.compile(r"[\W_]*(yes|no)[\W_]*", re.IGNORECASE)
# What some models write before they reply.
_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class AnswerCase:
    """An answer to a question, and its right answers."""

    question: str
    right_answers: tuple[str, ...]
    answer: str


class AnswerJudge:
    """
    Asks a language model whether answers are right.

    A reply counts if it is `yes` or `no`, apart from punctuation and markup. Any other reply is asked for once more,
    and is then no verdict.

    Args:
        ask: sends requests to the model, see `Ask`. A request is a list of messages with `role` and `content`.
        prompt: the text of a request, with the fields `{question}`, `{right_answers}` and `{answer}`. Default:
            `PROMPT`.
        name: what tables and files call the judge.

    Attributes:
        num_asked: number of distinct answers that were asked about.
        num_unreadable: number of those for which no readable reply came.

    Raises:
        ValueError: the prompt lacks a field.

    Example:

        >>> judge = AnswerJudge(lambda requests: [(key, "Yes.") for key in requests])
        >>> judge([AnswerCase("Where is the Louvre?", ("Paris",), "in the French capital")])
        [True]
    """

    def __init__(self, ask: Ask, *, prompt: str = PROMPT, name: str = "judge"):
        check_callable("ask", ask, "a function from requests to replies")
        check_answer_prompt(prompt)
        self.ask, self.prompt, self.name = ask, prompt, name
        self.num_asked = self.num_unreadable = 0
        self._known: dict[AnswerCase, bool | None] = {}

    def __call__(self, cases: Sequence[AnswerCase]) -> list[bool | None]:
        """
        Whether each answer is right; None without a readable reply.

        Raises:
            ValueError: `ask` gives a key that was not in the requests.
        """
        new = [case for case in dict.fromkeys(cases) if case not in self._known]
        left = dict(enumerate(new))
        for _ in range(2):
            for key, reply in self.ask({key: self._request(case) for key, case in left.items()}) if left else ():
                if key not in left:
                    raise ValueError(f"ask gave a reply for {key!r}, which was not among the requests.")
                self._known[left[key]] = read_reply(reply)
            left = {key: case for key, case in left.items() if self._known.get(case) is None}
        self._known.update(dict.fromkeys(left.values()))
        self.num_asked += len(new)
        self.num_unreadable += len(left)
        return [self._known[case] for case in cases]

    def _request(self, case):
        values = {
            "question": case.question,
            "right_answers": "; ".join(case.right_answers),
            "answer": case.answer,
        }
        # In one pass, because an answer may hold the name of a field.
        return [{"role": "user", "content": _FIELD.sub(lambda match: values[match[1]], self.prompt)}]


def check_answer_prompt(prompt: str) -> None:
    """
    Checks the prompt of a judge of answers.

    Raises:
        TypeError, ValueError: it is not a text, or lacks a field.
    """
    check_type("prompt", prompt, str, "a text")
    missing = [name for name in PROMPT_FIELDS if f"{{{name}}}" not in prompt]
    if missing:
        fields = ", ".join(f"{{{name}}}" for name in missing)
        raise ValueError(f"prompt={prompt[:60]!r} lacks {fields}, which the judge must see. Add what is missing.")


def read_reply(reply: str | None) -> bool | None:
    """
    Whether a reply is yes; None if it is neither yes nor no.

    Example:

        >>> read_reply("**Yes.**"), read_reply("<think>Hm.</think> no"), read_reply("Yes and no")
        (True, False, None)
    """
    match = _REPLY.fullmatch(_THOUGHT.sub("", reply, count=1)) if isinstance(reply, str) else None
    return match[1].lower() == "yes" if match else None


def judge_texts(
    texts: Sequence[str],
    rows: Sequence[Mapping],
    *,
    answer_judge: Callable[[Sequence[AnswerCase]], list[bool | None]] | None = None,
    **kwargs,
) -> list[Verdict]:
    """
    Compares what texts answer with the right answers of their rows.

    Args:
        texts: solutions, or questions and solutions.
        rows: the row of each text, see `judge_row`; with `question` where there is a judge.
        answer_judge: decides about free-text answers that differ from all right ones, for example an `AnswerJudge`.
            An answer without a verdict of the judge is wrong, and `is_undecided`.
        kwargs: for `judge_row`.

    Returns:
        The verdicts, with `by_judge` where the judge decided.

    Raises:
        ValueError: the lengths differ, or as for `judge_row`.
    """
    check_sequence("texts", texts, "a list of texts")
    rows = list(rows)
    if len(texts) != len(rows):
        raise ValueError(f"texts has {len(texts)} entries, and rows has {len(rows)}. Pass one row for each text.")
    verdicts = [judge_row(text, row, **kwargs) for text, row in zip(texts, rows)]
    return verdicts if answer_judge is None else ask_judge(verdicts, rows, answer_judge)


def ask_judge(
    verdicts: Sequence[Verdict],
    rows: Sequence[Mapping],
    answer_judge: Callable[[Sequence[AnswerCase]], list[bool | None]],
) -> list[Verdict]:
    """Verdicts of `judge_row` with those of a judge on the free texts that differ from all right answers."""
    cases = {
        index: AnswerCase(row["question"], (row["answer"], *(row.get("accepted_answers") or ())), verdict.answer)
        for index, (verdict, row) in enumerate(zip(verdicts, rows))
        if needs_judge(verdict, type_of_row(row))
    }
    said = dict(zip(cases, answer_judge(list(cases.values())))) if cases else {}
    decided = list(verdicts)
    for index, is_right in said.items():
        changes = {"is_undecided": True} if is_right is None else {"is_correct": is_right, "by_judge": True}
        decided[index] = replace(verdicts[index], **changes)
    return decided


def needs_judge(verdict: Verdict, answer_type: str) -> bool:
    """Whether a verdict is about a free text in other words than those of the right answers."""
    return (
        answer_type == "text" and not verdict.is_correct and bool(verdict.answer and normalized_text(verdict.answer))
    )
