"""Section `data` of a fine-tuning recipe: the annotated questions, and demonstrations drawn from them."""

from dataclasses import dataclass, field
from typing import Literal

from datasets import Dataset, DatasetDict
from transformers.utils import logging

from memreason_hf.checks import check_path
from memreason_hf.data.questions.answer_types import ANSWER_TYPES
from memreason_hf.data.questions.demonstrations import Demonstrations
from memreason_hf.data.questions.encoding import TOO_LONG
from memreason_hf.data.questions.memory_reason import (
    NAMES,
    TRAINING_SPLIT,
    build_memory_reason,
)
from memreason_hf.data.questions.own_data import load_questions, read_columns
from memreason_hf.data.questions.own_splits import hold_out, leave_out_shared
from memreason_hf.evaluation.solutions.answers import ANSWER_RULES
from memreason_hf.messages import first_few


logger = logging.get_logger(__name__)


@dataclass
class QuestionArguments:
    """
    Annotated questions to train on and to evaluate with.

    Args:
        path (`str`, *optional*):
            A file (`.jsonl`, `.json`, `.parquet`), a folder of such files, of `save_to_disk` or of
            `data_scripts/build_memory_reason.py`, or the name of a dataset on the Hub; or, with one of the study's
            names as `name`, the folder or URL of its JSON files. Default: the authors' repository.
        name (`str`, *optional*):
            The study's dataset, or the configuration of a dataset on the Hub. A file or folder needs no name.
        revision (`str`, *optional*): The branch, tag or commit of a dataset on the Hub.
        columns (`str` or `dict`, *optional*):
            The source's names of columns, where they differ from the schema: `question=query,answer=target`.
        answer_type (`str`, *optional*):
            The type of all answers. Default: it follows from the options, or from the answers.
        answer_rule (`str`, *optional*, defaults to `"published"`):
            How answers are read in an evaluation: `"published"` or `"lenient"`.
        eval_path (`str`, *optional*): A source of its own for the split `eval_split`, as `path`.
        test_fraction (`float`, *optional*):
            The share of the questions of a source without a test split that is held out as its test split.
        eval_split (`str`, *optional*, defaults to `"test"`): The split whose questions are solved in an evaluation.
        num_train_items (`int`, *optional*): Use only the first training items.
        num_demonstrations (`int`, *optional*, defaults to 0):
            Solved training questions in front of every question, in training and in evaluation.
        max_length (`int`, *optional*):
            The maximum number of tokens of a question with its solution, at most the model's context. Default: the
            model's context.
        too_long (`str`, *optional*, defaults to `"refuse"`): What happens to longer items. They are never cut.

    Raises:
        ValueError: a number below 1, or values that contradict each other.
    """

    path: str | None = field(
        default=None,
        metadata={
            "help": "A file (.jsonl, .json, .parquet), a folder of such files, of save_to_disk or of "
            "data_scripts/build_memory_reason.py, or a dataset on the Hub; or, with the study's name, the folder or "
            "URL of its JSON files. Default: the authors' repository."
        },
    )
    name: str | None = field(
        default=None,
        metadata={
            "help": f"The study's dataset ({', '.join(NAMES)}), or the configuration of a dataset on the Hub. A file "
            "or folder needs no name."
        },
    )
    revision: str | None = field(default=None, metadata={"help": "The branch, tag or commit of a dataset on the Hub."})
    columns: str | dict[str, str] | None = field(
        default=None,
        metadata={
            "help": "The source's names of columns, where they differ: question=query,answer=target. The schema: "
            "data_scripts/README.md."
        },
    )
    answer_type: Literal[ANSWER_TYPES] | None = field(
        default=None,
        metadata={"help": "The type of all answers. Default: it follows from the options, or from the answers."},
    )
    answer_rule: Literal[ANSWER_RULES] = field(
        default="published",
        metadata={"help": "How answers are read in an evaluation. lenient also reads **(A)**, boxes and Answer: A."},
    )
    eval_path: str | None = field(
        default=None, metadata={"help": "A source of its own for the split eval_split, as path."}
    )
    test_fraction: float | None = field(
        default=None,
        metadata={"help": "Hold out this share of the questions of a source without a test split, as its test split."},
    )
    eval_split: str = field(
        default="test", metadata={"help": "The split whose questions are solved in an evaluation."}
    )
    num_train_items: int | None = field(
        default=None, metadata={"help": "Use only this number of training items, the first ones."}
    )
    num_demonstrations: int = field(
        default=0, metadata={"help": "Solved training questions in front of every question, in training and after."}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "Maximum number of tokens of a question with its solution. Default: the model's context."},
    )
    too_long: Literal[TOO_LONG] = field(
        default="refuse", metadata={"help": "Longer items: refuse them, or drop and count them. They are never cut."}
    )

    def __post_init__(self):
        for name in ("num_train_items", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1. Leave it out for no limit.")
        if self.eval_path is not None and self.test_fraction is not None:
            raise ValueError(
                f"data.eval_path={self.eval_path!r} and data.test_fraction={self.test_fraction} contradict each "
                "other: leave one of them out."
            )
        for name, value in (("eval_path", self.eval_path), ("test_fraction", self.test_fraction)):
            if value is not None and self.eval_split == TRAINING_SPLIT:
                raise ValueError(f"data.{name}={value} needs another eval_split than {TRAINING_SPLIT!r}.")


def open_questions(questions: QuestionArguments, seed: int) -> tuple[Dataset, Dataset, Demonstrations | None]:
    """
    Opens the dataset of a recipe.

    Args:
        questions (`QuestionArguments`): Section `data`.
        seed (`int`): Decides which demonstrations a question gets.

    Returns:
        The training items, the test items, and what draws demonstrations from the training items.

    Raises:
        ValueError, OSError: no dataset is named, a split is missing, or a file cannot be read.
    """
    dataset = _load_questions(questions)
    for split in (TRAINING_SPLIT, questions.eval_split):
        if split not in dataset:
            raise ValueError(
                f"eval_split={split!r}: the data have no such split. Choose one of {', '.join(dataset)}; or pass "
                "eval_path (--eval_data) or test_fraction."
                if split == questions.eval_split
                else f"The data have no split {split!r}, only {', '.join(dataset)}."
            )
    train = dataset[TRAINING_SPLIT]
    if questions.num_train_items is not None:
        train = train.select(range(min(questions.num_train_items, len(train))))
    demonstrations = None
    if questions.num_demonstrations:
        demonstrations = Demonstrations(train, questions.num_demonstrations, seed=seed)
    return train, dataset[questions.eval_split], demonstrations


def _load_questions(questions) -> DatasetDict:
    if questions.path is None:
        if questions.name not in NAMES:
            raise ValueError(
                f"data.path is not given{'' if questions.name is None else f', and data.name={questions.name!r}'}: "
                "--data FILE_OR_FOLDER; or --data_name alone for a dataset of the authors' repository or the Hub: "
                f"{', '.join(NAMES)}."
            )
        return build_memory_reason(questions.name).dataset
    check_path("data.path", questions.path)
    arguments = {
        "columns": read_columns(questions.columns),
        "answer_type": questions.answer_type,
        "revision": questions.revision,
    }
    dataset = load_questions(questions.path, questions.name, **arguments)
    if questions.eval_path is not None:
        check_path("data.eval_path", questions.eval_path)
        dataset = _with_eval_split(dataset, load_questions(questions.eval_path, **arguments), questions)
    if questions.test_fraction is not None:
        dataset = hold_out(dataset, questions.test_fraction)
    dataset, shared = leave_out_shared(dataset)
    if shared:
        logger.warning(
            f"{len(shared):,} training items are left out because their question is also in another split "
            f"(items {first_few(shared)})."
        )
    return dataset


def _with_eval_split(dataset, others, questions):
    """The dataset with the split of another source: the one of the name, or the only one."""
    split = questions.eval_split if questions.eval_split in others else next(iter(others))
    if questions.eval_split in dataset or (split != questions.eval_split and len(others) > 1):
        raise ValueError(
            f"data.eval_path={questions.eval_path!r} has the splits {', '.join(others)}, and data.path has "
            f"{', '.join(dataset)}: the split eval_split={questions.eval_split!r} must be in one of them only."
        )
    return DatasetDict({**dataset, questions.eval_split: others[split]})
