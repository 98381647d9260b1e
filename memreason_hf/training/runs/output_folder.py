"""Which run an output folder belongs to. A folder of another run is never overwritten."""

import json
import logging
from contextlib import suppress
from pathlib import Path

from memreason_hf import files
from memreason_hf.training.runs import checkpoints
from memreason_hf.training.runs.errors import CheckpointError, OutputFolderError
from memreason_hf.training.runs.extension import (
    EARLIER,
    check_extension,
    differing_entries,
    extended_record,
    is_other_length,
)
from modeling_recurrent.card_recurrent import is_generated, read_card


logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
# What the run was trained on, for its card.
DATA_FILE = "training_data.json"
CARD_FILE = "README.md"
_CONFIGS = ("config.json", "adapter_config.json")
_START_AGAIN = "Choose another output_dir, or start again with --restart (restart=True), which removes that run."


def open_run(
    output_dir: Path | str,
    fingerprint: dict,
    *,
    resume: str | bool | None = None,
    restart: bool = False,
    extend_to: int | None = None,
) -> Path | None:
    """
    Claims `output_dir` for a run and finds the checkpoint to resume from.

    Args:
        output_dir (`Path` or `str`): The folder of the run.
        fingerprint (`dict`): What decides the weights of the run, flat and JSON-like.
        resume (`str` or `bool`, *optional*):
            `True` for the newest complete checkpoint of the folder, or the path of a checkpoint.
        restart (`bool`, defaults to `False`): Remove the run that the folder holds.
        extend_to (`int`, *optional*): Train the run that the folder holds on to so many steps; see `extension`.

    Returns:
        The checkpoint to resume from, or `None` for a new run.

    Raises:
        CheckpointError: the checkpoint is damaged or missing.
        OutputFolderError: the folder holds another run, or checkpoints of this one that are not to be resumed.
    """
    output_dir = Path(output_dir)
    if resume and restart:
        raise OutputFolderError("restart=True and resume_from_checkpoint contradict each other: use one of them.")
    if extend_to is not None:
        if restart:
            raise OutputFolderError("restart=True and extend=True contradict each other: use one of them.")
        check_extension(output_dir, extend_to)
    existing = checkpoints.list_checkpoints(output_dir)
    if resume is True and not existing:
        raise CheckpointError(f"output_dir={str(output_dir)!r} holds no checkpoint to resume from.")
    if existing and not resume and not restart:
        raise OutputFolderError(
            f"output_dir={str(output_dir)!r} holds {existing[-1].name}. Resume that run "
            "(resume_from_checkpoint=True), choose another output_dir, or start again with --restart (restart=True), "
            "which removes it."
        )
    checkpoint = Path(resume) if isinstance(resume, str | Path) else None
    if checkpoint is not None:
        checkpoints.verify(checkpoint)
        _check_belongs(checkpoint, fingerprint, extend=extend_to is not None)
    claim(output_dir, fingerprint, restart=restart, extend=extend_to is not None)
    if resume is True:
        checkpoint = checkpoints.newest_complete(output_dir)
    return checkpoint


