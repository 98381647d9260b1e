"""The rows of a multi-hop data set that a command runs a model on, and loading both."""

import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers.utils import logging as transformers_logging

from memreason_hf.command_line.model_flags import ModelFlags
from memreason_hf.command_line.parser import Section
from memreason_hf.data import encode_chains, load_multi_hop, select_chains
from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.chains.config import format_hop_counts, parse_hop_counts
from memreason_hf.evaluation import ResultsHeader, describe_data, describe_environment, describe_model
from memreason_hf.files import read_json
from memreason_hf.training.runs.output_folder import RUN_FILE
from modeling_recurrent import RecurrentDepthConfig


GROUP_COLUMNS = ("hops", "type")


@dataclass
class ChainArguments:
    """The rows."""

    data: str = field(
        metadata={
            "help": "Folder of a multi-hop data set: of data_scripts/build_multi_hop.py, or the study's JSON files."
        }
    )
    split: str = field(
        default="test", metadata={"help": "Split of the data set: train, validation, test or test_small."}
    )
    kind: Literal["test", "train", "atomic", "all"] = field(
        default="test",
        metadata={
            "help": "Rows of the split: test chains, train chains or atomic facts (both were in training), or all."
        },
    )
    hops: str | None = field(
        default=None, metadata={"help": "Hop counts, as numbers and ranges: 2-8,16,40. Default: all."}
    )
    group_column: str = field(default="hops", metadata={"help": "Column by which results are grouped: hops or type."})
    max_rows_per_group: int | None = field(
        default=None, metadata={"help": "The maximum number of rows per group, the first ones. Default: all."}
    )

    def check(self) -> None:
        """
        Refuses impossible values before anything is loaded.

        Raises:
            ValueError, FileNotFoundError: names the field and its value.
        """
        if not Path(self.data).is_dir():
            raise FileNotFoundError(
                f"data={self.data!r}: no such folder. data_scripts/build_multi_hop.py builds a data set."
            )
        if self.max_rows_per_group is not None and self.max_rows_per_group < 1:
            raise ValueError(f"max_rows_per_group={self.max_rows_per_group} must be at least 1.")


CHAINS = Section("data", ChainArguments, "data", key="inputs")


@dataclass
class ChainInputs:
    """
    The model and the rows of a command, loaded.

    Attributes:
        dataset: the encoded rows.
        arguments: keyword arguments for `predict_answers` and `sweep_depth`.
        header: describes the model and the data in a results file.
        title: one line that names the model and the rows.
        is_main_process: whether this process prints and writes.
    """

    dataset: Dataset
    arguments: dict
    header: ResultsHeader
    title: str
    is_main_process: bool

    def figure_arguments(self, title: str) -> dict:
        grouped_by_hops = self.header.data["group_column"] == "hops"
        return {
            "title": title,
            "trained_hops": self.header.model["trained_hops"] if grouped_by_hops else None,
            "group_label": self.header.data["group_column"],
        }


def load_chain_inputs(
    model: ModelFlags, chains: ChainArguments, config: RecurrentDepthConfig, trained_hops: int | None
) -> ChainInputs:
    """
    Loads tokenizer, rows and model, and checks that they belong together.

    Args:
        config: of the model.
        trained_hops: the flag of this name, see `trained_range`.

    Raises:
        ValueError, OSError: what is missing, empty, damaged or does not match, with field and value.
    """
    trained_hops = trained_range(trained_hops, model.model)
    if model.no_progress:
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
    distributed, rank, world_size, device = _processes(model)
    tokenizer = model.load_tokenizer(config)
    if tokenizer.pad_token_id is None:
        raise ValueError(
            "The tokenizer has no pad token, so rows of different lengths cannot share a batch. Set "
            "tokenizer.pad_token, and save the tokenizer again."
        )
    dataset = encode_chains(load_rows(chains), tokenizer)
    network = model.load_model(device)
    header = ResultsHeader(
        model=describe_model(network, model.model, trained_hops),
        data=describe_data(
            chains.data, chains.split, len(dataset), kind=chains.kind, group_column=chains.group_column
        ),
        environment=describe_environment(device, world_size),
    )
    run_arguments = {
        "model": network,
        "dataset": dataset,
        "collator": ChainCollator(tokenizer.pad_token_id),
        "batch_size": model.batch_size,
        "group_column": chains.group_column,
        "distributed": distributed,
        "progress": not model.no_progress,
    }
    title = f"{model.short_name} on {len(dataset)} rows of the {chains.split} split"
    return ChainInputs(dataset, run_arguments, header, title, is_main_process=rank == 0)


