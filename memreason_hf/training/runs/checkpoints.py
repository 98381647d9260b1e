"""The checkpoints of a run: written whole, verified against their manifest, rotated."""

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


def commit(staged: Path, final: Path):
    """
    Turns a staged folder into the checkpoint `final`: adds the manifest, then `files.commit_folder`.
    """
    sizes = {
        str(path.relative_to(staged)): path.stat().st_size for path in sorted(staged.rglob("*")) if path.is_file()
    }
    files.write_json(staged / MANIFEST, {"files": sizes})
    files.commit_folder(staged, final)


def rotate(output_dir: Path | str, limit: int | None, best: str | None):
    """Deletes the oldest checkpoints beyond `limit`; the newest and `best` stay whatever the limit."""
    if limit is None or limit <= 0:
        return
    checkpoints = list_checkpoints(output_dir)
    kept = {path.name for path in checkpoints[-1:]} | ({Path(best).name} if best else set())
    surplus = len(checkpoints) - max(limit, len(kept))
    for path in [path for path in checkpoints if path.name not in kept][: max(surplus, 0)]:
        files.remove_folder(path)


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
        sizes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} lacks the file {MANIFEST}: it was not written whole, or by another trainer."
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
