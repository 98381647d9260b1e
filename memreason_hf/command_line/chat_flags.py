"""The language model that a command asks: over HTTP, at a provider of the Hub, or on this machine."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memreason_hf.chat import EndpointChat, LocalChat
from memreason_hf.chat.endpoint import KEY_VARIABLE, shown_address
from memreason_hf.checks import check_int, check_number
from memreason_hf.command_line.parser import Section
from memreason_hf.files import portable_path, read_text


@dataclass
class ChatFlags:
    """
    The language model to ask.

    Example:
        >>> flags = ChatFlags("my-model", endpoint="http://127.0.0.1:8000/v1")
        >>> flags.check()
        >>> type(flags.open()).__name__
        'EndpointChat'
    """

    llm: str | None = field(
        default=None,
        metadata={
            "help": "The language model: its name at --endpoint or on the Hub (with --provider); with neither, a "
            "folder or a name on the Hub of a model that runs on this machine."
        },
    )
    endpoint: str | None = field(
        default=None,
        metadata={
            "help": "Address of a chat-completion endpoint, as OpenAI's API has it: http://127.0.0.1:8000/v1. Its key "
            "is read from the environment."
        },
    )
    provider: str | None = field(
        default=None,
        metadata={"help": "Provider of the Hub, for example together; auto: the Hub chooses one."},
    )
    key_variable: str = field(
        default=KEY_VARIABLE,
        metadata={
            "help": "Environment variable with the key. If it is not set, the Hub and its providers get the token of "
            "HF_TOKEN or hf auth login, and any other address gets none."
        },
    )
    concurrency: int = field(default=16, metadata={"help": "The maximum number of requests under way."})
    request_tries: int = field(
        default=8,
        metadata={
            "help": "How often a request is sent that is lost or refused for load (429, 5xx), with growing waits."
        },
    )
    timeout: float = field(default=300.0, metadata={"help": "Seconds in which an answer must come."})
    llm_max_tokens: int = field(default=1024, metadata={"help": "The maximum number of new tokens of an answer."})
    llm_temperature: float = field(
        default=0.0, metadata={"help": "Temperature of the answers; 0 takes the most likely token."}
    )
    llm_batch_size: int = field(default=8, metadata={"help": "Requests in a batch of a model on this machine."})
    llm_dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Data type of the weights of a model on this machine."}
    )
    llm_device: str | None = field(
        default=None,
        metadata={"help": "Device of a model on this machine. Default: cuda if available, otherwise cpu."},
    )
    llm_trust_remote_code: bool = field(
        default=False, metadata={"help": "Run Python code that comes with a model on this machine. Read it first."}
    )

    @property
    def is_local(self) -> bool:
        """Whether the model runs on this machine."""
        return self.endpoint is None and self.provider is None

    @property
    def name(self) -> str:
        """The model's name as files may hold it."""
        is_path = self.is_local and Path(self.llm).exists()
        return portable_path(self.llm) if is_path else self.llm

    @property
    def reply_arguments(self) -> dict[str, object]:
        """The arguments of a judge that follow from these flags."""
        return {"name": self.name, "max_tokens": self.llm_max_tokens, "temperature": self.llm_temperature}

    def check(self) -> None:
        """
        Refuses impossible values before anything is loaded or asked.

        Raises:
            ValueError, TypeError: a value is wrong, or the model is not named.
        """
        if not self.llm:
            raise ValueError("llm is not given. Pass --llm MODEL, with --endpoint URL for a model behind an address.")
        check_int("llm_max_tokens", self.llm_max_tokens, least=1)
        check_number("llm_temperature", self.llm_temperature, 0, 2)
        check_int("llm_batch_size", self.llm_batch_size, least=1)
        if self.endpoint is not None and self.provider is not None:
            raise ValueError(
                f"provider={self.provider!r}: the endpoint {shown_address(self.endpoint)!r} is asked itself. Leave "
                "one of them out."
            )
        check_int("concurrency", self.concurrency, least=1, most=10_000)
        check_int("request_tries", self.request_tries, least=1, most=1000)
        check_number("timeout", self.timeout, above=0)
        self._check_place()
        if not self.is_local:
            self._endpoint_chat()

    def _check_place(self):
        """Refuses flags that would be passed over where the model is."""
        names, where = _LOCAL_FLAGS, "a model on this machine, and this one is asked over HTTP. Leave the flag out"
        if self.is_local:
            names, where = _ENDPOINT_FLAGS, "a model that is asked over HTTP. Pass --endpoint or --provider"
        defaults = {spec.name: spec.default for spec in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name}={getattr(self, name)!r} is for {where}.")

    def open(self) -> EndpointChat | LocalChat:
        """
        The language model, ready to be asked.

        Raises:
            ValueError, OSError: see `check`; a model on this machine cannot be loaded, or has no chat template.
        """
        self.check()
        if not self.is_local:
            return self._endpoint_chat()
        return LocalChat.load(
            self.llm,
            batch_size=self.llm_batch_size,
            dtype=self.llm_dtype,
            device=self.llm_device,
            trust_remote_code=self.llm_trust_remote_code,
        )

    def _endpoint_chat(self):
        try:
            return EndpointChat(
                self.llm,
                self.endpoint,
                self.provider,
                concurrency=self.concurrency,
                max_tries=self.request_tries,
                timeout=self.timeout,
                key_variable=self.key_variable,
            )
        except ValueError as error:
            raise ValueError(str(error).replace("base_url", "endpoint", 1)) from None


# Which flags say nothing about a model elsewhere, or about one on this machine.
_LOCAL_FLAGS = ("llm_batch_size", "llm_dtype", "llm_device", "llm_trust_remote_code")
_ENDPOINT_FLAGS = ("key_variable", "concurrency", "request_tries", "timeout")


def read_prompt_file(name: str, path: str | None, check: Callable[[str], None] | None = None) -> str | None:
    """
    The text that a flag names for the language model; None without one.

    Args:
        name: of the flag.
        path: of the file.
        check: raises ValueError for a text that cannot be used.

    Raises:
        ValueError, OSError: the file cannot be read, or its text cannot be used; names the flag.
    """
    if path is None:
        return None
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}={path!r} must be a text in UTF-8 ({error}).") from None
    try:
        if check is not None:
            check(text)
    except ValueError as error:
        raise ValueError(f"{name}={path!r}: {error}") from None
    return text


CHAT = Section("chat", ChatFlags, "language model", key="llm")


def chat_section(*, title: str = CHAT.title, shown: tuple[str, ...] | None = None, **defaults) -> Section:
    """
    The section of the language model's flags.

    Args:
        title: the heading in `--help`.
        shown: the flags that `--help` lists; None: all.
        defaults: defaults of this command that differ from those of `ChatFlags`.

    Example:
        >>> chat_section(title="judge", llm_max_tokens=16).defaults
        {'llm_max_tokens': 16}
    """
    return dataclasses.replace(CHAT, title=title, shown=shown, defaults=defaults)
