"""
Which weights are trained: all, LoRA, the new rows, or LoRA and the new rows.

    extend_tokenizer(tokenizer, scheme, model)
    model = add_adapter(model, tokenizer, AdapterArguments("lora+tokens"))
    ... # training
    save_adapter(model, tokenizer, folder)
    model, tokenizer = load_adapter(folder)
"""

from dataclasses import dataclass, field

from peft import LoraConfig, PeftConfig, TaskType, TrainableTokensConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from memreason_hf.adapters.base import describe_base
from memreason_hf.adapters.model import AdapterModel
from memreason_hf.adapters.saving import is_adapter_folder, load_adapter, save_adapter
from memreason_hf.adapters.targets import LORA_TARGETS, lora_targets
from memreason_hf.steps.tokenization import new_rows, read_scheme


__all__ = [
    "ADAPTER_MODES",
    "AdapterArguments",
    "AdapterModel",
    "add_adapter",
    "is_adapter_folder",
    "load_adapter",
    "save_adapter",
]

ADAPTER_MODES = ("full", "lora", "tokens", "lora+tokens")


@dataclass
class AdapterArguments:
    """
    Args:
        mode (`str`, defaults to `"lora+tokens"`):
            `"full"`: every weight is trained. `"lora"`: low-rank updates of the linear layers; the rows of new tokens
            stay as they were set. `"tokens"`: only those rows. `"lora+tokens"`: both.
        lora_r (`int`, defaults to 16), lora_alpha (`float`, defaults to 16), lora_dropout (`float`, defaults to 0.05):
            As in PEFT's `LoraConfig`.
        lora_targets (`str`, defaults to `"mlp"`):
            The linear layers of the feed-forward networks (`"mlp"`), of the attention (`"attention"`), or both
            (`"all"`). Never the head.
    """

    mode: str = field(
        default="lora+tokens",
        metadata={"help": f"Which weights are trained: {', '.join(ADAPTER_MODES)}.", "choices": list(ADAPTER_MODES)},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the low-rank updates."})
    lora_alpha: float = field(default=16, metadata={"help": "Their scale is lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the low-rank updates."})
    lora_targets: str = field(
        default="mlp",
        metadata={"help": f"The linear layers: {', '.join(LORA_TARGETS)}.", "choices": list(LORA_TARGETS)},
    )

    def __post_init__(self):
        for name, known in (("mode", ADAPTER_MODES), ("lora_targets", LORA_TARGETS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known; choose one of {', '.join(known)}.")
        if isinstance(self.lora_r, bool) or not isinstance(self.lora_r, int) or self.lora_r < 1:
            raise ValueError(f"lora_r={self.lora_r!r} must be an integer of at least 1.")
        if not self.lora_alpha > 0:
            raise ValueError(f"lora_alpha={self.lora_alpha!r} must be above 0.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout={self.lora_dropout!r} must be at least 0 and below 1.")


def add_adapter(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: AdapterArguments
) -> PreTrainedModel | AdapterModel:
    """
    Freezes what is not trained and adds what is.

    Args:
        model: extended for the tokenizer by `extend_tokenizer`; wrapped in place. Its name, `model.name_or_path`, is
            noted as that of the base.
        tokenizer: carries the scheme of steps.
        arguments: see there.

    Returns:
        The model itself for `full`, in which all weights are trained; otherwise an `AdapterModel`.

    Raises:
        ValueError: a model that was not extended, a tokenizer without the scheme's tokens, no layers to adapt, no new
            rows to train, or a head that PEFT cannot train rows of.
    """
    read_scheme(tokenizer)
    if arguments.mode == "full":
        model.requires_grad_(True)
        return model
    _, ids = new_rows(model)
    if arguments.mode == "lora":
        # Stored, as whoever loads the adapter has a base without them; `AdapterModel` keeps them frozen.
        config = _lora_config(model, arguments, ids)
    elif not ids:
        raise ValueError(f"mode={arguments.mode!r}: the scheme of the tokenizer has no tokens, so no row is new.")
    elif arguments.mode == "tokens":
        config = TrainableTokensConfig(
            token_indices=list(ids), target_modules=_token_modules(model), task_type=TaskType.CAUSAL_LM
        )
    else:
        config = _lora_config(model, arguments, ids)
    return AdapterModel(model, config, mode=arguments.mode, base=describe_base(model, tokenizer))


def _lora_config(model, arguments, ids) -> PeftConfig:
    targets = lora_targets(model, arguments.lora_targets)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=all(isinstance(model.get_submodule(path), Conv1D) for path in targets),
        trainable_token_indices={name: list(ids) for name in _token_modules(model)} if ids else None,
    )


def _token_modules(model) -> list[str]:
    """The paths of the embedding, and of the head where it has rows of its own. PEFT finds a tied head by itself."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {id(module): path for path, module in model.named_modules()}
    if head is None:
        return [paths[id(embedding)]]
    tied = head.weight is embedding.weight
    if tied != bool(model.config.tie_word_embeddings):
        raise ValueError(
            f"tie_word_embeddings={model.config.tie_word_embeddings} in the config of {type(model).__name__}, but its "
            f"head {'is' if tied else 'is not'} tied to the embedding. Make the config say what is."
        )
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(
            f"The head of {type(model).__name__} is {head}: rows of it can only be stored where it is a linear layer "
            "without a bias. Choose mode='full'."
        )
    return [paths[id(embedding)], *([] if tied else [paths[id(head)]])]
