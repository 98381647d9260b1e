"""What cannot be written while a run trains: recognised, and described in one line that says what is safe."""

import errno
from pathlib import Path

from safetensors import SafetensorError

from memreason_hf.training.runs.errors import OutputFolderError, SaveError


_HINTS = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space of your quota",
    errno.EFBIG: "Allow larger files (ulimit -f)",
    errno.EROFS: "Make the file system writable",
    errno.EACCES: "Make the folder writable",
    errno.EPERM: "Make the folder writable",
    errno.ENOENT: "Bring the folder back",
    errno.ENOTDIR: "Bring the folder back",
}
# torch and safetensors write files in other languages, and raise errors without an errno.
_TORCH_WRITER = (
    *("PytorchStreamWriter", "inline_container", "file write failed", "cannot be opened", "does not exist"),
    "iostream error",
)


def is_write_error(error: BaseException) -> bool:
    """Whether an error, raised while files were written, says that they could not be written."""
    if isinstance(error, OSError | SafetensorError | OutputFolderError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _TORCH_WRITER)


def save_error(place: Path, error: BaseException, last_checkpoint: str | None) -> SaveError:
    """
    The error about a checkpoint or model that could not be written.

    Args:
        place (`Path`): What was being written.
        error (`BaseException`): Why it could not be.
        last_checkpoint (`str`, *optional*): The newest checkpoint that the run knows of.
    """
    if isinstance(error, OutputFolderError):
        reason, hint = str(error).rstrip("."), "Put that right"
    elif isinstance(error, OSError) and error.strerror:
        reason, hint = error.strerror, _HINTS.get(error.errno, "Repair that")
    else:
        reason, hint = " ".join(str(error).split())[:200].rstrip("."), "Free some space, or repair that"
    if last_checkpoint is not None and Path(last_checkpoint).is_dir():
        safe = f"{last_checkpoint} is complete, and nothing of it has changed. {hint}: the same command resumes there."
    else:
        safe = f"No checkpoint of this run is there. {hint}: the same command starts the run."
    return SaveError(f"{place} could not be written: {reason}. {safe}")
