"""What the readers of the published loops share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from memreason_hf.files import read_json
from memreason_hf.models import configs_and_tokenizers
from modeling_recurrent import RecurrentDepthConfig


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass
class PublishedLoop:
    """
    A published loop in the terms of this package.

    Attributes:
        family (`str`): what it is, for messages and cards, for example `"Huginn"`.
        config (`RecurrentDepthConfig`): the config of the model.
        tensors (`Iterator`): the names of `RecurrentDepthForCausalLM.state_dict()` with their tensors, read one by
            one. At its end it raises a `ValueError` if the checkpoint holds more than the model uses.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the tokenizer, where the checkpoint has one.
    """

    family: str
    config: RecurrentDepthConfig
    tensors: Iterator[tuple[str, torch.Tensor]]
    tokenizer: PreTrainedTokenizerBase | None


def read_fields(folder: Path) -> dict:
    """
    The fields of `config.json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a JSON object.
    """
    fields = read_json(Path(folder, "config.json"))
    if not isinstance(fields, dict):
        raise ValueError(f"{folder}: config.json must hold an object, got {type(fields).__name__}.")
    return fields


def need(folder: Path, fields: dict, *names: str) -> list:
    """
    The values of fields that must exist.

    Raises:
        ValueError: one of them is missing.
    """
    for name in names:
        if fields.get(name) is None:
            raise ValueError(f"{folder}: config.json lacks {name!r}, which this model needs.")
    return [fields[name] for name in names]


def refuse_fields(folder: Path, fields: dict, family: str, expected: dict) -> None:
    """
    Checks fields for which only one value can be expressed; a field that is missing has it.

    Raises:
        ValueError: a field has another value.
    """
    for name, value in expected.items():
        if fields.get(name, value) != value:
            raise ValueError(
                f"{folder}: {name}={fields[name]!r} of a {family} model cannot be expressed by a recurrent-depth "
                f"model, which needs {name}={value!r}."
            )


def token_ids(fields: dict) -> dict:
    """The ids of the special tokens."""
    return {name: fields[name] for name in _TOKEN_IDS if fields.get(name) is not None}


def rope_parameters(theta: float, scaling: dict | None) -> dict:
    """The rotation of a config that writes it as `rope_theta` and `rope_scaling`."""
    scaling = dict(scaling or {})
    kind = scaling.pop("type", None)
    return {"rope_type": kind or "default", **scaling, "rope_theta": float(theta)}


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """
    The tokenizer beside the weights; `None` where there are no files of one.

    Raises:
        ValueError: the files cannot be read without remote code.
    """
    if not any(Path(folder, name).is_file() for name in _TOKENIZER_FILES):
        return None
    return configs_and_tokenizers.read_tokenizer(str(folder), "source")


def layer_name(index: int) -> str:
    """The prefix of the parameters of a physical layer."""
    return f"model.layers.{index}"


__all__ = [
    "PublishedLoop",
    "layer_name",
    "need",
    "read_fields",
    "read_tokenizer",
    "refuse_fields",
    "rope_parameters",
    "token_ids",
]
