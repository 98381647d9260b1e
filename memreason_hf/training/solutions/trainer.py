"""`FinetuneTrainer`: trains any causal language model to write solutions in steps, judged by what it then writes."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from transformers import StoppingCriteria, StoppingCriteriaList, TrainerCallback, TrainerControl
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType, TrainOutput
from transformers.utils import logging

from memreason_hf.adapters.model import rows_in_place
from memreason_hf.data.padding import IGNORED_LABEL
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.training.runs.interruption import InterruptWatch
from memreason_hf.training.scheduled.arguments import ScheduledTrainingArguments
from memreason_hf.training.scheduled.trainer import ScheduledTrainer


logger = logging.get_logger(__name__)


@dataclass
class FinetuneArguments(ScheduledTrainingArguments):
    """
    Arguments of `FinetuneTrainer`: those of `ScheduledTrainingArguments`, and

    Args:
        num_test (`int`, defaults to 200):
            After every epoch the model solves so many of the test questions, the first ones.
        max_new_tokens (`int`, defaults to 512): The most tokens of a solution then.

    `"epoch"` is a strategy for logs, evaluation and checkpoints. An epoch is as many steps as it takes to see all
    rows, rounded up.

    Defaults that differ from the parent's: `learning_rate` 2e-4, `lr_scheduler_type` `"cosine"`,
    `per_device_train_batch_size` 4, `per_device_eval_batch_size` 16, `logging_steps` 10, `eval_strategy` and
    `save_strategy` `"epoch"`, `load_best_model_at_end` True, `metric_for_best_model` `"acc"`.
    """

    counts_epochs = True

    num_test: int = field(default=200, metadata={"help": "Test questions that are solved after every epoch."})
    max_new_tokens: int = field(default=512, metadata={"help": "The most tokens of a solution in evaluation."})

    per_device_train_batch_size: int = field(default=4, metadata={"help": "Solutions of a forward on each device."})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Solutions written together."})
    learning_rate: float = field(default=2e-4, metadata={"help": "The (highest) learning rate."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "The learning rate schedule."})
    logging_steps: float = field(default=10, metadata={"help": "Steps from log to log."})
    eval_strategy: IntervalStrategy | str = field(
        default="epoch", metadata={"help": "When test questions are solved: epoch, steps (eval_steps) or no."}
    )
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When a checkpoint is written: epoch, steps (save_steps) or no."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the epoch that solved most."})
    metric_for_best_model: str | None = field(default="acc", metadata={"help": "What the best epoch has most of."})

    def __post_init__(self):
        if self.eval_strategy in ("no", IntervalStrategy.NO):
            # Nothing says then which epoch is the best.
            self.load_best_model_at_end, self.metric_for_best_model = False, None
        super().__post_init__()
        for name in ("num_test", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")


class FinetuneTrainer(ScheduledTrainer):
    """
    Trains a causal language model, of any family, on rows of `encode_solutions`; each step as `ScheduledTrainer` says.

    The loss is the mean over all labels of a step, however it is cut into micro-batches and ranks. Evaluation solves
    the first `num_test` questions of `eval_dataset` greedily and judges the answers. On one process Ctrl-C ends it at
    once: the checkpoint is saved without it, and the run that is resumed from there begins with it.

    Beside what `Trainer` takes:
        args (`FinetuneArguments`).
        train_dataset: rows of `encode_solutions`.
        eval_dataset: rows with `question`, `options` and `answer`, as `load_memory_reason` gives them.
        processing_class: the tokenizer, extended.
        demonstrations: as for `generate_solutions`.
        origin: what decides the run's weights beside the arguments, the data and the config: flat and JSON-like.

    Raises:
        ValueError: data, model or arguments that do not fit together.
        LaunchError: accelerate set up something else than what was asked for.
    """

    arguments_class = FinetuneArguments
    usual_collator = "StepCollator(tokenizer)"

    def __init__(
        self,
        model=None,
        args: FinetuneArguments | None = None,
        *,
        demonstrations: Callable[[str], Sequence[tuple[str, Sequence]]] | None = None,
        origin: Mapping | None = None,
        **kwargs,
    ):
        self.demonstrations = demonstrations
        self.origin = dict(origin or {})
        super().__init__(model, args, **kwargs)
        self._check_recurrences()
        # A recurrent-depth model computes its loss at every depth itself. Of others only the logits are asked for, as
        # not all of them divide by the labels of the whole step.
        self.model_accepts_loss_kwargs = self.is_recurrent
        self.compute_loss_func = None if self.is_recurrent else solution_loss
        self._chooses_logits = "logits_to_keep" in inspect.signature(self._base_model().forward).parameters
        if self.schedule is not None:
            self._count_epochs_in_steps()
        self.add_callback(_EvaluationCallback(self))

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """As `ResumableTrainer.train`; warns before it begins of a warm-up that never ends."""
        warning = warmup_warning(self.args.get_warmup_steps(self.planned_steps), self.planned_steps)
        if warning and self.is_world_process_zero():
            logger.warning(warning)
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except _EvaluationInterrupted:
            # That which a resumed run begins with: its checkpoint is as it was.
            self.interrupted, self.is_in_train = True, False
            return TrainOutput(self.state.global_step, 0.0, {})

    def run_fingerprint(self) -> dict:
        return super().run_fingerprint() | self.origin

    # ---- Steps and epochs ----

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every row is seen, the last batch filled up with rows of the next epoch."""
        return -(-len(self.train_rows) // self.schedule.batch_size)

    def _count_epochs_in_steps(self):
        for name in ("logging", "eval", "save"):
            if getattr(self.args, f"{name}_strategy") == IntervalStrategy.EPOCH:
                kind = SaveStrategy if name == "save" else IntervalStrategy
                setattr(self.args, f"{name}_strategy", kind.STEPS)
                setattr(self.args, f"{name}_steps", self.steps_per_epoch)

    # ---- Loss ----

    def model_inputs(self, batch):
        if self.is_recurrent:
            return super().model_inputs(batch)
        labels = batch.pop("shift_labels")
        inputs = {**batch, "use_cache": False}
        if self._chooses_logits:
            labelled = labels.ne(IGNORED_LABEL).any(0).nonzero().squeeze(1)
            inputs["logits_to_keep"], labels = labelled, labels[:, labelled]
        return {**inputs, "labels": labels}

    def _base_model(self):
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _check_recurrences(self):
        given = [name for name in ("recurrence_loss", "eval_num_recurrences") if self._differs_from_default(name)]
        if given and not self.is_recurrent:
            name = given[0]
            raise ValueError(
                f"{name}={getattr(self.args, name)!r} is for recurrent-depth models, but the model is a "
                f"{type(self._base_model()).__name__}. Leave it out."
            )

    def _differs_from_default(self, name):
        return getattr(self.args, name) != FinetuneArguments.__dataclass_fields__[name].default

    # ---- Evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Solves test questions, the ranks sharing them, and logs the share of right answers.

        Args:
            eval_dataset: rows as for the trainer; its own if not given.
            ignore_keys: not used.
            metric_key_prefix: what the names of the metrics begin with.

        Returns:
            `{prefix}_acc` (in 0..1), `{prefix}_invalid` (texts without a valid answer) and `{prefix}_cut` (texts cut
            off), both as shares, `{prefix}_num_test`, `{prefix}_runtime` in seconds and tokens a second.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("Trainer: evaluation requires an eval_dataset.")
        rows = [dataset[index] for index in range(min(self.args.num_test, len(dataset)))]
        if not rows:
            raise ValueError("Trainer: the eval_dataset is empty.")
        started = time.perf_counter()
        solutions = self._solve(rows)
        seconds = max(time.perf_counter() - started, 1e-9)
        count = len(solutions)
        metrics = {
            "acc": sum(solution.is_correct for solution in solutions) / count,
            "invalid": sum(solution.answer is None for solution in solutions) / count,
            "cut": sum(solution.is_cut for solution in solutions) / count,
            "num_test": count,
            "runtime": round(seconds, 4),
            "tokens_per_second": round(sum(solution.num_tokens for solution in solutions) / seconds, 3),
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluate_first(self):
        """Makes up for the evaluation in which the run was interrupted that is resumed."""
        metrics = self._evaluate(None, None)
        self._determine_best_metric(metrics, None)
        self._save_checkpoint(self.model, None)

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, *args, **kwargs):
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        except _EvaluationInterrupted:
            self.interrupted = True
            if self.args.save_strategy != SaveStrategy.NO:
                # The checkpoint tells by its `should_evaluate` that this is still to be done.
                self._save_checkpoint(model, trial)
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            self.control.should_evaluate = False
            self.control.should_training_stop = True

    def _solve(self, rows):
        # Sharded layers are gathered at every call: all ranks must make the same calls.
        shared = self.args.world_size > 1 and not self.is_fsdp_enabled
        own = rows[self.args.process_index :: self.args.world_size] if shared else rows
        arguments = {}
        if self.args.eval_num_recurrences is not None:
            arguments["num_recurrences"] = self.args.eval_num_recurrences
        if self.is_in_train and self.args.world_size == 1:
            # Several ranks would have to stop at the same token.
            arguments["stopping_criteria"] = StoppingCriteriaList([_InterruptCriterion(self._watch)])
        solutions = []
        if own:
            with self.accelerator.autocast(), rows_in_place(self.model):
                solutions = generate_solutions(
                    self.model,
                    self.processing_class,
                    own,
                    batch_size=self.args.per_device_eval_batch_size,
                    max_new_tokens=self.args.max_new_tokens,
                    demonstrations=self.demonstrations,
                    progress=not self.args.disable_tqdm and self.is_world_process_zero(),
                    **arguments,
                )
        return gather_object(solutions) if shared else solutions


def solution_loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
    """
    Cross-entropy of logits `(batch, positions, vocabulary)` and labels in place `(batch, positions)`, -100: none;
    summed, and divided by the number of labels of the whole step.
    """
    logits = outputs["logits"].float().flatten(0, 1)
    loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
    return loss / num_items_in_batch


def warmup_warning(warmup_steps: int, num_steps: int) -> str | None:
    """What to say of a warm-up that the run ends in; `None` if it does not."""
    if warmup_steps <= num_steps or num_steps <= 0:
        return None
    return (
        f"The warm-up of {warmup_steps:,} steps is longer than the run of {num_steps:,}: the learning rate only "
        f"rises, up to {num_steps / warmup_steps:.0%} of learning_rate."
    )


class _EvaluationInterrupted(Exception):
    """Ctrl-C while test questions were being solved."""


class _InterruptCriterion(StoppingCriteria):
    """Raises at the first token after Ctrl-C."""

    def __init__(self, watch: InterruptWatch):
        self.watch = watch

    def __call__(self, input_ids, scores, **kwargs):
        if self.watch.requested:
            raise _EvaluationInterrupted
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _EvaluationCallback(TrainerCallback):
    """Evaluates what was learned after the last whole epoch, too, and what an interrupted run left unevaluated."""

    def __init__(self, trainer: FinetuneTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        stored = state.stateful_callbacks.get(TrainerControl.__name__, {}).get("args", {})
        if stored.get("should_evaluate"):
            self.trainer.evaluate_first()
        return control

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.eval_strategy != IntervalStrategy.NO:
            control.should_evaluate = True
        return control
