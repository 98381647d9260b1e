"""`RecurrentTrainer`: the library's Trainer for models whose depth is drawn anew for every step."""

import evaluate
import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from transformers.utils import logging

from memreason_hf.evaluation.chains.predictions import AnswerPredictions, predict_answers
from memreason_hf.metrics import metric_path
from memreason_hf.training.chains.arguments import RecurrentTrainingArguments
from memreason_hf.training.chains.curriculum import CurriculumCallback, curriculum_fingerprint
from memreason_hf.training.runs.errors import StageNotLearnedError
from memreason_hf.training.scheduled.batches import Position, TokenRows
from memreason_hf.training.scheduled.meter import answers_right
from memreason_hf.training.scheduled.trainer import ScheduledTrainer


logger = logging.get_logger(__name__)


class RecurrentTrainer(ScheduledTrainer):
    """
    Trains a `RecurrentDepthForCausalLM` on encoded chains, each step as `ScheduledTrainer` says.

    Beside what `Trainer` takes:
        args (`RecurrentTrainingArguments`).
        train_dataset, eval_dataset (`datasets.Dataset`): rows with `input_ids` and what the collator wants, all of
            them held in memory.
        data_collator: a `ChainCollator` or one like it, which must give `input_ids` and `shift_labels`.
        callbacks: a `CurriculumCallback` among them makes it a curriculum.

    Raises:
        ValueError: data, model or arguments that do not fit together.
        LaunchError: accelerate set up something else than what was asked for.
    """

    arguments_class = RecurrentTrainingArguments
    usual_collator = "for chains ChainCollator(pad_token_id, args.supervision)"

    def __init__(self, model=None, args: RecurrentTrainingArguments | None = None, **kwargs):
        super().__init__(model, args, **kwargs)
        # The model divides by num_items_in_batch.
        self.model_accepts_loss_kwargs = True
        self._stage_of_step: int | None = None
        self._metric = None

    @property
    def curriculum(self) -> CurriculumCallback | None:
        """The curriculum among the callbacks."""
        found = [callback for callback in self.callback_handler.callbacks if isinstance(callback, CurriculumCallback)]
        return found[0] if found else None

    @property
    def is_finished(self) -> bool:
        """Whether no step is left: all are done, all stages are passed, or one was given up."""
        return super().is_finished or (
            self.curriculum is not None and self.curriculum.is_finished(self.state.global_step)
        )

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """
        As `ResumableTrainer.train`.

        Raises:
            StageNotLearnedError: a stage was not passed within `max_steps_per_stage`. Its last step has been saved.
        """
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.curriculum is not None and self.curriculum.failed:
            raise StageNotLearnedError(self.curriculum.failure(self.state.global_step))
        return output

    # ---- What makes up a run ----

    def run_fingerprint(self) -> dict:
        return super().run_fingerprint() | curriculum_fingerprint(self)

    def begin_anew(self):
        self.clear_gate_counts()
        if self.curriculum is not None:
            self.curriculum.reset()

    def before_checkpoint(self):
        if self.curriculum is not None:
            self.curriculum.seen_right, self.curriculum.seen_rows = self.meter.gate_counts()

    def _load_callback_state(self):
        super()._load_callback_state()
        if self.curriculum is not None:
            # They are sums over all ranks: one of them goes on with them.
            main = self.args.process_index == 0
            self.meter.set_gate_counts(*((self.curriculum.seen_right, self.curriculum.seen_rows) if main else (0, 0)))

    # ---- Data and steps ----

    def _prepare_data(self):
        super()._prepare_data()
        if self.train_rows is not None and self.curriculum is not None:
            if self.args.max_steps <= 0:
                raise ValueError("A curriculum needs max_steps: the most steps that all of its stages may take.")
            self.curriculum.attach(self, self.train_rows.groups)

    def position(self) -> Position:
        """Where training is."""
        return super().position() if self.curriculum is None else self.curriculum.position(self.state.global_step)

    def passes_over_data(self) -> float:
        """Passes over the data so far, those over each stage's rows added up."""
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

    # ---- Optimiser and schedule ----

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """As the parent's, over the steps since the optimiser was last started anew."""
        start = 0 if self.curriculum is None else self.curriculum.schedule_start
        return super().create_scheduler(max(num_training_steps - start, 1), optimizer)

    def restart_optimizer(self):
        """Forgets the optimiser's moments and begins the learning-rate schedule, with its warm-up, anew."""
        optimizer = self.optimizer.optimizer if isinstance(self.optimizer, AcceleratedOptimizer) else self.optimizer
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        self.lr_scheduler = None
        self.create_scheduler(self.state.max_steps)
        self.callback_handler.lr_scheduler = self.lr_scheduler

    # ---- Gate of the curriculum ----

    def clear_gate_counts(self):
        self.meter.set_gate_counts(0, 0)

    def log_aside(self, logs: dict[str, float]):
        """Logs without cancelling a log that is due at the same step."""
        should_log = self.control.should_log
        self.log(logs)
        self.control.should_log = should_log

    # ---- Logs and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.curriculum is not None:
            # That of the steps which are logged: the curriculum may have moved on at the last of them.
            logs = logs | {"stage": self._stage_of_step}
        super().log(logs, start_time)

    def predict_answers(self, dataset: Dataset, **forward_kwargs) -> AnswerPredictions:
        """
        The model's answers to `dataset`, computed by all ranks together, every row once.

        Args:
            forward_kwargs: passed to the model; `eval_num_recurrences` fills in `num_recurrences`.
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
                # Sharded layers are gathered at every call: all ranks must make the same calls.
                distributed=not self.is_fsdp_enabled,
                **forward_kwargs,
            )

    def answer_accuracy(self, dataset: Dataset) -> float:
        """The share of right answers, in 0..1."""
        return self.predict_answers(dataset).accuracy

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Accuracy of the answers, overall and by group, and the mean number of recurrences they took.

        Args:
            eval_dataset: rows, or a dict of such data sets; the trainer's if not given.
            ignore_keys: not used.
            metric_key_prefix: what the names of the metrics begin with.

        Returns:
            `{prefix}_accuracy`, `{prefix}_accuracy_{group}`, `{prefix}_num_recurrences`, `{prefix}_runtime`, samples
            and tokens a second.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            metrics = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if dataset is None:
            raise ValueError("Trainer: evaluation requires an eval_dataset.")
        answers = self.predict_answers(dataset)
        if self._metric is None:
            self._metric = evaluate.load(metric_path("grouped_accuracy"), keep_in_memory=True)
        results = self._metric.compute(
            predictions=answers.predictions, references=answers.references, groups=[str(g) for g in answers.groups]
        )
        metrics = {f"{metric_key_prefix}_accuracy": results["accuracy"]}
        for group, accuracy in results["accuracy_by_group"].items():
            metrics[f"{metric_key_prefix}_accuracy_{group}"] = accuracy
        metrics[f"{metric_key_prefix}_num_recurrences"] = float(np.mean(answers.num_recurrences))
        tokens = int(TokenRows(dataset, self.args.group_column).lengths.sum())
        seconds = max(answers.seconds, 1e-9)
        metrics |= {
            f"{metric_key_prefix}_runtime": round(answers.seconds, 4),
            f"{metric_key_prefix}_samples_per_second": round(len(answers) / seconds, 3),
            f"{metric_key_prefix}_tokens_per_second": round(tokens / seconds, 3),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
