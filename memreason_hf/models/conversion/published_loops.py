"""`memreason convert` reads the published loops: importing this module registers their reader."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.models.conversion.readers import Reader, register_reader
from memreason_hf.models.published import convert_published, detect
from memreason_hf.models.published.convert import READERS


_STUDY = "a checkpoint of the study"
# The study's models add the embeddings before every recurrence after the first, or nothing.
_INJECTIONS = {"none": False, "add": True}


def _family(source: str) -> str | None:
    try:
        reader = detect(source)
    except OSError:
        return None  # the command says what is missing, as for a decoder
    if reader is None:
        return None
    return next((name for name, known in READERS.items() if known is reader), _STUDY)


def _convert(source: str, *, dtype: str, **fields) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    if "input_injection" in fields:
        given = fields["input_injection"]
        if given not in _INJECTIONS:
            raise ValueError(f"input_injection={given!r} must be one of {', '.join(_INJECTIONS)} for {_STUDY}.")
        fields["input_injection"] = _INJECTIONS[given]
    try:
        return convert_published(source, dtype=None if dtype == "auto" else getattr(torch, dtype), **fields)
    except TypeError as error:  # a field for another kind of source
        raise ValueError(str(error)) from None


_FIELDS = ("num_recurrences", "input_injection", "num_attention_heads", "vocabulary")
register_reader(Reader(_family, _convert, _FIELDS))
