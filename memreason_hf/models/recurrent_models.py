"""Section `model` of a recipe: a new recurrent-depth model by its style and config, or the one in a folder."""

from dataclasses import MISSING, field, fields, make_dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from memreason_hf.checks import check_choice, check_path
from memreason_hf.messages import first_few
from memreason_hf.models.configs_and_tokenizers import read_tokenizer
from memreason_hf.models.pretrained import check_source, read_model
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


STYLES = {"gpt2": RecurrentDepthConfig.gpt2_style, "llama": RecurrentDepthConfig.llama_style}
# Fields of the config that section `training` has, too. The model is saved with the config's own values.
_TRAINING_FIELDS = ("recurrence_loss", "recurrence_loss_decay")
_MODEL_HELP = {
    "hidden_size": "Width of the state.",
    "intermediate_size": "Width of the MLP. Default: four times hidden_size.",
    "num_prelude_layers": "Layers before the loop.",
    "num_recurrent_layers": "Layers in the loop.",
    "num_coda_layers": "Layers after the loop.",
    "num_attention_heads": "Attention heads.",
    "position_embedding_type": "Positions: learned, sinusoidal, rope or none.",
    "sliding_window": "Tokens that the looped layers attend to, including the current one. Default: all.",
    "residual_init_scale": "Factor on the initial output projections in the loop. 0: it starts as the identity.",
    "num_recurrences": "Number of recurrences; in training their mean.",
    "recurrence_sampling": "Recurrences of a training step: fixed, uniform, poisson or lognormal_poisson.",
    "recurrence_min": "The minimum number of recurrences of a training step.",
    "recurrence_max": "The maximum number of recurrences of a training step.",
    "backprop_recurrences": "How many of the last recurrences gradients flow through. Default: all.",
    "input_injection": "How the input enters later recurrences: none, add, gate (a mixture by channel) or concat.",
    "state_init": "The state before the first recurrence: embedding, zeros, normal or truncated_normal.",
    "state_norm": "Norm of the state between recurrences: none, layernorm, rmsnorm, or last (the model's last norm).",
    "vocab_size": "Rows of the embedding. Default: the tokens of the tokenizer.",
}


def _model_arguments() -> type:
    """A dataclass of section `model`: `style`, `path` and the fields that the config itself declares."""
    # Not the fields that the config inherits from the library.
    own = RecurrentDepthConfig.__annotations__
    described = [
        (
            "style",
            Literal["gpt2", "llama"],
            field(default="gpt2", metadata={"help": "Blocks as in GPT-2 or Llama: the defaults of the other fields."}),
        ),
        (
            "path",
            str | None,
            field(default=None, metadata={"help": "A trained model to start from, instead of a new one."}),
        ),
    ]
    for item in fields(RecurrentDepthConfig):
        if item.name in own and item.default is not MISSING and item.name not in _TRAINING_FIELDS:
            help_text = _MODEL_HELP.get(item.name, f"See RecurrentDepthConfig.{item.name}.")
            described.append((item.name, own[item.name], field(default=item.default, metadata={"help": help_text})))
    return make_dataclass("ModelArguments", described, namespace={"__module__": __name__})


ModelArguments = _model_arguments()


def make_model(
    model: dict, tokenizer: PreTrainedTokenizerBase, *, style: str = "gpt2", **defaults
) -> RecurrentDepthForCausalLM:
    """
    Makes a new model, or loads the one at `path`.

    Args:
        model (`dict`): Fields of `ModelArguments`. They win over the config of a loaded model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of the data.
        style (`str`, *optional*, defaults to `"gpt2"`): The style of a new model that does not name one.
        defaults: Fields of the config of a new model that `model` does not set.

    Raises:
        ValueError: a vocabulary that does not match the tokenizer's, or a model of another class.
        StrictDataclassError: an impossible config.
    """
    chosen = {name: value for name, value in model.items() if name not in ("style", "path")}
    style = model.get("style", style)
    check_choice("model.style", style, STYLES)
    if model.get("path") is not None:
        check_path("model.path", model["path"])
        return _load_model(model["path"], chosen, tokenizer)
    if chosen.get("vocab_size", len(tokenizer)) < len(tokenizer):
        raise ValueError(
            f"model.vocab_size={chosen['vocab_size']} is below the {len(tokenizer)} tokens of the tokenizer. Leave it "
            "out, or use at least that number."
        )
    # The embedding of padding stays zero. No token attends to padding.
    defaults = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **defaults}
    return RecurrentDepthForCausalLM(STYLES[style](**{**defaults, **chosen}))


def _load_model(path, chosen, tokenizer):
    check_source(path, "model.path")
    model, problems = read_model(str(path), "model.path", **chosen)
    # A field that is changed may add weights, which are trained.
    if not chosen and (missing := problems.get("missing_keys")):
        raise ValueError(
            f"model.path={str(path)!r} lacks weights that its config asks for: {first_few(missing, 3)}. The file is "
            "damaged, or belongs to another config."
        )
    if not isinstance(model, RecurrentDepthForCausalLM):
        raise ValueError(
            f"model.path={path!r} holds a {type(model).__name__}, not a RecurrentDepthForCausalLM. Convert it with "
            "memreason convert, or leave model.path out for a new model."
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"The vocabulary does not match: the data have {len(tokenizer)} tokens, the model at {path} has "
            f"vocab_size={model.config.vocab_size}."
        )
    if (Path(path) / "tokenizer.json").is_file():
        known = read_tokenizer(str(path), "model.path").get_vocab()
        differing = [token for token, index in tokenizer.get_vocab().items() if known.get(token) != index]
        if differing:
            raise ValueError(
                f"The vocabulary does not match: {differing[0]!r} is token {tokenizer.get_vocab()[differing[0]]} in "
                f"the data, but {known.get(differing[0])} in the model at {path}."
            )
    # What was promised for these weights does not hold for those that training makes of them.
    vars(model.config).pop("halting_calibration", None)
    return model
