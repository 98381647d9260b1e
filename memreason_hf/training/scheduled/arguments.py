"""Arguments of trainers whose steps follow from their number, beside those of transformers."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from memreason_hf.training.scheduled.losses import RECURRENCE_LOSSES


@dataclass
class ScheduledTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` of a `ScheduledTrainer`, whose steps follow from their number.

    How deep a step of a recurrent-depth model runs is not set here but in the model's config (`recurrence_sampling`,
    `num_recurrences`, `recurrence_min`, `recurrence_max`); it is drawn from (`seed`, global step).

    > Recurrent-depth models

    Args:
        recurrence_loss (`str`, defaults to `"last"`):
            Which recurrences are trained: `"last"`, or every one with `"uniform"` or `"geometric"` weights, which sum
            to 1.
        recurrence_loss_decay (`float`, defaults to 0.5):
            `"geometric"`: the weight of recurrence t of R is proportional to `recurrence_loss_decay ** (R - t)`. Below
            1 the last recurrence weighs most, above 1 the first.
        eval_num_recurrences (`int`, *optional*):
            Recurrences in evaluation, the criterion off. `None`: as the model's config says.

    > Batches

    Args:
        length_pool (`int`, defaults to 32):
            Rows of so many global batches are sorted by length together, then cut into batches, then shuffled, so that
            a batch is padded little. 1: batches of mixed length, each padded to its own longest row.

    > Runs

    Args:
        expected_world_size (`int`, *optional*): Processes that must have been started; another number is an error.
        restart (`bool`, defaults to `False`): Begin anew in an `output_dir` that holds a run; the old one is removed.

    Defaults that differ from the parent's: `save_total_limit` 2, `logging_nan_inf_filter` False (a loss that is not
    finite ends the run), `remove_unused_columns` False, `ignore_data_skip` True (batches are computed from the step,
    none is skipped). With `bf16` and no accelerator `use_cpu` is set.
    """

    # Whether 'epoch' may be said where the library wants to know when.
    counts_epochs = False

    recurrence_loss: str = field(
        default="last",
        metadata={"help": "Recurrences that are trained: 'last', or all with 'uniform' or 'geometric'."},
    )
    recurrence_loss_decay: float = field(
        default=0.5, metadata={"help": "Geometric weights: decay ** (recurrences after this one)."}
    )
    eval_num_recurrences: int | None = field(
        default=None, metadata={"help": "Recurrences in evaluation; otherwise what the model's config says."}
    )
    length_pool: int = field(
        default=32, metadata={"help": "Global batches whose rows are sorted by length together; 1: no sorting."}
    )
    expected_world_size: int | None = field(
        default=None, metadata={"help": "Processes that must have been started; another number is an error."}
    )
    restart: bool = field(
        default=False, metadata={"help": "Begin anew in an output_dir that holds a run; the old one is removed."}
    )

    output_dir: str | None = field(default=None, metadata={"help": "Where checkpoints and the trained model go."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "A checkpoint to go on from; otherwise the newest complete one of output_dir."}
    )
    max_steps: int = field(
        default=-1, metadata={"help": "Steps; if not given, num_train_epochs passes over the data."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints that are kept: the newest, and the best one."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave losses that are not finite out of the logs; they end the run anyway."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: the collator picks its columns."})
    ignore_data_skip: bool = field(default=True, metadata={"help": "Always true: batches are computed, none skipped."})

    def __post_init__(self):
        if (self.bf16 or self.bf16_full_eval) and not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        self.ignore_data_skip = True
        self._validate_scheduled()

    def _validate_scheduled(self):
        one_of("recurrence_loss", self.recurrence_loss, RECURRENCE_LOSSES)
        for name in ("length_pool", "per_device_train_batch_size", "per_device_eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("eval_num_recurrences", "expected_world_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1, or not given.")
        if self.recurrence_loss_decay <= 0:
            raise ValueError(f"recurrence_loss_decay={self.recurrence_loss_decay} must be above 0.")
        if self.save_total_limit == 1 and self.metric_for_best_model is not None:
            raise ValueError(
                "save_total_limit=1 with metric_for_best_model is not supported: the newest checkpoint would be "
                "deleted at the end for the best one, and with it that the run is finished. Use at least 2."
            )
        # Settings of the stock Trainer that would be ignored, or would break that batches follow from the step.
        if self.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor={self.label_smoothing_factor} is not supported.")
        if self.auto_find_batch_size:
            raise ValueError("auto_find_batch_size is not supported: the batch of a step must not depend on memory.")
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} is not supported; length_pool groups rows."
            )
        for name, strategies in (
            ("logging_strategy", IntervalStrategy),
            ("eval_strategy", IntervalStrategy),
            ("save_strategy", SaveStrategy),
        ):
            if getattr(self, name) == strategies.EPOCH and not self.counts_epochs:
                raise ValueError(f"{name}='epoch' is not supported: training counts steps. Use 'steps'.")
        if self.save_strategy == SaveStrategy.BEST:
            raise ValueError(
                "save_strategy='best' is not supported: the last step would not be saved, and no run could go on from "
                "it. metric_for_best_model keeps the best checkpoint beside the newest."
            )


def one_of(name: str, value, known):
    """Raises ValueError if the value of a field is not among the known ones."""
    if value not in known:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(known)}.")
