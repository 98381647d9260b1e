"""From a recipe to a trainer: opens or builds the dataset, makes the model, and checks that they match."""

from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Literal

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, set_seed

from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.chains.folder import read_manifest
from memreason_hf.data.chains.multi_hop import (
    MultiHopConfig,
    encode_chains,
    load_multi_hop,
    load_multi_hop_tokenizer,
    prepare_multi_hop,
    select_chains,
)
from memreason_hf.training.chains.arguments import RecurrentTrainingArguments
from memreason_hf.training.chains.curriculum import CurriculumArguments, CurriculumCallback
from memreason_hf.training.chains.trainer import RecurrentTrainer
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
    "input_injection": "How the input enters every recurrence: none, add or concat.",
    "state_init": "The state before the first recurrence: embedding, zeros or normal.",
    "state_norm": "Norm of the state between recurrences: none, layernorm or rmsnorm.",
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


@dataclass(frozen=True)
class DataArguments(MultiHopConfig):
    """The folder of the multi-hop data, and the sizes to build them with if the folder is empty."""

    path: str | None = field(
        default=None,
        metadata={"help": "Folder of the dataset. If there is none, it is built with the sizes below."},
    )
    eval_split: str = field(
        default="validation", metadata={"help": "The split whose test chains evaluation and the curriculum use."}
    )


def prepare_run(
    args: RecurrentTrainingArguments, *, model: dict, data: dict, curriculum: dict | None = None
) -> RecurrentTrainer:
    """
    Makes the trainer of a recipe.

    Args:
        args ([`RecurrentTrainingArguments`]): Section `training`.
        model (`dict`): Section `model`, fields of `ModelArguments`.
        data (`dict`): Section `data`, fields of `DataArguments`.
        curriculum (`dict`, *optional*):
            Section `curriculum`, fields of `CurriculumArguments`. If it is empty or `None`, there is no curriculum.

    Raises:
        ValueError, OSError, StrictDataclassError, TrainingError: a part that is missing or impossible, or parts that
            do not match.
    """
    stages = CurriculumArguments(**curriculum) if curriculum else None
    with args.main_process_first(desc="opening the dataset"):
        tokenizer, train, heldout = open_data(data)
    set_seed(args.seed)
    return RecurrentTrainer(
        model=make_model(model, tokenizer),
        args=args,
        train_dataset=train,
        eval_dataset=heldout,
        data_collator=ChainCollator(tokenizer.pad_token_id, args.supervision),
        processing_class=tokenizer,
        callbacks=[CurriculumCallback(stages)] if stages is not None and stages.enabled else None,
        origin={"model.path": model.get("path")},
    )


def open_data(data: dict) -> tuple[PreTrainedTokenizerBase, Dataset, Dataset]:
    """
    Opens a multi-hop dataset, or builds it if the folder holds none.

    Args:
        data (`dict`): Fields of `DataArguments`.

    Returns:
        The tokenizer, the encoded training rows and the encoded held-out chains.

    Raises:
        ValueError: no path, or other sizes than those of the dataset in the folder.
        OSError: missing files.
    """
    sizes = {name: value for name, value in data.items() if name not in ("path", "eval_split")}
    if not data.get("path"):
        raise ValueError("data.path is not given. Name the folder of the dataset: --data_path FOLDER.")
    path, split = Path(data["path"]), data.get("eval_split", "validation")
    manifest = read_manifest(path)
    if manifest is None and not _holds_data(path):
        prepare_multi_hop(MultiHopConfig(**sizes), path)
    elif sizes:
        _check_sizes(path, MultiHopConfig(**sizes), sizes, manifest)
    tokenizer = load_multi_hop_tokenizer(path)
    dataset = load_multi_hop(path)
    if split not in dataset:
        raise ValueError(f"data.eval_split={split!r} is not in {path}. Splits: {', '.join(dataset)}.")
    heldout = select_chains(dataset[split], kind="test")
    return tokenizer, encode_chains(dataset["train"], tokenizer), encode_chains(heldout, tokenizer)


def make_model(model: dict, tokenizer: PreTrainedTokenizerBase) -> RecurrentDepthForCausalLM:
    """
    Makes a new model, or loads the one at `path`.

    Args:
        model (`dict`): Fields of `ModelArguments`. They win over the config of a loaded model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of the data.

    Raises:
        ValueError: a vocabulary that does not match the tokenizer's, or a model of another class.
        StrictDataclassError: an impossible config.
    """
    chosen = {name: value for name, value in model.items() if name not in ("style", "path")}
    if model.get("path"):
        return _load_model(model["path"], chosen, tokenizer)
    if chosen.get("vocab_size", len(tokenizer)) < len(tokenizer):
        raise ValueError(
            f"model.vocab_size={chosen['vocab_size']} is below the {len(tokenizer)} tokens of the tokenizer. Leave it "
            "out, or use at least that number."
        )
    # The embedding of padding stays zero. No token attends to padding.
    defaults = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return RecurrentDepthForCausalLM(STYLES[model.get("style", "gpt2")](**{**defaults, **chosen}))


def _load_model(path, chosen, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(path, **chosen)
    if not isinstance(model, RecurrentDepthForCausalLM):
        raise ValueError(f"model.path={path!r} holds a {type(model).__name__}, not a RecurrentDepthForCausalLM.")
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"The vocabulary does not match: the data have {len(tokenizer)} tokens, the model at {path} has "
            f"vocab_size={model.config.vocab_size}."
        )
    if (Path(path) / "tokenizer.json").is_file():
        known = AutoTokenizer.from_pretrained(path).get_vocab()
        differing = [token for token, index in tokenizer.get_vocab().items() if known.get(token) != index]
        if differing:
            raise ValueError(
                f"The vocabulary does not match: {differing[0]!r} is token {tokenizer.get_vocab()[differing[0]]} in "
                f"the data, but {known.get(differing[0])} in the model at {path}."
            )
    return model


def _holds_data(path):
    return path.is_dir() and any((path / name).is_file() for name in ("train.json", "dataset_dict.json"))


def _check_sizes(path, wanted, sizes, manifest):
    built = (manifest or {}).get("config")
    if built is None:
        raise ValueError(
            f"data.path={str(path)!r} holds a dataset that another program built, so its sizes are unknown. Leave out "
            f"{', '.join(sizes)}."
        )
    differing = [name for name in sizes if built.get(name) != getattr(wanted, name)]
    if differing:
        shown = ", ".join(
            f"{name}={built.get(name)!r} in the folder, {getattr(wanted, name)!r} in the recipe" for name in differing
        )
        raise ValueError(f"data.path={str(path)!r} holds another dataset ({shown}). Choose another folder.")
