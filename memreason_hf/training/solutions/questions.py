"""Section `data` of a fine-tuning recipe: the annotated questions."""

from dataclasses import dataclass, field
from typing import Literal

from datasets import Dataset, DatasetDict

from memreason_hf.checks import check_path
from memreason_hf.data.questions.encoding import TOO_LONG
from memreason_hf.data.questions.memory_reason import (
    NAMES,
    TRAINING_SPLIT,
    build_memory_reason,
    load_memory_reason,
)


@dataclass
class QuestionArguments:
    """
    Annotated questions to train on and to evaluate with.

    Args:
        path (`str`, *optional*):
            A folder written by `data_scripts/build_memory_reason.py`; or, with `name`, the source that the script
            reads. Default: the authors' repository.
        name (`str`, *optional*): The dataset of a source. A folder written by the script needs no name.
        eval_split (`str`, *optional*, defaults to `"test"`): The split whose questions are solved in an evaluation.
        num_train_items (`int`, *optional*): Use only the first training items.
        num_demonstrations (`int`, *optional*, defaults to 0):
            Solved questions in front of every question, in training and in evaluation. Section `prompt` says which.
        max_length (`int`, *optional*):
            The maximum number of tokens of a question with its solution, at most the model's context. Default: the
            model's context.
        too_long (`str`, *optional*, defaults to `"refuse"`): What happens to longer items. They are never cut.

    Raises:
        ValueError: a number below 1.
    """

    path: str | None = field(
        default=None,
        metadata={
            "help": "A folder of data_scripts/build_memory_reason.py; or, with name, the source that it reads. "
            "Default: the authors' repository."
        },
    )
    name: Literal[NAMES] | None = field(
        default=None, metadata={"help": "The dataset of a source. A folder of the script needs no name."}
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


def open_questions(questions: QuestionArguments) -> tuple[Dataset, Dataset]:
    """
    Opens the dataset of a recipe.

    Args:
        questions (`QuestionArguments`): Section `data`.

    Returns:
        The training items and the test items.

    Raises:
        ValueError, OSError: no dataset is named, a split is missing, or a file cannot be read.
    """
    dataset = _load_questions(questions)
    for split in (TRAINING_SPLIT, questions.eval_split):
        if split not in dataset:
            raise ValueError(
                f"eval_split={split!r}: the data have no such split. Choose one of {', '.join(dataset)}."
                if split == questions.eval_split
                else f"The data have no split {split!r}, only {', '.join(dataset)}."
            )
    train = dataset[TRAINING_SPLIT]
    if questions.num_train_items is not None:
        train = train.select(range(min(questions.num_train_items, len(train))))
    return train, dataset[questions.eval_split]


def _load_questions(questions) -> DatasetDict:
    if questions.path is not None:
        check_path("data.path", questions.path)
        return load_memory_reason(questions.path, questions.name)
    if questions.name is None:
        raise ValueError(
            "data.path is not given: --data FOLDER; or --data_name alone for a dataset of the authors' repository or "
            f"the Hub: {', '.join(NAMES)}."
        )
    return build_memory_reason(questions.name).dataset
