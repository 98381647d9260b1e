"""
Extended runs: a run that trains on to a greater length than it was started with.

Where the learning rate follows the length of the run, the result is not that of a run that had this length from the
start: its first part was trained by the schedule of the shorter run. The longer schedule takes over at the step where
the run goes on. This happens only on request, and `run.json` records the runs that it was before.
"""

import torch

from memreason_hf.training.runs import checkpoints
from memreason_hf.training.runs.errors import OutputFolderError


# Entries of a fingerprint that say how long a run is.
LENGTHS = ("training.max_steps", "training.num_train_epochs", "training.max_tokens")
EARLIER = "earlier_runs"


def differing_entries(recorded: dict, current: dict) -> list[str]:
    """The entries of two fingerprints that differ."""
    return [key for key in {**recorded, **current} if recorded.get(key) != current.get(key)]


def is_other_length(recorded: dict, current: dict) -> bool:
    """Whether two fingerprints differ, and only in the length of the run."""
    differing = differing_entries(recorded, current)
    return bool(differing) and set(differing) <= set(LENGTHS)


def extended_record(run: dict, fingerprint: dict) -> dict:
    """The record of a run with the fingerprint of its extension; the runs that it was before are listed."""
    earlier = [*run.get(EARLIER, ()), checkpoints.run_digest(run["fingerprint"])]
    return {**run, "fingerprint": fingerprint, EARLIER: list(dict.fromkeys(earlier))}


def check_extension(output_dir, planned_steps: int) -> None:
    """
    Checks that a run in a folder has steps left after its newest checkpoint.

    Raises:
        OutputFolderError: it has none, or the folder holds no checkpoint.
    """
    existing = checkpoints.list_checkpoints(output_dir)
    if not existing:
        raise OutputFolderError(
            f"output_dir={str(output_dir)!r} holds no checkpoint of a run that could be extended. Leave --extend out."
        )
    taken = checkpoints.checkpoint_step(existing[-1]) or 0
    if planned_steps <= taken:
        raise OutputFolderError(
            f"output_dir={str(output_dir)!r} holds a run of {taken} steps, which cannot be extended to "
            f"{planned_steps}. Raise num_train_epochs, max_steps or max_tokens."
        )


def follow_new_schedule(optimizer: torch.optim.Optimizer, scheduler) -> None:
    """
    Gives an optimizer that was restored from a checkpoint the learning rate of the schedule that goes on.

    Otherwise the first step after the checkpoint would have the rate of the shorter run: 0 after a whole cosine.

    Args:
        optimizer: restored, or accelerate's wrapper of it.
        scheduler: restored, or accelerate's wrapper of it. Only a `LambdaLR` looks ahead to the end of the run.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        return
    rates = [rate * of_step(scheduler.last_epoch) for rate, of_step in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate
    # What is logged until the next step.
    scheduler.load_state_dict({**scheduler.state_dict(), "_last_lr": rates})
