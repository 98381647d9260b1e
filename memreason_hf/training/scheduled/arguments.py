"""Arguments of trainers whose training steps follow from their number."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from memreason_hf.training.runs.arguments import ResumableArguments
from memreason_hf.training.scheduled.losses import RECURRENCE_LOSSES


@dataclass
class ScheduledTrainingArguments(ResumableArguments):
    """
    [`~transformers.TrainingArguments`] of a `ScheduledTrainer`.

    The depth of a training step of a recurrent-depth model is not set here but in the model's config
    (`recurrence_sampling`, `num_recurrences`, `recurrence_min`, `recurrence_max`). It is drawn from `seed` and the
    training step.

    > Recurrent-depth models

    Args:
        recurrence_loss (`str`, *optional*, defaults to `"last"`):
            Which recurrences have a loss: `"last"`, or all of them with `"uniform"` or `"geometric"` weights, which
            sum to 1.
        recurrence_loss_decay (`float`, *optional*, defaults to 0.5):
            For `"geometric"`: the weight of recurrence t of R is proportional to `recurrence_loss_decay ** (R - t)`.
            Below 1 the last recurrence has the largest weight, above 1 the first.
        eval_num_recurrences (`int`, *optional*):
            The number of recurrences in evaluation, without a halting criterion. `None`: what the model's config
            says.

    > Batches

    Args:
        length_pool (`int`, *optional*, defaults to 32):
            How many global batches form a pool. The rows of a pool are sorted by length and cut into batches, which
            are shuffled, so that a batch needs little padding. With 1 a batch has rows of mixed length.

    > Runs

    Args:
        expected_world_size (`int`, *optional*):
            The number of processes that must be running. Any other number is an error.
        restart (`bool`, *optional*, defaults to `False`):
            Start again in an `output_dir` that holds a run, which is removed.

    These defaults differ from the parent's: `save_total_limit` 2, `logging_nan_inf_filter` `False` (a loss that is NaN
    or infinite ends the run), `remove_unused_columns` `False`, `ignore_data_skip` `True` (batches are computed from
    the training step, so none has to be skipped). With `bf16` and no accelerator, `use_cpu` is set.

    Raises:
        ValueError: a value out of range, or a setting of the parent that these trainers do not support.
    """

    # Whether the strategies of logging, evaluation and saving may be "epoch".
    counts_epochs: ClassVar[bool] = False

    recurrence_loss: str = field(
        default="last",
        metadata={"help": "Recurrences with a loss: 'last', or all with 'uniform' or 'geometric' weights."},
    )
    recurrence_loss_decay: float = field(
        default=0.5, metadata={"help": "Geometric weights: decay ** (recurrences after this one)."}
    )
    eval_num_recurrences: int | None = field(
        default=None, metadata={"help": "Recurrences in evaluation. Default: what the model's config says."}
    )
    length_pool: int = field(
        default=32, metadata={"help": "Global batches whose rows are sorted by length together. 1: no sorting."}
    )

    max_steps: int = field(
        default=-1, metadata={"help": "Training steps. Default: num_train_epochs passes over the data."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: the collator picks its columns."})
    ignore_data_skip: bool = field(
        default=True, metadata={"help": "Always true: batches are computed, so none has to be skipped."}
    )

    def __post_init__(self):
        if (self.bf16 or self.bf16_full_eval) and not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        self.ignore_data_skip = True
        self._check_ranges()
        self._check_unsupported()

    def _check_ranges(self):
        one_of("recurrence_loss", self.recurrence_loss, RECURRENCE_LOSSES)
        for name in ("length_pool", "per_device_train_batch_size", "per_device_eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.eval_num_recurrences is not None and self.eval_num_recurrences < 1:
            raise ValueError(f"eval_num_recurrences={self.eval_num_recurrences} must be at least 1, or not given.")
        if self.recurrence_loss_decay <= 0:
            raise ValueError(f"recurrence_loss_decay={self.recurrence_loss_decay} must be above 0.")

    def _check_unsupported(self):
        """Refuses settings that would be ignored, or with which a batch would not follow from the training step."""
        if self.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor={self.label_smoothing_factor} is not supported.")
        if self.auto_find_batch_size:
            raise ValueError("auto_find_batch_size is not supported: the batch of a step must not depend on memory.")
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} is not supported. Use length_pool to group "
                "rows by length."
            )
        for name, strategies in (
            ("logging_strategy", IntervalStrategy),
            ("eval_strategy", IntervalStrategy),
            ("save_strategy", SaveStrategy),
        ):
            if getattr(self, name) == strategies.EPOCH and not self.counts_epochs:
                raise ValueError(f"{name}='epoch' is not supported: training counts steps. Use 'steps'.")


def one_of(name: str, value, choices):
    """
    Checks that the value of a field is one of its choices.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}.")
