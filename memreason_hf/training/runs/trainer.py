"""A Trainer whose runs can be killed at any moment and resumed exactly."""

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy
from transformers.utils import logging

from memreason_hf import files
from memreason_hf.checks import check_type
from memreason_hf.locks import locked
from memreason_hf.messages import first_line
from memreason_hf.training.runs import checkpoints, output_folder
from memreason_hf.training.runs.errors import ArgumentsError, CheckpointError, NonFiniteLossError, TrainingError
from memreason_hf.training.runs.extension import follow_new_schedule
from memreason_hf.training.runs.interruption import InterruptWatch
from memreason_hf.training.runs.launch import on_main_process
from memreason_hf.training.runs.publishing import PublishingTrainer, without_tokens
from memreason_hf.training.runs.writing import is_write_error, save_error
from modeling_recurrent.card_recurrent import keep_card


logger = logging.get_logger(__name__)

CALLBACKS_FILE = "callbacks.json"
# What that file holds beside the state of the callbacks. No class has such a name.
_RUN_ENTRY = "run"


class ResumableCallback(TrainerCallback):
    """
    A callback whose state is saved with every checkpoint and restored before training goes on.

    The library restores an `ExportableState` by creating a new callback from the arguments of the old run. A callback
    of this class keeps the arguments of the new run.
    """

    def progress(self) -> dict:
        """The state, JSON-like."""
        raise NotImplementedError

    def restore(self, progress: dict):
        """Takes over the state of a checkpoint."""
        raise NotImplementedError


