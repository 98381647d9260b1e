"""
A chat model as judge: one request for each solution, whose reply gives a verdict on every step.

    chat = EndpointChat("my-model", base_url="http://127.0.0.1:8000/v1")
    judge = ChatJudge(chat, name="my-model")
    judged = attribute_all(judge, [SolutionToJudge(steps, question="Does iron float?", right_answer="False")])

The judge does without reference steps. A reply that does not give exactly one verdict for each step is not guessed at:
the model is asked again, and told what was wrong.
"""

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm.auto import tqdm

from memreason_hf.chat import ChatError, in_order_of_completion
from memreason_hf.chat.concurrent import Chat
from memreason_hf.checks import check_has, check_int, check_number, check_type, shortened
from memreason_hf.evaluation.solutions.judges import UNDECIDED, VERDICTS, JudgeFault, SolutionToJudge
from memreason_hf.evaluation.solutions.reply_files import ReplyFile, reply_key
from memreason_hf.files import read_text
from memreason_hf.messages import visible
from memreason_hf.steps import ANSWER_MARKER, Step


PROMPT_FILE = Path(__file__).with_name("judge_prompt.txt")
PROMPT_FIELDS = ("question", "steps", "references", "right_answer", "background")
REQUIRED_FIELDS = ("question", "steps")
_FIELD = re.compile(rf"\{{({'|'.join(PROMPT_FIELDS)})\}}")
# The verdicts are a flat object.
_OBJECT = re.compile(r"\{[^{}]*\}")
# Solutions without a readable reply, with not one readable reply before, after which a judge is given up.
_MOST_NONSENSE = 8


class JudgeError(ValueError):
    """A judge cannot be used: none of its replies can be read."""


