"""Arguments of `TextTrainer`."""

from dataclasses import dataclass, field
from typing import ClassVar

from transformers.trainer_utils import SchedulerType

from memreason_hf.training.scheduled.arguments import ScheduledTrainingArguments


@dataclass
class TextTrainingArguments(ScheduledTrainingArguments):
    """
    Arguments of `TextTrainer`, in addition to those of `ScheduledTrainingArguments`.

    Args:
        max_tokens (`int`, *optional*):
            The token budget: training ends with the step that reaches it. A stream is planned as if its rows were
            full, so padding counts there. With `max_steps`, the run ends at whichever comes first. `None`:
            `max_steps`, or `num_train_epochs` passes over the data.

    These defaults differ from the parent's: `learning_rate` 3e-4, `weight_decay` 0.1, `lr_scheduler_type` `"cosine"`,
    `num_train_epochs` 1, `length_pool` 1 (packed rows have nearly the same length).

    Raises:
        ValueError: a value out of range, or a setting that this trainer does not support.
    """

    not_in_fingerprint: ClassVar[tuple[str, ...]] = ()

    max_tokens: int | None = field(
        default=None,
        metadata={
            "help": "The token budget of the run. Default: max_steps, or num_train_epochs passes over the data."
        },
    )

    learning_rate: float = field(default=3e-4, metadata={"help": "The highest learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay. Biases and norms have none."})
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "The learning rate schedule over the whole run."}
    )
    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Passes over the data, without max_steps or max_tokens."}
    )
    length_pool: int = field(
        default=1, metadata={"help": "Global batches whose rows are sorted by length together. 1: no sorting."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} must be at least 1, or not given.")
        if self.include_num_input_tokens_seen != "no":
            raise ValueError(
                f"include_num_input_tokens_seen={self.include_num_input_tokens_seen!r} is not supported: "
                "num_input_tokens_seen is always logged. Leave it out."
            )
