"""
What decides the weights of a run: two runs with the same fingerprint are the same run.

Everything counts unless it is listed here as having no effect on the weights. A new field of the library or of a
subclass of the arguments therefore counts until it is listed. A run that wrongly counts as another one is refused with
a message; a run that wrongly counts as the same one would be resumed silently with other weights.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path

import torch

from memreason_hf.adapters.model import AdapterModel
from modeling_recurrent.versions_recurrent import VERSION_KEY


# Fields of `TrainingArguments` that change no weights. A subclass lists its own in `not_in_fingerprint`.
UNCOUNTED_ARGUMENTS = (
    # Where a run is kept and how it is started. A run can be moved, and is resumed with other flags.
    "output_dir",
    "resume_from_checkpoint",
    "restore_callback_states_from_checkpoint",
    "do_train",
    "do_eval",
    "do_predict",
    # Logs and reports: they read what training does.
    "logging_strategy",
    "logging_steps",
    "logging_first_step",
    "logging_nan_inf_filter",
    "log_on_each_node",
    "log_level",
    "log_level_replica",
    "include_num_input_tokens_seen",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "skip_memory_metrics",
    "debug",
    # Checkpoints and the Hub: they copy what training does.
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "save_only_model",
    "save_on_each_node",
    "enable_jit_checkpoint",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_private_repo",
    "hub_always_push",
    "hub_revision",
    # How a global batch is laid out over processes, devices and micro-batches: `global_batch_size` counts instead.
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "eval_accumulation_steps",
    "use_cpu",
    "local_rank",
    "parallelism_config",
    "accelerator_config",
    "ddp_backend",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_static_graph",
    "ddp_timeout",
    "fsdp",
    "fsdp_config",
    "deepspeed",
    # Memory against time: the same sums, computed again or by another kernel.
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "torch_compile",
    "torch_compile_backend",
    "torch_compile_mode",
    "torch_empty_cache_steps",
    # How fast rows are read: the collator and the schedule decide what they are.
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    # The precision can also be chosen by the launcher: `mixed_precision` counts, where both choices meet.
    "bf16",
    "fp16",
)
# When a run is evaluated. It counts where the learning rate follows the metrics (`_FOLLOWS_METRICS`).
UNCOUNTED_EVALUATION = ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start")
# How long a run is. It counts unless the learning rate does not look ahead (`_OPEN_ENDED`).
UNCOUNTED_LENGTH = ("max_steps", "num_train_epochs")
_FOLLOWS_METRICS = ("reduce_lr_on_plateau", "greedy")
_OPEN_ENDED = ("constant", "constant_with_warmup", "inverse_sqrt")
# Entries of a model's config that change no weights.
UNCOUNTED_CONFIG = (
    # The library and this package write these when they save or load a model.
    "transformers_version",
    VERSION_KEY,
    "architectures",
    "auto_map",
    "_name_or_path",
    # The dtype of the weights counts instead: the config has it only after saving or loading.
    "dtype",
    # Training always passes `use_cache=False`.
    "use_cache",
    # The Trainer copies these from the tokenizer when training begins. `padding_idx` counts instead.
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def run_fingerprint(trainer) -> dict:
    """
    What decides the weights of a run, flat and JSON-like.

    Args:
        trainer ([`ScheduledTrainer`]): Its model and adapter, training rows and arguments are read.

    Raises:
        TypeError: an argument whose value cannot be written as JSON.
    """
    args, model = trainer.args, trainer.model
    fingerprint = {
        f"model.{name}": plain_value(value, f"model.{name}")
        for name, value in sorted(model.config.to_dict().items())
        if name not in UNCOUNTED_CONFIG
    }
    fingerprint["model.dtype"] = plain_value(model.dtype, "model.dtype")
    fingerprint["model.padding_idx"] = getattr(model.get_input_embeddings(), "padding_idx", None)
    if isinstance(model, AdapterModel):
        fingerprint |= {f"adapter.{name}": plain_value(value, name) for name, value in model.settings().items()}
    fingerprint |= {f"training.{name}": value for name, value in counted_arguments(args).items()}
    fingerprint["training.mixed_precision"] = args.mixed_precision
    fingerprint["training.global_batch_size"] = trainer.schedule.batch_size
    fingerprint["data.train"] = trainer.train_rows.fingerprint()
    return fingerprint


def counted_arguments(args) -> dict:
    """The fields of training arguments that decide the weights, as plain values."""
    uncounted = {*UNCOUNTED_ARGUMENTS, *_names_of_classes(type(args))}
    schedule = plain_value(args.lr_scheduler_type, "lr_scheduler_type")
    if schedule not in _FOLLOWS_METRICS:
        uncounted.update(UNCOUNTED_EVALUATION)
    # A warm-up that is a share of the run depends on its length, too.
    if schedule in _OPEN_ENDED and not 0 < args.warmup_steps < 1:
        uncounted.update(UNCOUNTED_LENGTH)
    return counted_fields(args, uncounted)


def counted_fields(arguments, uncounted: Iterable[str]) -> dict:
    """
    All fields of a dataclass as plain values, except the uncounted ones and secrets.

    Args:
        arguments: An instance of any dataclass.
        uncounted (`Iterable[str]`): The names of fields that change no weights.
    """
    uncounted = set(uncounted)
    return {
        field.name: plain_value(getattr(arguments, field.name), field.name)
        for field in fields(arguments)
        # The library treats fields of this name as secrets.
        if field.name not in uncounted and not field.name.endswith("_token")
    }


def plain_value(value, name: str):
    """
    A value as JSON would hold it: enums become their values, dataclasses and configs dicts, sets sorted lists.

    Args:
        value: Any argument.
        name (`str`): What the error message calls it.

    Raises:
        TypeError: a value without such a form.
    """
    if isinstance(value, Enum):
        return plain_value(value.value, name)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value} must be a finite number.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path | torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Mapping):
        return {str(key): plain_value(item, name) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain_value(item, name) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [plain_value(item, name) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_value(getattr(value, field.name), name) for field in fields(value)}
    if hasattr(value, "to_dict"):
        return plain_value(value.to_dict(), name)
    raise TypeError(
        f"{name}={value!r} cannot be part of a run's fingerprint: {type(value).__name__} has no JSON form. Use plain "
        "values, or list the field in not_in_fingerprint of its arguments class if it changes no weights."
    )


def _names_of_classes(cls):
    return (name for parent in cls.__mro__ for name in vars(parent).get("not_in_fingerprint", ()))
