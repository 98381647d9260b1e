"""`RecurrentTrainer`: the library's Trainer for models whose depth is drawn anew for every step."""

import evaluate
import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from transformers import TrainerCallback
from transformers.utils import logging

from memreason_hf.evaluation.predictions import AnswerPredictions, predict_answers
from memreason_hf.metrics import metric_path
from memreason_hf.training.arguments import RecurrentTrainingArguments
from memreason_hf.training.batches import ROW_INFO, BatchSchedule, Position, RowInfo, TokenRows, TrainBatches
from memreason_hf.training.curriculum import CurriculumCallback
from memreason_hf.training.errors import StageNotLearnedError
from memreason_hf.training.fingerprint import run_fingerprint
from memreason_hf.training.launch import check_launch
from memreason_hf.training.losses import recurrence_loss_weights
from memreason_hf.training.meter import TrainingMeter, answers_right
from memreason_hf.training.resumable import ResumableTrainer
from modeling_recurrent.sampling_recurrent import sample_num_recurrences


logger = logging.get_logger(__name__)


def may_leave_out_parameters(config) -> bool:
    """Whether a training step may use only some of the parameters, which DDP must search for then, at a price."""
    least = config.recurrence_min or 1
    if config.recurrence_sampling == "fixed":
        least = max(least, min(config.num_recurrences, config.recurrence_max or config.num_recurrences))
    # What stands between recurrences is left out of a step of one.
    between = config.state_norm != "none" or config.input_injection == "concat"
    return config.backprop_recurrences is not None or (between and least < 2)


