"""
A loaded model that answers visitors, one at a time, token by token.

    model = DemoModel.load("runs/quickstart")
    for answer in model.answer("<e_1><r_2>", model.options.choose("fixed", 8, {}), Sampling()):
        print(answer.text)
"""

import contextlib
import copy
import logging
import math
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.analysis.text_generation import TextGenerator
from memreason_hf.analysis.token_depths import Piece, PieceReader
from memreason_hf.models.loading import choose_device, load_any_config, load_model, load_tokenizer
from memreason_hf.models.pretrained import first_line
from memreason_hf.serving.demo.depth_choice import DepthChoice, DepthOptions
from memreason_hf.serving.demo.lens import Lens, read_lens
from memreason_hf.serving.demo.prompts import EncodedPrompt, encode_visitor_prompt, example_prompts, scheme_of


logger = logging.getLogger(__name__)

# Seconds between two updates of a page. Tokens that come faster are shown together.
_INTERVAL = 0.04
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Limits:
    """
    What visitors can ask for.

    Attributes:
        max_new_tokens: the most tokens of an answer.
        prompt_tokens: the most tokens of a prompt.
    """

    max_new_tokens: int = 256
    prompt_tokens: int = 2048

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")


@dataclass(frozen=True)
class Sampling:
    """The choice of tokens, with the names of `GenerationConfig`. Greedy by default."""

    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 < self.temperature <= 10, "above 0 and at most 10"),
            "top_k": (self.top_k >= 0, "at least 0, where 0 means all tokens"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "seed": (0 <= self.seed <= _LARGEST_SEED, f"from 0 to {_LARGEST_SEED}"),
        }
        for name, (holds, wanted) in rules.items():
            if not holds:
                raise ValueError(f"{name}={getattr(self, name):g} must be {wanted}.")

    def arguments(self) -> dict:
        """The arguments of `generate`."""
        chosen = {"max_new_tokens": int(self.max_new_tokens), "do_sample": self.do_sample, "num_beams": 1}
        if not self.do_sample:
            # Values of a generation config that only draws read would be warned about.
            return {**chosen, "temperature": None, "top_k": None, "top_p": None}
        return {**chosen, "temperature": self.temperature, "top_k": int(self.top_k), "top_p": self.top_p}


@dataclass(frozen=True)
class Answer:
    """
    A prompt and what the model has answered so far.

    Attributes:
        prompt: the prompt.
        choice: the depth.
        prompt_pieces: the tokens of the prompt; their depths are known once `ending` is.
        pieces: the answer so far.
        deepest: the most recurrences that could be asked for.
        ending: None while the model writes, then `"eos"`, `"length"` or `"stopped"`.
        seconds, first_seconds: since the start, and up to the first token.
    """

    prompt: EncodedPrompt
    choice: DepthChoice
    prompt_pieces: tuple[Piece, ...]
    pieces: tuple[Piece, ...] = ()
    deepest: int = 1
    ending: str | None = None
    seconds: float = 0.0
    first_seconds: float | None = None

    @property
    def text(self) -> str:
        """The answer, without its prompt."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the prompt and of the answer so far."""
        return (*self.prompt.ids, *(token.id for piece in self.pieces for token in piece.tokens))

    @property
    def depths(self) -> list[int]:
        """The recurrences of each token of the answer."""
        return [token.num_recurrences for piece in self.pieces for token in piece.tokens]

    @property
    def mean_recurrences(self) -> float:
        """Over the tokens of the answer; not a number before the first one."""
        return sum(self.depths) / len(self.depths) if self.pieces else float("nan")

    @property
    def share_of_deepest(self) -> float:
        """The mean recurrences, as a share of the most that could be asked for."""
        return self.mean_recurrences / self.deepest


class AnswerError(RuntimeError):
    """The model failed while it answered. The message is for the visitor."""


