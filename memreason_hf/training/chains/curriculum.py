"""A curriculum over groups: stage k trains on all groups up to k, and ends when group k has been learned."""

from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from memreason_hf.checks import check_field_types, check_int
from memreason_hf.training.runs.fingerprint import counted_fields
from memreason_hf.training.runs.trainer import ResumableCallback
from memreason_hf.training.scheduled.arguments import one_of
from memreason_hf.training.scheduled.batches import Position, TokenRows


logger = logging.get_logger(__name__)

GATES = ("heldout", "train")
OPTIMIZERS = ("keep", "restart")
# Fields of `CurriculumArguments` that change no weights.
UNCOUNTED = (
    # The stages that follow from them count.
    "enabled",
    "stages",
    "first_stage",
    "last_stage",
    # How long a run may take: it can be resumed with more steps.
    "max_steps_per_stage",
    "final_steps",
)


@dataclass
class CurriculumArguments:
    """
    The stages of a curriculum and what ends each of them.

    Args:
        enabled (`bool`, *optional*, defaults to `True`): Whether a recipe uses the curriculum.
        stages (`list[int]`, *optional*):
            The groups that are learned one after the other. Default: all groups of the training data from
            `first_stage` to `last_stage`.
        first_stage (`int`, *optional*, defaults to 2): The group of the first stage.
        last_stage (`int`, *optional*): The group of the last stage. Default: the largest one of the training data.
        gate (`str`, *optional*, defaults to `"heldout"`):
            Which rows the gate counts: `"heldout"` rows of the stage's group, or (`"train"`) its training rows since
            the last evaluation of the gate.
        threshold (`float`, *optional*, defaults to 0.95): The accuracy at which a stage has been learned.
        eval_steps (`int`, *optional*, defaults to 500): The training steps between two evaluations of the gate.
        gate_rows (`int`, *optional*):
            The maximum number of held-out rows of an evaluation of the gate. Default: all of them.
        min_steps_per_stage (`int`, *optional*, defaults to 0): The minimum number of training steps of a stage.
        max_steps_per_stage (`int`, *optional*):
            The maximum number of training steps of a stage. Training ends with an error if the stage has not been
            learned by then.
        optimizer (`str`, *optional*, defaults to `"keep"`):
            What a new stage does: `"keep"` the optimizer, or `"restart"` it together with the learning-rate schedule.
        final_steps (`int`, *optional*, defaults to 0): The training steps after the last stage has been passed.

    Raises:
        ValueError: a value out of range, or stages that do not increase.
    """

    enabled: bool = field(default=True, metadata={"help": "Whether to use a curriculum."})
    stages: list[int] | None = field(
        default=None,
        metadata={"help": "The stages. Default: every hop count of the training data from first to last stage."},
    )
    first_stage: int = field(default=2, metadata={"help": "The hop count of the first stage."})
    last_stage: int | None = field(
        default=None, metadata={"help": "The hop count of the last stage. Default: the largest of the training data."}
    )
    gate: str = field(
        default="heldout",
        metadata={"help": "Whose accuracy decides: 'heldout' chains of the stage, or the 'train' chains seen."},
    )
    threshold: float = field(default=0.95, metadata={"help": "The accuracy at which a stage has been learned."})
    eval_steps: int = field(default=500, metadata={"help": "Training steps between two evaluations of the gate."})
    gate_rows: int | None = field(
        default=None, metadata={"help": "The maximum number of held-out chains for the gate. Default: all."}
    )
    min_steps_per_stage: int = field(default=0, metadata={"help": "The minimum number of training steps of a stage."})
    max_steps_per_stage: int | None = field(
        default=None,
        metadata={"help": "The maximum number of training steps of a stage. Training stops with an error after them."},
    )
    optimizer: str = field(
        default="keep", metadata={"help": "At a new stage: 'keep' the optimizer, or 'restart' it and its warm-up."}
    )
    final_steps: int = field(default=0, metadata={"help": "Training steps after the last stage has been passed."})

    def __post_init__(self):
        check_field_types(self)
        check_int("first_stage", self.first_stage, least=1)
        for stage in self.stages or ():
            check_int("stages", stage, least=1)
        if self.last_stage is not None and self.last_stage < self.first_stage:
            raise ValueError(f"last_stage={self.last_stage} must not be below first_stage={self.first_stage}.")
        one_of("curriculum.gate", self.gate, GATES)
        one_of("curriculum.optimizer", self.optimizer, OPTIMIZERS)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"curriculum.threshold={self.threshold} must be an accuracy above 0 and at most 1.")
        for name, least in (("eval_steps", 1), ("min_steps_per_stage", 0), ("final_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"curriculum.{name}={getattr(self, name)} must be at least {least}.")
        if self.gate_rows is not None and self.gate_rows < 1:
            raise ValueError(f"curriculum.gate_rows={self.gate_rows} must be at least 1, or not given.")
        if self.max_steps_per_stage is not None and self.max_steps_per_stage < max(1, self.min_steps_per_stage):
            raise ValueError(
                f"curriculum.max_steps_per_stage={self.max_steps_per_stage} must be at least 1 and not below "
                f"min_steps_per_stage={self.min_steps_per_stage}."
            )
        if self.stages is not None and (not self.stages or sorted(set(self.stages)) != list(self.stages)):
            raise ValueError(f"curriculum.stages={self.stages} must be increasing hop counts.")

    def resolve_stages(self, groups: np.ndarray) -> list[int]:
        """
        The stages of a dataset.

        Args:
            groups (`np.ndarray` of shape `(rows,)`): The groups of the training rows.

        Raises:
            ValueError: no stage is left, or a stage has no training rows of its own.
        """
        present = np.unique(groups).tolist()
        last = present[-1] if self.last_stage is None else self.last_stage
        stages = self.stages
        if stages is None:
            stages = [group for group in present if self.first_stage <= group <= last]
            # If last_stage is set, it must exist.
            stages = sorted({*stages, *([self.last_stage] if self.last_stage is not None else [])})
        missing = [stage for stage in stages if stage not in present]
        if missing:
            raise ValueError(f"Stage {missing[0]} has no training rows. Groups of the training data: {present}.")
        if not stages:
            raise ValueError(
                f"There is no stage from first_stage={self.first_stage} to last_stage={self.last_stage}. Groups of "
                f"the training data: {present}."
            )
        return list(stages)


class CurriculumCallback(ResumableCallback):
    """
    Moves a [`RecurrentTrainer`] from stage to stage. Its progress is saved with every checkpoint.

    Every `eval_steps` training steps of a stage, from `min_steps_per_stage` on, the gate compares the accuracy of the
    stage's own group with `threshold`: on held-out rows, or (`gate="train"`) on the training rows since the last
    evaluation of the gate. Training ends when the last stage has been passed, plus `final_steps`; or, with an error,
    when a stage has taken `max_steps_per_stage`.

    Args:
        arguments (`CurriculumArguments`): The stages and what ends them.
        heldout (`datasets.Dataset`, *optional*):
            Encoded rows for `gate="heldout"`. Default: the trainer's `eval_dataset`.

    Attributes:
        stages (`list[int]`): All stages, known after `attach`.
        stage_index (`int`): The index of the current stage.
        stage_starts (`list[int]`): The training step at which each stage so far began.
        passed_at (`int`, *optional*): The training step at which the last stage was passed.
        failed (`bool`): Whether the current stage was given up.
        gate_right, gate_seen (`int`): The counts of the gate on training rows, as of the last checkpoint.
    """

    _PROGRESS = ("stage_index", "stage_starts", "passed_at", "failed", "gate_right", "gate_seen")

    def __init__(self, arguments: CurriculumArguments, heldout: Dataset | None = None):
        self.arguments = arguments
        self.heldout = heldout
        self.stages: list[int] = []
        self._trainer = None
        self._heldout_groups: np.ndarray | None = None
        self.reset()

    def reset(self):
        """Returns to the first stage."""
        self.stage_index = 0
        self.stage_starts = [0]
        self.passed_at: int | None = None
        self.failed = False
        self.gate_right, self.gate_seen = 0, 0

    @property
    def stage(self) -> int:
        """The group that is being learned. Rows of groups up to it are trained on."""
        return self.stages[self.stage_index]

    @property
    def stage_start(self) -> int:
        """The training step at which the stage began."""
        return self.stage_starts[-1]

    @property
    def schedule_start(self) -> int:
        """The training step at which the learning-rate schedule began."""
        return self.stage_start if self.arguments.optimizer == "restart" else 0

    def position(self, global_step: int) -> Position:
        """Where training is after `global_step` steps."""
        return Position(self.stage_index, self.stage, global_step - self.stage_start)

    def is_finished(self, global_step: int) -> bool:
        """Whether nothing is left to train: all stages are passed, or the current one was given up."""
        if self.passed_at is not None:
            return global_step >= self.passed_at + self.arguments.final_steps
        limit = self.arguments.max_steps_per_stage
        return self.failed and limit is not None and global_step - self.stage_start >= limit

    def fingerprint(self) -> dict:
        """What the curriculum contributes to the fingerprint of a run."""
        fingerprint = {"curriculum.stages": self.stages}
        counted = counted_fields(self.arguments, UNCOUNTED)
        fingerprint |= {f"curriculum.{name}": value for name, value in counted.items()}
        if self.arguments.gate == "heldout":
            fingerprint["data.heldout"] = TokenRows(self.heldout, self._trainer.args.group_column).fingerprint()
        return fingerprint

    def progress(self) -> dict:
        # Copies: a saved state must not follow this object.
        progress = {name: getattr(self, name) for name in self._PROGRESS}
        return {**progress, "stage_starts": list(self.stage_starts)}

    def restore(self, progress: dict):
        """Takes over the progress of a checkpoint. The arguments stay those of this run."""
        for name in self._PROGRESS:
            setattr(self, name, progress[name])
        self.failed = False if self.arguments.max_steps_per_stage is None else self.failed
        if self.stage_index >= len(self.stages):
            raise ValueError(f"The checkpoint is at stage {self.stage_index + 1} of {len(self.stages)}.")

    def attach(self, trainer, groups: np.ndarray | None):
        """
        Makes this the curriculum of a trainer.

        Args:
            trainer ([`RecurrentTrainer`]): The trainer.
            groups (`np.ndarray` of shape `(rows,)`, *optional*): The groups of its training rows.

        Raises:
            ValueError: rows without groups, or a stage without training or held-out rows.
        """
        if groups is None:
            raise ValueError(
                f"A curriculum needs the column group_column={trainer.args.group_column!r}, of integers, in the "
                "training data."
            )
        self._trainer = trainer
        self.stages = self.arguments.resolve_stages(groups)
        if self.arguments.gate == "heldout":
            self._attach_heldout(trainer)

    def _attach_heldout(self, trainer):
        heldout = trainer.eval_dataset if self.heldout is None else self.heldout
        if not isinstance(heldout, Dataset):
            raise ValueError("curriculum.gate='heldout' needs a dataset of held-out rows: heldout or eval_dataset.")
        self.heldout = heldout
        self._heldout_groups = np.asarray(heldout[trainer.args.group_column])
        missing = [stage for stage in self.stages if stage not in set(self._heldout_groups.tolist())]
        if missing:
            raise ValueError(f"Stage {missing[0]} has no held-out rows. Add rows of this group or drop the stage.")

    def gate_rows(self) -> Dataset:
        """The held-out rows of the stage's group."""
        return self.heldout.select(np.flatnonzero(self._heldout_groups == self.stage)[: self.arguments.gate_rows])

    def on_step_end(self, args, state, control, **kwargs):
        """Evaluates the gate where it is due, and ends training where nothing is left."""
        if self.passed_at is None:
            self._watch_stage(state.global_step)
        if self.is_finished(state.global_step):
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != IntervalStrategy.NO
            control.should_save = args.save_strategy != SaveStrategy.NO
        return control

    def _watch_stage(self, global_step):
        arguments = self.arguments
        steps = global_step - self.stage_start
        exhausted = arguments.max_steps_per_stage is not None and steps >= arguments.max_steps_per_stage
        due = steps % arguments.eval_steps == 0
        if steps < arguments.min_steps_per_stage:
            if due:
                # The gate counts only what was seen since it was last due.
                self._trainer.clear_gate_counts()
            return
        if not due and not exhausted:
            return
        accuracy = self._evaluate_gate()
        self._trainer.log_aside({"stage": self.stage, "stage_accuracy": round(accuracy, 6), "stage_steps": steps})
        if accuracy >= arguments.threshold:
            self._advance(global_step)
        else:
            self.failed = exhausted

    def _evaluate_gate(self):
        if self.arguments.gate == "heldout":
            return self._trainer.answer_accuracy(self.gate_rows())
        right, seen = self._trainer.meter.gate_counts()
        self._trainer.clear_gate_counts()
        return right / seen if seen else 0.0

    def _advance(self, global_step):
        logger.info("Stage %s passed after %s steps.", self.stage, global_step - self.stage_start)
        if self.stage_index + 1 == len(self.stages):
            self.passed_at = global_step
            return
        self.stage_index += 1
        self.stage_starts.append(global_step)
        if self.arguments.optimizer == "restart":
            self._trainer.restart_optimizer()

    def describe_failure(self, global_step: int) -> str:
        """The message about a stage that was not learned."""
        return (
            f"Stage {self.stage} was not learned: after {global_step - self.stage_start} steps "
            f"(max_steps_per_stage={self.arguments.max_steps_per_stage}) its accuracy is below "
            f"{self.arguments.threshold}. Stages passed: {self.stages[: self.stage_index]}. Raise max_steps_per_stage "
            "and resume, or train with more recurrences or supervision='prefix'."
        )
