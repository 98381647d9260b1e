"""Which run an output folder belongs to. A folder of another run is never overwritten."""

import json
from pathlib import Path

from memreason_hf import files
from memreason_hf.training.runs import checkpoints
from memreason_hf.training.runs.errors import CheckpointError, OutputFolderError


RUN_FILE = "run.json"
# What the run was trained on, for its card.
DATA_FILE = "training_data.json"
_CONFIGS = ("config.json", "adapter_config.json")
_START_AGAIN = "Choose another output_dir, or start again with --restart (restart=True), which removes that run."


def open_run(
    output_dir: Path | str, fingerprint: dict, *, resume: str | bool | None = None, restart: bool = False
) -> Path | None:
    """
    Claims `output_dir` for a run and finds the checkpoint to resume from.

    Args:
        output_dir (`Path` or `str`): The folder of the run.
        fingerprint (`dict`): What decides the weights of the run, flat and JSON-like.
        resume (`str` or `bool`, *optional*):
            `True` for the newest complete checkpoint of the folder, or the path of a checkpoint.
        restart (`bool`, defaults to `False`): Remove the run that the folder holds.

    Returns:
        The checkpoint to resume from, or `None` for a new run.

    Raises:
        CheckpointError: the checkpoint is damaged or missing.
        OutputFolderError: the folder holds another run, or checkpoints of this one that are not to be resumed.
    """
    output_dir = Path(output_dir)
    if resume and restart:
        raise OutputFolderError("restart=True and resume_from_checkpoint contradict each other: use one of them.")
    existing = checkpoints.list_checkpoints(output_dir)
    if existing and not resume and not restart:
        raise OutputFolderError(
            f"output_dir={str(output_dir)!r} holds {existing[-1].name}. Resume that run "
            "(resume_from_checkpoint=True), choose another output_dir, or start again with --restart (restart=True), "
            "which removes it."
        )
    checkpoint = Path(resume) if isinstance(resume, str | Path) else None
    if checkpoint is not None:
        checkpoints.verify(checkpoint)
    claim(output_dir, fingerprint, restart=restart)
    if resume is True:
        checkpoint = checkpoints.newest_complete(output_dir)
        if checkpoint is None:
            raise CheckpointError(f"output_dir={str(output_dir)!r} holds no checkpoint to resume from.")
    return checkpoint


def claim(output_dir: Path | str, fingerprint: dict, *, restart: bool):
    """
    Makes `output_dir` the folder of the run that `fingerprint` describes.

    Args:
        output_dir (`Path` or `str`): The folder, which need not exist.
        fingerprint (`dict`): What decides the weights of the run, flat and JSON-like.
        restart (`bool`): Remove the run that the folder holds: its checkpoints and its model.

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
        _check_same_run(folder, fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    files.clear_leftovers(folder)
    if not (folder / RUN_FILE).is_file():
        files.write_json(folder / RUN_FILE, {"fingerprint": fingerprint, "files": []})


def move_in(staged: Path, output_dir: Path):
    """Moves the files of the trained model into `output_dir`, each of them whole, and records their names."""
    names = [str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()]
    run = _read_run(output_dir)
    if run is not None:
        files.write_json(output_dir / RUN_FILE, {**run, "files": sorted({*run["files"], *names})})
    # A folder without its config is neither a model nor an adapter yet.
    files.move_files(staged, output_dir, last=_CONFIGS)


def _check_same_run(folder, fingerprint):
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
    recorded = run["fingerprint"]
    # JSON turns tuples into lists and keys into strings; the recorded fingerprint has been through it.
    current = json.loads(json.dumps(fingerprint))
    differing = [key for key in {**recorded, **current} if recorded.get(key) != current.get(key)]
    if differing:
        shown = "; ".join(f"{key} was {recorded.get(key)!r}, now {current.get(key)!r}" for key in differing[:5])
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise OutputFolderError(f"output_dir={str(folder)!r} holds another run ({shown}{more}). {_START_AGAIN}")


def _read_run(folder):
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        run = None
    if not isinstance(run, dict) or not isinstance(run.get("fingerprint"), dict) or "files" not in run:
        raise OutputFolderError(f"{folder / RUN_FILE} cannot be read. {_START_AGAIN}")
    return run


def _remove_run(folder):
    for checkpoint in checkpoints.list_checkpoints(folder):
        files.remove_folder(checkpoint)
    try:
        names = (_read_run(folder) or {"files": []})["files"]
    except OutputFolderError:
        names = []
    for name in [*names, DATA_FILE, RUN_FILE]:
        (folder / name).unlink(missing_ok=True)