class RecurrentTrainer(ResumableTrainer):
    """
    Trains a `RecurrentDepthForCausalLM` on encoded chains.

    A step follows from its number: the depth from (seed, step), the rows from (seed, step, stage history), dropout
    from (seed, step, rank). A run that was killed and resumed ends with the weights of an undisturbed one, bit for
    bit; on several ranks the gradients are those of one process with the same global batch.

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

    def __init__(self, model=None, args: RecurrentTrainingArguments | None = None, **kwargs):
        if not isinstance(args, RecurrentTrainingArguments):
            raise ValueError(f"args must be RecurrentTrainingArguments, not {type(args).__name__}.")
        if kwargs.get("data_collator") is None:
            raise ValueError("data_collator is needed: for chains ChainCollator(pad_token_id, args.supervision).")
        if args.ddp_find_unused_parameters is None and model is not None:
            args.ddp_find_unused_parameters = may_leave_out_parameters(model.config)
        config_use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        super().__init__(model=model, args=args, **kwargs)
        check_launch(args, self.accelerator)
        if config_use_cache is not None:
            # The parent writes `args.use_cache` into a config that is saved; training passes use_cache=False instead.
            self.model.config.use_cache = config_use_cache
        # The model divides by num_items_in_batch.
        self.model_accepts_loss_kwargs = True
        self.meter = TrainingMeter(args.device, lambda tensor: self.accelerator.reduce(tensor, "sum"))
        self._tokens_of_step = 0
        self._micro_batch = 0
        self._stage_of_step: int | None = None
        self._metric = None
        self._prepare_data()
        self.add_callback(_MeterCallback(self))

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
        return run_fingerprint(self)

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

    # ---- Data ----

    def _prepare_data(self):
        self.train_rows, self.schedule = None, None
        if self.train_dataset is None:
            return
        self.train_rows = TokenRows(self.train_dataset, self.args.group_column)
        vocab_size = self.model.config.vocab_size
        if self.train_rows.largest_id >= vocab_size:
            raise ValueError(
                f"The training data hold the token id {self.train_rows.largest_id}, but the model's vocab_size is "
                f"{vocab_size}: the vocabulary does not match. Encode the data with the model's tokenizer."
            )
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.schedule = BatchSchedule(
            self.train_rows.lengths,
            self.train_rows.groups,
            self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
            self.args.length_pool,
            seed,
        )
        if self.curriculum is not None:
            if self.args.max_steps <= 0:
                raise ValueError("A curriculum needs max_steps: the most steps that all of its stages may take.")
            self.curriculum.attach(self, self.train_rows.groups)

    def position(self) -> Position:
        """Where training is."""
        if self.curriculum is not None:
            return self.curriculum.position(self.state.global_step)
        return Position(0, None, self.state.global_step)

    def get_train_dataloader(self) -> TrainBatches:
        """
        Micro-batches of this rank for the step that is due. Not prepared by accelerate, which would fetch one ahead:
        it would still be of the old stage.
        """
        if self.train_rows is None:
            raise ValueError("Trainer: training requires a train_dataset.")
        return TrainBatches(
            self.train_rows,
            self.schedule,
            self.data_collator,
            self.position,
            per_device_batch_size=self.args.train_batch_size,
            gradient_accumulation_steps=self.args.gradient_accumulation_steps,
            rank=self.args.process_index,
            world_size=self.args.world_size,
        )

    def set_initial_training_values(self, args, dataloader):
        """One "epoch" of all steps, whatever the number of passes over the data: see `TrainBatches`."""
        batch_size = self.schedule.batch_size
        max_steps = args.max_steps
        if max_steps <= 0:
            max_steps = int(np.ceil(args.num_train_epochs * len(self.train_rows) / batch_size))
        micro_batches = max_steps * args.gradient_accumulation_steps
        return 1, max_steps, len(self.train_rows), max_steps * batch_size, batch_size, micro_batches, max_steps

    def passes_over_data(self) -> float:
        """Passes over the data so far, those over each stage's rows added up."""
        if self.curriculum is None:
            return self.state.global_step * self.schedule.batch_size / len(self.train_rows)
        ends = [*self.curriculum.stage_starts[1:], self.state.global_step]
        steps = [end - start for start, end in zip(self.curriculum.stage_starts, ends)]
        sizes = [np.count_nonzero(self.train_rows.groups <= stage) for stage in self.curriculum.stages]
        return sum(count * self.schedule.batch_size / size for count, size in zip(steps, sizes))

    # ---- A step ----

    def step_recurrences(self) -> int:
        """The recurrences of the step that is due, the same on every rank and for every micro-batch."""
        return sample_num_recurrences(self.model.config, self.args.seed, self.state.global_step)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self.meter.start_step(self.step_recurrences())
        self._micro_batch = 0
        self._stage_of_step = self.position().limit
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _get_num_items_in_batch(self, batch_samples, device):
        """Labels of all micro-batches of a step; over all ranks with `average_tokens_across_devices`."""
        count = sum(batch["shift_labels"].ne(-100).sum() for batch in batch_samples).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.reduce(count, "sum")
        return count

    def training_step(self, model, inputs, num_items_in_batch=None):
        # Dropout: the same whenever and wherever this micro-batch of this step is computed.
        entropy = [self.args.seed % 2**63, self.state.global_step, self.args.process_index, self._micro_batch]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        self._micro_batch += 1
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        info: RowInfo | None = inputs.pop(ROW_INFO, None)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        recurrences = self.step_recurrences()
        weights = recurrence_loss_weights(self.args.recurrence_loss, recurrences, self.args.recurrence_loss_decay)
        if weights is not None:
            inputs["recurrence_loss_weights"] = weights.to(self.args.device)
        if self.model.config.state_init == "normal":
            # Left to itself each rank and micro-batch would start from noise of its own.
            inputs["state_seed"] = self.args.seed + self.state.global_step
        inputs |= {"num_recurrences": recurrences, "labelled_logits_only": True, "use_cache": False}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if info is not None:
            self._tokens_of_step = info.tokens_of_step
            self._count_answers(outputs.logits.detach(), inputs["shift_labels"], info)
        return (loss, outputs) if return_outputs else loss

    def _count_answers(self, logits, labels, info):
        of_stage = None
        if self.curriculum is not None and self.curriculum.arguments.gate == "train":
            of_stage = torch.from_numpy(info.groups == self.curriculum.stage)
        self.meter.add_answers(answers_right(logits, labels), of_stage)

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
        if "loss" in logs:
            logs = logs | self.meter.take()
            if self.curriculum is not None:
                # That of the steps which are logged: the curriculum may have moved on at the last of them.
                logs["stage"] = self._stage_of_step
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


class _MeterCallback(TrainerCallback):
    """Ends the measured time of a step before anything is evaluated or saved."""

    def __init__(self, trainer: RecurrentTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.meter.end_step(self.trainer._tokens_of_step)
