"""Arguments of trainers whose training steps follow from their number."""

from dataclasses import dataclass, field
from typing import ClassVar

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from memreason_hf.checks import check_int, check_number
from memreason_hf.models.exit_gates import EXIT_PRIORS
from memreason_hf.training.runs.arguments import ResumableArguments
from memreason_hf.training.runs.ranges import MOST_RECURRENCES
from memreason_hf.training.scheduled.batches import MOST_POOLED_ROWS
from memreason_hf.training.scheduled.depth import RECURRENCE_GROWTHS
from memreason_hf.training.scheduled.exit_losses import EXIT_LOSS
from memreason_hf.training.scheduled.losses import RECURRENCE_LOSSES


@dataclass
class ScheduledTrainingArguments(ResumableArguments):
    """
    [`~transformers.TrainingArguments`] of a `ScheduledTrainer`.

    The distribution of the depth of a training step of a recurrent-depth model is not set here but in the model's
    config (`recurrence_sampling`, `num_recurrences`, `recurrence_min`, `recurrence_max`), and so is truncated
    backpropagation (`backprop_recurrences`). The depth is drawn from `seed` and the training step.

    > Depth of recurrent-depth models

    Args:
        recurrence_growth (`str`, *optional*, defaults to `"none"`):
            How the mean depth grows along the run, up to the config's: `"none"`, `"linear"` or `"1-sqrt"`; see
            `memreason_hf.training.scheduled.depth.grown_mean`.
        recurrence_growth_ratio (`float`, *optional*, defaults to 0.75):
            The share of the training steps in which it grows.
        recurrence_growth_start (`float`, *optional*, defaults to 1.0):
            The mean depth of the first training step.

    > Losses of recurrent-depth models

    Args:
        recurrence_loss (`str`, *optional*):
            Which recurrences have a loss: `"last"`, or all of them with `"uniform"` or `"geometric"` weights, which
            sum to 1, or `"exit_gate"`: the expected loss where the model's exit gate leaves, which learns together
            with the model; see `memreason_hf.training.scheduled.exit_losses`. `None`: what the model's config says,
            by default `"last"`.
        recurrence_loss_decay (`float`, *optional*):
            For `"geometric"`: the weight of recurrence t of R is proportional to `recurrence_loss_decay ** (R - t)`.
            Below 1 the last recurrence has the largest weight, above 1 the first. `None`: what the model's config
            says, by default 0.5.
        exit_prior (`str`, *optional*):
            For `"exit_gate"`: what the distribution over recurrences is held close to, `"uniform"` (the default),
            which favours distributions of high entropy (Ouro, arXiv 2510.25741), or `"geometric"` (PonderNet, arXiv
            2107.05407).
        exit_prior_stop (`float`, *optional*):
            For the geometric prior: the probability of leaving after each recurrence, by default 0.2. Its inverse is
            about the mean number of recurrences.
        exit_prior_weight (`float`, *optional*):
            For `"exit_gate"`: the weight of KL(distribution of the gate || prior), by default 0.05.
        first_weight (`float`, *optional*, defaults to 0.0):
            Weight of the ordinary loss after one recurrence, in addition, so that one recurrence goes on learning. In
            a step of depth 1 the ordinary loss then counts twice, unless `recurrence_min` of the config is above 1.
        keep_weight (`float`, *optional*, defaults to 0.0):
            Weight of KL(source || model after one recurrence), so that one recurrence stays where it was. The source
            is the model at one recurrence as it is passed to the trainer, also when a run is resumed. A copy of the
            parameters that are trained stays in memory, and runs at every training step.
        keep_model (`str`, *optional*):
            Folder of another source: a recurrent-depth model, which runs one recurrence, or any causal language model
            with the same vocabulary.
        consistency_weight (`float`, *optional*, defaults to 0.0):
            Weight of KL(model after R recurrences, detached || model after R + k), so that deeper recurrences do not
            get worse. A training step then runs R + k recurrences, also where its accuracy is counted.
        consistency_recurrences (`int`, *optional*, defaults to 1):
            k.
        recurrence_learning_rate (`float`, *optional*):
            The learning rate of the parameters that the first recurrence does not use: adapter or gate of the
            injection, state norm and low-rank updates. They follow the schedule of `learning_rate`, which they have
            by default.
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
        extend (`bool`, *optional*, defaults to `False`):
            Train the run that `output_dir` holds on to a greater length.

    These defaults differ from the parent's: `save_total_limit` 2, `logging_nan_inf_filter` `False` (a loss that is NaN
    or infinite ends the run), `remove_unused_columns` `False`, `ignore_data_skip` `True` (batches are computed from
    the training step, so none has to be skipped). Without an accelerator `use_cpu` is set.

    Raises:
        ValueError: a value out of range, or a setting of the parent that these trainers do not support.
    """

    # The weights of the source count instead of its place.
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("keep_model",)
    # The fields that only a recurrent-depth model can follow.
    recurrent_only: ClassVar[tuple[str, ...]] = (
        "recurrence_growth",
        "recurrence_loss",
        "exit_prior",
        "exit_prior_stop",
        "exit_prior_weight",
        "first_weight",
        "keep_weight",
        "consistency_weight",
        "recurrence_learning_rate",
        "eval_num_recurrences",
    )
    # Whether the strategies of logging, evaluation and saving may be "epoch".
    counts_epochs: ClassVar[bool] = False

    recurrence_growth: str = field(
        default="none", metadata={"help": "How the mean depth grows along the run: 'none', 'linear' or '1-sqrt'."}
    )
    recurrence_growth_ratio: float = field(
        default=0.75, metadata={"help": "The share of the training steps in which the mean depth grows."}
    )
    recurrence_growth_start: float = field(
        default=1.0, metadata={"help": "The mean depth of the first training step, if it grows."}
    )
    recurrence_loss: str | None = field(
        default=None,
        metadata={
            "help": "Recurrences with a loss: 'last', or all with 'uniform' or 'geometric' weights, or those of a "
            "learned 'exit_gate'. Default: what the model's config says."
        },
    )
    recurrence_loss_decay: float | None = field(
        default=None,
        metadata={
            "help": "Geometric weights: decay ** (recurrences after this one). Default: what the model's config says."
        },
    )
    exit_prior: str | None = field(
        default=None,
        metadata={
            "help": "exit_gate: prior of the recurrence where the gate leaves, 'uniform' or 'geometric'. Default: "
            "uniform."
        },
    )
    exit_prior_stop: float | None = field(
        default=None,
        metadata={"help": "Geometric prior: the probability of leaving after each recurrence. Default: 0.2."},
    )
    exit_prior_weight: float | None = field(
        default=None,
        metadata={"help": "exit_gate: weight of KL(distribution of the gate || prior). Default: 0.05."},
    )
    first_weight: float = field(
        default=0.0, metadata={"help": "Weight of the loss after one recurrence, in addition to the others."}
    )
    keep_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of KL(source || model after one recurrence), which holds it where it was."},
    )
    keep_model: str | None = field(
        default=None,
        metadata={"help": "Folder of the source of keep_weight. Default: the model as it is when the run begins."},
    )
    consistency_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of KL(after R || after R + k recurrences), so that deeper ones do not get worse."},
    )
    consistency_recurrences: int = field(
        default=1, metadata={"help": "k of consistency_weight: how many recurrences run beyond the drawn depth."}
    )
    recurrence_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of what only later recurrences use. Default: learning_rate."},
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
        super().__post_init__()
        self.ignore_data_skip = True
        self._check_ranges()
        self._check_unsupported()

    def _check_ranges(self):
        if self.recurrence_loss is not None:
            one_of("recurrence_loss", self.recurrence_loss, (*RECURRENCE_LOSSES, EXIT_LOSS))
        self._check_exit_gate()
        one_of("recurrence_growth", self.recurrence_growth, RECURRENCE_GROWTHS)
        check_int("length_pool", self.length_pool, 1, MOST_POOLED_ROWS, "a pool is sorted in memory")
        for name in ("consistency_recurrences", "eval_num_recurrences"):
            if getattr(self, name) is not None:
                reason = "recurrences are computed one after the other"
                check_int(name, getattr(self, name), 1, MOST_RECURRENCES, reason)
        check_number("recurrence_growth_start", self.recurrence_growth_start, least=1)
        check_number("recurrence_growth_ratio", self.recurrence_growth_ratio, above=0, most=1)
        for name in ("first_weight", "keep_weight", "consistency_weight"):
            check_number(name, getattr(self, name), least=0)
        for name in ("recurrence_loss_decay", "recurrence_learning_rate"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        if self.keep_model is not None and not self.keep_weight:
            raise ValueError(f"keep_model={self.keep_model!r} has no effect with keep_weight=0. Set keep_weight.")

    def _check_exit_gate(self):
        given = [n for n in ("exit_prior", "exit_prior_stop", "exit_prior_weight") if getattr(self, n) is not None]
        if self.exit_prior is not None:
            one_of("exit_prior", self.exit_prior, EXIT_PRIORS)
        if self.exit_prior_stop is not None:
            check_number("exit_prior_stop", self.exit_prior_stop, above=0, below=1)
        if self.exit_prior_weight is not None:
            check_number("exit_prior_weight", self.exit_prior_weight, least=0)
        if self.recurrence_loss != EXIT_LOSS:
            if given:
                raise ValueError(
                    f"{given[0]}={getattr(self, given[0])!r} has no effect without recurrence_loss={EXIT_LOSS!r}. "
                    "Leave it out."
                )
            return
        if self.exit_prior_stop is not None and self.exit_prior != "geometric":
            raise ValueError(
                f"exit_prior_stop={self.exit_prior_stop} is of the geometric prior. Set exit_prior='geometric', or "
                "leave it out."
            )
        for name in ("first_weight", "keep_weight", "consistency_weight"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} cannot be combined with recurrence_loss={EXIT_LOSS!r}. Leave one "
                    "of them out."
                )

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
        # Evaluation is the trainer's own, and its labels are those of the collator.
        for name in ("label_names", "include_for_metrics"):
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect in this trainer. Leave it out.")
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