class ChatJudge:
    """
    Asks a chat model which steps of a solution are right.

    Args:
        chat: an `EndpointChat`, a `LocalChat`, or another object with `ask`, `close` and `concurrency`.
        name: what tables call the judge.
        prompt: the request, with the fields `{question}` and `{steps}`, and if wanted `{references}`,
            `{right_answer}` and `{background}`, which are empty where nothing is known. Default: the text of
            `PROMPT_FILE`.
        background: what the judge is told before the question, for example facts that it cannot know.
        max_tokens: the maximum number of tokens of a reply.
        temperature, seed: of drawing the reply.
        max_tries: how often the model is asked about a solution if its reply cannot be read.
        replies: a file that keeps every reply that could be read; a solution whose reply it holds is not asked about.
        progress: whether to show a progress bar.

    Attributes:
        usage (`Counter`): `requests` that were answered since the judge was made, and the `tokens` read and written
            for them, as far as the endpoint counts them.

    Raises:
        TypeError, ValueError: an argument is wrong, or the prompt lacks a field.

    Example:

    ```python
    judge = ChatJudge(EndpointChat("my-model", base_url="http://127.0.0.1:8000/v1"), name="my-model")
    metric.compute(predictions=texts, references=answers, questions=questions, judge=judge)
    ```
    """

    needs_references = False

    def __init__(
        self,
        chat: Chat,
        *,
        name: str = "chat",
        prompt: str | None = None,
        background: str = "",
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 0,
        max_tries: int = 3,
        replies: ReplyFile | None = None,
        progress: bool = False,
    ):
        check_reply_arguments(chat, name, max_tokens, temperature, seed)
        check_type("background", background, str, "a text")
        check_int("max_tries", max_tries, least=1)
        self.chat, self.name, self.background = chat, name, background
        self.prompt = read_text(PROMPT_FILE) if prompt is None else prompt
        check_prompt(self.prompt)
        self.max_tokens, self.temperature, self.seed, self.max_tries = max_tokens, temperature, seed, max_tries
        self.replies, self.progress = replies, progress
        self.usage: Counter = Counter()

    def __call__(self, step: Step, references: Sequence[Step], question: str = "") -> str:
        """
        The verdict on one step, without the steps before it.

        Raises:
            JudgeError: the reply cannot be read.
            ChatError: there is no reply.
        """
        ((_, said),) = self.judge_solutions([SolutionToJudge([step], references, question)])
        return said[0]

    def told(self, background: str) -> "ChatJudge":
        """A judge like this one that is told another `background`. The two share their usage and file of replies."""
        check_type("background", background, str, "a text")
        judge = copy.copy(self)
        judge.background = background
        return judge

    def judge_solutions(
        self, solutions: Sequence[SolutionToJudge]
    ) -> Iterator[tuple[int, list[str | None] | JudgeFault]]:
        """
        Asks about many solutions, `chat.concurrency` of them at once. Equal solutions are asked about once.

        Args:
            solutions: what is judged.

        Yields:
            `(index, verdicts)` in the order in which the replies arrive. The verdict on an answer is None: whether an
            answer is right is not the judge's to say. A step without a text is undecided. A solution that could not be
            judged gives a `JudgeFault`.

        Raises:
            JudgeError: the replies about the first solutions are all unreadable.
            ChatError: no request can be answered.
        """
        with tqdm(total=len(solutions), desc="judged", unit="solution", disable=not self.progress) as bar:
            for index, said in self._judge(list(solutions)):
                bar.set_postfix(tokens=self.usage["tokens"], refresh=False)
                bar.update()
                yield index, said

    def _judge(self, solutions):
        places: dict[str, list[int]] = {}
        for index, solution in enumerate(solutions):
            if _steps_to_judge(solution):
                places.setdefault(self._request(solution), []).append(index)
            else:
                yield index, _spread(solution, [])
        num_read, faults = 0, []

        async def ask(request):
            return await self._ask(request, len(_steps_to_judge(solutions[places[request][0]])))

        asked = in_order_of_completion(ask, places, concurrency=self.chat.concurrency, close=self.chat.close)
        for request, said in asked:
            if isinstance(said, _Unreadable):
                faults.append(said.reason)
            num_read += isinstance(said, list)
            if not num_read and len(faults) >= min(_MOST_NONSENSE, len(places)):
                asked.close()
                count = f"{len(faults)} solution{'s' * (len(faults) > 1)}"
                raise JudgeError(
                    f"judge {self.name!r}: none of its replies about {count} can be read. {faults[0]} Choose another "
                    "model, or another prompt."
                )
            for index in places[request]:
                yield index, said if isinstance(said, JudgeFault) else _spread(solutions[index], said)

    def _request(self, solution):
        known = [f"- [{step.kind}] {step.text}" for step in solution.references if step.kind != "answer"]
        numbered = [
            f"{number}. [{step.kind}] {step.text}" for number, step in enumerate(_steps_to_judge(solution), start=1)
        ]
        answer = (solution.right_answer or "").strip().removeprefix(ANSWER_MARKER).strip()
        title = "A correct solution, for comparison (others can be correct, too):\n"
        fields = {
            "question": solution.question,
            "steps": "\n".join(numbered),
            "references": title + "\n".join(known) + "\n" if known else "",
            "right_answer": f"The right answer: {answer}\n" if answer else "",
            "background": f"{self.background.strip()}\n\n" if self.background.strip() else "",
        }
        # In one pass: what stands in a question is not a field.
        return _FIELD.sub(lambda match: fields[match[1]], self.prompt).strip()

    async def _ask(self, request, num_steps):
        """The verdicts, in the order of the steps, or the fault."""
        settings = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        key = reply_key(self.chat, self.name, request, settings, self.seed)
        if self.replies is not None and key in self.replies:
            # A reply that somebody has changed is asked for again.
            with suppress(ValueError):
                return read_verdicts(self.replies[key], num_steps)
        text, fault, content = "", "", request
        for number in range(self.max_tries):
            messages = [{"role": "user", "content": content}]
            try:
                reply = await self.chat.ask(messages, seed=self.seed + number, **settings)
            except ChatError as error:
                if error.is_fatal:
                    raise
                return JudgeFault(error.reason)
            self.usage.update(requests=1, tokens=reply.num_tokens)
            text = reply.text
            try:
                verdicts = read_verdicts(text, num_steps)
            except ValueError as error:
                fault = f"{error} It was cut off at {self.max_tokens} tokens." if reply.is_cut else str(error)
                content = f"{request}\n\nAn earlier reply could not be used: {fault} Reply with the JSON object alone."
                continue
            if self.replies is not None:
                self.replies.add(key, text)
            return verdicts
        shown = f"The reply is {shortened(visible(text))}." if text.strip() else "The reply is empty."
        return _Unreadable(f"{fault} {shown}")


