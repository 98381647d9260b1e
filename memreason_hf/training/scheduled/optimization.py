"""Checks of the optimizer and the learning-rate schedule that a run would be trained with."""

import copy
import math

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import SchedulerType

from memreason_hf.training.runs.fingerprint import plain_value


# The library makes these schedules without `lr_scheduler_kwargs`.
_WITHOUT_ARGUMENTS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)


def check_optimizer_arguments(args: TrainingArguments, model: torch.nn.Module) -> None:
    """
    Checks that the optimizer reads every entry of `optim_args`: the library passes over names that it does not know.

    Raises:
        ValueError: an entry has no effect. The message names it.
    """
    optim = plain_value(args.optim, "optim")
    # Making the settings of a layerwise optimizer adds hooks to the parameters.
    if not args.optim_args or "layerwise" in optim:
        return
    without = _optimizer_settings(args, model, None)
    for entry in args.optim_args.replace(" ", "").split(","):
        name = entry.partition("=")[0]
        # Whatever reads the entry fails at this value, or makes something else of it than of no value.
        if _optimizer_settings(args, model, f"{name}=nonsense") == without:
            raise ValueError(f"it does not read {name!r} of optim_args. Remove it, or choose another optim.")


def _optimizer_settings(args, model, optim_args):
    """What the library makes an optimizer with; None if it cannot."""
    args = copy.copy(args)
    args.optim_args = optim_args
    try:
        _, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    except Exception:  # each optimizer has its own
        return None
    groups = settings.get("params", ())
    settings["params"] = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    return settings


def check_schedule_arguments(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: `lr_scheduler_kwargs` are given for a schedule that has none.
    """
    if args.lr_scheduler_kwargs and args.lr_scheduler_type in _WITHOUT_ARGUMENTS:
        raise ValueError("this schedule reads no lr_scheduler_kwargs. Leave them out, or choose another schedule.")


def check_schedule(schedule: torch.optim.lr_scheduler.LRScheduler, num_steps: int) -> None:
    """
    Computes the learning rate at some steps of the run: some schedules read their arguments only after the warmup.

    Raises:
        ValueError: a rate is negative, infinite or NaN.
    """
    # `ReduceLROnPlateau` and the like do not follow from the step alone.
    for rate in getattr(schedule, "lr_lambdas", ()):
        for step in sorted({round(share * num_steps / 8) for share in range(9)} | {1, max(num_steps - 1, 0)}):
            factor = rate(step)
            if not 0 <= factor < math.inf:
                raise ValueError(f"the learning rate of step {step:,} would be {factor} times learning_rate.")
