"""Ranges of the library's training arguments: a value that cannot train is refused before a run claims its folder."""

import inspect
import math

from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments
from transformers.utils import is_liger_kernel_available

from memreason_hf.checks import check_int, shortened


# Every row of a micro-batch, and every micro-batch of a training step, is in memory at once.
MOST_ROWS = 2**20
# Every recurrence is computed after the other.
MOST_RECURRENCES = 2**16
_MOST_STEPS = 2**40
_WHOLE = {
    "per_device_train_batch_size": (1, MOST_ROWS, "all rows of a micro-batch are in memory at once"),
    "per_device_eval_batch_size": (1, MOST_ROWS, "all rows of a batch are in memory at once"),
    "gradient_accumulation_steps": (1, MOST_ROWS, "all micro-batches of a training step are in memory at once"),
    "seed": (0, 2**32 - 1, "numpy takes no other seeds"),
    "save_total_limit": (1, None, None),
    "eval_accumulation_steps": (1, None, None),
    "dataloader_num_workers": (0, 2**12, "each of them is a process"),
    "dataloader_prefetch_factor": (1, MOST_ROWS, "all batches that are fetched ahead are in memory at once"),
    "data_seed": (0, 2**32 - 1, "numpy takes no other seeds"),
}
_NUMBERS = ("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "neftune_noise_alpha")
_BELOW_ONE = ("adam_beta1", "adam_beta2")
# Those of `torch.compile`.
_COMPILE_MODES = ("default", "lite", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_INTERVALS = ("logging_steps", "eval_steps", "save_steps")


def check_training_ranges(args: TrainingArguments):
    """
    Raises:
        ValueError: a field of the library's training arguments is out of range. The message names it and its value.
    """
    for name, (least, most, reason) in _WHOLE.items():
        value = getattr(args, name)
        if value is not None:
            check_int(name, value, least, most, reason)
    for name in _NUMBERS:
        value = getattr(args, name)
        # `max_grad_norm=None` switches clipping off.
        if value is not None and not 0 <= float(value) < math.inf:
            raise ValueError(f"{name}={value} must be at least 0 and finite.")
    for name in _BELOW_ONE:
        value = getattr(args, name)
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be at least 0 and below 1.")
    for name in _INTERVALS:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be above 0: a number of steps, or a share of them below 1.")
    if args.max_steps != -1 and args.max_steps < 1:
        raise ValueError(f"max_steps={args.max_steps} must be at least 1, or -1 for num_train_epochs passes.")
    check_int("max_steps", args.max_steps, most=_MOST_STEPS, reason="a run of more would not end")
    if not 0 < args.num_train_epochs < math.inf:
        raise ValueError(f"num_train_epochs={args.num_train_epochs} must be above 0 and finite.")
    _check_settings(args)


def check_before_library(args: TrainingArguments):
    """
    Checks what the library checks, too, without naming the value.

    Raises:
        ValueError: as for `check_training_ranges`.
    """
    factor = args.dataloader_prefetch_factor
    if factor is not None and args.dataloader_num_workers == 0:
        raise ValueError(
            f"dataloader_prefetch_factor={shortened(factor)} has no effect with dataloader_num_workers=0: nothing is "
            "fetched ahead. Leave it out, or set dataloader_num_workers."
        )


def _check_settings(args):
    """Refuses settings that the library looks at only when training has begun."""
    if args.lr_scheduler_kwargs is not None and not isinstance(args.lr_scheduler_kwargs, dict):
        raise ValueError(
            f"lr_scheduler_kwargs={args.lr_scheduler_kwargs!r} must be names and values, for example "
            '{"num_cycles": 2}.'
        )
    for name, value in (args.lr_scheduler_kwargs or {}).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"lr_scheduler_kwargs: {name}={value} must be a finite number.")
    known = [name for name in inspect.signature(checkpoint).parameters if name not in ("function", "args", "kwargs")]
    # The library has renamed the field.
    for field in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        given = getattr(args, field, None)
        for name in given or ():
            if name not in known:
                raise ValueError(f"{field}={given!r} has {name!r}. Known are: {', '.join(known)}.")
    if args.torch_compile_mode is not None and args.torch_compile_mode not in _COMPILE_MODES:
        raise ValueError(f"torch_compile_mode={args.torch_compile_mode!r} must be one of {', '.join(_COMPILE_MODES)}.")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("use_liger_kernel=True needs liger-kernel 0.3.0 or later: pip install liger-kernel.")
