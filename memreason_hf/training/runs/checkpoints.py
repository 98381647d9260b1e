"""
The checkpoints of a run: each is written whole, verified against its manifest, and deleted when it is surplus.

Our own, because the library writes a checkpoint in place: after a kill it resumes from one that lacks files.

A manifest lists the size and SHA-256 of every file, the training step and the run, and ends with a digest of itself,
so that a single changed bit of any file is noticed. Manifests of earlier versions list sizes only.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from memreason_hf import files
from memreason_hf.training.runs.errors import CheckpointError


logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_VERSION = 2
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# OpenSSL releases Python's lock while it hashes.
_HASHING_THREADS = 4


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


def run_digest(fingerprint: dict) -> str:
    """A digest of what decides the weights of a run. An entry that is `None` counts as absent."""
    # JSON turns tuples into lists and keys into strings.
    entries = {key: value for key, value in json.loads(json.dumps(fingerprint)).items() if value is not None}
    return _digest(entries)


def commit(staged: Path, final: Path, run: str | None = None):
    """
    Turns a staging folder into the checkpoint `final`: writes the manifest, syncs every file, then renames the folder.

    Args:
        staged (`Path`): The folder with all files of the checkpoint.
        final (`Path`): The checkpoint. A checkpoint of this name is replaced.
        run (`str`, *optional*): The `run_digest` of the run.
    """
    write_manifest(staged, checkpoint_step(final), run)
    files.commit_folder(staged, final)


def write_manifest(folder: Path, step: int | None, run: str | None = None):
    """
    Writes the manifest of a checkpoint: the size and the checksum of each of its files.

    Args:
        folder (`Path`): The folder with all files of the checkpoint.
        step (`int`, *optional*): Its training step.
        run (`str`, *optional*): The `run_digest` of the run.
    """
    _write_manifest(folder, step, run, {})


def write_manifest_of_copy(folder: Path, checkpoint: Path, *, changed: Collection[str]):
    """
    Writes the manifest of a folder that holds files of a checkpoint. Only files that are not the same are read.

    Args:
        folder (`Path`): The folder with all files of the copy.
        checkpoint (`Path`): The checkpoint that it was made from.
        changed (`Collection[str]`): Names of files whose content differs.
    """
    manifest = _read_manifest(checkpoint)
    known = {name: entry for name, entry in manifest["files"].items() if name not in changed}
    # A manifest of an earlier version lists sizes only.
    known = known if "version" in manifest else {}
    _write_manifest(folder, checkpoint_step(checkpoint), manifest.get("run"), known)


def _write_manifest(folder, step, run, known):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    new = [name for name in names if name not in known]
    entries = {name: known[name] for name in names if name in known}
    for name, digest in zip(new, _hash_files([folder / name for name in new]), strict=True):
        entries[name] = {"size": (folder / name).stat().st_size, "sha256": digest}
    manifest = {"version": _VERSION, "step": step, "run": run, "files": dict(sorted(entries.items()))}
    files.write_json(folder / MANIFEST, {**manifest, "digest": _digest(manifest)})


def rotate(
    output_dir: Path | str,
    limit: int | None,
    best: str | None,
    runs: Collection[str] | None = None,
    last_step: int | None = None,
):
    """
    Deletes the oldest checkpoints beyond `limit`. Only complete checkpoints of this run count, and only they are
    deleted. One that holds files of somebody else is kept.

    Args:
        output_dir (`Path` or `str`): The folder of the run.
        limit (`int`, *optional*): How many checkpoints to keep. `None` or 0 keeps all of them.
        best (`str`, *optional*): The best checkpoint. It is kept whatever the limit, and so is the newest one.
        runs (`Collection[str]`, *optional*):
            The `run_digest` of the run, and of the runs that it was before it was extended. `None`: checkpoints of any
            run count.
        last_step (`int`, *optional*):
            The step of the newest checkpoint that is known to be good. Later ones, which a run that was resumed from
            an earlier checkpoint will replace, do not count.
    """
    if limit is None or limit <= 0:
        return
    own = [path for path in list_checkpoints(output_dir) if _is_complete(path, runs)]
    if last_step is not None:
        own = [path for path in own if checkpoint_step(path) <= last_step]
    protected = {path.name for path in own[-1:]} | ({Path(best).name} if best else set())
    surplus = max(len(own) - max(limit, len(protected)), 0)
    for path in [path for path in own if path.name not in protected][:surplus]:
        if foreign := foreign_files(path):
            logger.warning("%s is kept: the run did not write %s in it.", path, foreign[0])
        else:
            files.remove_folder(path)


def foreign_files(checkpoint: Path, known: Collection[str] = ()) -> list[str]:
    """
    The files and links in a checkpoint folder that the run did not write.

    Args:
        checkpoint (`Path`): The folder.
        known (`Collection[str]`): Names that count as written by the run, in addition to those in the manifest.
    """
    if checkpoint.is_symlink():
        return [checkpoint.name]
    try:
        listed = set(_read_manifest(checkpoint)["files"])
    except CheckpointError:
        listed = set()
    own = listed | set(known) | {MANIFEST}
    paths = (path for path in sorted(checkpoint.rglob("*")) if path.is_symlink() or not path.is_dir())
    return [
        name for path in paths if (name := path.relative_to(checkpoint).as_posix()) not in own or path.is_symlink()
    ]


def read_run(checkpoint: Path | str) -> str | None:
    """The `run_digest` that a checkpoint names; `None` for a checkpoint of an earlier version."""
    return _read_manifest(Path(checkpoint)).get("run")


def verify(checkpoint: Path | str):
    """
    Checks a checkpoint against its manifest. Every file is read.

    Warns about a manifest of an earlier version, which has no checksums.

    Raises:
        CheckpointError: a missing folder or file, or a file whose content has changed. The message names it.
    """
    checkpoint = Path(checkpoint)
    manifest = _read_manifest(checkpoint)
    entries = manifest["files"]
    _check_sizes(checkpoint, entries)
    step = checkpoint_step(checkpoint)
    if "version" not in manifest:
        logger.warning(
            "%s was written by an earlier version and has no checksums: only the sizes of its files can be checked.",
            checkpoint,
        )
        return
    if step is not None and manifest["step"] not in (None, step):
        raise CheckpointError(f"{checkpoint} holds the checkpoint of step {manifest['step']}: it was renamed.")
    try:
        digests = _hash_files([checkpoint / name for name in entries])
    except OSError as error:  # a failing disk
        raise CheckpointError(
            f"{error.filename} cannot be read: {error.strerror}. The checkpoint is damaged."
        ) from None
    for name, digest in zip(entries, digests, strict=True):
        if digest != entries[name]["sha256"]:
            raise CheckpointError(f"{checkpoint / name} has changed since it was written: the checkpoint is damaged.")


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


def _read_manifest(checkpoint):
    """The manifest of a checkpoint, whose own digest is checked."""
    path = checkpoint / MANIFEST
    if not checkpoint.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {checkpoint}.")
    try:
        manifest = files.parse_json(files.read_text(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} lacks the file {MANIFEST}: it is incomplete, or another trainer wrote it."
        ) from None
    except (OSError, ValueError):
        manifest = None
    if not _is_manifest(manifest):
        raise CheckpointError(f"{path} cannot be read: the checkpoint is damaged.")
    if "version" in manifest and manifest["version"] != _VERSION:
        raise CheckpointError(f"{path} has version={manifest['version']}, which this version cannot read.")
    return manifest


def _is_manifest(manifest):
    entries = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(entries, dict):
        return False
    if set(manifest) == {"files"}:
        return all(type(size) is int for size in entries.values())
    content = {key: value for key, value in manifest.items() if key != "digest"}
    if content.get("version") != _VERSION:
        return type(content.get("version")) is int
    return _digest(content) == manifest.get("digest")


def _is_complete(checkpoint, runs):
    """Whether the files of a checkpoint of one of these runs have their sizes. Their contents are not read."""
    try:
        manifest = _read_manifest(checkpoint)
        _check_sizes(checkpoint, manifest["files"])
    except CheckpointError:
        return False
    return runs is None or manifest.get("run") in (None, *runs)


def _check_sizes(checkpoint, entries):
    for name, entry in entries.items():
        size = entry if isinstance(entry, int) else entry["size"]
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{checkpoint} lacks the file {name}: the checkpoint is incomplete.")
        if path.stat().st_size != size:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes instead of {size:,}: the checkpoint is damaged."
            )


def _hash_files(paths):
    # One thread for one file, so that a checkpoint of one large file costs what that file costs.
    with ThreadPoolExecutor(max(1, min(_HASHING_THREADS, os.cpu_count() or 1))) as pool:
        return list(pool.map(_sha256, paths))


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
