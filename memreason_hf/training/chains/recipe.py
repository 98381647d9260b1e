"""From a recipe to a trainer: the data set is opened or built, the model made, both checked against each other."""

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
_MODEL_HELP = {
    "hidden_size": "Width of the state.",
    "intermediate_size": "Width of the MLP; otherwise four times hidden_size.",
    "num_prelude_layers": "Layers before the loop.",
    "num_recurrent_layers": "Layers in the loop.",
    "num_coda_layers": "Layers after the loop.",
    "num_attention_heads": "Attention heads.",
    "position_embedding_type": "learned, sinusoidal, rope or none.",
    "sliding_window": "Tokens that the looped layers see, the own included; otherwise all before.",
    "residual_init_scale": "Factor on the initial output projections of looped layers; 0: they start as the identity.",
    "num_recurrences": "Recurrences, and their mean in training.",
    "recurrence_sampling": "Recurrences of a training step: fixed, uniform, poisson or lognormal_poisson.",
    "recurrence_min": "At least so many in training.",
    "recurrence_max": "At most so many in training.",
    "backprop_recurrences": "Gradients flow through the last so many recurrences only.",
    "input_injection": "The input before every recurrence: none, add or concat.",
    "state_init": "The state before the first recurrence: embedding, zeros or normal.",
    "state_norm": "Norm of the state between recurrences: none, layernorm or rmsnorm.",
    "vocab_size": "Rows of the embedding; otherwise as many as the tokenizer has tokens.",
}


def _model_arguments() -> type:
    """A dataclass of what a recipe may say of the model: `style`, `path` and the config's own fields."""
    # Its own fields; of those of the library only these matter to a recipe.
    own = RecurrentDepthConfig.__annotations__
    described = [
        (
            "style",
            Literal["gpt2", "llama"],
            field(default="gpt2", metadata={"help": "Blocks as in GPT-2 or as in Llama: the defaults of the others."}),
        ),
        (
            "path",
            str | None,
            field(default=None, metadata={"help": "A trained model to go on from, instead of a new one."}),
        ),
    ]
    for item in fields(RecurrentDepthConfig):
        if item.name in own and item.default is not MISSING:
            help_text = _MODEL_HELP.get(item.name, f"See RecurrentDepthConfig.{item.name}.")
            described.append((item.name, own[item.name], field(default=item.default, metadata={"help": help_text})))
    return make_dataclass("ModelArguments", described, namespace={"__module__": __name__})


ModelArguments = _model_arguments()


@dataclass(frozen=True)
class DataArguments(MultiHopConfig):
    """Where the multi-hop data are, and the sizes they are built with if they are not there."""

    path: str | None = field(
        default=None, metadata={"help": "Folder of the data set. Built there, with the sizes below, if there is none."}
    )
    eval_split: str = field(
        default="validation", metadata={"help": "Split whose test chains evaluation and the curriculum use."}
    )


def prepare_run(
    args: RecurrentTrainingArguments, *, model: dict, data: dict, curriculum: dict | None = None
) -> RecurrentTrainer:
    """
    The trainer of a recipe.

    Args:
        args: section `training`.
        model: what section `model` gives: fields of `ModelArguments`.
        data: what section `data` gives: fields of `DataArguments`.
        curriculum: what section `curriculum` gives: fields of `CurriculumArguments`. Empty or `None`: no curriculum.

    Raises:
        ValueError, OSError, StrictDataclassError, TrainingError: what is missing, impossible or does not match.
    """
    stages = CurriculumArguments(**curriculum) if curriculum else None
    with args.main_process_first(desc="opening the data set"):
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
    )


def open_data(data: dict) -> tuple[PreTrainedTokenizerBase, Dataset, Dataset]:
    """
    The tokenizer, the encoded training rows and the encoded held-out chains of a multi-hop data set.

    Raises:
        ValueError: no path, or sizes that are not those of the data set that is there.
        OSError: files that are missing.
    """
    sizes = {name: value for name, value in data.items() if name not in ("path", "eval_split")}
    if not data.get("path"):
        raise ValueError("data.path is not given: name the folder of the data set, --data_path FOLDER.")
    path, split = Path(data["path"]), data.get("eval_split", "validation")
    manifest = read_manifest(path)
    if manifest is None and not _holds_data(path):
        prepare_multi_hop(MultiHopConfig(**sizes), path)
    elif sizes:
        _check_sizes(path, MultiHopConfig(**sizes), sizes, manifest)
    tokenizer = load_multi_hop_tokenizer(path)
    dataset = load_multi_hop(path)
    if split not in dataset:
        raise ValueError(f"data.eval_split={split!r} is not in {path}; there are {', '.join(dataset)}.")
    heldout = select_chains(dataset[split], kind="test")
    return tokenizer, encode_chains(dataset["train"], tokenizer), encode_chains(heldout, tokenizer)


def make_model(model: dict, tokenizer: PreTrainedTokenizerBase) -> RecurrentDepthForCausalLM:
    """
    A new model, or the one at `path` with other fields than it was saved with.

    Raises:
        ValueError: a vocabulary that does not match the tokenizer's, or no model of this package.
        StrictDataclassError: an impossible config.
    """
    given = {name: value for name, value in model.items() if name not in ("style", "path")}
    if model.get("path"):
        return _load_model(model["path"], given, tokenizer)
    if given.get("vocab_size", len(tokenizer)) < len(tokenizer):
        raise ValueError(
            f"model.vocab_size={given['vocab_size']} is below the {len(tokenizer)} tokens of the tokenizer: leave it "
            "out, or give at least as many."
        )
    # The embedding of padding stays zero; it is never looked at.
    defaults = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return RecurrentDepthForCausalLM(STYLES[model.get("style", "gpt2")](**{**defaults, **given}))


def _load_model(path, given, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(path, **given)
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
                f"the data and {known.get(differing[0])} for the model at {path}."
            )
    return model


def _holds_data(path):
    return path.is_dir() and any((path / name).is_file() for name in ("train.json", "dataset_dict.json"))


def _check_sizes(path, wanted, sizes, manifest):
    built = (manifest or {}).get("config")
    if built is None:
        raise ValueError(
            f"data.path={str(path)!r} holds a data set that was not built here, so its sizes cannot be compared with "
            f"{', '.join(sizes)}: leave them out."
        )
    differing = [name for name in sizes if built.get(name) != getattr(wanted, name)]
    if differing:
        shown = ", ".join(
            f"{name}={built.get(name)!r} there, {getattr(wanted, name)!r} asked for" for name in differing
        )
        raise ValueError(f"data.path={str(path)!r} holds another data set ({shown}). Choose another folder.")
