"""
The weight files of a base model, by which it is recognised when an adapter is loaded.

Reading the whole of a 7B model takes some 17 s (sha256, 0.9 GB/s on one core), too long for every load. Each file
therefore has two digests. `blocks` reads at most 4 MiB of it, in 30 ms: its size and 1,024 blocks spread evenly over
it. Training further changes nearly every weight, so it changes some of the blocks; a file of up to 4 MiB is read
whole. `sha256` reads the whole file. It is computed once, when the adapter is first saved, and compared on request.
"""

import hashlib
from pathlib import Path

from transformers import CONFIG_NAME
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash


_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
_BLOCKS, _BLOCK_SIZE = 1024, 4096


def weight_files(name: str | None, revision: str | None = None) -> dict[str, Path]:
    """
    The weight files of a saved model.

    Args:
        name (`str`, *optional*): A folder, or the name on the Hub of a model that has been downloaded.
        revision (`str`, *optional*): The revision of a model on the Hub.

    Returns:
        The paths by file name; empty if there is no such folder or download.
    """
    folder = _model_folder(name, revision)
    if folder is not None:
        for pattern in _PATTERNS:
            if paths := sorted(path for path in folder.glob(pattern) if path.is_file()):
                return {path.name: path for path in paths}
    return {}


def resolve_commit(name: str | None, revision: str | None = None) -> str | None:
    """The commit that a revision of a downloaded model on the Hub stands for; `None` for a folder."""
    folder = _model_folder(name, revision)
    return None if folder is None or folder == Path(name) else extract_commit_hash(str(folder / CONFIG_NAME), None)


def _model_folder(name, revision):
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    try:
        path = cached_file(name, CONFIG_NAME, revision=revision, local_files_only=True)
    except OSError:
        return None
    return Path(path).parent


def block_digests(files: dict[str, Path]) -> dict[str, dict]:
    """`{file name: {"blocks": digest}}` of weight files."""
    return {name: {"blocks": _block_digest(path)} for name, path in files.items()}


def add_sha256(digests: dict[str, dict], files: dict[str, Path]) -> bool:
    """
    Adds `sha256` to the block digests of weight files, which it reads whole.

    Args:
        digests (`dict`): The result of `block_digests`, changed in place.
        files (`dict[str, Path]`): The same files now.

    Returns:
        Whether they were added. They are not if the files have changed or disappeared since.
    """
    if differing_files(digests, files):
        return False
    for name, path in files.items():
        digests[name]["sha256"] = _sha256(path)
    return True


def differing_files(digests: dict[str, dict], files: dict[str, Path], whole: bool = False) -> list[str]:
    """
    The names of files that are missing or additional, or whose digest differs.

    Args:
        digests (`dict`): The digests that an adapter has recorded.
        files (`dict[str, Path]`): The weight files of a base.
        whole (`bool`, *optional*, defaults to `False`): Read the files whole, where a `sha256` was recorded.
    """
    differing = sorted(digests.keys() ^ files.keys())
    for name in sorted(digests.keys() & files.keys()):
        recorded = digests[name]
        if whole and "sha256" in recorded:
            same = _sha256(files[name]) == recorded["sha256"]
        else:
            same = _block_digest(files[name]) == recorded["blocks"]
        differing += [] if same else [name]
    return differing


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _block_digest(path):
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _BLOCKS * _BLOCK_SIZE:
            digest.update(file.read())
        else:
            for index in range(_BLOCKS):
                file.seek(index * (size - _BLOCK_SIZE) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_SIZE))
    return digest.hexdigest()
