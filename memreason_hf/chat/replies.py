"""What a language model answers, and why it did not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memreason_hf.checks import check_int, check_number, check_row, check_sequence, check_type


Messages = Sequence[Mapping[str, str]]
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ChatReply:
    """
    The answer to one request.

    Attributes:
        text: what the model wrote; empty if it wrote nothing.
        num_prompt_tokens, num_new_tokens: tokens read and written; None where an endpoint does not count them.
        finish_reason: `"stop"`, `"length"` for an answer that was cut off by `max_tokens`, or another word of the
            endpoint; None where it gives none.
    """

    text: str
    num_prompt_tokens: int | None = None
    num_new_tokens: int | None = None
    finish_reason: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens read and written, as far as they are known."""
        return (self.num_prompt_tokens or 0) + (self.num_new_tokens or 0)

    @property
    def is_cut(self) -> bool:
        """Whether `max_tokens` cut the answer off."""
        return self.finish_reason == "length"


class ChatError(OSError):
    """
    A request was not answered.

    Attributes:
        reason (`str`): What went wrong and what to do, in one line.
        is_final (`bool`): Whether the same request would fail again: it was refused, and not only lost on its way.
        is_fatal (`bool`): Whether other requests would fail, too: the key is refused, there is no such model or
            address, or nothing is answered any more. `ask_all` then raises the error in place of going on.
    """

    def __init__(self, reason: str, is_final: bool = False, is_fatal: bool = False):
        super().__init__(reason)
        self.reason, self.is_final, self.is_fatal = reason, is_final, is_fatal


def check_request(messages: Messages, max_tokens: int, temperature: float, seed: int | None) -> None:
    """
    Checks the arguments of `ask`.

    Raises:
        TypeError, ValueError: one of them is wrong. The message names it.

    Example:

        >>> check_request([{"role": "user", "content": "Hello"}], 5, 0.0, None)
        >>> check_request([{"role": "me", "content": "Hello"}], 5, 0.0, None)
        Traceback (most recent call last):
        ValueError: messages[0]: role='me' must be one of system, user, assistant.
    """
    check_sequence("messages", messages, "a list of messages")
    if not messages:
        raise ValueError("messages=[] must hold at least one message.")
    for index, message in enumerate(messages):
        check_row(f"messages[{index}]", message, ("role", "content"))
        if message["role"] not in _ROLES:
            raise ValueError(f"messages[{index}]: role={message['role']!r} must be one of {', '.join(_ROLES)}.")
        check_type(f"messages[{index}]['content']", message["content"], str, "a text")
    check_int("max_tokens", max_tokens, least=1)
    check_number("temperature", temperature, 0, 2)
    if seed is not None:
        check_int("seed", seed, least=0, most=2**63 - 1)
