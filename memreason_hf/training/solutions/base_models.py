"""Section `model` of a fine-tuning recipe: the pretrained model that training starts from, and its tokenizer."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

import modeling_recurrent  # noqa: F401  (registers its model: a base can be one)
from memreason_hf.adapters.folders import adapter_folder
from memreason_hf.messages import first_few
from memreason_hf.models.configs_and_tokenizers import read_config, read_tokenizer
from memreason_hf.models.pretrained import check_source, read_model, torch_dtype
from memreason_hf.steps.masks import VARIANTS


@dataclass
class BaseModelArguments:
    """
    The model that training starts from.

    Args:
        path (`str`, *optional*): A folder, or a name on the Hub, of the model with its tokenizer.
        dtype (`str`, *optional*):
            The dtype of the weights. Default: as they were saved, or float32 if all of them are trained.
        load_in_8bit, load_in_4bit (`bool`, *optional*, defaults to `False`):
            Quantise the frozen weights with bitsandbytes.
        attn_implementation (`str`, *optional*): For example `"sdpa"`. Default: the choice of the library.
        step_attention (`str`, *optional*):
            The attention between steps, `"none"` or a variant of `set_step_attention`. Default: what the model was
            saved with.
        visible_marks (`bool`, *optional*):
            Whether other programs show the marks of steps in texts of the trained model; see `extend_tokenizer`.
            Default: as the tokenizer was saved, usually not.

    Raises:
        ValueError: both 8 and 4 bits.
    """

    path: str | None = field(
        default=None, metadata={"help": "A folder, or a name on the Hub, of the model with its tokenizer."}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = field(
        default=None,
        metadata={"help": "Of the weights. Default: as they were saved, or float32 if all of them are trained."},
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Frozen weights in 8 bits (bitsandbytes)."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Frozen weights in 4 bits (bitsandbytes)."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "For example sdpa or eager. Default: the choice of the library."}
    )
    step_attention: Literal[("none", *VARIANTS)] | None = field(
        default=None,
        metadata={
            "help": "Sparse attention between steps: own (ordinary tokens see their own step only) or tokens (also "
            "the question and all earlier step tokens). Also for a new model. Default: what the model was saved with, "
            "usually none."
        },
    )
    visible_marks: bool | None = field(
        default=None,
        metadata={
            "help": "true or false: whether pipelines, servers and TRL show the marks of steps in the texts of the "
            "trained model (decode(skip_special_tokens=True) keeps them). Also for a new model. Default: as the "
            "tokenizer was saved, usually not."
        },
    )

    def __post_init__(self):
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit contradict each other: use one of them.")

    @property
    def bits(self) -> int | None:
        """The bits of quantised weights, or `None`."""
        return 8 if self.load_in_8bit else 4 if self.load_in_4bit else None


def open_base(base: BaseModelArguments, mode: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """
    Loads the tokenizer and the model that training starts from.

    Args:
        base (`BaseModelArguments`): Section `model`.
        mode (`str`): Which weights are trained, one of `ADAPTER_MODES`.

    Raises:
        ValueError, OSError: there is no model, it is an adapter, or it cannot be read.
        ImportError: quantised weights without bitsandbytes.
    """
    if adapter_folder(base.path, field="model.path") is not None:
        raise ValueError(
            f"model.path={base.path!r} holds an adapter, not a whole model. Use its base, or merge the adapter."
        )
    check_source(base.path, "model.path")
    tokenizer = read_tokenizer(base.path, "model.path")
    arguments = {"dtype": torch_dtype(base.dtype or ("float32" if mode == "full" else "auto"))}
    if base.attn_implementation is not None:
        arguments["attn_implementation"] = base.attn_implementation
    if base.bits is not None:
        arguments["quantization_config"] = _quantization(base, arguments["dtype"])
        # Each process keeps the whole model on its own device.
        device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else "cpu"
        arguments["device_map"] = {"": device}
    network, problems = read_model(base.path, "model.path", **arguments)
    if missing := problems.get("missing_keys"):
        raise ValueError(
            f"model.path={base.path!r} lacks {len(missing)} weights of a {type(network).__name__}: "
            f"{first_few(missing, 3)}. Use a whole model with its head."
        )
    return tokenizer, network


def _quantization(base, dtype):
    if find_spec("bitsandbytes") is None:
        raise ImportError(
            f"model.load_in_{base.bits}bit needs bitsandbytes, which is not installed: pip install bitsandbytes."
        )
    if dtype == "auto":
        # bitsandbytes would compute in float32 otherwise.
        dtype = read_config(base.path, "model.path").dtype or torch.float32
    return BitsAndBytesConfig(
        load_in_8bit=base.load_in_8bit,
        load_in_4bit=base.load_in_4bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )
