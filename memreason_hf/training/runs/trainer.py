"""A Trainer whose runs can be killed at any moment and resumed exactly."""

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy
from transformers.utils import logging

from memreason_hf import files
from memreason_hf.training.runs import checkpoints, output_folder
from memreason_hf.training.runs.errors import CheckpointError, NonFiniteLossError, OutputFolderError
from memreason_hf.training.runs.interruption import InterruptWatch


logger = logging.get_logger(__name__)


class ResumableTrainer(Trainer):
    """
    The part of this package's trainers that begins, stops and resumes runs.

    - A checkpoint is there whole or not at all; old ones go only after that. Damaged ones are noticed before anything
      is loaded.
    - `train()` refuses an `output_dir` that holds another run, or checkpoints that it was not told to resume.
    - Ctrl-C finishes the step, saves, and returns with `interrupted` set; a second one raises `KeyboardInterrupt`.
    - A loss or gradient that is not finite raises `NonFiniteLossError` before the weights change.
    - A finished run that is resumed loads its weights and returns.

    A subclass says what makes up its runs: `run_fingerprint`, `is_finished`, `passes_over_data`.
    """

    def __init__(self, *args, **kwargs):
        self.interrupted = False
        self.resumed_from: str | None = None
        self.last_checkpoint: str | None = None
        self._watch = InterruptWatch()
        self._loss_of_step: torch.Tensor | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(_StopCallback(self))

    # ---- What a subclass fills in ----

    def run_fingerprint(self) -> dict:
        """What decides the weights of the run, flat and JSON-like."""
        raise NotImplementedError

    @property
    def is_finished(self) -> bool:
        """Whether no step is left."""
        return 0 < self.state.max_steps <= self.state.global_step

    def passes_over_data(self) -> float:
        """What the logs call `epoch`."""
        raise NotImplementedError

    def before_checkpoint(self):
        """Called by all ranks before the state of the callbacks is saved."""

    def begin_anew(self):
        """Called by all ranks before a run that is not resumed."""

    # ---- Begin, resume, end ----

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None):
        """
        As `Trainer.train`.

        Args:
            resume_from_checkpoint: `True`: the newest complete checkpoint of `output_dir`. A path: that checkpoint.

        Raises:
            CheckpointError: a checkpoint that is damaged or not there.
            OutputFolderError: `output_dir` holds another run, or checkpoints of this one and none is to be resumed.
            NonFiniteLossError: see above.
        """
        checkpoint = self._on_main_process(lambda: self._open_run(resume_from_checkpoint or None, trial))
        self.interrupted = False
        self.resumed_from = self.last_checkpoint = checkpoint
        if checkpoint is None:
            self.begin_anew()
        else:
            logger.info("Resuming from %s.", checkpoint)
        # A launcher passes Ctrl-C on to processes that have had it from the terminal.
        with InterruptWatch(grace_seconds=2.0 if self.args.world_size > 1 else 0.0) as self._watch:
            return super().train(checkpoint, trial, ignore_keys_for_eval)

    def _open_run(self, resume, trial) -> str | None:
        """Claims the output folder; returns the checkpoint to resume from."""
        if trial is not None:
            return resume
        output_dir = Path(self.args.output_dir)
        if resume is not None and self.args.restart:
            raise OutputFolderError("restart=True and resume_from_checkpoint contradict each other: give one of them.")
        present = checkpoints.list_checkpoints(output_dir)
        if resume is None and present and not self.args.restart:
            raise OutputFolderError(
                f"output_dir={str(output_dir)!r} holds {present[-1].name}. Resume that run "
                "(resume_from_checkpoint=True), choose another output_dir, or begin anew with --restart "
                "(restart=True), which removes it."
            )
        if isinstance(resume, str | Path):
            checkpoint = Path(resume)
            checkpoints.verify(checkpoint)
        output_folder.claim(output_dir, self.run_fingerprint(), restart=self.args.restart)
        if resume is None:
            return None
        if resume is True:
            checkpoint = checkpoints.newest_complete(output_dir)
            if checkpoint is None:
                raise CheckpointError(f"output_dir={str(output_dir)!r} holds no checkpoint to resume from.")
        if not (checkpoint / SCHEDULER_NAME).is_file():
            raise CheckpointError(f"{checkpoint} holds only the model (save_only_model): no run resumes from it.")
        return str(checkpoint)

    def _on_main_process(self, action: Callable):
        """Runs `action` on one process; all return its result, or raise its error."""
        outcome = [None, None]
        if self.args.process_index == 0:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        if self.args.world_size > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs):
        epochs_trained, steps_trained = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, *args, **kwargs
        )
        if self.state.best_global_step:
            # Where it is now, should the folder have been moved.
            best = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else self.state.best_model_checkpoint
        return (num_train_epochs if self.is_finished else epochs_trained), steps_trained

    def _load_callback_state(self):
        """
        Callbacks with a `restore` take their state back themselves: the parent would make new ones, out of the
        arguments of the old run, and only if it is told to.
        """
        stored = dict(self.state.stateful_callbacks)
        own = [callback for callback in self.callback_handler.callbacks if hasattr(callback, "restore")]
        for callback in own:
            state = self.state.stateful_callbacks.pop(type(callback).__name__, None)
            if state is None:
                raise CheckpointError(f"The checkpoint holds no state of {type(callback).__name__}.")
            callback.restore(state["attributes"])
        super()._load_callback_state()
        self.state.stateful_callbacks = stored

    def _issue_warnings_after_load(self, load_result):
        # A tied weight is saved once, under its other name.
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", None) or {}
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    # ---- Save ----

    def _save_checkpoint(self, model, trial):
        if trial is None:
            self.store_flos()
        run_dir = Path(self._get_output_dir(trial))
        final = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged = files.staging_folder(final)
        if self.args.should_save:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
        self._wait_for_all()
        with _no_progress_bars():
            self.save_model(str(staged), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(staged))
            self._save_scaler(str(staged))
            self._save_rng_state(str(staged))
        self.before_checkpoint()
        self.state.epoch = self.passes_over_data()
        if self.state.best_global_step:
            best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        self._wait_for_all()
        if self.args.should_save:
            self._note_callbacks()
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            checkpoints.commit(staged, final)
            checkpoints.rotate(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.last_checkpoint = str(final)
        self._wait_for_all()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _note_callbacks(self):
        states = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        self.state.stateful_callbacks = {
            name: found[0] if len(found) == 1 else found for name, found in states.items()
        }

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if self.is_in_train:
            # The parent counts steps of this call only.
            self.state.epoch = self.passes_over_data()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As `Trainer.save_model`, and no file of a model that is there already is ever seen half-written."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        target = Path(self.args.output_dir if output_dir is None else output_dir)
        staged = files.staging_folder(target / "model")
        if self.args.should_save:
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
        self._wait_for_all()
        with _no_progress_bars():
            super().save_model(str(staged), _internal_call=True)
        self._wait_for_all()
        if self.args.should_save:
            output_folder.move_in(staged, target)
        self._wait_for_all()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def end(self):
        """
        Parts from the other processes; the last thing a program does with a trainer.

        DDP's hold on the process group goes first: a group that outlives `destroy_process_group` aborts the process at
        its exit every now and then (torch 2.13 on gloo: "terminate called without an active exception").
        """
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()

    def _wait_for_all(self):
        self.accelerator.wait_for_everyone()

    # ---- Stop ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._loss_of_step = None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._loss_of_step = loss if self._loss_of_step is None else self._loss_of_step + loss
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """The last moment before the weights change."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        finite = torch.isfinite(self._loss_of_step)
        if self.args.mixed_precision != "fp16":
            # With a gradient scaler an infinite gradient is ordinary: it skips the step.
            norm = torch.as_tensor(grad_norm)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            finite = finite & torch.isfinite(norm).to(finite.device)
        flags = torch.stack([~finite, torch.tensor(self._watch.requested, device=finite.device)]).int()
        if self.args.world_size > 1:
            # Ranks must stop at the same step, or the others wait for them for ever.
            flags = self.accelerator.reduce(flags, "sum")
        bad, interrupted = flags.tolist()
        if bad:
            raise NonFiniteLossError(self._describe_non_finite(float(self._loss_of_step), float(grad_norm)))
        self.interrupted = bool(interrupted)
        return grad_norm

    def _describe_non_finite(self, loss, grad_norm):
        kept = (
            f"The last checkpoint is {self.last_checkpoint}."
            if self.last_checkpoint
            else "There is no checkpoint yet."
        )
        return (
            f"Step {self.state.global_step + 1}: the loss is {loss}, the gradient norm {grad_norm}. Training stopped "
            f"before that step changed the weights; nothing was saved since. {kept} Lower learning_rate, raise "
            "warmup_steps, or look at the data of that step."
        )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """A bar for writing one file of weights would tear the bar of training apart."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class _StopCallback(TrainerCallback):
    """Ends training after the step in which it was interrupted."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.interrupted:
            control.should_training_stop = True
            control.should_save = args.save_strategy != SaveStrategy.NO
        return control
