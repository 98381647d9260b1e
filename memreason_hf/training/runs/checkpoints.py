"""
The checkpoints of a run: each is written whole, verified against its manifest, and deleted when it is surplus.

Our own, because the library writes a checkpoint in place: after a kill it resumes from one that lacks files.
"""

import json
import logging
import re
from pathlib import Path

from memreason_hf import files
from memreason_hf.training.runs.errors import CheckpointError


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_step(path: Path | str) -> int | None:
    """The training step in the name `checkpoint-STEP`, or `None` for any other name."""
    match = _CHECKPOINT.fullmatch(Path(path).name)
    return int(match[1]) if match else None


def list_checkpoints(output_dir: Path | str) -> list[Path]:
    """All checkpoint folders of a run, complete or not, ordered by training step."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    folders = [path for path in folder.iterdir() if checkpoint_step(path) is not None and path.is_dir()]
    return sorted(folders, key=checkpoint_step)


def commit(staged: Path, final: Path):
    """
    Turns a staging folder into the checkpoint `final`: writes the manifest, syncs every file, then renames the folder.
    """
    write_manifest(staged)
    files.commit_folder(staged, final)


def write_manifest(folder: Path):
    """Writes the manifest of a checkpoint: the size of each of its files."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    files.write_json(folder / MANIFEST, {"files": sizes})


def rotate(output_dir: Path | str, limit: int | None, best: str | None):
    """
    Deletes the oldest checkpoints beyond `limit`.

    Args:
        output_dir (`Path` or `str`): The folder of the run.
        limit (`int`, *optional*): How many checkpoints to keep. `None` or 0 keeps all of them.
        best (`str`, *optional*): The best checkpoint. It is kept whatever the limit, and so is the newest one.
    """
    if limit is None or limit <= 0:
        return
    checkpoints = list_checkpoints(output_dir)
    protected = {path.name for path in checkpoints[-1:]} | ({Path(best).name} if best else set())
    surplus = max(len(checkpoints) - max(limit, len(protected)), 0)
    for path in [path for path in checkpoints if path.name not in protected][:surplus]:
        files.remove_folder(path)


def verify(checkpoint: Path | str):
    """
    Checks a checkpoint against its manifest.

    Raises:
        CheckpointError: a missing folder or file, or a file of the wrong size. The message names it.
    """
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {checkpoint}.")
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} lacks the file {MANIFEST}: it is incomplete, or another trainer wrote it."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{checkpoint / MANIFEST} cannot be read: the checkpoint is damaged.") from None
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{checkpoint} lacks the file {name}: the checkpoint is incomplete.")
        if path.stat().st_size != size:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes instead of {size:,}: the checkpoint is damaged."
            )


def newest_complete(output_dir: Path | str) -> Path | None:
    """
    The newest complete checkpoint of a run, or `None` if the run has no checkpoint at all.

    Skips damaged checkpoints with a warning that names the file.

    Raises:
        CheckpointError: the run has checkpoints, but all of them are damaged.
    """
    checkpoints = list_checkpoints(output_dir)
    for checkpoint in reversed(checkpoints):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            logger.warning("Skipping a checkpoint. %s", error)
        else:
            return checkpoint
    if checkpoints:
        raise CheckpointError(
            f"All checkpoints of {output_dir} are damaged ({', '.join(path.name for path in checkpoints)}). "
            "Start again with --restart."
        )
    return None
