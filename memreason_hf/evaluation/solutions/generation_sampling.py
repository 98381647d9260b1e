"""
Several solutions of a question, drawn at random, and where the text of a solution stops.

Every draw has random numbers of its own, which follow from the seed, the item and the number of the sample. So a text
does not depend on the batch that it was generated in, and a run that was stopped goes on with the texts that it would
have drawn.
"""

import random
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from memreason_hf.checks import check_int, check_number


_MOST_SAMPLES = 10_000
# A whole line with an answer. An empty one is not an answer yet.
_ANSWER_LINE = re.compile(r"\bthe answer is[^\S\n]*:[^\S\n]*\S[^\n]*\n", re.IGNORECASE)
# What would draw tokens in another way.
_OTHER_WAYS = (
    "assistant_model",
    "custom_generate",
    "do_sample",
    "draft_recurrences",
    "num_beams",
    "num_return_sequences",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
)


@dataclass(frozen=True)
class Sampling:
    """
    How solutions are drawn.

    Args:
        num_samples (`int`, *optional*, defaults to 1): The solutions of each question.
        temperature (`float`, *optional*, defaults to 1.0): Divides the logits, above 0.
        top_k (`int`, *optional*): Draw from this number of the most probable tokens. Default: from all.
        top_p (`float`, *optional*):
            Draw from the most probable tokens whose probabilities add up to this, above 0 up to 1. Default: from all.
        seed (`int`, *optional*, defaults to 0): Together with the item, decides what is drawn.

    Raises:
        ValueError, TypeError: a value is out of range.
    """

    num_samples: int = 1
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self):
        check_int("num_samples", self.num_samples, 1, _MOST_SAMPLES, "every sample is a text for each question")
        check_number("temperature", self.temperature, above=0)
        if self.top_k is not None:
            check_int("top_k", self.top_k, least=1)
        if self.top_p is not None:
            check_number("top_p", self.top_p, most=1, above=0)
        check_int("seed", self.seed)

    def to_dict(self) -> dict:
        """The fields as JSON values."""
        return asdict(self)

    def check_arguments(self, generate_kwargs: dict) -> None:
        """
        Checks that nothing else decides how tokens are drawn.

        Raises:
            ValueError: an argument of `generate` does.
        """
        for name in _OTHER_WAYS:
            if generate_kwargs.get(name) is not None:
                raise ValueError(f"{name}={generate_kwargs[name]!r} cannot be combined with sampling. Leave it out.")

    def processors(self, keys: Sequence[Hashable]) -> LogitsProcessorList:
        """What draws the tokens of a batch whose rows have these keys, for a greedy `generate`."""
        warpers = [TemperatureLogitsWarper(float(self.temperature))] if self.temperature != 1 else []
        warpers += [TopKLogitsWarper(self.top_k)] if self.top_k is not None else []
        warpers += [TopPLogitsWarper(float(self.top_p))] if self.top_p is not None and self.top_p < 1 else []
        return LogitsProcessorList([*warpers, _Draw([random.Random(f"{self.seed}:{key}") for key in keys])])


class _Draw(LogitsProcessor):
    """
    Draws one token for each row, and leaves only this one possible.

    The row's own random number is looked up in the sums of the probabilities. Rows stay at their places in a batch, as
    they do without beams.
    """

    def __init__(self, generators: list[random.Random]):
        self.generators = generators

    def __call__(self, input_ids, scores):
        probabilities = scores.float().softmax(-1)
        sums = probabilities.cumsum(-1, dtype=torch.float64 if scores.device.type != "mps" else torch.float32)
        numbers = [generator.random() for generator in self.generators]
        wanted = torch.tensor(numbers, dtype=sums.dtype, device=sums.device)[:, None] * sums[:, -1:]
        # The first token whose sum is above the number, which has a probability above 0.
        tokens = torch.searchsorted(sums, wanted, right=True)
        last = sums.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1, keepdim=True)
        tokens = torch.minimum(tokens, last)
        return torch.full_like(scores, float("-inf")).scatter(-1, tokens, 0.0)


class AnswerStop(StoppingCriteria):
    """
    Stops a row after a whole line with `The answer is: …`, or where it begins a further question.

    Models that were not trained on solutions go on after the answer, with a question and an answer of their own.

    Args:
        decode: the text of the new ids of a row.
        starts: for each row the text at the end of its prompt that belongs to the solution.
        prompt_width: the ids of a row before the new ones.
        stop_texts: texts that begin a further question.

    Attributes:
        lengths: for each row the new ids when it stopped; None for a row that did not.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        starts: Sequence[str],
        prompt_width: int,
        stop_texts: Sequence[str] = (),
    ):
        self.decode, self.starts, self.prompt_width, self.stop_texts = decode, starts, prompt_width, stop_texts
        self.lengths: list[int | None] = [None] * len(starts)
        self._last_letters = {"\n", *(text[-1] for text in stop_texts)}

    def __call__(self, input_ids, scores, **kwargs):
        for row, ids in enumerate(input_ids[:, self.prompt_width :].tolist()):
            if self.lengths[row] is None and self._is_end(self.starts[row], ids):
                self.lengths[row] = len(ids)
        done = [length is not None for length in self.lengths]
        return torch.tensor(done, device=input_ids.device)

    def _is_end(self, start, ids):
        # Only a token with the last letter of what ends a text can complete it, and decoding all takes time. A letter
        # can be divided between tokens, so two are decoded.
        if self._last_letters.isdisjoint(self.decode(ids[-2:])):
            return False
        text = start + self.decode(ids)
        return end_of_answer(text, self.stop_texts) is not None


def end_of_answer(text: str, stop_texts: Sequence[str] = ()) -> int | None:
    """
    The position after the first whole line with an answer, or of the first further question if that comes before; None
    without either.

    Example:

        >>> text = "It floats.\\nThe answer is: B\\nQuestion: Who?\\nThe answer is: C\\n"
        >>> text[: end_of_answer(text, ["\\nQuestion:"])]
        'It floats.\\nThe answer is: B\\n'
    """
    answer = _ANSWER_LINE.search(text)
    ends = [] if answer is None else [answer.end()]
    # The line break before a further question is the end of the solution's own last line.
    ends += [position + 1 for position in map(text.find, stop_texts) if position >= 0]
    return min(ends, default=None)