class _Unreadable(JudgeFault):
    """The fault of a solution about which no reply could be read."""


def check_reply_arguments(chat: Chat, name: str, max_tokens: int, temperature: float, seed: int) -> None:
    """
    Checks what a judge asks a chat model with.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    check_has("chat", chat, "ask", "a chat model")
    check_type("name", name, str, "a text")
    check_int("max_tokens", max_tokens, least=1)
    check_number("temperature", temperature, 0, 2)
    check_int("seed", seed, least=0)


def check_prompt(prompt: str) -> None:
    """
    Checks the prompt of a judge.

    Raises:
        TypeError, ValueError: it is not a text, or lacks a required field.
    """
    check_type("prompt", prompt, str, "a text")
    missing = [name for name in REQUIRED_FIELDS if f"{{{name}}}" not in prompt]
    if missing:
        names = ", ".join(f"{{{name}}}" for name in PROMPT_FIELDS)
        raise ValueError(
            f"prompt: the field {{{missing[0]}}} is missing, so the judge would not see it. Its fields are {names}."
        )


def read_verdicts(text: str, num_steps: int) -> list[str]:
    """
    The verdicts of a reply: its last JSON object, with the numbers of the steps, from 1, as keys. Text around the
    object does not matter.

    Raises:
        ValueError: there is no such object, a step is missing or too many, or a value is not a verdict.

    Example:

        >>> read_verdicts('Step 2 is false.\\n{"1": "agrees", "2": "Departs"}', 2)
        ['agrees', 'departs']
        >>> read_verdicts('{"1": "agrees"}', 2)
        Traceback (most recent call last):
        ValueError: The reply has no verdict on step 2.
    """
    for match in reversed(_OBJECT.findall(text)):
        try:
            pairs = json.loads(match, object_pairs_hook=list)
        except ValueError:
            continue
        return _check_verdicts(pairs, num_steps)
    raise ValueError("The reply holds no JSON object with verdicts.")


def _check_verdicts(pairs, num_steps):
    verdicts: dict[str, str] = {}
    wanted = [str(number) for number in range(1, num_steps + 1)]
    for key, value in pairs:
        number = key.strip().removeprefix("step").removeprefix("Step").strip()
        if number not in wanted:
            raise ValueError(f"The reply has a verdict on {shortened(key)}, but the steps are 1 to {num_steps}.")
        if number in verdicts:
            raise ValueError(f"The reply has two verdicts on step {number}.")
        word = value.strip().casefold() if isinstance(value, str) else value
        if word not in VERDICTS:
            names = ", ".join(VERDICTS)
            raise ValueError(f"The verdict on step {number} is {shortened(value)}; it must be one of {names}.")
        verdicts[number] = word
    missing = [number for number in wanted if number not in verdicts]
    if missing:
        raise ValueError(f"The reply has no verdict on step {missing[0]}.")
    return [verdicts[number] for number in wanted]


def _steps_to_judge(solution):
    return [step for step in solution.steps if step.kind != "answer" and step.text.strip()]


def _spread(solution, verdicts):
    """Verdicts in the places of the steps that they are about."""
    remaining = iter(verdicts)
    spread: list[str | None] = []
    for step in solution.steps:
        if step.kind == "answer":
            spread.append(None)
        else:
            spread.append(next(remaining) if step.text.strip() else UNDECIDED)
    return spread
