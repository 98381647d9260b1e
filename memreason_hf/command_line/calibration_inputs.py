"""The rows of a calibration, and what each threshold does to them: for chains, written solutions and text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from memreason_hf.checks import check_choice
from memreason_hf.command_line.chain_inputs import ChainArguments, load_chain_inputs
from memreason_hf.command_line.model_flags import ModelFlags
from memreason_hf.command_line.parser import Section
from memreason_hf.data.questions.memory_reason import NAMES, REPORT_FILE, load_memory_reason
from memreason_hf.data.text.sources import read_texts
from memreason_hf.evaluation.chains.predictions import sorted_groups
from memreason_hf.evaluation.solutions.generation import check_max_new_tokens
from memreason_hf.evaluation.text.documents import tokenize_documents
from memreason_hf.evaluation.text.perplexity import perplexity_by_recurrence
from memreason_hf.halting.calibration import Outcome, Promise, check_rows
from memreason_hf.halting.runs import SolutionRuns, TextRuns
from memreason_hf.halting.signals import ChainSignals, read_signals
from memreason_hf.steps.tokenization import read_scheme


# The share of the rows that choose the best depth. They are not calibrated on.
_CHOOSING = 0.2


@dataclass
class CalibrationData:
    """The held-out rows."""

    data: list[str] = field(
        metadata={
            "help": "Held-out data: the folder of a multi-hop data set, the folder of annotated questions, or files "
            "of text (.txt, .jsonl, .parquet). Rows that the model was trained on give thresholds that promise "
            "nothing."
        }
    )
    task: Literal["auto", "chains", "solutions", "text"] = field(
        default="auto", metadata={"help": "What the data are. auto: as they look."}
    )
    split: str = field(default="test", metadata={"help": "chains, solutions: split of the data set."})
    kind: Literal["test", "train", "atomic", "all"] = field(
        default="test", metadata={"help": "chains: rows of the split; see memreason evaluate."}
    )
    hops: str | None = field(
        default=None, metadata={"help": "chains: hop counts, as numbers and ranges: 2-8,16. Default: all."}
    )
    group_column: str = field(default="hops", metadata={"help": "chains: column of the groups, hops or type."})
    by_group: bool = field(
        default=False,
        metadata={
            "help": "Keep the promise in every group (hop count, or entry of --data for text), with one threshold for "
            "all. Otherwise in the mean over all rows."
        },
    )
    name: str | None = field(
        default=None, metadata={"help": f"solutions: name of the data set in a source: {', '.join(NAMES)}."}
    )
    max_new_tokens: int = field(default=512, metadata={"help": "solutions: most tokens of a solution."})
    column: str = field(default="text", metadata={"help": "text: key or column of the texts."})
    max_length: int = field(default=1024, metadata={"help": "text: tokens of a piece; longer documents are cut."})
    max_rows: int | None = field(
        default=None,
        metadata={"help": "Most rows (of each group for chains, of each entry of --data for text), the first ones."},
    )

    def resolve_task(self) -> str:
        """
        The task, as given or as the data look.

        Raises:
            ValueError, FileNotFoundError: a value is out of range or does not fit the task, or there are no such data.
        """
        for name in ("max_rows", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        check_max_new_tokens(self.max_new_tokens)
        if self.name is not None:
            check_choice("name", self.name, NAMES)
        task = self.task if self.task != "auto" else _task_of(self.data, self.name)
        if task != "text" and len(self.data) > 1:
            raise ValueError(f"data={self.data} names {len(self.data)} folders, but {task} are read from one.")
        if task == "solutions" and self.by_group:
            raise ValueError("by_group=True: questions have no groups. Leave --by_group out.")
        return task


CALIBRATION_DATA = Section("data", CalibrationData, "held-out data", key="inputs")


def _task_of(paths, name):
    if name is not None:
        return "solutions"
    first = Path(paths[0])
    if len(paths) == 1 and first.is_dir():
        if (first / REPORT_FILE).is_file():
            return "solutions"
        if any(first.glob("*.json")):
            return "chains"
    elif not first.exists() and not any(character in paths[0] for character in "*?["):
        raise FileNotFoundError(f"data={paths[0]!r}: no such file or folder.")
    return "text"


@dataclass(frozen=True)
class DepthChoice:
    """
    The depth of a calibration.

    Attributes:
        max_recurrences: the deepest recurrence.
        min_recurrences: the first at which a criterion may halt.
        granularity: what halts.
        against: `"deepest"` or `"best"`.
        entropy_threshold: of `kl_entropy`; `None` keeps the config's.
        seed: of the choice of the rows that choose the best depth.
    """

    max_recurrences: int
    min_recurrences: int
    granularity: str
    against: str
    entropy_threshold: float | None
    seed: int


@dataclass(frozen=True)
class CalibrationRows:
    """
    The rows of a calibration, ready to be measured.

    Attributes:
        model: the model that was loaded.
        measure: see `calibrate`.
        num_rows, groups: of the calibration, without those that chose the depth.
        group_names: the groups, in their order.
        reference: the fixed depth that halting is compared with.
        accuracy, nats: of the reference; `None` where they do not apply.
        signals: of chains, by criterion; empty otherwise.
    """

    model: torch.nn.Module
    measure: Callable[[str, float], Outcome]
    num_rows: int
    groups: list | None
    group_names: list | None
    reference: int
    accuracy: float | None = None
    nats: float | None = None
    signals: Mapping[str, ChainSignals] = field(default_factory=dict)


def load_rows(
    task: str,
    model: ModelFlags,
    data: CalibrationData,
    depth: DepthChoice,
    promise: Promise,
    thresholds: Mapping[str, Sequence[float]],
    *,
    loss: str,
    largest_loss: float,
) -> CalibrationRows:
    """
    Loads the rows and the model, and chooses the reference depth.

    Raises:
        ValueError, OSError: data or model are missing, damaged, or do not fit each other or the promise.
    """
    if task == "chains":
        return _chains(model, data, depth, promise, thresholds, loss)
    if task == "text":
        return _text(model, data, depth, promise, thresholds, loss, largest_loss)
    return _solutions(model, data, depth, promise, thresholds, loss)


def _chains(model, data, depth, promise, thresholds, loss):
    if depth.granularity != "sequence":
        raise ValueError(
            f"halting_granularity={depth.granularity!r}: chains are calibrated with 'sequence' only, where one pass "
            "tells what every threshold does. Tokens that halt on their own change what later ones read."
        )
    chains = ChainArguments(
        data.data[0], data.split, data.kind, data.hops, data.group_column, max_rows_per_group=data.max_rows
    )
    chains.check()
    inputs = load_chain_inputs(model, chains, model.load_recurrent_config(), None)
    groups = list(inputs.dataset[data.group_column])
    chosen, rest = _split(len(groups), depth)
    kept = [groups[row] for row in rest] if data.by_group else None
    names = sorted_groups(groups) if data.by_group else None
    check_rows(promise, thresholds, num_rows=len(rest), groups=kept, group_names=names)
    arguments = {name: value for name, value in inputs.arguments.items() if name != "distributed"}
    _set_entropy(arguments["model"], depth)
    signals = read_signals(**arguments, criteria=list(thresholds), max_recurrences=depth.max_recurrences)
    one = next(iter(signals.values()))
    reference = depth.max_recurrences
    if len(chosen):
        reference = int(one.take(chosen).is_correct.mean(axis=0).argmax()) + 1
    _check_reference(reference, depth)
    signals = {criterion: of.take(rest).cut(reference) for criterion, of in signals.items()}

    def measure(criterion, threshold):
        return signals[criterion].outcome(threshold, loss=loss, min_recurrences=depth.min_recurrences)

    accuracy = float(next(iter(signals.values())).is_correct[:, -1].mean())
    return CalibrationRows(arguments["model"], measure, len(rest), kept, names, reference, accuracy, signals=signals)


def _text(model, data, depth, promise, thresholds, loss, largest_loss):
    tokenizer = model.load_tokenizer(model.load_recurrent_config())
    documents, groups = [], []
    for entry in data.data:
        texts = read_texts(entry, data.column, "data")[: data.max_rows]
        ids = tokenize_documents(texts, tokenizer).ids
        documents += ids
        groups += [entry] * len(ids)
    chosen, rest = _split(len(documents), depth)
    kept = [groups[row] for row in rest] if data.by_group else None
    names = list(dict.fromkeys(groups)) if data.by_group else None
    check_rows(promise, thresholds, num_rows=len(rest), groups=kept, group_names=names)
    network = model.load_model()
    _set_entropy(network, depth)
    sizes = {"max_length": data.max_length, "batch_size": model.batch_size, "progress": not model.no_progress}
    reference = depth.max_recurrences
    if len(chosen):
        some = [documents[row] for row in chosen]
        reference = perplexity_by_recurrence(network, some, max_recurrences=reference, **sizes).best_recurrence
    _check_reference(reference, depth)
    runs = TextRuns(
        network,
        [documents[row] for row in rest],
        reference=reference,
        loss=loss,
        largest_loss=largest_loss,
        **sizes,
        **_depth_of_runs(reference, depth),
    )
    return CalibrationRows(network, runs, len(runs), kept, names, reference, nats=runs.reference_loss)


def _solutions(model, data, depth, promise, thresholds, loss):
    if depth.against == "best":
        raise ValueError(
            "against='best' would write all solutions at every depth. Pass the depth that is best as "
            "--max_recurrences, with --against deepest."
        )
    config = model.load_recurrent_config()
    dataset = load_memory_reason(data.data[0], data.name)
    if data.split not in dataset:
        raise ValueError(f"split={data.split!r} is not in the data. Its splits are {', '.join(dataset)}.")
    rows = list(dataset[data.split])[: data.max_rows]
    check_rows(promise, thresholds, num_rows=len(rows))
    tokenizer = model.load_tokenizer(config)
    read_scheme(tokenizer)
    network = model.load_model()
    _set_entropy(network, depth)
    runs = SolutionRuns(
        network,
        tokenizer,
        rows,
        reference=depth.max_recurrences,
        loss=loss,
        batch_size=model.batch_size,
        max_new_tokens=data.max_new_tokens,
        progress=not model.no_progress,
        **_depth_of_runs(depth.max_recurrences, depth),
    )
    return CalibrationRows(network, runs, len(runs), None, None, depth.max_recurrences, runs.reference_accuracy)


def _split(num_rows, depth):
    """The rows that choose the best depth, none against the deepest, and the others; both in their order."""
    if depth.against == "deepest":
        return np.arange(0), np.arange(num_rows)
    order = np.random.default_rng(depth.seed).permutation(num_rows)
    count = min(max(round(_CHOOSING * num_rows), 1), num_rows)
    return np.sort(order[:count]), np.sort(order[count:])


def _check_reference(reference, depth):
    if reference < depth.min_recurrences:
        raise ValueError(
            f"min_recurrences={depth.min_recurrences} is above the best depth, {reference}. Lower it, or pass "
            "--against deepest."
        )


def _set_entropy(network, depth):
    if depth.entropy_threshold is not None:
        network.config.entropy_threshold = depth.entropy_threshold


def _depth_of_runs(reference, depth):
    return {
        "max_recurrences": reference,
        "min_recurrences": depth.min_recurrences,
        "halting_granularity": depth.granularity,
    }


__all__ = ["CALIBRATION_DATA", "CalibrationData", "CalibrationRows", "DepthChoice", "load_rows"]
