"""Checkpoints that are there whole or not at all: staged, synced, renamed; complete ones told from damaged ones."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

from memreason_hf.training.errors import CheckpointError


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Hidden, so that neither the library's patterns nor a user's eye takes them for checkpoints.
_STAGED, _DOOMED = ".partial", ".deleted"


def checkpoint_step(path: Path | str) -> int | None:
    """The step in the name `checkpoint-STEP`; `None` for any other name."""
    match = _CHECKPOINT.fullmatch(Path(path).name)
    return int(match[1]) if match else None


def list_checkpoints(output_dir: Path | str) -> list[Path]:
    """All checkpoint folders of a run, complete or not, by rising step."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if checkpoint_step(path) is not None and path.is_dir()]
    return sorted(found, key=checkpoint_step)


def staging_folder(final: Path) -> Path:
    """Where the files of `final` are written before it exists."""
    return final.with_name(f".{final.name}{_STAGED}")


def commit(staged: Path, final: Path):
    """
    Turns a staged folder into `final`: adds the manifest, syncs every file, renames. A kill at any moment leaves
    `final` absent or whole.
    """
    write_json(staged / MANIFEST, {"files": {str(p.relative_to(staged)): p.stat().st_size for p in _files(staged)}})
    for path in _files(staged):
        sync(path)
    for folder in [staged, *(path for path in staged.rglob("*") if path.is_dir())]:
        sync(folder)
    remove(final)
    os.rename(staged, final)
    sync(final.parent)


def remove(folder: Path):
    """Deletes a folder under another name, so that a kill half-way leaves no damaged checkpoint behind."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}{_DOOMED}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def clear_leftovers(output_dir: Path | str):
    """Deletes what a killed run had not finished writing or deleting."""
    folder = Path(output_dir)
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(".") and path.name.endswith((_STAGED, _DOOMED)) and path.is_dir():
                logger.info("Removing %s, left over from a run that was killed.", path)
                shutil.rmtree(path, ignore_errors=True)


def rotate(output_dir: Path | str, limit: int | None, best: str | None):
    """Deletes the oldest checkpoints beyond `limit`; the newest and `best` stay whatever the limit."""
    if limit is None or limit <= 0:
        return
    checkpoints = list_checkpoints(output_dir)
    kept = {path.name for path in checkpoints[-1:]} | ({Path(best).name} if best else set())
    surplus = len(checkpoints) - max(limit, len(kept))
    for path in [path for path in checkpoints if path.name not in kept][: max(surplus, 0)]:
        remove(path)


def verify(checkpoint: Path | str):
    """
    Checks a checkpoint against its manifest.

    Raises:
        CheckpointError: names the folder and the file that is missing or of a wrong size.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {checkpoint}.")
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} lacks the file {MANIFEST}: it was not written whole, or by another trainer."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{checkpoint / MANIFEST} cannot be read: the checkpoint is damaged.") from None
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{checkpoint} lacks the file {name}: the checkpoint is incomplete.")
        if path.stat().st_size != size:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes instead of {size:,}: the checkpoint is damaged."
            )


def newest_complete(output_dir: Path | str) -> Path | None:
    """
    The newest complete checkpoint of a run, or `None` if there is no checkpoint at all. Damaged ones are passed over
    with a warning that names the file.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    checkpoints = list_checkpoints(output_dir)
    for checkpoint in reversed(checkpoints):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            logger.warning("Passing over a checkpoint. %s", error)
        else:
            return checkpoint
    if checkpoints:
        raise CheckpointError(
            f"All checkpoints of {output_dir} are damaged ({', '.join(path.name for path in checkpoints)}). "
            "Begin anew with --restart."
        )
    return None


def write_json(path: Path, content):
    """Writes a JSON file so that it is there whole or not at all."""
    written = path.with_name(f".{path.name}.tmp")
    written.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sync(written)
    os.replace(written, path)


def sync(path: Path):
    """Has the disk hold a file's content, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST) + [
        path for path in [folder / MANIFEST] if path.is_file()
    ]