class ResumableTrainer(PublishingTrainer):
    """
    The part of this package's trainers that starts, stops and resumes runs.

    - A checkpoint is either complete or absent. Old ones are deleted only afterwards. Damaged ones are detected before
      anything is loaded.
    - `train()` refuses an `output_dir` that holds another run, or checkpoints that it is not told to resume.
    - Ctrl-C or SIGTERM finishes the training step, saves, and returns with `interrupted` set. A second one raises
      `KeyboardInterrupt`.
    - `train()` holds the lock of `output_dir`: a second run in the same folder is refused.
    - What cannot be written (a full disk, a folder that has gone) raises `SaveError`, which says what is safe.
    - A loss or gradient that is NaN or infinite raises `NonFiniteLossError` before the weights change.
    - Resuming a finished run loads its weights and returns.

    A subclass defines `run_fingerprint`, `is_finished`, `planned_steps` and `passes_over_data`, and sets the number of
    epochs to 0 where `resumes_finished_run` is true.

    Args:
        args (`ResumableArguments`): The arguments of the run.
        kwargs: As for [`~transformers.Trainer`], except `model_init`.

    Attributes:
        data_record (`dict`): What the card of the model says about its training data. See `make_card`.
        interrupted (`bool`): Whether the last call of `train` ended with Ctrl-C or SIGTERM.
        interrupted_by (`int`): The number of that signal; 0 for none.
        resumed_from (`str`, *optional*): The checkpoint that the last call of `train` resumed from.
        last_checkpoint (`str`, *optional*): The newest checkpoint that was loaded or saved.
        resumes_finished_run (`bool`): Whether the run was already finished when `train` resumed it.

    Raises:
        ValueError: `model_init` is given.
    """

    def __init__(self, *args, **kwargs):
        if kwargs.get("model_init") is not None:
            raise ValueError("model_init is not supported: a run resumes the weights of one model. Pass model.")
        self.data_record: dict = {}
        self.interrupted = False
        self.resumed_from: str | None = None
        self.last_checkpoint: str | None = None
        self.interrupted_by = 0
        self.resumes_finished_run = False
        self.watch = InterruptWatch()
        self._run: dict | None = None
        self._earlier_runs: list[str] = []
        self._loss_sum: float | None = None
        self._loss_of_step: torch.Tensor | None = None
        try:
            super().__init__(*args, **kwargs)
        except RuntimeError as error:
            if " to be installed" not in str(error):
                raise
            # A callback of `report_to` whose package is missing.
            raise ArgumentsError(f"report_to cannot be followed: {first_line(error)}") from error
        self.add_callback(_RunCallback(self))

    # ---- Defined by a subclass ----

    def run_fingerprint(self) -> dict:
        """What decides the weights of the run, flat and JSON-like."""
        raise NotImplementedError

    def is_finished(self, global_step: int) -> bool:
        """Whether no training step is left after `global_step` of them."""
        raise NotImplementedError

    @property
    def planned_steps(self) -> int:
        """The training steps of the whole run."""
        raise NotImplementedError

    def passes_over_data(self) -> float:
        """The number that the logs call `epoch`."""
        raise NotImplementedError

    def before_checkpoint(self):
        """Called by all ranks before the state of the callbacks is saved."""

    def check_before_claim(self):
        """Called by all ranks before `train` changes anything: raises what the first step would otherwise raise."""

    def before_first_step(self):
        """Called by all ranks before a run that is not resumed."""

    def after_restoring(self):
        """Called by all ranks after the callbacks have restored their state from a checkpoint."""

    # ---- Start and resume ----

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None):
        """
        Trains as [`~transformers.Trainer.train`] does.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                `True` for the newest complete checkpoint of `output_dir`, or the path of a checkpoint.
            trial: Not supported.
            ignore_keys_for_eval (`list[str]`, *optional*): Passed to the parent.

        Raises:
            CheckpointError: the checkpoint is damaged or missing.
            OutputFolderError: `output_dir` holds another run, or checkpoints of this run that are not to be resumed.
            InUseError: another process is training in `output_dir`.
            NonFiniteLossError: the loss or the gradient is NaN or infinite.
            SaveError: a checkpoint could not be written.
        """
        kinds = str | os.PathLike | bool | None
        check_type("resume_from_checkpoint", resume_from_checkpoint, kinds, "a folder, True or None")
        if trial is not None:
            raise ValueError("trial is not supported: start one run for each setting of a search.")
        self.check_before_claim()
        with self._folder_lock():
            try:
                return self._train(resume_from_checkpoint, ignore_keys_for_eval)
            except Exception:
                if self.args.process_index == 0:
                    output_folder.release(self.args.output_dir)
                raise

    def _folder_lock(self):
        # One process holds it for all ranks.
        return locked(self.args.output_dir, inside=True) if self.args.process_index == 0 else nullcontext()

    def _train(self, resume, ignore_keys_for_eval):
        self._run = self.run_fingerprint()
        checkpoint, self._earlier_runs = on_main_process(self.args, lambda: self._open_run(resume or None))
        self.interrupted, self.interrupted_by = False, 0
        self.resumed_from = self.last_checkpoint = checkpoint
        self.resumes_finished_run = False
        self._loss_sum = 0.0
        if checkpoint is None:
            self.before_first_step()
        else:
            logger.info("Resuming from %s.", checkpoint)
            self._restore_callbacks(Path(checkpoint))
        # A launcher passes Ctrl-C on to processes that the terminal has already interrupted.
        with InterruptWatch(grace_seconds=2.0 if self.args.world_size > 1 else 0.0) as self.watch:
            output = super().train(checkpoint, None, ignore_keys_for_eval)
        loss = self.mean_loss()
        return output if loss is None else output._replace(training_loss=loss)

    def _open_run(self, resume) -> tuple[str | None, list[str]]:
        """Claims the output folder. Returns the checkpoint to resume from, and the runs that this one was before."""
        if isinstance(resume, str | Path) and Path(resume).is_dir():
            _check_resumable(Path(resume))
        folder = Path(self.args.output_dir)
        extend_to = self.planned_steps if self.args.extend else None
        checkpoint = output_folder.open_run(
            folder, self._run, resume=resume, restart=self.args.restart, extend_to=extend_to
        )
        if self.data_record:
            output_folder.record_file(folder, output_folder.DATA_FILE)
            files.write_json(folder / output_folder.DATA_FILE, self.data_record)
        if checkpoint is None:
            return None, []
        _check_resumable(checkpoint)
        return str(checkpoint), output_folder.earlier_runs(folder)

    def _restore_callbacks(self, checkpoint):
        with _loading(checkpoint):
            progress = files.read_json(checkpoint / CALLBACKS_FILE)
            state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            self._restore_progress(checkpoint, progress, state)
        self.after_restoring()
        self.resumes_finished_run = self.is_finished(state.global_step)
        if self.args.should_save and checkpoint.parent == Path(self.args.output_dir):
            # A kill may have come between the checkpoint and its rotation.
            self._rotate(checkpoint.parent, state)

    def _restore_progress(self, checkpoint, progress, state):
        step = checkpoints.checkpoint_step(checkpoint)
        if step is not None and state.global_step != step:
            raise CheckpointError(
                f"{checkpoint / TRAINER_STATE_NAME} has global_step={state.global_step}: the checkpoint is damaged."
            )
        for name, callback in self._resumable_callbacks().items():
            if name not in progress:
                raise CheckpointError(f"{checkpoint / CALLBACKS_FILE} holds no state of {name}.")
            callback.restore(progress[name])
        self._restore_run(checkpoint, progress.get(_RUN_ENTRY, {}))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with _loading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with _loading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if self._earlier_runs:
            follow_new_schedule(self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint):
        with _loading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _rotate(self, run_dir, state):
        best = f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}" if state.best_global_step else None
        runs = (checkpoints.run_digest(self._run), *self._earlier_runs)
        checkpoints.rotate(run_dir, self.args.save_total_limit, best, runs, state.global_step)

    def _restore_run(self, checkpoint, entry):
        # Checkpoints of earlier versions have no such entry.
        self._loss_sum = None if entry.get("loss_sum") is None else float(entry["loss_sum"])
        threads = entry.get("num_threads")
        if self.args.device.type == "cpu" and threads not in (None, torch.get_num_threads()):
            logger.warning(
                f"{checkpoint} was written with num_threads={threads}, but now it is {torch.get_num_threads()}. Sums "
                "are added up in another order, so the weights differ from those of an undisturbed run by rounding. "
                f"Set OMP_NUM_THREADS={threads} to repeat it bit for bit."
            )

    def mean_loss(self) -> float | None:
        """
        The mean loss over all training steps of the run, also those before it was resumed; `None` if a checkpoint of
        an earlier version does not tell it. All ranks must make the call.
        """
        if self._loss_sum is None or not self.state.global_step:
            return None
        return self._loss_sum_of_ranks() / self.state.global_step

    def _loss_sum_of_ranks(self):
        if self._loss_sum is None or self.args.world_size == 1:
            return self._loss_sum
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        total = torch.tensor(self._loss_sum, dtype=dtype, device=self.args.device)
        return float(self.accelerator.reduce(total, "mean"))

    def _resumable_callbacks(self) -> dict[str, ResumableCallback]:
        callbacks = [item for item in self.callback_handler.callbacks if isinstance(item, ResumableCallback)]
        return {type(callback).__name__: callback for callback in callbacks}

    def _issue_warnings_after_load(self, load_result):
        # A tied weight is saved once, under its other name.
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", None) or {}
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    # ---- Save ----

    def _save_checkpoint(self, model, trial):
        """
        Writes a checkpoint under a temporary name, syncs it, renames it, and only then deletes old ones.

        The parent writes into the final folder, and a kill in between leaves a damaged checkpoint there.
        """
        self.store_flos()
        run_dir = Path(self.args.output_dir)
        final = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.before_checkpoint()
        loss_sum = self._loss_sum_of_ranks()
        self.state.epoch = self.passes_over_data()
        self._locate_best_checkpoint(including=final)
        with self._staged(final) as staged:
            with _no_progress_bars():
                self.save_model(str(staged), _internal_call=True)
            self._note_model_files(staged)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(staged))
                self._save_scaler(str(staged))
                self._save_rng_state(str(staged))

        def commit():
            self._write_states(staged, {"loss_sum": loss_sum, "num_threads": torch.get_num_threads()})
            if self.args.process_index == 0:
                output_folder.record_checkpoint(staged, final)
            checkpoints.commit(staged, final, checkpoints.run_digest(self._run))
            self._rotate(run_dir, self.state)

        self._finish(staged, final, commit)
        self.last_checkpoint = str(final)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _locate_best_checkpoint(self, including: Path | None = None):
        """Updates the path of the best checkpoint: the run may have been moved, or this step may be the best one."""
        if self.state.best_global_step:
            best = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best == including or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _write_states(self, staged, run_entry):
        exported = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                exported.setdefault(type(callback).__name__, []).append(callback.state())
        self.state.stateful_callbacks = {
            name: states[0] if len(states) == 1 else states for name, states in exported.items()
        }
        self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
        progress = {name: callback.progress() for name, callback in self._resumable_callbacks().items()}
        files.write_json(staged / CALLBACKS_FILE, {**progress, _RUN_ENTRY: run_entry})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Saves the model as [`~transformers.Trainer.save_model`] does, but never leaves a half-written file."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        target = Path(self.args.output_dir if output_dir is None else output_dir)
        self.save_whole(target)
        if self.args.push_to_hub:
            if target == Path(self.args.output_dir):
                self._push_saved("Model save", revision=self.args.hub_revision)
            else:
                self.push_to_hub("Model save", revision=self.args.hub_revision)

    def save_whole(self, folder: Path):
        """Saves the model to a folder, each file of it whole."""
        with self._staged(folder / "model") as staged, _no_progress_bars():
            super().save_model(str(staged), _internal_call=True)
        self._note_model_files(staged)

        def move_in():
            keep_card(folder, staged)
            output_folder.move_in(staged, folder, self._run)

        self._finish(staged, folder, move_in)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        # The parent pickles the arguments beside the model, with the token of the Hub in plain text.
        with without_tokens(self.args):
            super()._save(output_dir, state_dict)

    def _note_model_files(self, staged):
        paths = staged.rglob("*") if self.args.should_save else ()
        self._model_files = tuple(sorted(str(path.relative_to(staged)) for path in paths if path.is_file()))

    def save_state(self):
        """Saves `trainer_state.json` as [`~transformers.Trainer.save_state`] does, whole or not at all."""
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            output_folder.record_file(folder, TRAINER_STATE_NAME)
            with files.whole_file(folder / TRAINER_STATE_NAME, overwrite=True) as temporary:
                self.state.save_to_json(str(temporary))

    @contextmanager
    def _staged(self, final) -> Iterator[Path]:
        """
        An empty staging folder for `final`, to which all ranks write in the block.

        Raises:
            SaveError: on all ranks, if one of them cannot write.
        """
        staged = files.staging_folder(final)
        with self._removed_on_error(staged):
            self._on_saving_ranks(final, lambda: self._stage(staged))
            problem = None
            try:
                yield staged
            except Exception as error:
                problem = self._as_save_error(final, error)
            self._raise_on_all_ranks(problem)

    def _stage(self, staged):
        if self._run is not None and staged.parent == Path(self.args.output_dir) and self.args.process_index == 0:
            # Not created again: it may be on a disk that has gone.
            output_folder.check_present(staged.parent)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)

    def _finish(self, staged, final, action):
        """Runs `action`, which puts `final` in its place."""
        with self._removed_on_error(staged):
            self._on_saving_ranks(final, action)

    def _on_saving_ranks(self, final, action):
        """Runs `action` on the first rank, with `save_on_each_node` on that of each node. All ranks wait for it."""
        problem = None
        if self.args.should_save:
            try:
                action()
            except Exception as error:
                problem = self._as_save_error(final, error)
        self._raise_on_all_ranks(problem)

    def _as_save_error(self, final, error):
        if not is_write_error(error):
            raise error
        return save_error(final, error, self.last_checkpoint)

    def _raise_on_all_ranks(self, problem):
        # Ranks that have written their part would otherwise wait for the others forever.
        problems = gather_object([problem]) if self.args.world_size > 1 else [problem]
        if problem := next(filter(None, problems), None):
            raise problem

    @contextmanager
    def _removed_on_error(self, staged):
        """Removes a staging folder if the block fails, because it would keep a full disk full."""
        try:
            yield
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(staged, ignore_errors=True)
            raise

    # ---- Log and end ----

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Logs as [`~transformers.Trainer.log`] does, with `passes_over_data` as the epoch."""
        if self.is_in_train:
            # The parent counts only the steps of this call of `train`.
            self.state.epoch = self.passes_over_data()
        if "train_loss" in logs and (loss := self.mean_loss()) is not None:
            logs["train_loss"] = loss
        super().log(logs, start_time)

    def end(self):
        """
        Shuts down the process group. Call this last.

        DDP must release the process group first: a group that outlives `destroy_process_group` sometimes aborts the
        process at exit (torch 2.13 on gloo: "terminate called without an active exception").
        """
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()

    # ---- Stop ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of the next training step, as the parent collects them."""
        self._loss_of_step = None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Forward and backward of a micro-batch, as the parent does them."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._loss_of_step = loss if self._loss_of_step is None else self._loss_of_step + loss
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        """
        Raises if the loss or the gradient is NaN or infinite, and notes an interruption.

        The parent calls it right before the optimizer step. `on_pre_optimizer_step` comes later, but is not given the
        norm, and would have to read all gradients once more.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        finite = torch.isfinite(self._loss_of_step)
        if self.args.mixed_precision != "fp16":
            # With a gradient scaler an infinite gradient is ordinary: it skips the step.
            norm = torch.as_tensor(grad_norm)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            finite = finite & torch.isfinite(norm).to(finite.device)
        requested = [self.watch.requested == number for number in InterruptWatch.SIGNALS]
        flags = torch.cat([~finite.reshape(1), torch.tensor(requested, device=finite.device)]).int()
        if self.args.world_size > 1:
            # Ranks must stop at the same step. Otherwise the others would wait forever.
            flags = self.accelerator.reduce(flags, "sum")
        bad, *arrived = flags.tolist()
        if bad:
            raise NonFiniteLossError(self._describe_non_finite(float(self._loss_of_step), float(grad_norm)))
        self._note_interruption(next((n for n, count in zip(InterruptWatch.SIGNALS, arrived) if count), 0))
        if self._loss_sum is not None:
            self._loss_sum += float(self._loss_of_step)
        return grad_norm

    def _note_interruption(self, number):
        self.interrupted, self.interrupted_by = bool(number), int(number)

    def _describe_non_finite(self, loss, grad_norm):
        saved = (
            f"The last checkpoint is {self.last_checkpoint}."
            if self.last_checkpoint
            else "There is no checkpoint yet."
        )
        return (
            f"Step {self.state.global_step + 1}: the loss is {loss}, the gradient norm {grad_norm}. Training stopped "
            f"before this step changed the weights. {saved} Lower learning_rate, raise warmup_steps, or check the "
            "data of this step."
        )


def _check_resumable(checkpoint):
    if (checkpoint / checkpoints.MANIFEST).is_file() and not (checkpoint / SCHEDULER_NAME).is_file():
        # A damaged checkpoint lists the file, and is described as damaged.
        checkpoints.verify(checkpoint)
        raise CheckpointError(
            f"{checkpoint} holds only the model (save_only_model=True), so no run can be resumed from it."
        )


@contextmanager
def _loading(checkpoint) -> Iterator[None]:
    """
    Turns what a damaged file raises into a `CheckpointError`: a checkpoint of an earlier version has no checksums, and
    one that was edited by hand may have fitting ones.
    """
    try:
        yield
    except (TrainingError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each kind of file has its own
        raise CheckpointError(
            f"{checkpoint} cannot be loaded ({type(error).__name__}: {first_line(error)}). It is damaged, or does not "
            "fit this model. Pass an older one as resume_from_checkpoint, or start again with --restart."
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hides the progress bars of saving, which would break the progress bar of training."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


class _RunCallback(TrainerCallback):
    """Finds the best checkpoint of a run that was moved, and ends training after the step of an interruption."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._locate_best_checkpoint()
        # The state of a checkpoint holds the intervals of the run that wrote it.
        state.compute_steps(args, state.max_steps)
        # A finished run has no epoch left, but is saved as it was.
        state.num_train_epochs = max(state.num_train_epochs, 1)

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size == 1 and self.trainer.watch.requested:
            # It arrived after the gradients of this step were ready.
            self.trainer._note_interruption(self.trainer.watch.requested)
        if self.trainer.interrupted:
            control.should_training_stop = True
            control.should_save = args.save_strategy != SaveStrategy.NO
        return control
