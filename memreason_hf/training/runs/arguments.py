"""Arguments of a run that can be stopped and resumed."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from memreason_hf.checks import check_field_types
from memreason_hf.training.runs.ranges import check_before_library, check_training_ranges
from memreason_hf.training.runs.trackers import check_trackers


@dataclass
class ResumableArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] of a `ResumableTrainer`.

    Args:
        expected_world_size (`int`, *optional*):
            The number of processes that must be running. Any other number is an error.
        restart (`bool`, *optional*, defaults to `False`):
            Start again in an `output_dir` that holds a run, which is removed. Files that no run wrote are kept.
        extend (`bool`, *optional*, defaults to `False`):
            Train the run that `output_dir` holds on to a greater `num_train_epochs`, `max_steps` or `max_tokens`. The
            learning rate of the remaining steps is that of a run of the new length; the weights are not, because the
            first steps followed the schedule of the shorter run. With a schedule that does not look ahead (constant)
            a run can be trained on without it.

    These defaults differ from the parent's: `save_total_limit` 2, `logging_nan_inf_filter` `False` (a loss that is NaN
    or infinite ends the run). Without an accelerator `use_cpu` is set.

    A subclass whose fields change no weights lists them in the class attribute `not_in_fingerprint`: a run can then be
    resumed with other values.

    Raises:
        ValueError: a value out of range, or settings with which a run could not be resumed.
    """

    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("expected_world_size", "restart", "extend")

    expected_world_size: int | None = field(
        default=None,
        metadata={"help": "The number of processes that must be running. Any other number is an error."},
    )
    restart: bool = field(
        default=False, metadata={"help": "Start again in an output_dir that holds a run, which is removed."}
    )

    extend: bool = field(
        default=False,
        metadata={"help": "Train the run of output_dir on to a greater num_train_epochs, max_steps or max_tokens."},
    )

    output_dir: str | None = field(
        default=None, metadata={"help": "The folder of the checkpoints and the trained model."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "The checkpoint to resume from. Default: the newest complete one of output_dir."},
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "How many checkpoints to keep: the newest ones, and always the best one."}
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Leave losses that are NaN or infinite out of the logs. They end the run in any case."},
    )

    def __post_init__(self):
        check_field_types(self)
        if not torch.accelerator.is_available():
            # accelerate launch starts several processes on CPUs only without telling them so. Unless the arguments
            # do, each process would train on its own.
            self.use_cpu = True
        if self.deepspeed:
            raise ValueError(
                f"deepspeed={self.deepspeed!r} is not supported. Use FSDP2 (recipes/accelerate/fsdp2.yaml)."
            )
        check_trackers(self.report_to)
        check_before_library(self)
        try:
            super().__post_init__()
        except TypeError as error:
            # The library passes accelerator_config on as it is; other fields have been checked by their types.
            raise ValueError(f"accelerator_config={self.accelerator_config!r}: {error}.") from error
        check_training_ranges(self)
        if self.expected_world_size is not None and self.expected_world_size < 1:
            raise ValueError(f"expected_world_size={self.expected_world_size} must be at least 1, or not given.")
        if self.save_total_limit == 1 and self.metric_for_best_model is not None:
            raise ValueError(
                "save_total_limit=1 with metric_for_best_model is not supported: the newest checkpoint would be "
                "deleted at the end in favour of the best one, and the run would no longer count as finished. Use at "
                "least 2."
            )
        if self.save_strategy == SaveStrategy.BEST:
            raise ValueError(
                "save_strategy='best' is not supported: the last step would not be saved, so the run could not be "
                "resumed from it. metric_for_best_model keeps the best checkpoint in addition to the newest."
            )
