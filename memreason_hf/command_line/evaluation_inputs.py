"""What `memreason evaluate` and `memreason sweep` share: flags, loading a model and its data, writing results."""

import json
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
from matplotlib.figure import Figure
from transformers.utils import logging as transformers_logging

from memreason_hf.analysis import save_figure
from memreason_hf.command_line.recipe_parser import RecipeSection
from memreason_hf.data import encode_chains, load_multi_hop, select_chains
from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.chains.config import format_hop_counts, parse_hop_counts
from memreason_hf.evaluation import ResultsHeader, describe_data, describe_environment, describe_model, write_results
from memreason_hf.files import check_places
from memreason_hf.models.loading import choose_device, load_model, load_model_config, load_tokenizer
from memreason_hf.training.runs.output_folder import RUN_FILE
from modeling_recurrent import RecurrentDepthConfig


GROUP_COLUMNS = ("hops", "type")


@dataclass
class InputArguments:
    """The model, the rows, and how they are run."""

    model: str | None = field(
        default=None, metadata={"help": "Folder written by training or save_pretrained, or a name on the Hub."}
    )
    data: str | None = field(
        default=None, metadata={"help": "Folder of a multi-hop data set, ours (Arrow) or the study's (JSON files)."}
    )
    split: str = field(
        default="test", metadata={"help": "Split of the data set: train, validation, test, test_small."}
    )
    kind: Literal["test", "train", "atomic", "all"] = field(
        default="test",
        metadata={
            "help": "Which rows of the split: test chains, or the probes of memory (train chains, atomic facts)."
        },
    )
    hops: str | None = field(default=None, metadata={"help": "Only these hop counts, as in 2-8,16,40. Default: all."})
    group_column: str = field(default="hops", metadata={"help": "Column that groups the rows: hops or type."})
    max_rows_per_group: int | None = field(default=None, metadata={"help": "The first so many rows of each group."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "Folder with the tokenizer, where it is not beside the model."}
    )
    batch_size: int = field(default=128, metadata={"help": "Rows a forward call. Changes the speed, not the results."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the weights; auto: as they were saved."}
    )
    device: str | None = field(
        default=None, metadata={"help": "For example cpu or cuda:1. Default: cuda if there is."}
    )
    no_progress: bool = field(default=False, metadata={"help": "Show no progress bars."})


@dataclass
class OutputArguments:
    """Where results go."""

    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the results file and the pictures. Default: only the table is printed."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace results that are there already."})
    trained_hops: int | None = field(
        default=None,
        metadata={
            "help": "Mark the groups up to so many hops in the picture as the trained range. Default: the last stage "
            "of the curriculum, where the model's folder tells."
        },
    )


INPUTS = RecipeSection("inputs", InputArguments, "what is evaluated (section inputs of a recipe)")
OUTPUT = RecipeSection("output", OutputArguments, "results (section output of a recipe)")


@dataclass
class EvaluationInputs:
    """
    What a command has loaded.

    Attributes:
        dataset: the encoded rows.
        arguments: what `predict_answers` and `sweep_depth` are called with.
        header: the model and the data, for the results file.
        is_main_process: whether this process prints and writes.
    """

    dataset: Dataset
    arguments: dict
    header: ResultsHeader
    is_main_process: bool

    @property
    def title(self) -> str:
        """A line on the model, by the end of its path, and the rows."""
        data = self.header.data
        name = "/".join(Path(self.header.model["name_or_path"]).parts[-2:])
        return f"{name} on {data['num_rows']} rows of the {data['split']} split"

    def figure_arguments(self, title: str) -> dict:
        grouped_by_hops = self.header.data["group_column"] == "hops"
        return {
            "title": title,
            "trained_hops": self.header.model["trained_hops"] if grouped_by_hops else None,
            "group_label": self.header.data["group_column"],
        }


