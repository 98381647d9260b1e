"""From a recipe to a trainer: opens or builds the dataset, makes the model, and checks that they match."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

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
from memreason_hf.models.recurrent_models import make_model
from memreason_hf.training.chains.arguments import RecurrentTrainingArguments
from memreason_hf.training.chains.curriculum import CurriculumArguments, CurriculumCallback
from memreason_hf.training.chains.trainer import RecurrentTrainer


@dataclass(frozen=True)
class DataArguments(MultiHopConfig):
    """The folder of the multi-hop data, and the sizes to build them with if the folder is empty."""

    kind: Literal["chains", "text"] = field(
        default="chains", metadata={"help": "What is trained on: chains of relations, or text."}
    )
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
    trainer = RecurrentTrainer(
        model=make_model(model, tokenizer),
        args=args,
        train_dataset=train,
        eval_dataset=heldout,
        data_collator=ChainCollator(tokenizer.pad_token_id, args.supervision),
        processing_class=tokenizer,
        callbacks=[CurriculumCallback(stages)] if stages is not None and stages.enabled else None,
        origin={"model.path": model.get("path")},
    )
    trainer.data_record = _data_record(data["path"], train)
    return trainer


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
    sizes = {name: value for name, value in data.items() if name not in ("kind", "path", "eval_split")}
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


def _data_record(path, train):
    """What the card of the model says about the data."""
    manifest = read_manifest(Path(path)) or {}
    record = {"kind": "chains", "folder": str(path), "rows": {"training": len(train)}}
    return record if manifest.get("config") is None else {**record, "config": manifest["config"]}


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
