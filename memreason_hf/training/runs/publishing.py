"""
What a run sends to the Hub: the model, its card and its results, and only if asked for what resumes the run.

The card is made by a higher room, which the front door of the package finds by name when it is needed.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

import memreason_hf
from memreason_hf import files
from memreason_hf.adapters.base_place import LOCAL_BASE_FILE
from memreason_hf.training.runs import checkpoints, output_folder


logger = logging.get_logger(__name__)

# Holds the settings of the machine: paths, names of hosts.
NEVER_PUSHED = (TRAINING_ARGS_NAME, LOCAL_BASE_FILE)
# Names of the library's `create_model_card` that have no place in our card.
_NOT_IN_CARD = ("tasks", "dataset", "dataset_args")


class PublishingTrainer(Trainer):
    """
    The part of this package's trainers that pushes to the Hub.

    What is pushed is the model as it was saved, the tokenizer, a card made from the run, and the results files of
    `output_dir` with their pictures: neither `training_args.bin` nor `run.json` nor any other file that lies in
    `output_dir`. With `hub_strategy` `"checkpoint"` or `"all_checkpoints"` the checkpoints follow, with the state of
    the optimizer, so that the run can be resumed from them elsewhere.

    A push during training that fails is reported by a warning, and training goes on. `push_to_hub` at the end raises.
    """

    # The files of the last model that was saved, relative to its folder.
    _model_files: tuple[str, ...] = ()
    _client: HfApi | None = None
    # What holds each folder that is being sent.
    _stages: dict[Path, contextlib.ExitStack] | None = None

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """
        Writes the card of the run to `output_dir`, unless it holds one that a person wrote. See `make_card`. Also
        writes `trainer_state.json`, from which the card takes the steps and the evaluations.

        Args:
            language, license, tags (*optional*): As in `make_card`.
            model_name (`str`, *optional*): Not used: the card has the name of the repository.
            finetuned_from (`str`, *optional*):
                The base on the Hub. Default: what the run recorded. An adapter that was trained on a folder needs it.
            dataset_tags (`str` or `list[str]`, *optional*): The data sets on the Hub. Default: what the run recorded.
            tasks, dataset, dataset_args: Not supported: the card says what the model and the run say.

        Raises:
            ValueError: an argument that is not supported, or that has the wrong form.
        """
        given = {"tasks": tasks, "dataset": dataset, "dataset_args": dataset_args}
        for name in _NOT_IN_CARD:
            if given[name] is not None:
                raise ValueError(
                    f"{name}={given[name]!r} is not supported: the card takes the task from the model and the data "
                    "from the run. Name data sets on the Hub in dataset_tags."
                )
        if self.is_world_process_zero():
            # The steps and the evaluations of the run.
            self.save_state()
            output_folder.record_file(Path(self.args.output_dir), output_folder.CARD_FILE)
            memreason_hf.write_card(
                self.args.output_dir,
                self._repo_name(),
                language=language,
                license=license,
                tags=[tags] if isinstance(tags, str) else tags,
                base_model=finetuned_from,
                datasets=[dataset_tags] if isinstance(dataset_tags, str) else dataset_tags,
            )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """
        Saves the model to `output_dir` and pushes it, as [`~transformers.Trainer.push_to_hub`] does.

        Args:
            commit_message, blocking, token, revision, private (*optional*): As for the parent.
            kwargs: For `create_model_card`.

        Returns:
            The commit, or with `blocking=False` a `Future` of it. `None` on other processes than the main one.

        Raises:
            ValueError: a file that would leave names a path, a user or a token; names the file.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_whole(Path(self.args.output_dir))
        return self._push_saved(commit_message, blocking, token, revision, **kwargs)

    def save_whole(self, folder: Path) -> None:
        """Saves the model to a folder."""
        raise NotImplementedError

    def _push_saved(self, commit_message, blocking=True, token=None, revision=None, **kwargs):
        """Pushes the model that has just been saved to `output_dir`."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        job = self._upload(
            self._stage_model(Path(self.args.output_dir), kwargs.get("finetuned_from")),
            commit_message=commit_message,
            token=token if token is not None else self.args.hub_token,
            revision=revision if revision is not None else self.args.hub_revision,
        )
        return job.result() if blocking else job

    def _push_from_checkpoint(self, checkpoint_folder: str):
        """Pushes the model of a checkpoint, and with some strategies the checkpoint."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        pending = self.push_in_progress
        if pending is not None and not pending.is_done() and not self.args.hub_always_push:
            return
        if pending is not None and pending.is_done():
            self._report_failed_pushes()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            jobs = self._jobs_of_checkpoint(Path(checkpoint_folder), strategy)
        except (OSError, ValueError) as error:
            # At the end `push_to_hub` raises. Until then training is worth more than the push.
            logger.warning(f"{checkpoint_folder} was not pushed: {error}")
            return
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress(jobs)
        else:
            self.push_in_progress.jobs.extend(jobs)

    def _jobs_of_checkpoint(self, checkpoint, strategy):
        """The uploads of a checkpoint, which have begun."""
        message = f"Training in progress, step {self.state.global_step}"
        if self.args.save_strategy == SaveStrategy.EPOCH:
            message = f"Training in progress, epoch {int(self.state.epoch)}"
        where = {"token": self.args.hub_token, "revision": self.args.hub_revision}
        jobs = [self._upload(self._stage_model(checkpoint), commit_message=message, **where)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            logger.warning_once(
                f"hub_strategy={strategy.value!r}: the state of the optimizer, of the schedule and of the random "
                f"numbers, and the logs of the run, are sent to {self.hub_model_id}, so that the run can be resumed "
                "from there."
            )
            staged = self._stage_checkpoint(checkpoint)
            # A file of an earlier checkpoint that this one lacks would not fit its manifest.
            options = {"path_in_repo": name, "delete_patterns": "*"}
            jobs.append(self._upload(staged, commit_message=f"{message}, checkpoint", **options, **where))
        return jobs

    def _finish_current_push(self):
        super()._finish_current_push()
        self._report_failed_pushes()

    def _report_failed_pushes(self):
        """Warns of pushes during training that have failed; each of them once."""
        pending = getattr(self, "push_in_progress", None)
        for job in pending.jobs if pending is not None else ():
            if job.done() and (error := job.exception()) is not None:
                first = str(error).strip().splitlines()
                logger.warning(
                    f"A push to {self.hub_model_id} during training failed ({type(error).__name__}: "
                    f"{first[0] if first else ''}). A later push sends the newer state; `push_to_hub` sends all of it."
                )
        if pending is not None and pending.is_done():
            self.push_in_progress = None

    # ---- What is sent ----

    def _repo_name(self):
        return self.hub_model_id or self.args.hub_model_id

    def _stage_model(self, folder: Path, base_model: str | None = None) -> Path:
        """
        A folder with what is pushed of a model. It links to the files of `folder`, which may be rotated away while
        they are sent.
        """
        with self._new_stage(f"push-{self.state.global_step}") as staged:
            memreason_hf.stage_model(
                folder,
                [name for name in self._model_files if name not in NEVER_PUSHED],
                staged,
                self._repo_name(),
                run_folder=self.args.output_dir,
                base_model=base_model,
            )
        return staged

    def _stage_checkpoint(self, checkpoint: Path) -> Path:
        """A folder with a checkpoint that can be resumed from, without what says where it was written."""
        names = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()]
        names = [name for name in names if name not in (*NEVER_PUSHED, checkpoints.MANIFEST)]
        with self._new_stage(f"push-{checkpoint.name}") as staged:
            files.link_files(checkpoint, staged, names)
            state = TrainerState.load_from_json(str(staged / TRAINER_STATE_NAME))
            # Found again by its step when the run is resumed.
            state.best_model_checkpoint = None
            (staged / TRAINER_STATE_NAME).unlink()
            state.save_to_json(str(staged / TRAINER_STATE_NAME))
            checkpoints.write_manifest_of_copy(staged, checkpoint, changed=[TRAINER_STATE_NAME])
        return staged

    @contextlib.contextmanager
    def _new_stage(self, name):
        """
        Gives a folder that is kept until `_drop_stage`, also if another run begins in the output folder meanwhile. If
        the block fails, it is removed.
        """
        with contextlib.ExitStack() as hold:
            staged = hold.enter_context(files.held_folder(Path(self.args.output_dir) / name))
            yield staged
            self._stages = self._stages or {}
            self._stages[staged] = hold.pop_all()

    def _drop_stage(self, staged):
        self._stages.pop(staged).close()

    def _upload(self, staged, **options) -> Future:
        """Sends a folder in the background, and removes it afterwards."""
        # One client has one thread, so that commits follow each other.
        self._client = self._client or HfApi(library_name="memreason-hf")
        return self._client.run_as_future(self._send, staged, **options)

    def _send(self, staged, **options):
        # Before the job counts as done: whoever waits for it finds the folder removed.
        try:
            return self._client.upload_folder(repo_id=self.hub_model_id, folder_path=staged, **options)
        finally:
            self._drop_stage(staged)


@contextlib.contextmanager
def without_tokens(args: TrainingArguments) -> Iterator[None]:
    """A context in which the arguments hold no token, in which they are saved."""
    tokens = {item.name: getattr(args, item.name) for item in fields(args) if item.name.endswith("_token")}
    for name in tokens:
        setattr(args, name, None)
    try:
        yield
    finally:
        for name, value in tokens.items():
            setattr(args, name, value)
