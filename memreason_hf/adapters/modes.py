"""
Which weights are trained: all of them, LoRA, the new rows, or LoRA and the new rows.

    extend_tokenizer(tokenizer, scheme, model)
    model = add_adapter(model, tokenizer, AdapterArguments("lora+tokens"))
    ...  # training
    save_adapter(model, tokenizer, folder)
    model, tokenizer = load_adapter(folder)
"""

from dataclasses import dataclass, field

from peft import LoraConfig, PeftConfig, TaskType, TrainableTokensConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from memreason_hf.adapters.base import describe_base
from memreason_hf.adapters.base_files import resolve_commit
from memreason_hf.adapters.model import AdapterModel
from memreason_hf.adapters.saving import is_adapter_folder, load_adapter, save_adapter
from memreason_hf.adapters.targets import LORA_TARGETS, lora_targets
from memreason_hf.checks import check_choice, check_int, check_number
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

# A rank is at most the width of a layer, and no layer is wider.
_MOST_RANK = 65_536
ADAPTER_MODES = ("full", "lora", "tokens", "lora+tokens")


@dataclass
class AdapterArguments:
    """
    Which weights are trained.

    Args:
        mode (`str`, *optional*, defaults to `"lora+tokens"`):
            `"full"`: all weights. `"lora"`: low-rank updates of linear layers; the rows of new tokens stay as
            `extend_tokenizer` set them. `"tokens"`: only those rows. `"lora+tokens"`: both.
        lora_r (`int`, *optional*, defaults to 16): The rank, as in PEFT's `LoraConfig`.
        lora_alpha (`float`, *optional*, defaults to 16): The scale of the updates is `lora_alpha / lora_r`.
        lora_dropout (`float`, *optional*, defaults to 0.05): Dropout before the updates.
        lora_targets (`str`, *optional*, defaults to `"mlp"`):
            The linear layers of the feed-forward networks (`"mlp"`), of the attention (`"attention"`), or both
            (`"all"`). Never the head.

    Raises:
        ValueError: a value out of range.
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
        check_choice("mode", self.mode, ADAPTER_MODES)
        check_choice("lora_targets", self.lora_targets, LORA_TARGETS)
        if isinstance(self.lora_r, bool) or not isinstance(self.lora_r, int):
            raise ValueError(f"lora_r={self.lora_r!r} must be a whole number.")
        check_int("lora_r", self.lora_r, least=1, most=_MOST_RANK)
        check_number("lora_alpha", self.lora_alpha)
        if not self.lora_alpha > 0:
            raise ValueError(f"lora_alpha={self.lora_alpha!r} must be above 0.")
        check_number("lora_dropout", self.lora_dropout)
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout={self.lora_dropout!r} must be at least 0 and below 1.")


def add_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: AdapterArguments,
    *,
    revision: str | None = None,
) -> PreTrainedModel | AdapterModel:
    """
    Freezes the weights that are not trained and adds an adapter.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A model that `extend_tokenizer` extended for the tokenizer. It is wrapped in place. The adapter records
            the files that it was loaded from, so changed weights must be saved and loaded first.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The extended tokenizer.
        arguments ([`AdapterArguments`]): Which weights are trained.
        revision (`str`, *optional*):
            The revision of a model that was loaded from the Hub, if it is not the default one. The adapter names its
            commit.

    Returns:
        The model itself for the mode `"full"`, otherwise an `AdapterModel`.

    Raises:
        ValueError: a model that was not extended, a tokenizer without the scheme's tokens, no layers to adapt, no new
            rows to train, or a head whose rows PEFT cannot train.

    Example:

    ```python
    >>> from memreason_hf import StepScheme, extend_tokenizer
    >>> from memreason_hf.adapters.modes import AdapterArguments, add_adapter

    >>> ids = extend_tokenizer(tokenizer, StepScheme(num_prefix_tokens=1, num_step_tokens=2), model)
    >>> model = add_adapter(model, tokenizer, AdapterArguments("lora+tokens", lora_r=8))
    >>> model.print_trainable_parameters()
    trainable params: ... || all params: ... || trainable%: ...
    ```
    """
    read_scheme(tokenizer)
    if arguments.mode == "full":
        model.requires_grad_(True)
        return model
    _, ids = new_rows(model)
    if arguments.mode == "lora":
        # The rows are stored, because the base that the adapter is loaded on lacks them. `AdapterModel` freezes them.
        config = _lora_config(model, arguments, ids)
    elif not ids:
        raise ValueError(
            f"mode={arguments.mode!r}: the tokenizer's scheme has no tokens, so no row is new. Use 'lora'."
        )
    elif arguments.mode == "tokens":
        config = TrainableTokensConfig(
            token_indices=list(ids), target_modules=_token_modules(model), task_type=TaskType.CAUSAL_LM
        )
    else:
        config = _lora_config(model, arguments, ids)
    # PEFT, too, loads the base at this commit.
    config.revision = resolve_commit(model.name_or_path, revision)
    base = describe_base(model, tokenizer, config.revision)
    return AdapterModel(model, config, mode=arguments.mode, base=base)


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
    """The paths of the embedding and, unless it is tied, of the head. PEFT finds a tied head itself."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {id(module): path for path, module in model.named_modules()}
    if head is None:
        return [paths[id(embedding)]]
    tied = head.weight is embedding.weight
    if tied != bool(model.config.tie_word_embeddings):
        raise ValueError(
            f"tie_word_embeddings={model.config.tie_word_embeddings} in the config of {type(model).__name__}, but its "
            f"head {'is' if tied else 'is not'} tied to the embedding. Correct the config."
        )
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(
            f"The head of {type(model).__name__} is {head}, but its rows can only be stored if it is a linear layer "
            "without a bias. Use mode='full'."
        )
    return [paths[id(embedding)], *([] if tied else [paths[id(head)]])]