def _processes(model):
    """Whether several processes share the rows, the rank of this one, how many there are, and its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        state = PartialState(cpu=not torch.cuda.is_available() or model.device == "cpu")
        return True, state.process_index, state.num_processes, state.device
    return False, 0, 1, model.choose_device()


def load_rows(arguments: ChainArguments) -> Dataset:
    """
    The rows of the split that the flags choose, in their order.

    Raises:
        ValueError: the split, kind, column or hop count does not exist, or no row is left. Names those that exist.
    """
    splits = load_multi_hop(arguments.data)
    if arguments.split not in splits:
        raise ValueError(f"split={arguments.split!r} is not in {arguments.data}. Its splits are {', '.join(splits)}.")
    dataset = splits[arguments.split]
    if len(dataset) == 0:
        raise ValueError(f"split={arguments.split!r} of {arguments.data} is empty: there is nothing to evaluate.")
    if arguments.group_column not in GROUP_COLUMNS:
        raise ValueError(f"group_column={arguments.group_column!r} must be {' or '.join(GROUP_COLUMNS)}.")
    dataset = select_chains(dataset, kind=None if arguments.kind == "all" else arguments.kind)
    if arguments.hops is not None:
        dataset = _select_hops(dataset, arguments)
    if arguments.max_rows_per_group is None:
        return dataset
    counts = Counter()
    chosen = []
    for row, group in enumerate(dataset[arguments.group_column]):
        counts[group] += 1
        if counts[group] <= arguments.max_rows_per_group:
            chosen.append(row)
    return dataset.select(chosen)


def _select_hops(dataset, arguments):
    hops = parse_hop_counts(arguments.hops)
    missing = set(hops) - set(dataset["hops"])
    if missing:
        raise ValueError(
            f"hops={arguments.hops!r}: no row has {format_hop_counts(missing)} hops. The rows of split "
            f"{arguments.split} and kind {arguments.kind} have {format_hop_counts(dataset['hops'])}: use these."
        )
    return select_chains(dataset, hops=hops)


def trained_range(trained_hops: int | None, model: str) -> int | None:
    """
    The longest chains that the model was trained on.

    Args:
        trained_hops: the flag of this name, which takes precedence.
        model: the folder of the model. If training wrote it, it names the stages of the curriculum.

    Returns:
        The hop count, or None where it is not known.

    Raises:
        ValueError: `trained_hops` is below 1.
    """
    if trained_hops is not None:
        if trained_hops < 1:
            raise ValueError(f"trained_hops={trained_hops} must be at least 1.")
        return trained_hops
    try:
        run = read_json(Path(model) / RUN_FILE)
        stages = run["fingerprint"]["curriculum.stages"]
        return max(stage for stage in stages if isinstance(stage, int))
    except (OSError, ValueError, KeyError, TypeError):
        # The range is only drawn into a figure, so a model without a record of its training goes without.
        return None


@contextmanager
def all_processes():
    """Shuts down the process group at the end of a command that was started with several processes."""
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            PartialState().destroy_process_group()


def print_time(what: str, seconds: float, rows: int) -> None:
    print(f"{what}: {rows} rows in {seconds:.1f} s, {1000 * seconds / rows:.2f} ms per row.")
