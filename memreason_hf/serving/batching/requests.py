"""What a request asks for, and what comes back token by token."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields

import torch
from transformers import GenerationConfig


FINISH_REASONS = ("stop", "length", "cancelled", "error")


class QueueFull(RuntimeError):
    """As many requests wait as `max_waiting` allows."""


class CacheTooSmall(ValueError):
    """
    The whole cache cannot hold a request.

    Attributes:
        prompt_tokens, new_tokens (`int`): The tokens of the prompt, and those that the request asks for.
        recurrences (`int`): The most recurrences of the request.
        needed, total (`int`): The slots that it needs, and those of the cache.
    """

    def __init__(self, prompt_tokens: int, new_tokens: int, recurrences: int, needed: int, total: int):
        super().__init__(
            f"prompt_ids has {prompt_tokens} tokens and max_new_tokens={new_tokens}, which at up to {recurrences} "
            f"recurrences do not fit into the cache: they need {needed:,} of its {total:,} slots. Shorten the text, "
            "lower max_recurrences, or raise max_cache_tokens."
        )
        self.prompt_tokens, self.new_tokens, self.recurrences = prompt_tokens, new_tokens, recurrences
        self.needed, self.total = needed, total


@dataclass
class GenerationRequest:
    """
    One text to be continued.

    Whatever is `None` has the value that `generate` would take: that of `generation_config`, else of the model's
    generation config, else of the model's config.

    Args:
        prompt_ids (`Sequence[int]`): The ids of the prompt, at least one.
        request_id (`str`, *optional*): A name that no other request of the batcher has. By default one is made.
        max_new_tokens (`int`, *optional*): The most tokens that are generated.
        eos_token_id (`int` or `Sequence[int]`, *optional*): Tokens that end the text.
        stop_strings (`str` or `Sequence[str]`): Strings that end the text where one appears in what was generated. The
            string itself is not part of the text that is shown. The prompt is not searched.
        do_sample, temperature, top_k, top_p, min_p, repetition_penalty: As in `generate`.
        seed (`int`, *optional*): The seed of this request's own random numbers. The same request with the same seed
            gives the same text, whatever runs beside it; on a CPU that of `torch.manual_seed(seed)` and `generate`.
        num_recurrences (`int`, or one `int` for each token of the prompt, *optional*): As in `generate`. With a count
            for each token of the prompt, the criterion or the config decides about new tokens.
        min_recurrences … argmax_patience: As in `generate`; see `DepthKwargs`.
        depth_schedule (`Callable`, *optional*): As in `generate`. It is called with ids of shape `(1, tokens)`.
        state_seed (`int`, *optional*): As in `generate`.
        top_logprobs (`int`, *optional*): Reports the log-probability of each new token and of so many of the most
            probable ones.
        generation_config (`GenerationConfig`, *optional*): Everything else that `generate` reads.

    Example:

    ```python
    >>> from memreason_hf.serving.batching import GenerationRequest

    >>> GenerationRequest([5, 8, 2], max_new_tokens=3, num_recurrences=4).max_new_tokens
    3
    ```
    """

    prompt_ids: Sequence[int]
    _: KW_ONLY
    request_id: str | None = None
    max_new_tokens: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] = ()
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    num_recurrences: int | Sequence[int] | torch.Tensor | None = None
    min_recurrences: int | None = None
    max_recurrences: int | None = None
    halting_criterion: str | None = None
    halting_granularity: str | None = None
    kl_threshold: float | None = None
    entropy_threshold: float | None = None
    confidence_threshold: float | None = None
    margin_threshold: float | None = None
    exit_gate_threshold: float | None = None
    state_difference_threshold: float | None = None
    acceleration_threshold: float | None = None
    argmax_patience: int | None = None
    depth_schedule: Callable | None = None
    state_seed: int | None = None
    top_logprobs: int | None = None
    generation_config: GenerationConfig | None = None

    def __post_init__(self):
        if isinstance(self.stop_strings, str):
            self.stop_strings = (self.stop_strings,)


GENERATION_FIELDS = (
    "max_new_tokens",
    "eos_token_id",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
)
REQUEST_FIELDS = tuple(option.name for option in fields(GenerationRequest))


@dataclass
class TokenOutput:
    """
    One new token of one request, or the end of a request without a token.

    Attributes:
        request_id (`str`): The request.
        token_id (`int`, *optional*): The new token; `None` if the request ends without one, by a cancellation or an
            error.
        num_recurrences (`int`): The recurrences of the position whose logits gave this token; 0 without a token.
        logprobs (`dict` from `int` to `float`, *optional*): By token id, natural logarithms of the model's
            probabilities, before logits processors: of this token, then of the `top_logprobs` most probable ones.
        text (`str`, *optional*): The text that can be shown now. It is empty while a stop string may have begun or a
            character is incomplete; `None` without a tokenizer.
        finish_reason (`"stop"`, `"length"`, `"cancelled"` or `"error"`, *optional*): Set in the last output.
        error (`str`, *optional*): What went wrong.
    """

    request_id: str
    token_id: int | None = None
    num_recurrences: int = 0
    logprobs: dict[int, float] | None = None
    text: str | None = None
    finish_reason: str | None = None
    error: str | None = None


@dataclass
class RequestOutput:
    """
    A finished request, with the attributes of the library's `GenerationOutput` and the depths.

    Attributes:
        request_id (`str`): The request.
        prompt_ids (`list[int]`): The prompt.
        generated_tokens (`list[int]`): The new tokens, with the one that ended the text.
        num_recurrences (`list[int]`): The recurrences behind each new token.
        logprobs (`list` of `dict`, *optional*): See `TokenOutput`.
        text (`str`, *optional*): The new text without special tokens and without the stop string.
        finish_reason (`str`, *optional*): See `TokenOutput`.
        error (`str`, *optional*): See `TokenOutput`.
    """

    request_id: str
    prompt_ids: list[int]
    generated_tokens: list[int] = field(default_factory=list)
    num_recurrences: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] | None = None
    text: str | None = None
    finish_reason: str | None = None
    error: str | None = None

    def add(self, output: TokenOutput) -> None:
        """Adds what a step gave."""
        if output.token_id is not None:
            self.generated_tokens.append(output.token_id)
            self.num_recurrences.append(output.num_recurrences)
        if output.logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), output.logprobs]
        if output.text is not None:
            self.text = (self.text or "") + output.text
        self.finish_reason, self.error = output.finish_reason, output.error

    def is_finished(self) -> bool:
        """Whether the request has ended."""
        return self.finish_reason is not None


__all__ = [
    "FINISH_REASONS",
    "GENERATION_FIELDS",
    "REQUEST_FIELDS",
    "GenerationRequest",
    "QueueFull",
    "RequestOutput",
    "TokenOutput",
]