@dataclass
class DemoModel:
    """
    A model that answers visitors.

    Args:
        model: any causal language model in evaluation mode.
        tokenizer: its tokenizer; with a scheme, visitors type questions and see the steps.
        name: for the heading.
        options: the depths that can be chosen.
        limits: what visitors can ask for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    options: DepthOptions
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self):
        self.scheme = scheme_of(self.tokenizer)
        # Seeds set the generator of the whole process, and two answers at once would halve the speed of both.
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        model: str,
        *,
        name: str | None = None,
        tokenizer: str | None = None,
        base: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        depth: Mapping[str, object] | None = None,
        deepest: int | None = None,
        limits: Limits | None = None,
    ) -> "DemoModel":
        """
        Loads a model, an adapter or a converted decoder from a folder or the Hub.

        Args:
            name: for the heading; by default the name of the model.
            depth: what the controls show at first, by fields of the config, instead of the config's own values.
            deepest: see `DepthOptions.of`.
            tokenizer, base, dtype, device, revision, trust_remote_code: see `memreason_hf.models.loading`.

        Raises:
            ValueError, OSError: something is missing or does not fit; see `memreason_hf.models.loading`.
        """
        chosen = choose_device(device)
        access = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = load_any_config(model, base, **access)
        wanted = copy.deepcopy(config)
        for field_name, value in (depth or {}).items():
            setattr(wanted, field_name, value)
        options = DepthOptions.of(wanted, deepest)
        reader = load_tokenizer(model, tokenizer, config, **access)
        network = load_model(model, dtype, base=base, **access).to(chosen)
        return cls(network, reader, name or model, options, limits or Limits())

    def warm_up(self) -> None:
        """Runs the model once: the first pass of a process takes much longer than those after it."""
        for text in example_prompts(self.tokenizer)[:1]:
            choice = self.options.choose(self.options.default, self.options.start(self.options.default), {})
            for _ in self.answer(text, choice, Sampling(max_new_tokens=2)):
                pass

    def encode(self, text: object, max_new_tokens: int) -> EncodedPrompt:
        """See `encode_visitor_prompt`."""
        return encode_visitor_prompt(
            self.tokenizer,
            self.model.config,
            text,
            max_new_tokens=max_new_tokens,
            most_tokens=self.limits.prompt_tokens,
        )

    def look(self, ids: Sequence[int], position: int, num_recurrences: int) -> Lens:
        """See `read_lens`. Waits for an answer that is being written."""
        with self._lock:
            return read_lens(self.model, ids, position, num_recurrences)

    def check(self, sampling: Sampling) -> None:
        """Raises ValueError if an answer would be longer than visitors can ask for."""
        if sampling.max_new_tokens > self.limits.max_new_tokens:
            raise ValueError(
                f"max_new_tokens={sampling.max_new_tokens} must be at most {self.limits.max_new_tokens} on this page."
            )

    def answer(
        self, text: object, choice: DepthChoice, sampling: Sampling, stop: threading.Event | None = None
    ) -> Iterator[Answer]:
        """
        Answers a prompt.

        Args:
            text: as it was typed.
            stop: ends the answer at the next token once it is set.

        Yields:
            The answer so far, first without a token, then after new tokens, and at last with its `ending`.

        Raises:
            PromptError: see `encode_visitor_prompt`.
            ValueError: see `check`.
            AnswerError: the model failed, for example for lack of memory.
        """
        self.check(sampling)
        prompt = self.encode(text, sampling.max_new_tokens)
        stop = threading.Event() if stop is None else stop
        reader = PieceReader(self.tokenizer, TextGenerator(self.model, self.tokenizer).hidden_ids)
        unread = reader.read(prompt.ids, [1] * len(prompt.ids))
        answer = Answer(prompt, choice, unread, deepest=self.options.deepest)
        yield answer
        events: queue.SimpleQueue = queue.SimpleQueue()
        worker = threading.Thread(target=self._write, args=(prompt, choice, sampling, stop, events), daemon=True)
        worker.start()
        try:
            yield from _follow(answer, events, stop)
        finally:
            # The page that asked may be gone.
            stop.set()
            worker.join()

    def _write(self, prompt, choice, sampling, stop, events):
        """Runs in a thread of its own: puts pieces, then the whole text or an error, with their times."""
        try:
            with self._lock:
                started = time.perf_counter()
                torch.manual_seed(sampling.seed)
                generator = TextGenerator(
                    self.model,
                    self.tokenizer,
                    stopping_criteria=[lambda ids, scores, **kwargs: _all_rows(ids, stop.is_set())],
                    **self.options.arguments(choice),
                    **sampling.arguments(),
                )
                text = generator.stream(
                    prompt.text, prompt.ids, lambda piece: events.put((piece, time.perf_counter() - started))
                )
                events.put((text, time.perf_counter() - started))
        except Exception as error:  # a visitor must see that something went wrong, whatever it is
            logger.exception("The model failed while it answered.")
            events.put((error, 0.0))


def _all_rows(ids, value):
    return torch.full((ids.shape[0],), value, device=ids.device, dtype=torch.bool)


def _follow(answer, events, stop):
    """The answers of `DemoModel.answer` after the first one. A page that is slow sees fewer of them, none late."""
    pieces: list[Piece] = []
    shown = -math.inf
    while True:
        waiting = [events.get()]
        time.sleep(max(0.0, shown + _INTERVAL - time.perf_counter()))
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(events.get_nowait())
        for event, seconds in waiting:
            if isinstance(event, Exception):
                raise AnswerError(f"The model failed: {type(event).__name__}: {first_line(event)}.") from event
            if not isinstance(event, Piece):
                ending = "stopped" if stop.is_set() and event.finish_reason == "length" else event.finish_reason
                done = {"prompt_pieces": event.prompt_pieces, "pieces": event.pieces}
                yield replace(answer, **done, ending=ending, seconds=seconds)
                return
            pieces.append(event)
            answer = replace(answer, seconds=seconds, first_seconds=answer.first_seconds or seconds)
        answer = replace(answer, pieces=tuple(pieces))
        yield answer
        shown = time.perf_counter()
