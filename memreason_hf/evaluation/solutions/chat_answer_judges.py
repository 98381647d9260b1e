"""
A chat model as judge of free-text answers: yes or no to each answer in other words.

    chat = EndpointChat("my-model", base_url="http://127.0.0.1:8000/v1")
    judge = ChatAnswerJudge(chat, name="my-model", replies=ReplyFile("scores.jsonl.answer_replies.jsonl"))
    verdicts = judge_texts(texts, dataset["test"], answer_judge=judge)
    print(describe_known_answers(judge.name, measure_known_answers(judge)))
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tqdm.auto import tqdm

from memreason_hf.chat import ChatError, ask_all
from memreason_hf.chat.concurrent import Chat
from memreason_hf.checks import shortened
from memreason_hf.evaluation.solutions.answer_judges import PROMPT, AnswerCase, AnswerJudge, read_reply
from memreason_hf.evaluation.solutions.chat_judges import JudgeError, check_reply_arguments
from memreason_hf.evaluation.solutions.reply_files import ReplyFile, reply_key
from memreason_hf.messages import visible


# Unreadable replies, with not one readable reply before, after which a judge is given up.
_MOST_NONSENSE = 8
# Answers in other words, and whether they are right.
KNOWN_ANSWERS: tuple[tuple[AnswerCase, bool], ...] = (
    (AnswerCase("In which city is the Louvre?", ("Paris",), "in the capital of France"), True),
    (AnswerCase("How many days does a week have?", ("7",), "seven of them"), True),
    (AnswerCase("What is water made of?", ("hydrogen and oxygen",), "It consists of oxygen and hydrogen."), True),
    (AnswerCase("Who wrote Hamlet?", ("William Shakespeare",), "the playwright Shakespeare"), True),
    (AnswerCase("In which city is the Louvre?", ("Paris",), "in the capital of Italy"), False),
    (AnswerCase("How many days does a week have?", ("7",), "five, and a weekend"), False),
    (AnswerCase("What is water made of?", ("hydrogen and oxygen",), "only of hydrogen"), False),
    (AnswerCase("Who wrote Hamlet?", ("William Shakespeare",), "Shakespeare or Marlowe"), False),
)


class ChatAnswerJudge(AnswerJudge):
    """
    Asks a chat model whether answers in other words are right.

    Args:
        chat: an `EndpointChat`, a `LocalChat`, or another object with `ask`, `close` and `concurrency`.
        name: what tables and files call the judge.
        prompt: as for `AnswerJudge`.
        max_tokens: the maximum number of tokens of a reply.
        temperature, seed: of drawing the reply.
        replies: a file that keeps every reply that could be read; what it holds is not asked again.
        progress: whether to show a progress bar.

    Attributes:
        usage (`Counter`): `requests` that were answered since the judge was made, and the `tokens` read and written
            for them, as far as the endpoint counts them.

    Raises:
        TypeError, ValueError: an argument is wrong, or the prompt lacks a field.

    Example:

    ```python
    judge = ChatAnswerJudge(EndpointChat("my-model", base_url="http://127.0.0.1:8000/v1"), name="my-model")
    judge([AnswerCase("Where is the Louvre?", ("Paris",), "in the French capital")])
    ```
    """

    def __init__(
        self,
        chat: Chat,
        *,
        name: str = "chat",
        prompt: str = PROMPT,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 0,
        replies: ReplyFile | None = None,
        progress: bool = False,
    ):
        check_reply_arguments(chat, name, max_tokens, temperature, seed)
        super().__init__(self._ask_chat, prompt=prompt, name=name)
        self.chat, self.replies, self.progress = chat, replies, progress
        self.seed, self._settings = seed, {"max_tokens": max_tokens, "temperature": temperature}
        self.usage: Counter = Counter()
        self._tried: set[str] = set()
        self._num_read, self._faults = 0, []

    def __call__(self, cases: Sequence[AnswerCase]) -> list[bool | None]:
        """
        Whether each answer is right; None without a readable reply.

        Raises:
            JudgeError: not one of the replies can be read.
            ChatError: no request can be answered.
        """
        said = super().__call__(cases)
        if self._faults and not self._num_read:
            self._give_up()
        return said

    def _ask_chat(self, requests):
        keys = {
            key: reply_key(self.chat, self.name, messages, self._settings, self.seed)
            for key, messages in requests.items()
        }
        missing = {}
        for key, messages in requests.items():
            kept = self.replies[keys[key]] if self.replies is not None and keys[key] in self.replies else None
            if read_reply(kept) is None:
                missing[key] = messages
            else:
                self._num_read += 1
                yield key, kept
        if not missing:
            return
        # A second try draws another reply.
        seed = self.seed + (not self._tried.isdisjoint(keys[key] for key in missing))
        self._tried.update(keys[key] for key in missing)
        asked = ask_all(self.chat, missing, seed=seed, **self._settings)
        try:
            for key, reply in tqdm(
                asked, total=len(missing), desc="answers judged", unit="answer", disable=not self.progress
            ):
                yield key, self._read(keys[key], reply)
        finally:
            asked.close()

    def _read(self, key, reply):
        """The text of a reply, which is kept if it can be read; None without a reply."""
        if isinstance(reply, ChatError):
            self._faults.append(reply.reason)
            return None
        self.usage.update(requests=1, tokens=reply.num_tokens)
        if read_reply(reply.text) is None:
            cut = f" It was cut off at {self._settings['max_tokens']} tokens." if reply.is_cut else ""
            self._faults.append(f"A reply must be yes or no, got {shortened(visible(reply.text))}.{cut}")
            if not self._num_read and len(self._faults) >= _MOST_NONSENSE:
                self._give_up()
            return reply.text
        self._num_read += 1
        if self.replies is not None:
            self.replies.add(key, reply.text)
        return reply.text

    def _give_up(self):
        count = f"{len(self._faults)} request{'s' * (len(self._faults) > 1)}"
        raise JudgeError(
            f"answer_judge {self.name!r}: none of its replies to {count} can be read. {self._faults[-1]} Choose "
            "another model, or another prompt."
        )


def measure_known_answers(judge: Callable[[Sequence[AnswerCase]], list[bool | None]]) -> dict[str, int]:
    """
    What a judge says about `KNOWN_ANSWERS`.

    Returns:
        `num_right` and `num_wrong` answers in other words, how many of each the judge accepts (`right_accepted`,
        `wrong_accepted`), and `num_unreadable`, those without a readable reply.
    """
    said = judge([case for case, _ in KNOWN_ANSWERS])
    truth = [is_right for _, is_right in KNOWN_ANSWERS]
    return {
        "num_right": sum(truth),
        "right_accepted": sum(verdict is True and right for verdict, right in zip(said, truth)),
        "num_wrong": len(truth) - sum(truth),
        "wrong_accepted": sum(verdict is True and not right for verdict, right in zip(said, truth)),
        "num_unreadable": sum(verdict is None for verdict in said),
    }


def describe_known_answers(name: str, counts: Mapping[str, int]) -> str:
    """
    The counts of `measure_known_answers` as a line.

    Example:

        >>> describe_known_answers("always yes", measure_known_answers(lambda cases: [True] * len(cases)))
        'judge of answers always yes, on 8 known answers in other words: accepts 4 of 4 right and 4 of 4 wrong ones'
    """
    unreadable = counts["num_unreadable"]
    more = f"; {unreadable} without a readable reply" if unreadable else ""
    return (
        f"judge of answers {name}, on {len(KNOWN_ANSWERS)} known answers in other words: accepts "
        f"{counts['right_accepted']} of {counts['num_right']} right and {counts['wrong_accepted']} of "
        f"{counts['num_wrong']} wrong ones{more}"
    )
