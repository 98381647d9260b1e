"""Prompts, from flags, a file or standard input."""

import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class PromptArguments:
    """The prompts."""

    prompt: list[str] | None = field(default=None, metadata={"help": "One or more texts to continue."})
    prompts: str | None = field(
        default=None, metadata={"help": "File with one prompt per line, in UTF-8. Blank lines are skipped."}
    )


def read_prompts(arguments: PromptArguments) -> list[str]:
    """
    The prompts that the flags name. Without flags, all of standard input as one prompt, without its last line end.

    Raises:
        ValueError, OSError: no prompt is given or two sources are, a file does not exist, or a prompt is not UTF-8.
    """
    if arguments.prompt is not None and arguments.prompts is not None:
        raise ValueError(f"prompt and prompts={arguments.prompts!r} are both given. Pass one of them.")
    if arguments.prompt is not None:
        for prompt in arguments.prompt:
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise ValueError(f"prompt={prompt!r} must be a text in UTF-8.")
        return arguments.prompt
    if arguments.prompts is None:
        return [_piped_prompt()]
    try:
        lines = Path(arguments.prompts).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts={arguments.prompts!r} must be a file in UTF-8 ({error}).") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"prompts={arguments.prompts!r} holds only blank lines.")
    return prompts


def _piped_prompt():
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("No prompt. Pass --prompt TEXT or --prompts FILE, or pipe a text in.")
    try:
        text = sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"Standard input must be a text in UTF-8 ({error}).") from None
    if not text:
        raise ValueError("No prompt: nothing was piped in. Pass --prompt TEXT or --prompts FILE.")
    return text
