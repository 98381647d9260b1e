"""Whose output folder it is: a run is recognised by what decides its weights, and another one is not written over."""

import json
from pathlib import Path

from memreason_hf import files
from memreason_hf.training.runs import checkpoints
from memreason_hf.training.runs.errors import OutputFolderError


RUN_FILE = "run.json"
_CONFIGS = ("config.json", "adapter_config.json")
_BEGIN_ANEW = "Choose another output_dir, or begin anew with --restart (restart=True), which removes it."


def claim(output_dir: Path | str, fingerprint: dict, *, restart: bool):
    """
    Makes `output_dir` the folder of the run that `fingerprint` describes.

    Args:
        fingerprint: what decides the run's weights, flat and JSON-like.
        restart: remove a run that is there, its checkpoints and its model.

    Raises:
        OutputFolderError: another run is there, or a model or checkpoints of unknown origin. Nothing was changed.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise OutputFolderError(f"output_dir={str(folder)!r} is a file, not a folder.")
    if restart:
        _remove_run(folder)
    else:
        _check_same(folder, fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    files.clear_leftovers(folder)
    if not (folder / RUN_FILE).is_file():
        files.write_json(folder / RUN_FILE, {"fingerprint": fingerprint, "files": []})


def move_in(staged: Path, output_dir: Path):
    """Moves the files of the trained model to their place, each of them whole, and notes their names in the run."""
    names = [str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()]
    run = _read_run(output_dir)
    if run is not None:
        files.write_json(output_dir / RUN_FILE, {**run, "files": sorted({*run["files"], *names})})
    # A folder without its config is neither a model nor an adapter yet.
    files.move_files(staged, output_dir, last=_CONFIGS)


def _check_same(folder, fingerprint):
    run = _read_run(folder)
    if run is None:
        strangers = [path.name for path in checkpoints.list_checkpoints(folder)[-1:]]
        strangers += [name for name in (*_CONFIGS, "model.safetensors") if (folder / name).exists()]
        if strangers:
            raise OutputFolderError(
                f"output_dir={str(folder)!r} holds {strangers[0]}, but no {RUN_FILE}: another program wrote it. "
                "Choose another output_dir."
            )
        return
    there = run["fingerprint"]
    # Through JSON, as what was read has been.
    here = json.loads(json.dumps(fingerprint))
    differing = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    if differing:
        shown = "; ".join(f"{key}: {there.get(key)!r} there, {here.get(key)!r} asked for" for key in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise OutputFolderError(f"output_dir={str(folder)!r} holds another run ({shown}{more}). {_BEGIN_ANEW}")


def _read_run(folder):
    try:
        run = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        run = None
    if not isinstance(run, dict) or not isinstance(run.get("fingerprint"), dict) or "files" not in run:
        raise OutputFolderError(f"{folder / RUN_FILE} cannot be read. {_BEGIN_ANEW}")
    return run


def _remove_run(folder):
    for checkpoint in checkpoints.list_checkpoints(folder):
        files.remove_folder(checkpoint)
    try:
        names = (_read_run(folder) or {"files": []})["files"]
    except OutputFolderError:
        names = []
    for name in [*names, RUN_FILE]:
        (folder / name).unlink(missing_ok=True)
