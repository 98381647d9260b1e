"""Arguments of `FinetuneTrainer`."""

from dataclasses import dataclass, field
from typing import ClassVar

from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from memreason_hf.checks import check_int
from memreason_hf.evaluation.solutions.generation import check_max_new_tokens
from memreason_hf.training.scheduled.arguments import ScheduledTrainingArguments


_MOST_PACKED = 2**22


@dataclass
class FinetuneArguments(ScheduledTrainingArguments):
    """
    Arguments of [`FinetuneTrainer`], in addition to those of `ScheduledTrainingArguments`.

    Args:
        num_test (`int`, *optional*, defaults to 200):
            The number of test questions that the model solves in an evaluation, the first ones of the split.
        max_new_tokens (`int`, *optional*, defaults to 512):
            The maximum number of tokens of a solution in an evaluation.
        packing_length (`int`, *optional*):
            Pack solutions into rows of exactly this number of tokens, padding included. No solution sees another one
            of its row, which is measured before training. A batch then has as many rows as before, each of them with
            several solutions. Default: one solution a row.

    The strategies of logging, evaluation and saving may be `"epoch"`. An epoch is the number of training steps that
    it takes to see all rows, rounded up.

    These defaults differ from the parent's: `learning_rate` 2e-4, `lr_scheduler_type` `"cosine"`,
    `per_device_train_batch_size` 4, `per_device_eval_batch_size` 16, `logging_steps` 10, `eval_strategy` and
    `save_strategy` `"epoch"`, `load_best_model_at_end` `True`, `metric_for_best_model` `"acc"`.
    """

    counts_epochs: ClassVar[bool] = True

    num_test: int = field(default=200, metadata={"help": "Test questions that are solved in an evaluation."})
    max_new_tokens: int = field(default=512, metadata={"help": "Maximum number of tokens of an evaluated solution."})
    packing_length: int | None = field(
        default=None,
        metadata={"help": "Pack solutions into rows of this number of tokens. Default: one solution a row."},
    )

    per_device_train_batch_size: int = field(
        default=4, metadata={"help": "The solutions of a micro-batch on each device."}
    )
    per_device_eval_batch_size: int = field(
        default=16, metadata={"help": "The solutions that are generated together in an evaluation."}
    )
    learning_rate: float = field(default=2e-4, metadata={"help": "The (highest) learning rate."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "The learning rate schedule."})
    logging_steps: float = field(default=10, metadata={"help": "Training steps between two logs."})
    eval_strategy: IntervalStrategy | str = field(
        default="epoch", metadata={"help": "When test questions are solved: epoch, steps (eval_steps) or no."}
    )
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When a checkpoint is written: epoch, steps (save_steps) or no."}
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "End with the checkpoint that solved the most test questions."}
    )
    metric_for_best_model: str | None = field(
        default="acc", metadata={"help": "The metric that the best checkpoint has the highest value of."}
    )

    def __post_init__(self):
        if self.eval_strategy in ("no", IntervalStrategy.NO):
            # Without evaluation no checkpoint is the best one.
            self.load_best_model_at_end, self.metric_for_best_model = False, None
        super().__post_init__()
        check_int("num_test", self.num_test, least=1)
        check_max_new_tokens(self.max_new_tokens)
        if self.packing_length is not None:
            check_int("packing_length", self.packing_length, 2, _MOST_PACKED, "a row is computed as a whole")
