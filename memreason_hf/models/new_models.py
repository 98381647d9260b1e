"""New small models with their tokenizers, to try a recipe before a large model is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from memreason_hf.checks import check_choice, check_int, check_number, check_sequence, check_type
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


_SPECIAL = {"eos_token": "</s>", "pad_token": "<pad>"}
_NUM_BYTES = 256
# No layer, head or text of a new model is larger; a size beyond it is a typing error.
_MOST = 10_000_000


@dataclass
class NewModelArguments:
    """A new model in place of a pretrained one, and the vocabulary that is learned for it."""

    architecture: Literal["llama", "recurrent"] | None = field(
        default=None,
        metadata={"help": "Train a new small model: a Llama, or a recurrent-depth model. Default: a pretrained one."},
    )
    vocab_size: int = field(
        default=2000, metadata={"help": "Tokens of the vocabulary, learned by byte-pair encoding of the texts."}
    )
    hidden_size: int = field(default=128, metadata={"help": "Width of the hidden states."})
    num_layers: int = field(
        default=4,
        metadata={"help": "Layers. In a recurrent-depth model all but the first and the last are in the loop."},
    )
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads."})
    max_position_embeddings: int = field(default=1024, metadata={"help": "Longest text, in tokens."})
    initializer_range: float = field(
        default=0.02,
        metadata={
            "help": "Standard deviation of the initial weights. Models of width 100 or less learn much sooner with "
            "about 1 / sqrt(width)."
        },
    )
    num_recurrences: int = field(
        default=4,
        metadata={"help": "Recurrent-depth model: recurrences; in training, at random 0.5 to 1.5 times this."},
    )

    def __post_init__(self):
        least = {"vocab_size": _NUM_BYTES + len(_SPECIAL), "num_layers": 3 if self.architecture == "recurrent" else 1}
        for name in ("hidden_size", "num_attention_heads", "max_position_embeddings", "num_recurrences"):
            least[name] = 1
        if self.architecture is not None:
            check_choice("new_model.architecture", self.architecture, ("llama", "recurrent"))
        for name, bound in least.items():
            check_int(f"new_model.{name}", getattr(self, name), least=bound, most=_MOST)
        check_number("new_model.initializer_range", self.initializer_range, above=0, most=10)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"new_model.hidden_size={self.hidden_size} must be a multiple of twice "
                f"num_attention_heads={self.num_attention_heads}."
            )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """
    A byte-level byte-pair tokenizer, learned from `texts`. It can encode any text.

    Args:
        vocab_size: the maximum number of tokens. 258 of them are the bytes, the end of text and padding.
    """
    check_int("vocab_size", vocab_size, least=_NUM_BYTES + len(_SPECIAL))
    check_sequence("texts", texts, "a list of texts")
    texts = _checked_texts(texts)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **_SPECIAL)


def _checked_texts(texts):
    for index, text in enumerate(texts):
        check_type(f"texts[{index}]", text, str, "a text")
        yield text


def build_new_model(arguments: NewModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with random weights and an embedding row for each token of `tokenizer`."""
    check_choice("new_model.architecture", arguments.architecture, ("llama", "recurrent"))
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": arguments.hidden_size,
        "intermediate_size": 3 * arguments.hidden_size,
        "num_attention_heads": arguments.num_attention_heads,
        "max_position_embeddings": arguments.max_position_embeddings,
        "initializer_range": arguments.initializer_range,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if arguments.architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=arguments.num_layers, **common))
    recurrences = arguments.num_recurrences
    config = RecurrentDepthConfig.llama_style(
        num_prelude_layers=1,
        num_recurrent_layers=arguments.num_layers - 2,
        num_coda_layers=1,
        input_injection="add",
        state_norm="rmsnorm",
        num_recurrences=recurrences,
        recurrence_sampling="uniform",
        recurrence_min=max(1, recurrences // 2),
        recurrence_max=recurrences + recurrences // 2,
        **common,
    )
    return RecurrentDepthForCausalLM(config)
