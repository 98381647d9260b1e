"""A curriculum over groups: stage k trains on everything up to k, and ends when k has been learned."""

from dataclasses import asdict, dataclass, field

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from memreason_hf.training.scheduled.batches import Position, TokenRows


logger = logging.get_logger(__name__)

GATES = ("heldout", "train")
OPTIMIZERS = ("keep", "restart")
# What decides the weights of a run; how many steps a curriculum may take does not.
_IN_FINGERPRINT = ("gate", "threshold", "eval_steps", "gate_rows", "min_steps_per_stage", "optimizer")


@dataclass
class CurriculumArguments:
    """
    The stages of a curriculum and what ends each of them.

    Raises:
        ValueError: a value out of range, or stages that do not rise.
    """

    enabled: bool = field(default=True, metadata={"help": "Whether there is a curriculum at all."})
    stages: list[int] | None = field(
        default=None, metadata={"help": "The stages; otherwise every hop count in training from first to last stage."}
    )
    first_stage: int = field(default=2, metadata={"help": "The hop count of the first stage."})
    last_stage: int | None = field(default=None, metadata={"help": "Of the last one; otherwise the most there are."})
    gate: str = field(
        default="heldout",
        metadata={
            "help": "Whose accuracy decides: chains of the stage that are 'heldout', or the 'train' chains seen."
        },
    )
    threshold: float = field(default=0.95, metadata={"help": "The accuracy at which a stage has been learned."})
    eval_steps: int = field(default=500, metadata={"help": "Steps between two looks at the gate."})
    gate_rows: int | None = field(
        default=None, metadata={"help": "Held-out chains at a look, at most; otherwise all."}
    )
    min_steps_per_stage: int = field(default=0, metadata={"help": "A stage takes at least so many steps."})
    max_steps_per_stage: int | None = field(
        default=None, metadata={"help": "A stage that takes more is not learned: training stops with an error."}
    )
    optimizer: str = field(
        default="keep", metadata={"help": "At a new stage: 'keep' the optimiser, or 'restart' it and its warm-up."}
    )
    final_steps: int = field(default=0, metadata={"help": "Steps after the last stage has been passed."})

    def __post_init__(self):
        for name, known in (("gate", GATES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"curriculum.{name}={getattr(self, name)!r} must be one of {', '.join(known)}.")
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
            raise ValueError(f"curriculum.stages={self.stages} must be hop counts that rise.")

    def resolve_stages(self, groups: np.ndarray) -> list[int]:
        """
        The stages over training rows of these groups.

        Raises:
            ValueError: no stage is left, or a stage without training rows of its own.
        """
        present = np.unique(groups).tolist()
        last = present[-1] if self.last_stage is None else self.last_stage
        stages = self.stages
        if stages is None:
            stages = [group for group in present if self.first_stage <= group <= last]
            # Both ends were asked for by name: one that is missing must not go unnoticed.
            stages = sorted({*stages, *([self.last_stage] if self.last_stage is not None else [])})
        missing = [stage for stage in stages if stage not in present]
        if missing:
            raise ValueError(f"Stage {missing[0]} has no training rows: a group without items. Groups: {present}.")
        if not stages:
            raise ValueError(
                f"No stage from first_stage={self.first_stage} to last_stage={self.last_stage}. Groups: {present}."
            )
        return list(stages)


class CurriculumCallback(TrainerCallback, ExportableState):
    """
    Moves `RecurrentTrainer` from stage to stage. Its state (stage, where each stage began, what the gate has seen)
    goes into every checkpoint and back.

    Every `eval_steps` steps of a stage, from `min_steps_per_stage` on, the accuracy of the stage's own group is
    compared with `threshold`: on held-out rows, or (`gate="train"`) on the training rows seen since the last look.
    Training ends when the last stage has been passed, plus `final_steps`; or, with an error, when a stage has taken
    `max_steps_per_stage`.

    Args:
        arguments (`CurriculumArguments`).
        heldout (`datasets.Dataset`, *optional*): Encoded rows for `gate="heldout"`; the trainer's `eval_dataset` if
            not given.
    """

    def __init__(self, arguments: CurriculumArguments, heldout: Dataset | None = None):
        self.arguments = arguments
        self.heldout = heldout
        self.stages: list[int] = []
        self._trainer = None
        self._heldout_groups: np.ndarray | None = None
        self.reset()

    def reset(self):
        """Back to the first stage."""
        self.stage_index = 0
        self.stage_starts = [0]
        self.passed_at: int | None = None
        self.failed = False
        self.seen_right, self.seen_rows = 0, 0

    @property
    def stage(self) -> int:
        """The group that is being learned; rows up to it are trained on."""
        return self.stages[self.stage_index]

    @property
    def stage_start(self) -> int:
        """The global step at which the stage began."""
        return self.stage_starts[-1]

    @property
    def schedule_start(self) -> int:
        """The global step at which the learning-rate schedule began."""
        return self.stage_start if self.arguments.optimizer == "restart" else 0

    def position(self, global_step: int) -> Position:
        """Where training is after `global_step` steps."""
        return Position(self.stage_index, self.stage, global_step - self.stage_start)

    def is_finished(self, global_step: int) -> bool:
        """Whether nothing is left to train: all stages passed, or the present one given up."""
        if self.passed_at is not None:
            return global_step >= self.passed_at + self.arguments.final_steps
        limit = self.arguments.max_steps_per_stage
        return self.failed and limit is not None and global_step - self.stage_start >= limit

    def state(self) -> dict:
        names = ("stage_index", "stage_starts", "passed_at", "failed", "seen_right", "seen_rows")
        # Copies: a state that was taken must not follow this object.
        attributes = {name: getattr(self, name) for name in names}
        attributes["stage_starts"] = list(self.stage_starts)
        return {"args": {"arguments": asdict(self.arguments)}, "attributes": attributes}

    def restore(self, attributes: dict):
        """Takes over the state of a checkpoint; the arguments stay those of this run."""
        for name, value in attributes.items():
            setattr(self, name, value)
        self.failed = False if self.arguments.max_steps_per_stage is None else self.failed
        if self.stage_index >= len(self.stages):
            raise ValueError(f"The checkpoint is at stage {self.stage_index + 1} of {len(self.stages)}.")

    def attach(self, trainer, groups: np.ndarray | None):
        """
        Makes this the curriculum of `trainer`, whose training rows have `groups`.

        Raises:
            ValueError: rows without groups, a stage without training or held-out rows.
        """
        if groups is None:
            raise ValueError(
                f"A curriculum needs group_column={trainer.args.group_column!r}, of integers, in the training data."
            )
        self._trainer = trainer
        self.stages = self.arguments.resolve_stages(groups)
        if self.arguments.gate == "heldout":
            self._attach_heldout(trainer)

    def _attach_heldout(self, trainer):
        heldout = trainer.eval_dataset if self.heldout is None else self.heldout
        if not isinstance(heldout, Dataset):
            raise ValueError("curriculum.gate='heldout' needs a data set of held-out rows: heldout or eval_dataset.")
        self.heldout = heldout
        self._heldout_groups = np.asarray(heldout[trainer.args.group_column])
        missing = [stage for stage in self.stages if stage not in set(self._heldout_groups.tolist())]
        if missing:
            raise ValueError(f"Stage {missing[0]} has no held-out rows: a group without items.")

    def gate_rows(self) -> Dataset:
        """The held-out rows of the stage's group."""
        return self.heldout.select(np.flatnonzero(self._heldout_groups == self.stage)[: self.arguments.gate_rows])

    def on_step_end(self, args, state, control, **kwargs):
        arguments = self.arguments
        if self.passed_at is None:
            steps = state.global_step - self.stage_start
            exhausted = arguments.max_steps_per_stage is not None and steps >= arguments.max_steps_per_stage
            if steps >= arguments.min_steps_per_stage and (steps % arguments.eval_steps == 0 or exhausted):
                accuracy = self._measure()
                self._trainer.log_aside(
                    {"stage": self.stage, "stage_accuracy": round(accuracy, 6), "stage_steps": steps}
                )
                if accuracy >= arguments.threshold:
                    self._advance(state.global_step)
                else:
                    self.failed = exhausted
            elif steps % arguments.eval_steps == 0:
                self._forget_seen()
        if self.is_finished(state.global_step):
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != IntervalStrategy.NO
            control.should_save = args.save_strategy != SaveStrategy.NO
        return control

    def _measure(self):
        if self.arguments.gate == "heldout":
            return self._trainer.answer_accuracy(self.gate_rows())
        right, rows = self._trainer.meter.gate_counts()
        self._forget_seen()
        return right / rows if rows else 0.0

    def _forget_seen(self):
        self.seen_right, self.seen_rows = 0, 0
        self._trainer.clear_gate_counts()

    def _advance(self, global_step):
        logger.info("Stage %s passed after %s steps.", self.stage, global_step - self.stage_start)
        self._forget_seen()
        if self.stage_index + 1 == len(self.stages):
            self.passed_at = global_step
            return
        self.stage_index += 1
        self.stage_starts.append(global_step)
        if self.arguments.optimizer == "restart":
            self._trainer.restart_optimizer()

    def failure(self, global_step: int) -> str:
        """What to tell about a stage that was not learned."""
        return (
            f"Stage {self.stage} was not learned: after {global_step - self.stage_start} steps "
            f"(max_steps_per_stage={self.arguments.max_steps_per_stage}) its accuracy is below "
            f"{self.arguments.threshold}. Stages before it: {self.stages[: self.stage_index]}. To go on, raise "
            "max_steps_per_stage and resume; or train with more recurrences, or supervision='prefix'."
        )


def curriculum_fingerprint(trainer) -> dict:
    """What the curriculum of `trainer` adds to that, `{}` without one."""
    curriculum = trainer.curriculum
    if curriculum is None:
        return {}
    chosen = asdict(curriculum.arguments)
    fingerprint = {"curriculum.stages": curriculum.stages}
    fingerprint |= {f"curriculum.{name}": chosen[name] for name in _IN_FINGERPRINT}
    if curriculum.arguments.gate == "heldout":
        fingerprint["data.heldout"] = TokenRows(curriculum.heldout, trainer.args.group_column).fingerprint()
    return fingerprint
