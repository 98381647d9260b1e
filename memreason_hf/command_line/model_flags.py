"""The model that a command runs: one set of flags for all verbs, and loading by them."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.command_line.parser import Section
from memreason_hf.messages import visible
from memreason_hf.models.loading import (
    choose_device,
    load_any_config,
    load_model,
    load_model_config,
    load_tokenizer,
)
from modeling_recurrent import RecurrentDepthConfig


@dataclass
class ModelFlags:
    """
    The model to run, and how it is run.

    Example:
        >>> flags = ModelFlags("runs/quickstart", device="cpu")
        >>> config = flags.load_config()  # doctest: +SKIP
        >>> tokenizer, model = flags.load_tokenizer(config), flags.load_model()  # doctest: +SKIP
    """

    model: str = field(metadata={"help": "Folder of a saved model or adapter, or its name on the Hub (owner/name)."})
    revision: str | None = field(
        default=None,
        metadata={
            "help": "Branch, tag or commit of a model or adapter on the Hub and of the tokenizer saved with it. "
            "Default: main. The base of an adapter is read at the commit that the adapter names."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Folder or name on the Hub of the tokenizer. Default: the tokenizer saved with the model."},
    )
    base: str | None = field(
        default=None,
        metadata={"help": "Folder or name on the Hub of an adapter's base model. Default: where the adapter says."},
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto",
        metadata={"help": "Data type of the weights. auto: as saved, or for an adapter as it was trained."},
    )
    device: str | None = field(
        default=None, metadata={"help": "For example cpu, cuda or cuda:1. Default: cuda if available, otherwise cpu."}
    )
    batch_size: int = field(
        default=16,
        metadata={
            "help": "Rows or prompts in a batch. Changes speed and memory, but no results except texts that are drawn "
            "at random."
        },
    )
    no_progress: bool = field(default=False, metadata={"help": "Hide progress bars."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run Python code that comes with the model or tokenizer. Read it first."},
    )

    @property
    def short_name(self) -> str:
        """The last two parts of the model's path or name, for titles."""
        return visible("/".join(Path(self.model).parts[-2:]))

    @property
    def _access(self):
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def check(self) -> None:
        """
        Refuses impossible values before anything is loaded.

        Raises:
            ValueError: `batch_size` is below 1.
        """
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")

    def load_config(self) -> PreTrainedConfig:
        """See `load_any_config`."""
        return load_any_config(self.model, self.base, **self._access)

    def load_recurrent_config(self) -> RecurrentDepthConfig:
        """See `load_model_config`."""
        return load_model_config(self.model, self.base, **self._access)

    def load_tokenizer(self, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
        """See `load_tokenizer`."""
        return load_tokenizer(self.model, self.tokenizer, config, **self._access)

    def load_model(self, device: torch.device | None = None, **kwargs) -> PreTrainedModel:
        """
        The model on its device; see `load_model`.

        Args:
            device: in place of the flag's.
        """
        chosen = self.choose_device() if device is None else device
        loaded = load_model(self.model, self.dtype, base=self.base, **self._access, **kwargs)
        return loaded.to(chosen)

    def choose_device(self) -> torch.device:
        """See `choose_device`."""
        return choose_device(self.device)


MODEL = Section("model", ModelFlags, "model", key="inputs")


def model_section(*, batch_size: int | None = None, left_out: tuple[str, ...] = ()) -> Section:
    """
    The section of the model flags.

    Args:
        batch_size: the default of this command.
        left_out: fields that this command does not use.
    """
    defaults = {} if batch_size is None else {"batch_size": batch_size}
    return dataclasses.replace(MODEL, left_out=left_out, defaults=defaults)
