"""
The requests of an `AnswerJudge`, sent to a chat model.

    ask = ChatAnswers(EndpointChat("my-model", base_url="http://127.0.0.1:8000/v1"), name="my-model")
    verdicts = judge_texts(texts, dataset["test"], answer_judge=AnswerJudge(ask))
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from tqdm.auto import tqdm

from memreason_hf.chat import ChatError, ask_all
from memreason_hf.chat.concurrent import Chat
from memreason_hf.checks import check_has, check_int, check_number, check_type, shortened
from memreason_hf.evaluation.solutions.answer_judges import read_yes_no
from memreason_hf.evaluation.solutions.reply_files import ReplyFile, reply_key
from memreason_hf.messages import visible


class ChatAnswers:
    """
    Asks a chat model for an `AnswerJudge`. Replies that say yes or no are kept, and are not asked for again.

    Args:
        chat: an `EndpointChat`, a `LocalChat`, or another object with `ask`, `close` and `concurrency`.
        name: of the model.
        max_tokens: the maximum number of tokens of a reply.
        temperature, seed: of drawing the reply. A request that is repeated gets the next seed.
        replies: a file that keeps the replies.
        progress: whether to show a progress bar.

    Attributes:
        usage (`Counter`): `requests` that were answered, and the `tokens` read and written for them, as far as the
            endpoint counts them.
        fault (`str`, *optional*): why the last request without a verdict has none.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        name: str = "chat",
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 0,
        replies: ReplyFile | None = None,
        progress: bool = False,
    ):
        check_has("chat", chat, "ask", "a chat model")
        check_type("name", name, str, "a text")
        check_int("max_tokens", max_tokens, least=1)
        check_number("temperature", temperature, 0, 2)
        check_int("seed", seed, least=0)
        self.chat, self.name, self.seed, self.replies, self.progress = chat, name, seed, replies, progress
        self._settings = {"max_tokens": max_tokens, "temperature": temperature}
        self._tries: Counter = Counter()
        self.usage: Counter = Counter()
        self.fault: str | None = None

    def __call__(self, requests: Mapping[int, list[dict[str, str]]]) -> Iterator[tuple[int, str | None]]:
        """
        The replies to the requests, as they arrive; None for a request that could not be answered.

        Raises:
            ChatError: no request can be answered.
        """
        keys = {
            number: reply_key(self.chat, self.name, messages, self._settings, self.seed)
            for number, messages in requests.items()
        }
        kept = {} if self.replies is None else {n: self.replies[key] for n, key in keys.items() if key in self.replies}
        # A reply that somebody has changed is asked for again.
        kept = {number: reply for number, reply in kept.items() if read_yes_no(reply) is not None}
        yield from kept.items()
        new = {number: messages for number, messages in requests.items() if number not in kept}
        if not new:
            return
        number_of_try = max(self._tries[keys[number]] for number in new)
        self._tries.update(keys[number] for number in new)
        replies = ask_all(self.chat, new, seed=self.seed + number_of_try, **self._settings)
        for number, reply in tqdm(
            replies, total=len(new), desc="answers judged", unit="answer", disable=not self.progress
        ):
            yield number, self._take(keys[number], reply)

    def _take(self, key, reply):
        if isinstance(reply, ChatError):
            self.fault = reply.reason
            return None
        self.usage.update(requests=1, tokens=reply.num_tokens)
        if read_yes_no(reply.text) is None:
            self.fault = f"the reply {shortened(visible(reply.text))} is neither yes nor no"
            if reply.is_cut:
                self.fault += f"; it was cut off at {self._settings['max_tokens']} tokens"
        elif self.replies is not None:
            self.replies.add(key, reply.text)
        return reply.text
