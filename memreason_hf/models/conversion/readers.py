"""
Sources of other kinds, which `memreason convert` reads before it looks for a decoder of transformers.

A module that reads such a source registers itself when it is imported (`register_reader`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ConvertSource(Protocol):
    """Reads a source; `fields` are the reader's own."""

    def __call__(self, source: str, *, dtype: str, **fields) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
        """
        Returns:
            A recurrent model in evaluation mode, and its tokenizer if the source has one.

        Raises:
            ValueError, OSError: the source cannot be read, or a field cannot be used.
        """


@dataclass(frozen=True)
class Reader:
    """
    A kind of source.

    Attributes:
        detect (`Callable`): Returns the family of a source by its path, for example `"Huginn"`, or `None` if the
            source is of another kind. It reads no weights.
        convert (`ConvertSource`): Reads the source.
        fields (`tuple` of `str`): The flags of the command that `convert` takes. All others are refused.
    """

    detect: Callable[[str], str | None]
    convert: ConvertSource
    fields: tuple[str, ...] = ()


_READERS: list[Reader] = []


def register_reader(reader: Reader) -> None:
    """Adds a kind of source. The readers are asked in the order of their registration."""
    _READERS.append(reader)


def find_reader(source: str) -> tuple[Reader, str] | None:
    """The reader of a source and the family that it recognises; `None` if no reader knows the source."""
    for reader in _READERS:
        family = reader.detect(source)
        if family is not None:
            return reader, family
    return None
