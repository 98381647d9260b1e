"""
Which weights are trained: all of them, LoRA, the new rows, LoRA and the new rows, or virtual prompt tokens.

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
from memreason_hf.adapters.prompts import PromptedModel, adapter_class, initial_prompt, prompt_config
from memreason_hf.adapters.saving import is_adapter_folder, load_adapter, save_adapter
from memreason_hf.adapters.targets import LORA_TARGETS, lora_targets, named_targets
from memreason_hf.checks import check_choice, check_int, check_number, check_type
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
ADAPTER_MODES = ("full", "lora", "tokens", "lora+tokens", "prompt")
_LORA_MODES = ("lora", "lora+tokens")
# More would fill the context of any model.
_MOST_VIRTUAL_TOKENS = 65_536


@dataclass
class AdapterArguments:
    """
    Which weights are trained.

    Args:
        mode (`str`, *optional*, defaults to `"lora+tokens"`):
            `"full"`: all weights. `"lora"`: low-rank updates of linear layers; the rows of new tokens stay as
            `extend_tokenizer` set them. `"tokens"`: only those rows. `"lora+tokens"`: both. `"prompt"`: virtual tokens
            in front of every text (PEFT's prompt tuning); the rows of new tokens stay.
        lora_r (`int`, *optional*, defaults to 16): The rank, as in PEFT's `LoraConfig`.
        lora_alpha (`float`, *optional*, defaults to 16):
            The scale of the updates is `lora_alpha / lora_r`; with `use_rslora` `lora_alpha / sqrt(lora_r)`.
        lora_dropout (`float`, *optional*, defaults to 0.05): Dropout before the updates.
        lora_targets (`str`, *optional*, defaults to `"mlp"`):
            The linear layers of the feed-forward networks (`"mlp"`), of the attention (`"attention"`), or both
            (`"all"`). Never the head.
        lora_modules (`list[str]`, *optional*):
            Linear layers by name instead, as in PEFT's `target_modules`: paths or their endings, such as `q_proj`.
        use_dora (`bool`, *optional*, defaults to `False`):
            Train the norms of the columns of the weights apart from their directions (DoRA, arXiv 2402.09353).
        use_rslora (`bool`, *optional*, defaults to `False`):
            Scale by `1 / sqrt(lora_r)`, so that high ranks learn as fast as low ones (rsLoRA, arXiv 2312.03732).
        num_virtual_tokens (`int`, *optional*):
            For `"prompt"`. Default: the tokens of `prompt_init_text`, or 20.
        prompt_init_text (`str`, *optional*):
            For `"prompt"`: the text whose embeddings the virtual tokens start from, repeated to their number. Default:
            random words of the vocabulary.

    Raises:
        ValueError: a value out of range, or one that the mode does not use.
    """

    mode: str = field(
        default="lora+tokens",
        metadata={"help": f"Which weights are trained: {', '.join(ADAPTER_MODES)}.", "choices": list(ADAPTER_MODES)},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the low-rank updates."})
    lora_alpha: float = field(
        default=16, metadata={"help": "Their scale is lora_alpha / lora_r, with use_rslora lora_alpha / sqrt(lora_r)."}
    )
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the low-rank updates."})
    lora_targets: str = field(
        default="mlp",
        metadata={"help": f"The linear layers: {', '.join(LORA_TARGETS)}.", "choices": list(LORA_TARGETS)},
    )
    lora_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Linear layers by name instead, paths or their endings: q_proj v_proj."},
    )
    use_dora: bool = field(
        default=False, metadata={"help": "Train the norms of the weights apart from their directions (DoRA)."}
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by 1 / sqrt(lora_r), for high ranks (rsLoRA)."})
    num_virtual_tokens: int | None = field(
        default=None, metadata={"help": "Mode prompt: virtual tokens. Default: those of prompt_init_text, or 20."}
    )
    prompt_init_text: str | None = field(
        default=None,
        metadata={"help": "Mode prompt: the text that the virtual tokens start from. Default: random words."},
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
        self._check_choices()

    def _check_choices(self):
        if self.lora_modules is not None:
            names = self.lora_modules
            if isinstance(names, str) or not all(isinstance(name, str) and name for name in names) or not names:
                raise ValueError(f"lora_modules={names!r} must be a list of names of linear layers, such as [q_proj].")
        for name in ("use_dora", "use_rslora"):
            check_type(name, getattr(self, name), bool, "true or false")
        if self.num_virtual_tokens is not None:
            check_int("num_virtual_tokens", self.num_virtual_tokens, 1, _MOST_VIRTUAL_TOKENS, "they fill the context")
        if self.prompt_init_text is not None:
            check_type("prompt_init_text", self.prompt_init_text, str, "a text")
        unused = {
            _LORA_MODES: ("lora_modules", "use_dora", "use_rslora"),
            ("prompt",): ("num_virtual_tokens", "prompt_init_text"),
        }
        for modes, names in unused.items():
            for name in names:
                if getattr(self, name) not in (None, False) and self.mode not in modes:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} has no effect in the mode {self.mode!r}. Leave it out, or "
                        f"use the mode {' or '.join(modes)}."
                    )


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
            rows to train, a head whose rows PEFT cannot train, or virtual tokens that do not fit.

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
    if arguments.mode == "prompt":
        config = prompt_config(model, tokenizer, arguments.num_virtual_tokens, arguments.prompt_init_text)
    elif arguments.mode == "lora":
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
    first = None
    if arguments.mode == "prompt":
        first = initial_prompt(model, tokenizer, config.num_virtual_tokens, arguments.prompt_init_text)
    adapted = adapter_class(config)(model, config, mode=arguments.mode, base=base)
    if isinstance(adapted, PromptedModel):
        adapted.set_prompt(first)
    return adapted


def _lora_config(model, arguments, ids) -> PeftConfig:
    if arguments.lora_modules is not None:
        targets = named_targets(model, arguments.lora_modules)
    else:
        targets = lora_targets(model, arguments.lora_targets)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        use_dora=arguments.use_dora,
        use_rslora=arguments.use_rslora,
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