def load_config(arguments: InputArguments) -> RecurrentDepthConfig:
    """
    The config of the model that the flags name. Nothing large is read yet.

    Raises:
        ValueError, OSError: no model or data named, no such folder, not a model of this package.
    """
    for name in ("model", "data"):
        if getattr(arguments, name) is None:
            raise ValueError(f"{name} is not given: add --{name} or name it in section inputs of the recipe.")
    if not Path(arguments.data).is_dir():
        raise FileNotFoundError(f"data={arguments.data!r}: no such folder. data_scripts/build_multi_hop.py makes one.")
    for name in ("batch_size", "max_rows_per_group"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1.")
    return load_model_config(arguments.model)


def load_inputs(arguments: InputArguments, config: RecurrentDepthConfig, trained_hops: int | None) -> EvaluationInputs:
    """
    Loads tokenizer, rows and model, and checks that they belong together.

    Raises:
        ValueError, OSError: what is missing, empty, damaged or does not match, with field and value.
    """
    if arguments.no_progress:
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
    distributed, rank, world_size, device = _processes(arguments.device)
    tokenizer = load_tokenizer(arguments.model, arguments.tokenizer, config)
    if tokenizer.pad_token_id is None:
        raise ValueError("The tokenizer has no pad token: rows of different lengths cannot share a batch.")
    dataset = encode_chains(load_rows(arguments), tokenizer)
    model = load_model(arguments.model, arguments.dtype).to(device)
    header = ResultsHeader(
        model=describe_model(model, arguments.model, trained_hops),
        data=describe_data(
            arguments.data, arguments.split, len(dataset), kind=arguments.kind, group_column=arguments.group_column
        ),
        environment=describe_environment(device, world_size),
    )
    run_arguments = {
        "model": model,
        "dataset": dataset,
        "collator": ChainCollator(tokenizer.pad_token_id),
        "batch_size": arguments.batch_size,
        "group_column": arguments.group_column,
        "distributed": distributed,
        "progress": not arguments.no_progress,
    }
    return EvaluationInputs(dataset, run_arguments, header, is_main_process=rank == 0)


def _processes(device):
    """Whether several processes share the work, this one's rank, their number, and its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        state = PartialState(cpu=not torch.cuda.is_available() or device == "cpu")
        return True, state.process_index, state.num_processes, state.device
    return False, 0, 1, choose_device(device)


def load_rows(arguments: InputArguments) -> Dataset:
    """
    The rows of the split that the flags choose, in their order.

    Raises:
        ValueError: no such split, kind, column or hop count, or nothing left; names what there is.
    """
    splits = load_multi_hop(arguments.data)
    if arguments.split not in splits:
        raise ValueError(f"split={arguments.split!r} is not in {arguments.data}; there are {', '.join(splits)}.")
    dataset = splits[arguments.split]
    if len(dataset) == 0:
        raise ValueError(f"split={arguments.split!r} of {arguments.data} is empty: there is nothing to evaluate.")
    if arguments.group_column not in GROUP_COLUMNS:
        raise ValueError(f"group_column={arguments.group_column!r} must be {' or '.join(GROUP_COLUMNS)}.")
    dataset = select_chains(dataset, kind=None if arguments.kind == "all" else arguments.kind)
    if arguments.hops is not None:
        hops = parse_hop_counts(arguments.hops)
        missing = set(hops) - set(dataset["hops"])
        if missing:
            raise ValueError(
                f"hops={arguments.hops!r}: a group without items, no row has {format_hop_counts(missing)} hops. The "
                f"rows of split {arguments.split} and kind {arguments.kind} have {format_hop_counts(dataset['hops'])}."
            )
        dataset = select_chains(dataset, hops=hops)
    if arguments.max_rows_per_group is None:
        return dataset
    taken = Counter()
    chosen = []
    for row, group in enumerate(dataset[arguments.group_column]):
        if taken[group] < arguments.max_rows_per_group:
            taken[group] += 1
            chosen.append(row)
    return dataset.select(chosen)


class ResultsFolder:
    """
    The files of one command in `output_dir`.

    Args:
        arguments: the output flags; without `output_dir` nothing is written.
        stem: the name of the results file without its suffix.
        pictures: stems of the pictures, each written as PNG and PDF.

    Raises:
        FileExistsError: a file is there and `--overwrite` is not given. Checked before any work is done.
    """

    def __init__(self, arguments: OutputArguments, stem: str, pictures: list[str]):
        self.overwrite = arguments.overwrite
        self.results_path = None
        self.picture_paths = {}
        if arguments.output_dir is None:
            return
        folder = Path(arguments.output_dir)
        self.results_path = folder / f"{stem}.json"
        self.picture_paths = {name: [folder / f"{name}.png", folder / f"{name}.pdf"] for name in pictures}
        check_places(self._paths(), overwrite=self.overwrite)

    def write(self, results: dict, figures: dict[str, Figure]) -> None:
        """Writes the pictures, then the results file: where it is, all are."""
        if self.results_path is None:
            print("Nothing was written: --output_dir DIR keeps the results.")
            return
        for name, figure in figures.items():
            save_figure(figure, self.picture_paths[name], overwrite=self.overwrite)
        write_results(self.results_path, results, overwrite=self.overwrite)
        print(f"Wrote {', '.join(map(str, self._paths()))}.")

    def _paths(self):
        return [self.results_path, *(path for paths in self.picture_paths.values() for path in paths)]


@contextmanager
def all_processes():
    """Leaves `torch.distributed` at the end of a command that has entered it."""
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            PartialState().destroy_process_group()


def trained_range(output: OutputArguments, inputs: InputArguments) -> int | None:
    """The longest chains that the model was trained on: what the flag says, else the last stage of its curriculum."""
    if output.trained_hops is not None:
        if output.trained_hops < 1:
            raise ValueError(f"trained_hops={output.trained_hops} must be at least 1.")
        return output.trained_hops
    try:
        run = json.loads((Path(inputs.model) / RUN_FILE).read_text(encoding="utf-8"))
        stages = run["fingerprint"]["curriculum.stages"]
        return max(stage for stage in stages if isinstance(stage, int))
    except (OSError, ValueError, KeyError, TypeError):
        # A mark in a picture: a model without a record of its training goes without.
        return None


def print_time(what: str, seconds: float, rows: int) -> None:
    print(f"{what}: {rows} rows in {seconds:.1f} s, {1000 * seconds / rows:.2f} ms a row.")
