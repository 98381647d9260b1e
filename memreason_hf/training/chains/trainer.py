"""`RecurrentTrainer`: the library's Trainer for models whose depth is drawn anew for every training step."""

import evaluate
import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from transformers.utils import logging

from memreason_hf.evaluation.chains.predictions import AnswerPredictions, predict_answers
from memreason_hf.metrics import metric_path
from memreason_hf.training.chains.arguments import RecurrentTrainingArguments
from memreason_hf.training.chains.curriculum import CurriculumCallback
from memreason_hf.training.runs.errors import StageNotLearnedError
from memreason_hf.training.scheduled.batches import Position, TokenRows
from memreason_hf.training.scheduled.meter import answers_right
from memreason_hf.training.scheduled.trainer import ScheduledTrainer


logger = logging.get_logger(__name__)


class RecurrentTrainer(ScheduledTrainer):
    """
    Trains a [`RecurrentDepthForCausalLM`] on encoded chains. `ScheduledTrainer` describes a training step.

    Args:
        model ([`RecurrentDepthForCausalLM`]): The model, or an `AdapterModel` around it.
        args ([`RecurrentTrainingArguments`]): The arguments.
        kwargs:
            As for `ScheduledTrainer`. `train_dataset` and `eval_dataset` (`datasets.Dataset`) have rows with
            `input_ids` and what the collator needs. `data_collator` is a `ChainCollator` or one like it. A
            `CurriculumCallback` among the `callbacks` makes it a curriculum.

    Raises:
        ValueError: data, model or arguments that do not fit together.
        LaunchError: accelerate set up something other than what was requested.

    Example:

    ```python
    >>> from memreason_hf.training import ChainCollator, RecurrentTrainer, RecurrentTrainingArguments

    >>> trainer = RecurrentTrainer(
    ...     model=model,
    ...     args=RecurrentTrainingArguments(output_dir="run", max_steps=1000),
    ...     train_dataset=encoded_chains,
    ...     eval_dataset=encoded_test_chains,
    ...     data_collator=ChainCollator(tokenizer.pad_token_id),
    ...     processing_class=tokenizer,
    ... )
    >>> trainer.train(resume_from_checkpoint=True)  # after a kill; the first time without the argument
    ```
    """

    arguments_class = RecurrentTrainingArguments
    usual_collator = "ChainCollator(pad_token_id, args.supervision) for chains"

    def __init__(self, model=None, args: RecurrentTrainingArguments | None = None, **kwargs):
        super().__init__(model, args, **kwargs)
        # The model divides its loss by num_items_in_batch.
        self.model_accepts_loss_kwargs = True
        self._stage_of_step: int | None = None
        self._metric = None

    @property
    def curriculum(self) -> CurriculumCallback | None:
        """The curriculum among the callbacks."""
        callbacks = self.callback_handler.callbacks
        return next((callback for callback in callbacks if isinstance(callback, CurriculumCallback)), None)

    def is_finished(self, global_step: int) -> bool:
        return super().is_finished(global_step) or (
            self.curriculum is not None and self.curriculum.is_finished(global_step)
        )

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """
        Trains as `ResumableTrainer.train` does.

        Raises:
            StageNotLearnedError: a stage was not passed within `max_steps_per_stage`. Its last step has been saved.
        """
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.curriculum is not None and self.curriculum.failed:
            raise StageNotLearnedError(self.curriculum.describe_failure(self.state.global_step))
        return output

    # ---- What makes up a run ----

    def run_fingerprint(self) -> dict:
        return super().run_fingerprint() | ({} if self.curriculum is None else self.curriculum.fingerprint())

    def before_first_step(self):
        self.clear_gate_counts()
        if self.curriculum is not None:
            self.curriculum.reset()

    def before_checkpoint(self):
        if self.curriculum is not None:
            self.curriculum.gate_right, self.curriculum.gate_seen = self.meter.gate_counts()

    def after_restoring(self):
        if self.curriculum is not None:
            # The counts are sums over all ranks, so only rank 0 takes them.
            is_main = self.args.process_index == 0
            right, seen = (self.curriculum.gate_right, self.curriculum.gate_seen) if is_main else (0, 0)
            self.meter.set_gate_counts(right, seen)

    # ---- Data and training steps ----

    def _prepare_data(self):
        super()._prepare_data()
        if self.train_rows is not None and self.curriculum is not None:
            if self.args.max_steps <= 0:
                raise ValueError("A curriculum needs max_steps, the maximum number of training steps of all stages.")
            self.curriculum.attach(self, self.train_rows.groups)

    def position(self) -> Position:
        return super().position() if self.curriculum is None else self.curriculum.position(self.state.global_step)

    def passes_over_data(self) -> float:
        """Passes over the data so far. Those over the rows of each stage are added up."""
        if self.curriculum is None:
            return super().passes_over_data()
        ends = [*self.curriculum.stage_starts[1:], self.state.global_step]
        steps = [end - start for start, end in zip(self.curriculum.stage_starts, ends)]
        sizes = [np.count_nonzero(self.train_rows.groups <= stage) for stage in self.curriculum.stages]
        return sum(count * self.schedule.batch_size / size for count, size in zip(steps, sizes))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._stage_of_step = self.position().limit
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def look_at_outputs(self, outputs, labels, info):
        of_stage = None
        if self.curriculum is not None and self.curriculum.arguments.gate == "train":
            of_stage = torch.from_numpy(info.groups == self.curriculum.stage)
        self.meter.add_answers(answers_right(outputs.logits.detach(), labels), of_stage)

    # ---- Optimizer and schedule ----

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Creates the parent's schedule, over the training steps since the optimizer was last restarted."""
        start = 0 if self.curriculum is None else self.curriculum.schedule_start
        return super().create_scheduler(max(num_training_steps - start, 1), optimizer)

    def restart_optimizer(self):
        """Clears the optimizer's moments and restarts the learning-rate schedule with its warm-up."""
        optimizer = self.optimizer.optimizer if isinstance(self.optimizer, AcceleratedOptimizer) else self.optimizer
        optimizer.state.clear()
        for group in optimizer.param_groups:
            # Only schedules that follow the metrics have no `initial_lr`.
            group["lr"] = group.get("initial_lr", self.args.learning_rate)
        self.lr_scheduler = None
        self.create_scheduler(self.state.max_steps)
        self.callback_handler.lr_scheduler = self.lr_scheduler

    # ---- The gate of the curriculum ----

    def clear_gate_counts(self):
        """Forgets the training rows that the gate has counted."""
        self.meter.set_gate_counts(0, 0)

    def log_aside(self, logs: dict[str, float]):
        """Logs without cancelling a log that is due at the same step."""
        should_log = self.control.should_log
        self.log(logs)
        self.control.should_log = should_log

    # ---- Logs and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.curriculum is not None:
            # The stage of the logged steps: the curriculum may have moved on at the last of them.
            logs = logs | {"stage": self._stage_of_step}
        super().log(logs, start_time)

    def predict_answers(self, dataset: Dataset, **forward_kwargs) -> AnswerPredictions:
        """
        The model's answers to `dataset`, computed by all ranks together, every row once.

        Args:
            dataset (`datasets.Dataset`): Encoded rows.
            forward_kwargs:
                Passed to the model. `num_recurrences` defaults to `eval_num_recurrences` of the arguments.
        """
        if self.args.eval_num_recurrences is not None:
            forward_kwargs.setdefault("num_recurrences", self.args.eval_num_recurrences)
        with self.accelerator.autocast():
            return predict_answers(
                self.model,
                dataset,
                self.data_collator,
                batch_size=self.args.per_device_eval_batch_size,
                group_column=self.args.group_column,
                # Sharded layers are gathered at every call, so all ranks must make the same calls.
                distributed=not self.is_fsdp_enabled,
                **forward_kwargs,
            )

    def answer_accuracy(self, dataset: Dataset) -> float:
        """The share of right answers, in 0..1."""
        return self.predict_answers(dataset).accuracy

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Computes the accuracy of the answers, overall and by group, and the mean number of recurrences they took.

        Args:
            eval_dataset (`datasets.Dataset` or `dict`, *optional*):
                Encoded rows, or a dict of such datasets. Default: the trainer's `eval_dataset`.
            ignore_keys: Not used.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`): What the names of the metrics begin with.

        Returns:
            `{prefix}_accuracy`, `{prefix}_accuracy_{group}`, `{prefix}_num_recurrences`, `{prefix}_runtime` in
            seconds, `{prefix}_samples_per_second` and `{prefix}_tokens_per_second`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            metrics = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if dataset is None:
            raise ValueError("Trainer: evaluation requires an eval_dataset.")
        metrics = self._answer_metrics(self.predict_answers(dataset), dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _answer_metrics(self, answers, dataset):
        if self._metric is None:
            self._metric = evaluate.load(metric_path("grouped_accuracy"), keep_in_memory=True)
        results = self._metric.compute(
            predictions=answers.predictions, references=answers.references, groups=[str(g) for g in answers.groups]
        )
        tokens = int(TokenRows(dataset, self.args.group_column).lengths.sum())
        seconds = max(answers.seconds, 1e-9)
        by_group = {f"accuracy_{group}": accuracy for group, accuracy in results["accuracy_by_group"].items()}
        return {
            "accuracy": results["accuracy"],
            **by_group,
            "num_recurrences": float(np.mean(answers.num_recurrences)),
            "runtime": round(answers.seconds, 4),
            "samples_per_second": round(len(answers) / seconds, 3),
            "tokens_per_second": round(tokens / seconds, 3),
        }
