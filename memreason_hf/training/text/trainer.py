"""`TextTrainer`: trains a causal language model on packed texts, in memory or from a stream."""

import math
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.data.text.packing import TextCounts
from memreason_hf.data.text.stream import TextStream
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.training.runs.errors import CheckpointError
from memreason_hf.training.scheduled.batches import BatchSchedule, TrainBatches
from memreason_hf.training.scheduled.trainer import ScheduledTrainer
from memreason_hf.training.text.arguments import TextTrainingArguments
from memreason_hf.training.text.batches import StreamBatches, StreamState, TextRows, steps_for_tokens
from memreason_hf.training.text.parts import has_lora, merged_state_dict


# The weights that are trained, in a checkpoint whose model has the low-rank updates merged.
TRAINED_FILE = "trained.safetensors"


class TextTrainer(ScheduledTrainer):
    """
    Trains a language model on rows of `memreason_hf.data.text`. `ScheduledTrainer` describes a training step.

    A run can be stopped and resumed anywhere, also in the middle of a stream, and ends with the weights of an
    undisturbed run, bit for bit. On several ranks the gradients are those of one process with the same global batch
    and, for a stream, the same `num_streams`.

    A model with low-rank updates (`choose_parts`) is saved merged. Its checkpoints hold the updates in addition.

    Args:
        model ([`RecurrentDepthForCausalLM`] or another causal language model): The model.
        args ([`TextTrainingArguments`]): The arguments.
        train_dataset (`datasets.Dataset` or `TextStream`):
            Rows of `encode_texts`, or the stream of this rank, which needs `max_tokens` or `max_steps`.
        eval_dataset (`datasets.Dataset`, *optional*): Held-out rows of `encode_texts`.
        kwargs: As for `ScheduledTrainer`. `data_collator` is a `TextCollator`.

    Raises:
        ValueError: data, model or arguments that do not fit together.
    """

    arguments_class: ClassVar[type] = TextTrainingArguments
    usual_collator: ClassVar[str] = "TextCollator(pad_token_id)"

    def __init__(self, model=None, args: TextTrainingArguments | None = None, train_dataset=None, **kwargs):
        self.stream = train_dataset if isinstance(train_dataset, TextStream) else None
        self._places = StreamState()
        self._budget_steps: int | None = None
        # Of the training step: its tokens on all ranks, and which micro-batches of this rank have no padding.
        self._tokens, self._is_full = 0, []
        super().__init__(model, args, train_dataset=None if self.stream else train_dataset, **kwargs)
        # The model divides its loss by num_items_in_batch.
        self.model_accepts_loss_kwargs = True
        self.has_lora = has_lora(self.model)
        if self.has_lora and (self.args.load_best_model_at_end or self.is_fsdp_enabled):
            raise ValueError(
                "load_best_model_at_end and FSDP are not supported with low-rank updates: checkpoints hold the merged "
                "model. Leave them out, or train the loop."
            )
        if self.stream is not None:
            self.add_callback(self._places)
        self.add_callback(_TokenCallback(self))

    # ---- Data ----

    def _prepare_data(self):
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self.train_rows, self.schedule = None, None
        if self.stream is not None:
            self.train_rows = self.stream
            # Only its size counts: the rows come from the stream.
            self.schedule = BatchSchedule(np.empty(0), None, batch_size, 1, seed)
            self.get_train_dataloader()
            if self.args.max_steps <= 0 and self.args.max_tokens is None:
                raise ValueError(
                    "data.streaming=True: the length of a stream is not known in advance. Set training.max_tokens or "
                    "training.max_steps."
                )
        elif self.train_dataset is not None:
            self.train_rows = TextRows(self.train_dataset, None)
            self._check_vocabulary()
            self.schedule = BatchSchedule(self.train_rows.lengths, None, batch_size, self.args.length_pool, seed)
        self._check_budget(batch_size)

    def _check_vocabulary(self):
        vocab_size = self.model.config.get_text_config().vocab_size
        if self.train_rows.largest_id >= vocab_size:
            raise ValueError(
                f"The vocabulary does not match: the training data contain the token id {self.train_rows.largest_id}, "
                f"but the model's vocab_size is {vocab_size}. Encode the data with the model's tokenizer."
            )

    def _check_budget(self, batch_size):
        if self.args.max_tokens is None or self.train_rows is None:
            return
        rows = self.train_rows
        width = self.stream.sequence_length if self.stream is not None else int(rows.lengths.max())
        if self.args.max_tokens < batch_size * width:
            raise ValueError(
                f"training.max_tokens={self.args.max_tokens:,} is less than one batch: {batch_size:,} rows of "
                f"{width:,} tokens are {batch_size * width:,}. Raise max_tokens, or lower "
                "per_device_train_batch_size, gradient_accumulation_steps or data.sequence_length."
            )

    def get_train_dataloader(self) -> TrainBatches | StreamBatches:
        if self.stream is None:
            return super().get_train_dataloader()
        return StreamBatches(
            self.stream,
            self.data_collator,
            per_device_batch_size=self.args.train_batch_size,
            gradient_accumulation_steps=self.args.gradient_accumulation_steps,
        )

    # ---- The length of a run ----

    @property
    def planned_steps(self) -> int:
        self._check_train_dataset()
        limits = [self.args.max_steps] if self.args.max_steps > 0 else []
        if self.args.max_tokens is not None:
            limits.append(self._steps_of_budget())
        return min(limits) if limits else super().planned_steps

    def _steps_of_budget(self):
        if self._budget_steps is None:
            if self.stream is None:
                steps = steps_for_tokens(self.schedule, self.train_rows.lengths, self.args.max_tokens)
            else:
                steps = math.ceil(self.args.max_tokens / (self.schedule.batch_size * self.stream.sequence_length))
            self._budget_steps = steps
        return self._budget_steps

    def set_initial_training_values(self, args, dataloader):
        if self.stream is None:
            return super().set_initial_training_values(args, dataloader)
        batch_size, max_steps = self.schedule.batch_size, self.planned_steps
        epochs = 0 if self.resumes_finished_run else 1
        rows, micro_batches = max_steps * batch_size, max_steps * args.gradient_accumulation_steps
        return epochs, max_steps, rows, rows, batch_size, micro_batches, max_steps

    def passes_over_data(self) -> float:
        """Passes over the data so far; of a stream, those that its first share has finished."""
        if self.stream is None:
            return super().passes_over_data()
        return float(next(iter(self.stream.shares.values())).epoch)

    # ---- What makes up a run ----

    def run_fingerprint(self) -> dict:
        fingerprint = super().run_fingerprint()
        if "training.max_steps" not in fingerprint:
            # The learning rate does not look ahead, so the length of the run does not count.
            del fingerprint["training.max_tokens"]
        trained = sorted(name for name, parameter in self.model.named_parameters() if parameter.requires_grad)
        return fingerprint | {"model.trained": len(trained), "model.has_lora": self.has_lora}

    def before_first_step(self):
        if self.stream is not None:
            self.stream.reset()

    def before_checkpoint(self):
        if self.stream is not None:
            self._places.places = {
                index: place for places in gather_object([self.stream.state()]) for index, place in places.items()
            }

    def after_restoring(self):
        if self.stream is not None:
            missing = [index for index in self.stream.state() if index not in self._places.places]
            if missing:
                raise CheckpointError(
                    f"The checkpoint lacks the places of the shares {', '.join(missing)} of the stream."
                )
            self.stream.load(self._places.places)

    def end(self):
        if self.stream is not None:
            self.stream.close()
        super().end()

    def describe_stream(self) -> str:
        """
        What became of the documents of the stream so far, on all ranks, in the blocks that were used up. Empty for
        rows in memory.
        """
        if self.stream is None:
            return ""
        total = TextCounts()
        for counts in gather_object([self.stream.counts()]):
            total.add(counts)
        if not total.rows:
            return "The stream was stopped within its first block of documents (data.shuffle_buffer)."
        return f"Of the stream: {total.describe(self.stream.sequence_length, self.stream.too_long)}"

    # ---- A training step ----

    def count_labels(self, batches, device):
        counts = [int(batch["shift_labels"].ne(IGNORED_LABEL).sum()) for batch in batches]
        self._is_full = [count == batch["shift_labels"].numel() for count, batch in zip(counts, batches)]
        own = torch.tensor(sum(counts), device=device)
        if self.args.world_size == 1:
            self._tokens = sum(counts)
            return own
        total = self.accelerator.reduce(own, "sum")
        # Every token has a label.
        self._tokens = int(total)
        return total if self.args.average_tokens_across_devices else own

    def model_inputs(self, batch: dict) -> dict:
        inputs = super().model_inputs(batch)
        # Without padding every token has a label, and choosing them would only copy their states.
        if not self.loss_weights.has_extra_terms:
            inputs["labelled_logits_only"] = not self._is_full[self._micro_batch - 1]
        return inputs

    def look_at_outputs(self, outputs, labels, info):
        self.tokens_of_step = self._tokens

    # ---- Logs ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | {"num_input_tokens_seen": self.state.num_input_tokens_seen}
        super().log(logs, start_time)

    # ---- Evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """
        Computes the loss and the perplexity of held-out rows at one depth: `eval_num_recurrences` of the arguments, or
        `num_recurrences` of the model's config. No halting criterion is used.

        Args:
            eval_dataset (`datasets.Dataset` or `dict`, *optional*):
                Rows of `encode_texts`, or a dict of such datasets. Default: the trainer's `eval_dataset`.
            ignore_keys: Not used.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`): What the names of the metrics begin with.

        Returns:
            `{prefix}_loss` (nats per token), `{prefix}_perplexity`, `{prefix}_num_recurrences`, `{prefix}_runtime` in
            seconds and `{prefix}_tokens_per_second`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            metrics = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if dataset is None:
            raise ValueError("Trainer: evaluation requires an eval_dataset.")
        started, depth = time.perf_counter(), {}
        if self.is_recurrent:
            depth = {"num_recurrences": self.args.eval_num_recurrences or self.model.config.num_recurrences}
        total, tokens = self._loss_of_rows(TextRows(dataset, None), depth)
        seconds = max(time.perf_counter() - started, 1e-9)
        metrics = {"loss": total / tokens, "perplexity": _exp(total / tokens), **depth}
        metrics |= {"runtime": round(seconds, 4), "tokens_per_second": round(tokens / seconds, 1)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _loss_of_rows(self, rows, depth):
        """The sum of the losses of all tokens, and their number, over all ranks."""
        size, rank, ranks = self.args.per_device_eval_batch_size, self.args.process_index, self.args.world_size
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with evaluation_mode(self.model), self.accelerator.autocast():
            for first in range(0, len(rows), size * ranks):
                own = range(first + rank * size, min(first + (rank + 1) * size, len(rows)))
                # Sharded layers are gathered at every call, so all ranks make the same calls.
                batch = self.data_collator([rows[row] for row in own or [first]])
                if not own:
                    batch["shift_labels"].fill_(IGNORED_LABEL)
                batch = {name: value.to(self.args.device) for name, value in batch.items()}
                labels = batch["shift_labels"]
                loss = self.model(**batch, **depth, labels=labels, use_cache=False, num_items_in_batch=1).loss
                sums += torch.stack([loss.double(), labels.ne(IGNORED_LABEL).sum().double()])
        total, tokens = self.accelerator.reduce(sums, "sum").tolist()
        return total, int(tokens)

    # ---- Checkpoints of a model with low-rank updates ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, merged_state_dict(self.model) if self.has_lora else state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.has_lora and self.args.should_save:
            save_file(self._trained_weights(), Path(output_dir) / TRAINED_FILE, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None):
        if not self.has_lora:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / TRAINED_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{resume_from_checkpoint} lacks the file {TRAINED_FILE}: the run had another model.train."
            )
        with torch.no_grad():
            stored = load_file(path, device=str(self.args.device))
            for name, parameter in self._trained_weights().items():
                parameter.copy_(stored[name])

    def _trained_weights(self):
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}


def _exp(loss):
    """The perplexity; infinite where it is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class _TokenCallback(TrainerCallback):
    """Counts the tokens of the run before a checkpoint is saved."""

    def __init__(self, trainer: TextTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        state.num_input_tokens_seen += self.trainer.tokens_of_step
