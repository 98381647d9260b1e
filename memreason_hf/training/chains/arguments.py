"""Arguments of `RecurrentTrainer`."""

from dataclasses import dataclass, field

from transformers.trainer_utils import SchedulerType

from memreason_hf.data.chains.collator import SUPERVISIONS
from memreason_hf.training.scheduled.arguments import ScheduledTrainingArguments, one_of


@dataclass
class RecurrentTrainingArguments(ScheduledTrainingArguments):
    """
    Arguments of [`RecurrentTrainer`], in addition to those of `ScheduledTrainingArguments`.

    Args:
        supervision (`str`, *optional*, defaults to `"answer"`):
            `"answer"`: a label at the last position only. `"prefix"`: a label after every relation, the entity
            reached so far. `"path"`: also at the start, the entity itself.
        group_column (`str`, *optional*, defaults to `"hops"`): The column with the group of a row.

    These defaults differ from the parent's: `learning_rate` 1e-4, `weight_decay` 0.01, `lr_scheduler_type`
    `"constant_with_warmup"`, `per_device_train_batch_size` 128, `per_device_eval_batch_size` 512. With
    `load_best_model_at_end`, `metric_for_best_model` is `"accuracy"`.

    Example:

    ```python
    >>> from memreason_hf import RecurrentTrainingArguments

    >>> args = RecurrentTrainingArguments(output_dir="run", max_steps=1000, recurrence_loss="geometric", use_cpu=True)
    >>> args.learning_rate
    0.0001
    ```
    """

    supervision: str = field(
        default="answer",
        metadata={
            "help": "Labels: only the 'answer', or ('prefix') the entity reached after every relation, or ('path') "
            "these and the start."
        },
    )
    group_column: str = field(default="hops", metadata={"help": "The column with the group of a row."})

    per_device_train_batch_size: int = field(
        default=128, metadata={"help": "The rows of a micro-batch on each device."}
    )
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "The rows of a forward in evaluation."})
    learning_rate: float = field(default=1e-4, metadata={"help": "The (highest) learning rate."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay. Biases and norms have none."})
    lr_scheduler_type: SchedulerType | str = field(
        default="constant_with_warmup",
        metadata={"help": "The learning rate schedule. It restarts wherever the optimizer does."},
    )

    def __post_init__(self):
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "accuracy"
        super().__post_init__()
        one_of("supervision", self.supervision, SUPERVISIONS)
