"""A resumable Trainer in which everything about a training step follows from its number: rows, depth, dropout."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from transformers import TrainerCallback

from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.training.runs.errors import ArgumentsError
from memreason_hf.training.runs.fingerprint import plain_value, run_fingerprint
from memreason_hf.training.runs.launch import check_launch
from memreason_hf.training.runs.trainer import ResumableTrainer
from memreason_hf.training.scheduled.arguments import ScheduledTrainingArguments
from memreason_hf.training.scheduled.batches import ROW_INFO, BatchSchedule, Position, RowInfo, TokenRows, TrainBatches
from memreason_hf.training.scheduled.depth import DepthSchedule
from memreason_hf.training.scheduled.exit_losses import EXIT_LOSS, ExitLoss
from memreason_hf.training.scheduled.losses import LossWeights, StepLoss, recurrence_loss_weights
from memreason_hf.training.scheduled.meter import TrainingMeter
from memreason_hf.training.scheduled.optimization import (
    check_optimizer_arguments,
    check_schedule,
    check_schedule_arguments,
)
from memreason_hf.training.scheduled.source import FrozenSource
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthModel
from modeling_recurrent.gradients_recurrent import recurrence_parameters


class ScheduledTrainer(ResumableTrainer):
    """
    The part of `RecurrentTrainer` and `FinetuneTrainer` that makes up a training step.

    A step follows from its number: the rows from (seed, step, stage history), the depth of a recurrent-depth model
    from (seed, step), dropout from (seed, step, rank, micro-batch). A run that was killed and resumed ends with the
    weights of an undisturbed one, bit for bit. On several ranks the gradients are those of one process with the same
    global batch.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model, or an `AdapterModel` around it.
        args (`ScheduledTrainingArguments`): Of the class `arguments_class`.
        origin (`Mapping`, *optional*):
            What decides the weights of the run in addition to the arguments, the data and the config, flat and
            JSON-like: for example the path of the model that training starts from.
        kwargs:
            As for [`~transformers.Trainer`]. `train_dataset` (`datasets.Dataset`) has rows with `input_ids` and what
            the collator needs, all of them held in memory. `data_collator` must return `input_ids` and
            `shift_labels`, the label at a position being compared with the logits at that position.

    Raises:
        ValueError: data, model or arguments that do not fit together.
        LaunchError: accelerate set up something other than what was requested.
    """

    arguments_class: ClassVar[type] = ScheduledTrainingArguments
    # What the message about a missing collator suggests.
    usual_collator: ClassVar[str] = "a collator"

    def __init__(
        self,
        model=None,
        args: ScheduledTrainingArguments | None = None,
        *,
        origin: Mapping | None = None,
        **kwargs,
    ):
        if isinstance(model, str):
            raise TypeError(f"model={model!r} must be a model, not its name. Load it first (AutoModelForCausalLM).")
        if not isinstance(args, self.arguments_class):
            raise ValueError(f"args must be {self.arguments_class.__name__}, got {type(args).__name__}.")
        if kwargs.get("data_collator") is None:
            raise ValueError(f"data_collator is not given: use {self.usual_collator}.")
        self.origin = dict(origin or {})
        config = getattr(model, "config", None)
        self.is_recurrent = isinstance(config, RecurrentDepthConfig)
        if not self.is_recurrent:
            _refuse_recurrent_only(args, model)
        elif args.recurrence_loss == EXIT_LOSS:
            _check_exit_gate(config)
        if args.ddp_find_unused_parameters is None and self.is_recurrent:
            args.ddp_find_unused_parameters = may_leave_out_parameters(config, args)
        config_use_cache = getattr(config, "use_cache", None)
        super().__init__(model=model, args=args, **kwargs)
        check_launch(args, self.accelerator)
        if config_use_cache is not None:
            # The parent writes `args.use_cache` into a config that is saved. Training passes use_cache=False instead.
            self.model.config.use_cache = config_use_cache
        self.meter = TrainingMeter(args.device, lambda tensor: self.accelerator.reduce(tensor, "sum"))
        self.tokens_of_step = 0
        self._micro_batch = 0
        self._num_items: torch.Tensor | int | None = None
        # Before training changes the model.
        self.source = self._open_source()
        self._check_recurrence_parameters()
        if self.is_recurrent:
            # Its length follows later, but a start that is too deep is refused here.
            DepthSchedule(self.model.config, args.seed, args.recurrence_growth, 1, args.recurrence_growth_start)
        self._prepare_data()
        self.add_callback(_MeterCallback(self))

    def run_fingerprint(self) -> dict:
        self._check_train_dataset()
        fingerprint = run_fingerprint(self) | self.origin
        if self.is_recurrent and self.args.recurrence_growth != "none":
            fingerprint["training.growth_steps"] = self.depth_schedule.growth_steps
        if self.source is not None:
            fingerprint["training.keep_source"] = self.source.fingerprint()
        return fingerprint

    def _open_source(self) -> FrozenSource | None:
        if not (self.is_recurrent and self.args.keep_weight):
            return None
        if self.args.keep_model is None:
            return FrozenSource.copy_of(self.model)
        return FrozenSource.load(self.args.keep_model, self.model)

    # ---- Data ----

    def _prepare_data(self):
        self.train_rows, self.schedule = None, None
        if self.train_dataset is None:
            return
        self.train_rows = TokenRows(self.train_dataset, getattr(self.args, "group_column", None))
        vocab_size = self.model.config.get_text_config().vocab_size
        if self.train_rows.largest_id >= vocab_size:
            raise ValueError(
                f"The vocabulary does not match: the training data contain the token id {self.train_rows.largest_id}, "
                f"but the model's vocab_size is {vocab_size}. Encode the data with the model's tokenizer."
            )
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.schedule = BatchSchedule(
            self.train_rows.lengths,
            self.train_rows.groups,
            batch_size,
            self.args.length_pool,
            seed,
        )

    def _check_train_dataset(self):
        if self.train_rows is None:
            raise ValueError("Trainer: training requires a train_dataset.")

    def position(self) -> Position:
        """Where training is."""
        return Position(0, None, self.state.global_step)

    def get_train_dataloader(self) -> TrainBatches:
        """
        The micro-batches of this rank.

        accelerate does not prepare them: it would fetch one batch ahead, which would still belong to the old stage.
        """
        self._check_train_dataset()
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

    # ---- The length of a run ----

    @property
    def steps_per_epoch(self) -> float:
        """The training steps of a pass over the data."""
        return len(self.train_rows) / self.schedule.batch_size

    @property
    def planned_steps(self) -> int:
        """The training steps of the whole run."""
        self._check_train_dataset()
        if self.args.max_steps > 0:
            return self.args.max_steps
        return int(np.ceil(self.args.num_train_epochs * self.steps_per_epoch))

    def is_finished(self, global_step: int) -> bool:
        return global_step >= self.planned_steps

    def set_initial_training_values(self, args, dataloader):
        """
        The seven numbers that the parent plans a run by.

        All training steps form one epoch, whatever the number of passes over the data, because `TrainBatches` is
        endless. A finished run that is resumed has no epoch.
        """
        batch_size, max_steps = self.schedule.batch_size, self.planned_steps
        epochs = 0 if self.resumes_finished_run else 1
        micro_batches = max_steps * args.gradient_accumulation_steps
        return epochs, max_steps, len(self.train_rows), max_steps * batch_size, batch_size, micro_batches, max_steps

    def passes_over_data(self) -> float:
        return self.state.global_step / self.steps_per_epoch

    # ---- What later recurrences add ----

    def recurrence_parameters(self, model=None) -> list[torch.nn.Parameter]:
        """The parameters that the first recurrence does not use: none for a model without recurrences."""
        modules = self.accelerator.unwrap_model(self.model if model is None else model).modules()
        decoder = next((module for module in modules if isinstance(module, RecurrentDepthModel)), None)
        return [] if decoder is None else [parameter for _, parameter in recurrence_parameters(decoder)]

    def _check_recurrence_parameters(self):
        own = self.recurrence_parameters()
        if self.args.recurrence_learning_rate is not None and not any(p.requires_grad for p in own):
            raise ValueError(
                f"recurrence_learning_rate={self.args.recurrence_learning_rate} has no effect: no parameter in "
                "training belongs to the recurrences after the first. Leave it out, or choose a model with an "
                "injection, a state norm or recurrence_lora_rank."
            )
        if not (self.is_recurrent and self.model.config.recurrence_gradients == "separate"):
            return
        # transformers renamed the argument.
        names = ("activation_checkpointing", "gradient_checkpointing")
        if any(getattr(self.args, name, False) for name in names):
            raise ValueError(
                "recurrence_gradients='separate' cannot be combined with activation_checkpointing=True, which runs "
                "layers again when all weights learn. Leave activation_checkpointing out."
            )
        named, weights = {id(parameter) for parameter in own}, self.loss_weights
        learns = any(p.requires_grad and id(p) not in named for p in self.model.parameters())
        if learns and weights.main == "last" and not (weights.first or weights.keep):
            raise ValueError(
                "recurrence_gradients='separate' trains the shared weights by the losses after the first recurrence "
                "alone, but the run has none. Set first_weight=1, or freeze the shared weights."
            )

    def create_optimizer(self, model=None):
        """Creates the parent's optimizer; with `recurrence_learning_rate`, in groups of their own for that rate."""
        if self.optimizer is not None or self.args.recurrence_learning_rate is None:
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        own = {id(parameter) for parameter in self.recurrence_parameters(model)}
        for group in list(optimizer.param_groups):
            moved = [parameter for parameter in group["params"] if id(parameter) in own]
            if not moved:
                continue
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
            settings = {name: value for name, value in group.items() if name != "params"}
            optimizer.add_param_group({**settings, "params": moved, "lr": self.args.recurrence_learning_rate})
        return optimizer

    def check_before_claim(self):
        """
        Makes the optimizer and the learning-rate schedule once, and drops them.

        Raises:
            ArgumentsError: they cannot be made from the training arguments.
        """
        self._check_train_dataset()
        args = self.args
        made_here = self.optimizer is None
        try:
            if made_here:
                self.create_optimizer()
                check_optimizer_arguments(args, self.model)
        except Exception as error:  # each optimizer has its own
            raise ArgumentsError(
                f"No optimizer can be made from optim={plain_value(args.optim, 'optim')!r}, "
                f"optim_args={args.optim_args!r} and learning_rate={args.learning_rate}: {error}"
            ) from error
        finally:
            if made_here:
                self.optimizer = None
        if self.lr_scheduler is not None:
            return
        stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=max(args.learning_rate, 1e-9))
        try:
            check_schedule_arguments(args)
            check_schedule(self.create_scheduler(self.planned_steps, stand_in), self.planned_steps)
        except Exception as error:  # each schedule has its own
            raise ArgumentsError(
                f"lr_scheduler_type={plain_value(args.lr_scheduler_type, 'lr_scheduler_type')!r} cannot be made with "
                f"lr_scheduler_kwargs={args.lr_scheduler_kwargs!r}: {error}"
            ) from error
        finally:
            self.lr_scheduler = None

    def _clip_grad_norm(self, model):
        """
        Clips as the parent does. With `recurrence_gradients="separate"` each of the two parts of the parameters is
        clipped by its own norm: otherwise later recurrences would change the steps of the first.
        """
        if not self.is_recurrent or self.model.config.recurrence_gradients == "shared":
            return super()._clip_grad_norm(model)
        own = self.recurrence_parameters(model)
        named = {id(parameter) for parameter in own}
        shared = [parameter for parameter in model.parameters() if id(parameter) not in named]
        self.accelerator.unscale_gradients()
        norms = [torch.nn.utils.clip_grad_norm_(part, self.args.max_grad_norm) for part in (shared, own)]
        return torch.linalg.vector_norm(torch.stack(norms))

    # ---- A training step ----

    @cached_property
    def depth_schedule(self) -> DepthSchedule:
        """The depth of every training step of a recurrent-depth model."""
        args, growth_steps = self.args, 0
        if args.recurrence_growth != "none":
            growth_steps = max(round(args.recurrence_growth_ratio * self.planned_steps), 1)
        return DepthSchedule(
            self.model.config, args.seed, args.recurrence_growth, growth_steps, args.recurrence_growth_start
        )

    @cached_property
    def loss_weights(self) -> LossWeights:
        """The weights of the terms of the loss of a recurrent-depth model."""
        args, config = self.args, self.model.config
        return LossWeights(
            main=args.recurrence_loss or config.recurrence_loss,
            decay=args.recurrence_loss_decay or config.recurrence_loss_decay,
            first=args.first_weight,
            keep=args.keep_weight,
            consistency=args.consistency_weight,
            consistency_recurrences=args.consistency_recurrences,
        )

    def step_recurrences(self) -> int:
        """
        The number of recurrences that is drawn for the next training step, the same for every rank and micro-batch.
        """
        return self.depth_schedule.num_recurrences(self.state.global_step)

    def depth_arguments(self) -> dict:
        """The arguments of a recurrent-depth model in the next training step, in addition to the batch."""
        drawn, weights = self.step_recurrences(), self.loss_weights
        arguments = {"num_recurrences": weights.depth(drawn), "recurrence_loss": "last"}
        if not weights.has_extra_terms and weights.main not in ("last", EXIT_LOSS):
            shares = recurrence_loss_weights(weights.main, drawn, weights.decay)
            arguments["recurrence_loss_weights"] = shares.to(self.args.device)
        if self.model.config.state_init == "normal":
            # Without it every rank and micro-batch would start from noise of its own.
            arguments["state_seed"] = self.args.seed + self.state.global_step
        return arguments

    def dropout_seed(self) -> int:
        """The seed of dropout in the next micro-batch: the same whenever this micro-batch is computed."""
        entropy = [self.args.seed % 2**63, self.state.global_step, self.args.process_index, self._micro_batch]
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self.meter.start_step(self.step_recurrences() if self.is_recurrent else None)
        self._micro_batch = 0
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, self.count_labels(batches, device)

    def count_labels(self, batches: Sequence[dict], device: torch.device) -> torch.Tensor:
        """
        The labels of a training step, by which its loss is divided.

        Args:
            batches (`Sequence[dict]`): The micro-batches of this rank.
            device (`torch.device`): Where the count is needed.

        Returns:
            A 0-d tensor: the labels of all micro-batches, with `average_tokens_across_devices` over all ranks.
        """
        count = sum(batch["shift_labels"].ne(IGNORED_LABEL).sum() for batch in batches).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.reduce(count, "sum")
        return count

    def training_step(self, model, inputs, num_items_in_batch=None):
        _seed(self.dropout_seed())
        self._micro_batch += 1
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a micro-batch; in training at the depth of the training step."""
        inputs = dict(inputs)
        info: RowInfo | None = inputs.pop(ROW_INFO, None)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["shift_labels"]
        self._num_items = num_items_in_batch
        arguments = self.model_inputs(inputs)
        loss, outputs = super().compute_loss(model, arguments, True, num_items_in_batch)
        if isinstance(arguments.get("recurrence_loss"), StepLoss | ExitLoss):
            self._note_terms(arguments["recurrence_loss"].terms)
        if info is not None:
            self.tokens_of_step = info.tokens_of_step
            self.look_at_outputs(outputs, labels, info)
        return (loss, outputs) if return_outputs else loss

    def model_inputs(self, batch: dict) -> dict:
        """The model's arguments for a micro-batch of the next training step."""
        arguments = batch | self.depth_arguments() | {"labelled_logits_only": True, "use_cache": False}
        if self.loss_weights.main == EXIT_LOSS:
            arguments["recurrence_loss"] = self._exit_loss(arguments["shift_labels"])
        elif self.loss_weights.has_extra_terms:
            arguments["recurrence_loss"] = self._step_loss(arguments)
        return arguments

    def _exit_loss(self, labels: torch.Tensor) -> ExitLoss:
        args, labels = self.args, labels[labels != IGNORED_LABEL]
        given = {"prior": args.exit_prior, "stop": args.exit_prior_stop, "weight": args.exit_prior_weight}
        return ExitLoss(
            labels,
            self.step_recurrences(),
            len(labels) if self._num_items is None else self._num_items,
            **{name: value for name, value in given.items() if value is not None},
        )

    def _step_loss(self, arguments: dict) -> StepLoss:
        source_logits = None
        if self.source is not None:
            with self.accelerator.autocast():
                source_logits = self.source.logits(arguments)
        num_items = self._num_items
        if num_items is None:
            num_items = arguments["shift_labels"].ne(IGNORED_LABEL).sum()
        return StepLoss(self.loss_weights, self.step_recurrences(), num_items, source_logits)

    def _note_terms(self, terms: dict[str, torch.Tensor]):
        # Without `average_tokens_across_devices` a rank divides by its own labels, and DDP averages over ranks.
        ranks = 1 if self.args.average_tokens_across_devices else self.args.world_size
        self.meter.add_terms({name: term / ranks for name, term in terms.items()})

    def look_at_outputs(self, outputs, labels: torch.Tensor, info: RowInfo):
        """Called after every micro-batch. A subclass may count what was learned."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | self.meter.take()
            if self.is_recurrent and self.args.recurrence_growth != "none":
                # Of the last of the logged steps.
                logs["mean_recurrences"] = self.depth_schedule.mean(max(self.state.global_step - 1, 0))
        super().log(logs, start_time)


def _seed(seed: int) -> None:
    """`torch.manual_seed`. Without an accelerator it would format the stack for each kind of device: 0.3 ms a step."""
    torch.default_generator.manual_seed(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)


def _refuse_recurrent_only(args: ScheduledTrainingArguments, model) -> None:
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    fields = type(args).__dataclass_fields__
    for name in args.recurrent_only:
        if getattr(args, name) != fields[name].default:
            raise ValueError(
                f"{name}={getattr(args, name)!r} is for recurrent-depth models, but the model is a "
                f"{type(model).__name__}. Leave it out."
            )


def _check_exit_gate(config: RecurrentDepthConfig) -> None:
    if not config.exit_gate:
        raise ValueError(
            f"recurrence_loss={EXIT_LOSS!r} trains a gate, which the model does not have (exit_gate=False in its "
            "config). Set exit_gate=True for a new model, or call memreason_hf.models.exit_gates.add_exit_gate."
        )
    if config.recurrence_gradients == "separate":
        raise ValueError(
            f"recurrence_loss={EXIT_LOSS!r} and recurrence_gradients='separate': a gate learns from all recurrences. "
            "Set recurrence_gradients='shared'."
        )


def may_leave_out_parameters(config: RecurrentDepthConfig, args: ScheduledTrainingArguments | None = None) -> bool:
    """
    Whether a training step may use only some of the parameters. DDP must search for the others then, which costs time.
    """
    grows = args is not None and args.recurrence_growth != "none"
    least = config.recurrence_min or 1
    if config.recurrence_sampling == "fixed" and not grows:
        least = max(least, min(config.num_recurrences, config.recurrence_max or config.num_recurrences))
    if args is not None and args.consistency_weight:
        least += args.consistency_recurrences
    # A step of one recurrence uses nothing that stands between recurrences. Each of the next ones may have low-rank
    # updates of its own.
    between = config.state_norm != "none" or config.input_injection in ("concat", "gate")
    needed = 1 + config.recurrence_lora_count if config.recurrence_lora_rank else 1 + between
    # A gate is used by its own loss alone.
    idle_gate = config.exit_gate and args is not None and args.recurrence_loss != EXIT_LOSS
    return config.backprop_recurrences is not None or least < needed or idle_gate


class _MeterCallback(TrainerCallback):
    """Stops the time of a training step before anything is evaluated or saved."""

    def __init__(self, trainer: ScheduledTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.meter.end_step(self.trainer.tokens_of_step)
