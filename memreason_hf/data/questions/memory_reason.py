"""
Annotated questions: StrategyQA, CommonsenseQA and TruthfulQA with memory and reasoning steps, GSM8K and AQuA-RAT with
steps from their rationales.

    data = build_memory_reason("strategy_qa", "FOLDER_OR_URL")
    print(data.report.describe())
    save_memory_reason(data, "data/strategy_qa")
    dataset = load_memory_reason("data/strategy_qa")
    solution = reference_solution(dataset["train"][0])
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict, NamedSplit, load_dataset, load_from_disk

from memreason_hf.checks import check_path, check_row, check_sequence, check_type
from memreason_hf.data.questions.json_files import AUTHORS_URL, FILE_NAMES, SourceItem, read_source
from memreason_hf.data.questions.rationales import aqua_rat_item, gsm8k_item, rationale_items
from memreason_hf.data.questions.schema import FEATURES, OLDEST_COLUMNS, fill_columns, question_row
from memreason_hf.data.saved_folders import (
    ARROW_MARK,
    check_replaceable,
    is_saved,
    is_saved_split,
    load_saved,
    saved_splits,
)
from memreason_hf.files import check_regular, clear_killed_builds, portable_path, read_json, whole_folder, write_json
from memreason_hf.locks import locked
from memreason_hf.steps import ANSWER_MARKER, Step, answer_step
from memreason_hf.steps.scheme import as_step


TRAINING_SPLIT = "train"
REPORT_FILE = "report.json"
CONTENTS = "a data set of annotated questions"
# Name and configuration on the Hub, and the function that makes an item of a row.
RATIONALE_SETS: dict[str, tuple[str, str, Callable[[Mapping], SourceItem]]] = {
    "gsm8k": ("openai/gsm8k", "main", gsm8k_item),
    "aqua_rat": ("deepmind/aqua_rat", "raw", aqua_rat_item),
}
NAMES = (*FILE_NAMES, *RATIONALE_SETS)


@dataclass
class SplitReport:
    """
    Counts of one split. Positions are those in the source, from 0.

    Attributes:
        num_items: items of the source.
        num_rows: items in the data set.
        num_steps: steps in the data set.
        num_empty_steps: steps without a text, which are dropped.
        num_items_with_empty_steps: items with such steps.
        emptied_items: items whose steps are all empty.
        items_without_steps: items without steps in the source.
        dropped_without_steps: training items of these two kinds, which are dropped.
        dropped_in_other_split: training items that are dropped because another split has their question.
        num_both_kinds: steps with labels of both kinds, which stay without a kind.
        num_inner_answers: steps that contain `The answer is`, which stay unchanged.
    """

    num_items: int = 0
    num_rows: int = 0
    num_steps: int = 0
    num_empty_steps: int = 0
    num_items_with_empty_steps: int = 0
    emptied_items: list[int] = field(default_factory=list)
    items_without_steps: list[int] = field(default_factory=list)
    dropped_without_steps: list[int] = field(default_factory=list)
    dropped_in_other_split: list[int] = field(default_factory=list)
    num_both_kinds: int = 0
    num_inner_answers: int = 0


@dataclass
class MemoryReasonReport:
    """What a data set holds and what was left out: its name, its source, and a `SplitReport` for each split."""

    name: str
    source: str
    splits: dict[str, SplitReport]

    def describe(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{self.name} from {self.source}"]
        for split, counts in self.splits.items():
            lines.append(f"{split}: {counts.num_rows:,} of {counts.num_items:,} items, {counts.num_steps:,} steps")
            left_out = [
                (counts.num_empty_steps, f"empty steps dropped, in {counts.num_items_with_empty_steps} items"),
                (len(counts.emptied_items), "items whose steps were all empty"),
                (len(counts.items_without_steps), "items without steps in the source"),
                (len(counts.dropped_without_steps), "items dropped: no steps are left to learn from"),
                (len(counts.dropped_in_other_split), "items dropped: their question is also in another split"),
                (counts.num_both_kinds, "steps of both kinds, kept without a kind"),
                (counts.num_inner_answers, f"steps that contain '{ANSWER_MARKER[:-1]}', kept"),
            ]
            lines += [f"  {count:,} {what}" for count, what in left_out if count]
        return "\n".join(lines)


@dataclass(frozen=True)
class MemoryReasonData:
    """A data set in memory, with the columns of `FEATURES`, and the report on it."""

    dataset: DatasetDict
    report: MemoryReasonReport


def build_memory_reason(name: str, source: str | None = None, *, cache_dir: str | None = None) -> MemoryReasonData:
    """
    Reads a data set and cleans it.

    Steps without a text are dropped. Training items without steps are dropped, and training items whose question,
    apart from white space, is also in another split. Test items are never dropped.

    Args:
        name: one of `NAMES`.
        source: for `strategy_qa`, `commonsense_qa` and `truthful_qa` a folder or URL with the study's JSON files; None
            for the authors' repository. For `gsm8k` and `aqua_rat` an argument of `datasets.load_dataset`, or a folder
            of `save_to_disk`; None for the Hub.
        cache_dir: for `datasets.load_dataset`.

    Raises:
        ValueError: the name is unknown, or the source is malformed; names the file and the item.
        FileNotFoundError: the source has none of the files.
        OSError: the source cannot be fetched.
    """
    if source is not None:
        check_path("source", source)
    if name not in NAMES:
        raise ValueError(f"name={name!r} must be one of {', '.join(NAMES)}.")
    if name in FILE_NAMES:
        source = AUTHORS_URL if source is None else str(source)
        items = read_source(name, source)
    else:
        hub_name, config, make = RATIONALE_SETS[name]
        rows = _load_rows(hub_name if source is None else str(source), config if source is None else None, cache_dir)
        source = source or hub_name
        items = {split: rationale_items(part, make, f"{source}, {split}") for split, part in rows.items()}
    reports = {split: _count(part) for split, part in items.items()}
    dataset = DatasetDict({split: _keep(split, items, reports[split]) for split in items})
    return MemoryReasonData(dataset, MemoryReasonReport(name, portable_path(str(source)), reports))


def save_memory_reason(data: MemoryReasonData, output_dir: str | Path, *, overwrite: bool = False) -> Path:
    """
    Writes the Arrow form (`datasets.load_from_disk(output_dir)`) and the report, `report.json`, unless the folder
    already holds exactly this data set. If another process is writing it, waits for that.

    Raises:
        FileExistsError: the folder holds anything foreign, or it holds a data set and `overwrite` is false.
    """
    check_type("data", data, MemoryReasonData, "a MemoryReasonData (build_memory_reason)")
    check_path("output_dir", output_dir)
    folder = Path(output_dir)
    clear_killed_builds(folder)
    with locked(folder, wait=float("inf")):
        if not overwrite and _holds(folder, data):
            return folder
        check_output_folder(folder, overwrite)
        with whole_folder(folder, overwrite=overwrite) as staged:
            data.dataset.save_to_disk(staged)
            write_json(staged / REPORT_FILE, asdict(data.report), ensure_ascii=False)
    return folder


def _holds(folder, data):
    """Whether a folder holds exactly this data set, as after the same command."""
    if not is_saved(folder):
        return False
    try:
        if read_json(folder / REPORT_FILE) != json.loads(json.dumps(asdict(data.report))):
            return False
        saved = fill_columns(load_saved(folder, contents=CONTENTS, columns=OLDEST_COLUMNS, splits=data.dataset))
    except (OSError, ValueError):
        return False
    same_splits = list(saved) == list(data.dataset)
    return same_splits and all(saved[split].to_list() == data.dataset[split].to_list() for split in saved)


def may_be_same(folder: Path, name: str, source: str | Path | None) -> bool:
    """Whether a folder holds a data set of this name and source, so that building it again may change nothing."""
    try:
        report = read_json(folder / REPORT_FILE)
        return report["name"] == name and (source is None or report["source"] == portable_path(str(source)))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_output_folder(folder: Path, overwrite: bool) -> None:
    """
    Checks that a data set may be written to `folder`, which it replaces as a whole.

    Raises:
        NotADirectoryError: `folder` is a file.
        FileExistsError: `folder` holds anything foreign, or it holds a data set and `overwrite` is false.
    """
    files, splits = (ARROW_MARK, REPORT_FILE), saved_splits(folder)
    check_replaceable(
        folder,
        contents=CONTENTS,
        required=files,
        is_part=lambda path: path.name in files or (path.name in splits and is_saved_split(path)),
        overwrite=overwrite,
    )


def load_memory_reason(source: str | Path, name: str | None = None) -> DatasetDict:
    """
    Loads a data set.

    Args:
        source: a folder of `save_memory_reason`, or, with `name`, any source for `build_memory_reason`.
        name: one of `NAMES`; not needed for a saved data set.

    Raises:
        FileNotFoundError: the folder holds no saved data set, and `name` is not given.
        ValueError: the data set is damaged, or does not hold annotated questions.
    """
    check_path("source", source)
    if not is_saved(source):
        if name is None:
            raise FileNotFoundError(
                f"{source} holds no saved data set. data_scripts/build_memory_reason.py builds one; to read the "
                f"study's JSON files directly, name the data set: {', '.join(NAMES)}."
            )
        return build_memory_reason(name, str(source)).dataset
    return fill_columns(load_saved(source, contents=CONTENTS, columns=OLDEST_COLUMNS))


def reference_solution(row: Mapping) -> list[Step]:
    """
    The steps of a row, and its answer as the last step.

    Raises:
        ValueError, TypeError: the row or one of its steps lacks a column.
    """
    check_row("row", row, ("steps", "answer"))
    check_sequence("steps", row["steps"], "a list of steps")
    return [*map(as_step, row["steps"]), answer_step(row["answer"])]


def _load_rows(source, config, cache_dir):
    if is_saved(source):
        check_regular(source)
        return load_from_disk(source)
    try:
        rows = load_dataset(source, config, cache_dir=cache_dir)
    except Exception as error:  # the Hub, pandas and Arrow have their own errors
        raise OSError(f"{source} cannot be loaded: {type(error).__name__} {error}") from error
    return rows


def _count(items):
    report = SplitReport(num_items=len(items))
    for index, item in enumerate(items):
        report.num_empty_steps += item.num_empty_steps
        report.num_items_with_empty_steps += item.num_empty_steps > 0
        if not item.steps:
            (report.emptied_items if item.num_empty_steps else report.items_without_steps).append(index)
        report.num_both_kinds += item.num_both_kinds
        marker = ANSWER_MARKER[:-1].lower()
        report.num_inner_answers += sum(marker in step.text.lower() for step in item.steps)
    return report


def _keep(split, items, report):
    """The rows of one split. Adds what is dropped to the report."""
    kept = list(enumerate(items[split]))
    if split == TRAINING_SPLIT:
        report.dropped_without_steps = [index for index, item in kept if not item.steps]
        others = {_key(item) for other, part in items.items() if other != split for item in part}
        report.dropped_in_other_split = [index for index, item in kept if item.steps and _key(item) in others]
        dropped = {*report.dropped_without_steps, *report.dropped_in_other_split}
        kept = [(index, item) for index, item in kept if index not in dropped]
    report.num_rows = len(kept)
    report.num_steps = sum(len(item.steps) for _, item in kept)
    rows = [question_row(item.question, item.answer, options=item.options, steps=item.steps) for _, item in kept]
    # By columns: `from_list` knows no columns where no row is left.
    columns = {name: [row[name] for row in rows] for name in FEATURES}
    return Dataset.from_dict(columns, features=FEATURES, split=NamedSplit(split))


def _key(item):
    return "".join(item.question.split())
