"""`FinetuneTrainer`: trains any causal language model to write solutions in steps, and evaluates what it writes."""

import inspect
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from transformers import StoppingCriteria, StoppingCriteriaList, TrainerCallback, TrainerControl
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, TrainOutput
from transformers.utils import logging

from memreason_hf.adapters.model import rows_in_place
from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.evaluation.solutions.answers import check_answers
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.training.runs.interruption import InterruptWatch
from memreason_hf.training.scheduled.trainer import ScheduledTrainer
from memreason_hf.training.solutions.arguments import FinetuneArguments
from memreason_hf.training.solutions.packing import (
    PackedStepCollator,
    PackingReport,
    check_packing,
    check_single_texts,
    pack_solutions,
)


logger = logging.get_logger(__name__)


class FinetuneTrainer(ScheduledTrainer):
    """
    Trains a causal language model of any family on the rows of `encode_solutions`. `ScheduledTrainer` describes a
    training step.

    The loss is the mean over all labels of a training step, however it is cut into micro-batches and ranks. An
    evaluation solves the first `num_test` questions of `eval_dataset` greedily and judges the answers, with prompts of
    the format that was recorded in the tokenizer (`record_prompt_format`). On one process
    Ctrl-C ends an evaluation at once: the checkpoint is saved without it, and resuming the run begins with it.

    Args:
        model ([`~transformers.PreTrainedModel`]): The extended model, or an `AdapterModel` around it.
        args ([`FinetuneArguments`]): The arguments.
        demonstrations (`Callable`, *optional*): As for `generate_solutions`.
        answer_rule (`str`, *optional*, defaults to `"published"`): How answers are read, see `extract_answer`.
        kwargs:
            As for `ScheduledTrainer`. `train_dataset` has the rows of `encode_solutions`, which are packed here if
            `args.packing_length` is given. `eval_dataset` has rows with `question`, `options` and `answer`, as
            `load_questions` returns them. `processing_class` is the
            extended tokenizer.

    Raises:
        ValueError: data, model or arguments that do not fit together.
        LaunchError: accelerate set up something other than what was requested.

    Example:

    ```python
    >>> from memreason_hf.training import FinetuneArguments, FinetuneTrainer, StepCollator, encode_solutions

    >>> rows, report = encode_solutions(tokenizer, dataset["train"])
    >>> trainer = FinetuneTrainer(
    ...     model=model,
    ...     args=FinetuneArguments(output_dir="run", num_train_epochs=3),
    ...     train_dataset=rows,
    ...     eval_dataset=dataset["test"],
    ...     data_collator=StepCollator(tokenizer),
    ...     processing_class=tokenizer,
    ... )
    >>> trainer.train()
    ```
    """

    arguments_class = FinetuneArguments
    usual_collator = "StepCollator(tokenizer)"

    def __init__(
        self,
        model=None,
        args: FinetuneArguments | None = None,
        *,
        demonstrations: Callable[[str], Sequence[tuple[str, Sequence]]] | None = None,
        answer_rule: str = "published",
        **kwargs,
    ):
        self.demonstrations = demonstrations
        self.answer_rule = answer_rule
        self.packing: PackingReport | None = None
        if getattr(args, "packing_length", None) is not None and kwargs.get("train_dataset") is not None:
            check_single_texts(model)
            kwargs["train_dataset"], self.packing = pack_solutions(kwargs["train_dataset"], args.packing_length)
            kwargs["data_collator"] = PackedStepCollator(kwargs["processing_class"], args.packing_length)
        super().__init__(model, args, **kwargs)
        if self.eval_dataset is not None:
            # Before training, not in the first evaluation.
            check_answers(self._test_rows(self.eval_dataset))
        # A recurrent-depth model computes the loss at its recurrences itself. Other models only return logits, because
        # not all of them divide by the labels of the whole training step.
        self.model_accepts_loss_kwargs = self.is_recurrent
        self.compute_loss_func = None if self.is_recurrent else solution_loss
        self._chooses_logits = "logits_to_keep" in inspect.signature(self._base_model().forward).parameters
        if self.schedule is not None:
            self._count_epochs_in_steps()
        self.add_callback(_EvaluationCallback(self))

    def check_before_claim(self):
        """
        Checks what the parent checks and, with `packing_length`, that packed solutions do not see each other.

        Raises:
            ArgumentsError: they do.
        """
        super().check_before_claim()
        if self.packing is not None:
            with self.accelerator.autocast():
                check_packing(self.model, self.args.train_batch_size)

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """
        Trains as `ResumableTrainer.train` does.

        Warns before it begins if the warm-up is longer than the run. After Ctrl-C in an evaluation it saves the
        checkpoint and returns with `interrupted` set.
        """
        warning = warmup_warning(self.args.get_warmup_steps(self.planned_steps), self.planned_steps)
        if warning and self.is_world_process_zero():
            logger.warning(warning)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _train(self, resume, ignore_keys_for_eval):
        try:
            return super()._train(resume, ignore_keys_for_eval)
        except EvaluationInterruptedError:
            return self._stop_in_evaluation()

    def _stop_in_evaluation(self):
        # False while a resumed checkpoint is evaluated, which is saved already. In a saved control, True tells the
        # resumed run that the evaluation is missing.
        if self.control.should_evaluate and self.args.save_strategy != SaveStrategy.NO:
            self._save_checkpoint(self.model, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        self._note_interruption(self.watch.requested)
        self.is_in_train = False
        return TrainOutput(self.state.global_step, self.mean_loss() or 0.0, {})

    # ---- Training steps and epochs ----

    @property
    def steps_per_epoch(self) -> int:
        """The training steps in which every row is seen. Rows of the next epoch fill up the last batch."""
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

    # ---- Evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Solves test questions, which the ranks share, and logs the share of right answers.

        Args:
            eval_dataset (*optional*): Rows as for the trainer. Default: the trainer's `eval_dataset`.
            ignore_keys: Not used.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`): What the names of the metrics begin with.

        Returns:
            `{prefix}_acc`, `{prefix}_invalid` (texts without a valid answer) and `{prefix}_cut` (texts that reached
            `max_new_tokens`), all in 0..1; `{prefix}_num_test`, `{prefix}_runtime` in seconds and
            `{prefix}_tokens_per_second`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("Trainer: evaluation requires an eval_dataset.")
        rows = self._test_rows(dataset)
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

    def evaluate_checkpoint(self):
        """Evaluates the checkpoint that the run resumed from, because Ctrl-C ended its evaluation."""
        metrics = self._evaluate(None, None)
        self._determine_best_metric(metrics, None)
        self._save_checkpoint(self.model, None)

    def _test_rows(self, dataset):
        """The rows whose questions an evaluation solves."""
        return [dataset[index] for index in range(min(self.args.num_test, len(dataset)))]

    def _solve(self, rows):
        # Sharded layers are gathered at every call, so all ranks must make the same calls.
        shared = self.args.world_size > 1 and not self.is_fsdp_enabled
        own = rows[self.args.process_index :: self.args.world_size] if shared else rows
        arguments = {}
        if self.args.eval_num_recurrences is not None:
            arguments["num_recurrences"] = self.args.eval_num_recurrences
        if self.is_in_train and self.args.world_size == 1:
            # Several ranks would have to stop at the same token.
            arguments["stopping_criteria"] = StoppingCriteriaList([_InterruptCriterion(self.watch)])
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
                    answer_rule=self.answer_rule,
                    progress=not self.args.disable_tqdm and self.is_world_process_zero(),
                    **arguments,
                )
        return gather_object(solutions) if shared else solutions


def solution_loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
    """
    The share of a micro-batch in the mean cross-entropy of a training step.

    Args:
        outputs: With `logits` of shape `(batch, positions, vocabulary)`.
        labels (`torch.LongTensor` of shape `(batch, positions)`): The label of each position, -100 for none.
        num_items_in_batch (`torch.Tensor` or `int`): The labels of the whole training step.

    Returns:
        The sum over the labels divided by `num_items_in_batch`, a 0-d float32 tensor.
    """
    # Virtual prompt tokens have logits in front.
    logits = outputs["logits"][:, -labels.shape[1] :].float().flatten(0, 1)
    loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")
    return loss / num_items_in_batch


def warmup_warning(warmup_steps: int, num_steps: int) -> str | None:
    """The warning about a warm-up that is longer than the run, or `None`."""
    if warmup_steps <= num_steps or num_steps <= 0:
        return None
    return (
        f"The warm-up of {warmup_steps:,} steps is longer than the run of {num_steps:,}: the learning rate only "
        f"rises, up to {num_steps / warmup_steps:.0%} of learning_rate."
    )


class EvaluationInterruptedError(Exception):
    """Ctrl-C arrived while test questions were being solved."""


class _InterruptCriterion(StoppingCriteria):
    """Raises at the first token after Ctrl-C."""

    def __init__(self, watch: InterruptWatch):
        self.watch = watch

    def __call__(self, input_ids, scores, **kwargs):
        if self.watch.requested:
            raise EvaluationInterruptedError
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _EvaluationCallback(TrainerCallback):
    """Evaluates a resumed checkpoint whose evaluation was interrupted, and the steps after the last whole epoch."""

    def __init__(self, trainer: FinetuneTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(TrainerControl.__name__, {}).get("args", {})
        if saved.get("should_evaluate"):
            self.trainer.evaluate_checkpoint()
        return control

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.eval_strategy != IntervalStrategy.NO:
            control.should_evaluate = True
        return control