def claim(output_dir: Path | str, fingerprint: dict, *, restart: bool, extend: bool = False):
    """
    Makes `output_dir` the folder of the run that `fingerprint` describes.

    Args:
        output_dir (`Path` or `str`): The folder, which need not exist.
        fingerprint (`dict`): What decides the weights of the run, flat and JSON-like.
        restart (`bool`): Remove the run that the folder holds: its checkpoints and its model.
        extend (`bool`, *optional*, defaults to `False`): Let the run that the folder holds have another length.

    Raises:
        OutputFolderError: the folder holds another run, or a model or checkpoints of unknown origin. Nothing was
            changed then.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise OutputFolderError(f"output_dir={str(folder)!r} is a file, not a folder.")
    if restart:
        _remove_run(folder)
    else:
        _check_same_run(folder, fingerprint, extend)
    folder.mkdir(parents=True, exist_ok=True)
    files.clear_leftovers(folder)
    if not (folder / RUN_FILE).is_file():
        files.write_json(folder / RUN_FILE, {"fingerprint": fingerprint, "files": []})


def earlier_runs(output_dir: Path | str) -> list[str]:
    """The `run_digest` of the runs that the run of a folder was before it was extended."""
    return list((_read_run(Path(output_dir)) or {}).get(EARLIER, ()))


def release(output_dir: Path | str):
    """
    Takes the claim of a run back that has failed before it saved anything. Does nothing in a folder that holds a
    checkpoint or a model, so that the same folder can be used with other arguments.
    """
    folder = Path(output_dir)
    # The failure of the run is what is reported.
    with suppress(OSError, OutputFolderError):
        run = _read_run(folder)
        if run is None or checkpoints.list_checkpoints(folder):
            return
        if any((folder / name).exists() for name in run["files"] if name != DATA_FILE):
            return
        if DATA_FILE in run["files"]:
            (folder / DATA_FILE).unlink(missing_ok=True)
        (folder / RUN_FILE).unlink(missing_ok=True)


def move_in(staged: Path, output_dir: Path, fingerprint: dict | None = None):
    """
    Moves the files of the trained model into `output_dir`, each of them whole, and records their names.

    Args:
        staged (`Path`): The folder with the files.
        output_dir (`Path`): The folder, which may hold the record of a run.
        fingerprint (`dict`, *optional*): That of the run whose model it is.

    Raises:
        OutputFolderError: the folder belongs to another run. Nothing was changed then.
    """
    names = [str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()]
    run = _read_run(output_dir)
    if run is not None:
        if fingerprint is not None and _differences(run["fingerprint"], fingerprint):
            raise OutputFolderError(
                f"output_dir={str(output_dir)!r} holds another run by now, so the model was not saved there. Save it "
                "in another folder: trainer.save_model(FOLDER)."
            )
        _record(output_dir, run, files=names)
    # A folder without its config is neither a model nor an adapter yet.
    files.move_files(staged, output_dir, last=_CONFIGS)


def check_present(output_dir: Path):
    """
    Raises:
        OutputFolderError: the folder of a run, or the record in it, has disappeared since the run began.
    """
    if not (output_dir / RUN_FILE).is_file():
        raise OutputFolderError(f"output_dir={str(output_dir)!r} has lost its {RUN_FILE} since the run began.")


def record_checkpoint(staged: Path, final: Path):
    """
    Prepares the folder of a run for the checkpoint `final`. The names of its files are recorded, by which they are
    recognised as the run's if the manifest is damaged.

    Raises:
        OutputFolderError: the folder of the run has disappeared, or something that the run did not write is in the
            place of the checkpoint.
    """
    output_dir = final.parent
    check_present(output_dir)
    run = _read_run(output_dir)
    if final.exists() and (foreign := checkpoints.foreign_files(final, run.get("checkpoint_files", ()))):
        raise OutputFolderError(f"{final} already holds {foreign[0]}, which the run did not write. Move it elsewhere.")
    names = [path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()]
    _record(output_dir, run, checkpoint_files=names)


def record_file(output_dir: Path, name: str):
    """Records a file that the run is about to write into its folder. Does nothing in a folder without a run."""
    run = _read_run(output_dir)
    if run is not None:
        _record(output_dir, run, files=[name])


def _record(output_dir, run, **names):
    merged = {**run, **{key: sorted({*run.get(key, ()), *more}) for key, more in names.items()}}
    if merged != run:
        files.write_json(output_dir / RUN_FILE, merged)


def _check_same_run(folder, fingerprint, extend):
    run = _read_run(folder)
    if run is None:
        foreign = [path.name for path in checkpoints.list_checkpoints(folder)[-1:]]
        foreign += [name for name in (*_CONFIGS, "model.safetensors") if (folder / name).exists()]
        if foreign:
            raise OutputFolderError(
                f"output_dir={str(folder)!r} holds {foreign[0]}, but no {RUN_FILE}: another program wrote it. "
                "Choose another output_dir."
            )
        return
    if differing := _differences(run["fingerprint"], fingerprint):
        only_length = is_other_length(run["fingerprint"], _through_json(fingerprint))
        if only_length and extend:
            files.write_json(folder / RUN_FILE, extended_record(run, fingerprint))
            logger.warning(
                "The run in %s is extended (%s). From here on the learning rate follows the new length; the steps "
                "before followed the old one.",
                folder,
                differing,
            )
            return
        hint = "To train that run on to another length, add --extend (extend=True). " if only_length else ""
        raise OutputFolderError(f"output_dir={str(folder)!r} holds another run ({differing}). {hint}{_START_AGAIN}")


def _differences(recorded, fingerprint):
    """The entries of a fingerprint that differ from the recorded ones, for a message; empty if none does."""
    current = _through_json(fingerprint)
    differing = differing_entries(recorded, current)
    shown = "; ".join(f"{key} was {recorded.get(key)!r}, now {current.get(key)!r}" for key in differing[:5])
    return f"{shown}; and {len(differing) - 5} more" if len(differing) > 5 else shown


def _through_json(fingerprint):
    """JSON turns tuples into lists and keys into strings; the recorded fingerprint has been through it."""
    return json.loads(json.dumps(fingerprint))


def _check_belongs(checkpoint, fingerprint, extend):
    """Refuses a checkpoint of another run, which would go on with other arguments than it was trained with."""
    run = checkpoints.read_run(checkpoint)
    if run == checkpoints.run_digest(fingerprint):
        return
    try:
        parent = _read_run(checkpoint.parent)
    except OutputFolderError:
        parent = None
    differing = _differences(parent["fingerprint"], fingerprint) if parent else ""
    if parent and _was_extended(run, parent, fingerprint, extend=extend):
        return
    if run is None and not differing:
        logger.warning("%s does not say which run it belongs to, so this was not checked.", checkpoint)
        return
    what = f" ({differing})" if differing else ""
    raise OutputFolderError(
        f"resume_from_checkpoint={str(checkpoint)!r} belongs to another run{what}. Give the arguments of that run, or "
        "start a new run from its weights: pass the checkpoint as the model."
    )


def _was_extended(run, parent, fingerprint, *, extend):
    """Whether a checkpoint is one of the run that `parent` records, before that was extended, or is now."""
    if run not in (checkpoints.run_digest(parent["fingerprint"]), *parent.get(EARLIER, ())):
        return False
    current = _through_json(fingerprint)
    return not differing_entries(parent["fingerprint"], current) or (
        extend and is_other_length(parent["fingerprint"], current)
    )


def _read_run(folder):
    try:
        run = files.parse_json(files.read_text(folder / RUN_FILE))
    except FileNotFoundError:
        return None
    except ValueError:
        run = None
    except OSError as error:
        raise OutputFolderError(f"{folder / RUN_FILE} cannot be read: {error.strerror}.") from None
    if not _is_run(run):
        raise OutputFolderError(f"{folder / RUN_FILE} cannot be read. {_START_AGAIN}")
    return run


def _is_run(run):
    if not isinstance(run, dict) or not isinstance(run.get("fingerprint"), dict) or "files" not in run:
        return False
    lists = (run["files"], run.get("checkpoint_files", []), run.get(EARLIER, []))
    return all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)


def _plan_removal(folder):
    """
    The checkpoints and the files of the run in `folder`.

    Raises:
        OutputFolderError: a checkpoint that this package did not write, or that holds files of somebody else. Nothing
            was changed then.
    """
    try:
        run = _read_run(folder) or {"files": []}
    except OutputFolderError:
        run = {"files": []}
    existing = checkpoints.list_checkpoints(folder)
    for checkpoint in existing:
        if foreign := checkpoints.foreign_files(checkpoint, run.get("checkpoint_files", ())):
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise OutputFolderError(
                f"output_dir={str(folder)!r}: {checkpoint.name} holds {foreign[0]}{more}, which no run of this "
                "package wrote there. --restart deletes only what a run wrote. Move the folder elsewhere, or choose "
                "another output_dir."
            )
    own = [folder / name for name in run["files"] if _is_own_file(folder, name)]
    # A card that a person wrote is moved in with every model that is saved.
    written = read_card(folder)
    is_personal = written is not None and not is_generated(written)
    return existing, [path for path in own if not (is_personal and path == folder / CARD_FILE)]


def _is_own_file(folder, name):
    """Whether `name` of a record is a regular file inside `folder`, reached without a link."""
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        logger.warning("%s names %r, which is outside of the folder. It is not deleted.", folder / RUN_FILE, name)
        return False
    steps = [folder.joinpath(*parts[: count + 1]) for count in range(len(parts))]
    return not any(step.is_symlink() for step in steps) and steps[-1].is_file()


def _remove_run(folder):
    existing, own = _plan_removal(folder)
    for checkpoint in existing:
        files.remove_folder(checkpoint)
    for path in own:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # a folder of the model that is empty now
            if path.parent != folder:
                path.parent.rmdir()
    (folder / RUN_FILE).unlink(missing_ok=True)
