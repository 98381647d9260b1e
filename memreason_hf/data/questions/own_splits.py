"""
Splits of question data of one's own: a test split that is held out, and questions that two splits share.

    dataset = hold_out(load_questions("questions.jsonl"), 0.2)
    data = build_questions("questions.jsonl", test_fraction=0.2)
    save_memory_reason(data, "data/mine")
"""

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset, DatasetDict, NamedSplit

from memreason_hf.checks import check_int, check_number
from memreason_hf.data.questions.answer_types import ANSWER_TYPES
from memreason_hf.data.questions.memory_reason import (
    TRAINING_SPLIT,
    MemoryReasonData,
    MemoryReasonReport,
    SplitReport,
)
from memreason_hf.data.questions.own_data import load_questions
from memreason_hf.files import portable_path
from memreason_hf.steps import ANSWER_MARKER


TEST_SPLIT = "test"


def question_key(question: str) -> str:
    """What two spellings of a question share that differ in their white space."""
    return "".join(question.split())


def hold_out(dataset: DatasetDict, test_fraction: float, seed: int = 0) -> DatasetDict:
    """
    Moves some of the questions of the split `train` into a new split `test`. A question that occurs several times
    moves with all its rows, and the choice does not depend on the order of the rows.

    Args:
        dataset: from `load_questions`, with a split `train` and without `test`.
        test_fraction: of the distinct questions, above 0 and below 1.
        seed: of the choice.

    Raises:
        ValueError: the fraction is out of range or leaves a split empty, or the splits are others.

    Example:

    ```python
    dataset = hold_out(load_questions("questions.jsonl"), 0.2)
    print(dataset.num_rows)
    ```
    """
    check_number("test_fraction", test_fraction, above=0, below=1)
    check_int("seed", seed)
    if TRAINING_SPLIT not in dataset or TEST_SPLIT in dataset:
        raise ValueError(
            f"test_fraction={test_fraction} takes the test split from {TRAINING_SPLIT!r}, but the splits are "
            f"{', '.join(dataset)}. Leave it out, or name one file."
        )
    train = dataset[TRAINING_SPLIT]
    keys = [question_key(question) for question in train["question"]]
    distinct = sorted(set(keys))
    count = round(test_fraction * len(distinct))
    if not 0 < count < len(distinct):
        raise ValueError(
            f"test_fraction={test_fraction} of {len(distinct)} distinct questions leaves a split empty. Choose "
            "another fraction."
        )
    chosen = set(random.Random(seed).sample(distinct, count))
    rows = {
        TRAINING_SPLIT: [index for index, key in enumerate(keys) if key not in chosen],
        TEST_SPLIT: [index for index, key in enumerate(keys) if key in chosen],
    }
    all_rows = train.to_list()
    parts = {
        split: Dataset.from_list([all_rows[i] for i in indices], features=train.features, split=NamedSplit(split))
        for split, indices in rows.items()
    }
    return DatasetDict({**dataset, **parts})


def leave_out_shared(dataset: DatasetDict) -> tuple[DatasetDict, list[int]]:
    """
    The data without the training rows whose question, apart from white space, is also in another split.

    Returns:
        The data, and the positions of the rows that are left out.

    Raises:
        ValueError: no training row is left.
    """
    if TRAINING_SPLIT not in dataset:
        return dataset, []
    others = {question_key(q) for split in dataset if split != TRAINING_SPLIT for q in dataset[split]["question"]}
    train = dataset[TRAINING_SPLIT]
    shared = [index for index, question in enumerate(train["question"]) if question_key(question) in others]
    if not shared:
        return dataset, []
    if len(shared) == len(train):
        raise ValueError("Every training question is also in another split, so that none is left. Check the files.")
    kept = train.select(sorted(set(range(len(train))) - set(shared)))
    return DatasetDict({**dataset, TRAINING_SPLIT: kept}), shared


def build_questions(
    source: str | Path,
    name: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    answer_type: str | None = None,
    revision: str | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
) -> MemoryReasonData:
    """
    Loads question data and reports on it, for `save_memory_reason`.

    Training rows whose question is also in another split are left out. Rows without steps stay.

    Args:
        source, name, columns, answer_type, revision: as for `load_questions`.
        test_fraction, seed: as for `hold_out`; None keeps the splits of the source.

    Raises:
        ValueError, OSError: as for `load_questions` and `hold_out`.
    """
    dataset = load_questions(source, name, columns=columns, answer_type=answer_type, revision=revision)
    if test_fraction is not None:
        dataset = hold_out(dataset, test_fraction, seed)
    kept, shared = leave_out_shared(dataset)
    reports = {split: _report(dataset[split], kept[split]) for split in dataset}
    if shared:
        reports[TRAINING_SPLIT].dropped_in_other_split = shared
    return MemoryReasonData(kept, MemoryReasonReport(data_name(source, name), portable_path(str(source)), reports))


def data_name(source: str | Path, name: str | None = None) -> str:
    """The name of question data in a report: that of the file or folder, or of the data set and its configuration."""
    return Path(str(source)).name if name is None else f"{source}, {name}"


def describe_answers(dataset: DatasetDict) -> str:
    """One line on the types of the answers of all splits: `answers: 1,200 letters, 30 numbers`."""
    counts = Counter(chosen for part in dataset.values() for chosen in part["answer_type"])
    return "answers: " + ", ".join(f"{counts[name]:,} {name}" for name in ANSWER_TYPES if name in counts)


def _report(loaded, kept):
    marker = ANSWER_MARKER[:-1].lower()
    return SplitReport(
        num_items=len(loaded),
        num_rows=len(kept),
        num_steps=sum(map(len, kept["steps"])),
        items_without_steps=[index for index, steps in enumerate(loaded["steps"]) if not steps],
        num_inner_answers=sum(marker in step["text"].lower() for steps in kept["steps"] for step in steps),
    )
