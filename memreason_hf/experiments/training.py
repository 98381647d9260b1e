"""What the experiments with small models share: their training arguments, and the record of a training."""

from collections.abc import Mapping

from memreason_hf.training import RecurrentTrainingArguments
from memreason_hf.training.runs.trainer import ResumableTrainer


def small_run_arguments(
    output_dir: str,
    training: Mapping[str, object],
    *,
    seed: int,
    max_steps: int | None = None,
    batch_size: int | None = None,
) -> RecurrentTrainingArguments:
    """
    The training arguments of a small model on a CPU, which has a label at every position and keeps no checkpoints.

    Args:
        output_dir: folder of the model.
        training: further arguments, those of the model.
        seed: of the weights, the batches and the depths.
        max_steps, batch_size: override those of the model.
    """
    values = dict(training)
    if max_steps is not None:
        values["max_steps"] = max_steps
    if batch_size is not None:
        values["per_device_train_batch_size"] = batch_size
    return RecurrentTrainingArguments(
        output_dir=output_dir,
        supervision="prefix",
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
        **values,
    )


def train_and_save(trainer: ResumableTrainer, resume_from_checkpoint: bool | None = None) -> dict:
    """
    Trains and saves a model. A signal ends the process when the trainer has stopped.

    Returns:
        `steps`, `num_parameters`, and the training losses as `log`.
    """
    trainer.train(resume_from_checkpoint)
    if trainer.interrupted:
        raise SystemExit(128 + trainer.interrupted_by)
    trainer.save_model()
    return {
        "steps": trainer.state.global_step,
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
