"""Training runs of the commands that train: from the start or the newest checkpoint to the saved model."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.signals import exit_code
from memreason_hf.locks import locked
from memreason_hf.training.runs.checkpoints import checkpoint_step, list_checkpoints
from memreason_hf.training.runs.errors import TrainingError
from memreason_hf.training.runs.trainer import ResumableTrainer


def output_folder_of(values: dict) -> str:
    """
    `training.output_dir`, from the values of recipe and flags.

    Raises:
        ValueError: it is not given.
    """
    if not values["training"].get("output_dir"):
        raise ValueError("training.output_dir is not given. Pass --output_dir FOLDER, where the run is saved.")
    return values["training"]["output_dir"]


def run_training(
    trainer: ResumableTrainer, command: str, describe: Callable[[ResumableTrainer], str] | None = None
) -> int:
    """
    Trains, or resumes from the newest checkpoint of the output folder, saves the model and prints a summary.

    Args:
        trainer: ready to train. Its `end` is called.
        command: the beginning of an error message.
        describe: a sentence for the summary of a run that was not interrupted.

    Returns:
        The exit code: 0, 130 after Ctrl-C, or 143 after SIGTERM. A failed training ends the program with code 2 and
        one message.
    """
    args = trainer.args
    resume = args.resume_from_checkpoint
    if resume is None and not args.restart and list_checkpoints(args.output_dir):
        resume = True
    # An OSError: the folder is in use, or cannot be written.
    with user_errors(command, TrainingError, OSError, stopped="the same command resumes from the newest checkpoint"):
        # From the first step to the saved model: no other run may take the folder in between.
        with locked(args.output_dir, inside=True) if args.process_index == 0 else nullcontext():
            trainer.train(resume)
            if not trainer.interrupted:
                trainer.save_model()
                trainer.save_state()
        lines = [_summary(trainer)]
        if describe is not None and not trainer.interrupted:
            lines.append(describe(trainer))
        say(trainer, " ".join(filter(None, lines)))
        # Within the block: it takes a while, in which a signal would be a traceback.
        trainer.end()
    return exit_code(trainer.interrupted_by) if trainer.interrupted else 0


def say(trainer: ResumableTrainer, message: str):
    """Prints on the main process only."""
    if trainer.is_world_process_zero():
        print(message, flush=True)


def _summary(trainer):
    steps = trainer.state.global_step
    if trainer.interrupted:
        saved = f"saved {trainer.last_checkpoint}" if trainer.last_checkpoint else "nothing was saved"
        return f"Stopped after step {steps}; {saved}. The same command resumes from there."
    already = trainer.resumed_from is not None and checkpoint_step(trainer.resumed_from) == steps
    return (
        f"{'The run was finished already, after' if already else 'Trained for'} {steps} steps. The model is in "
        f"{Path(trainer.args.output_dir)}."
    )
