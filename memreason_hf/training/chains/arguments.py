"""Arguments of `RecurrentTrainer`."""

from dataclasses import dataclass, field

from transformers.trainer_utils import SchedulerType

from memreason_hf.data.chains.collator import SUPERVISIONS
from memreason_hf.training.scheduled.arguments import ScheduledTrainingArguments, one_of


@dataclass
class RecurrentTrainingArguments(ScheduledTrainingArguments):
    """
    Arguments of `RecurrentTrainer`: those of `ScheduledTrainingArguments`, and

    Args:
        supervision (`str`, defaults to `"answer"`):
            `"answer"`: a label at the last position only. `"prefix"`: one after every relation, the entity reached so
            far.
        group_column (`str`, defaults to `"hops"`): The column that names the group of a row.

    Defaults that differ from the parent's: `learning_rate` 1e-4, `weight_decay` 0.01, `lr_scheduler_type`
    `"constant_with_warmup"`, `per_device_train_batch_size` 128, `per_device_eval_batch_size` 512,
    `metric_for_best_model` `"accuracy"` with `load_best_model_at_end`.
    """

    supervision: str = field(
        default="answer",
        metadata={"help": "Labels: the 'answer' only, or ('prefix') the entity reached after every relation."},
    )
    group_column: str = field(default="hops", metadata={"help": "The column that names the group of a row."})

    per_device_train_batch_size: int = field(default=128, metadata={"help": "Rows of a step on each device."})
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Rows of a forward call in evaluation."})
    learning_rate: float = field(default=1e-4, metadata={"help": "The (highest) learning rate."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay, not on biases and norms."})
    lr_scheduler_type: SchedulerType | str = field(
        default="constant_with_warmup",
        metadata={"help": "The learning rate schedule. Where the optimiser starts anew it does, too."},
    )

    def __post_init__(self):
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "accuracy"
        super().__post_init__()
        one_of("supervision", self.supervision, SUPERVISIONS)
