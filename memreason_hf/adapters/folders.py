"""Where the files of an adapter are: in a folder, or on the Hub."""

from pathlib import Path

from peft.utils import CONFIG_NAME

from memreason_hf.repositories import can_be_repository, check_revision, download_folder, find_file


# The adapter, what it records about its base, and the tokenizer. No code and no pictures.
_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "adapter_model.*"]


def is_adapter_folder(folder: Path | str) -> bool:
    """Whether a folder holds an adapter, of this package or of PEFT alone. Nothing is looked for on the Hub."""
    return (Path(folder) / CONFIG_NAME).is_file()


def adapter_folder(name: Path | str, revision: str | None = None, field: str = "adapter") -> Path | None:
    """
    The folder of an adapter. An adapter on the Hub is downloaded.

    Args:
        name: a folder, or a name on the Hub.
        revision: a branch, tag or commit on the Hub.
        field: what messages call `name`.

    Returns:
        The folder, or `None` if there is something else, for example a whole model.

    Raises:
        OSError: the repository or its revision does not exist, or cannot be downloaded.
        ValueError: a revision of a folder.
    """
    check_revision(str(name), field, revision)
    if Path(name).is_dir() or not can_be_repository(str(name)):
        return Path(name) if is_adapter_folder(name) else None
    config = find_file(str(name), CONFIG_NAME, field, revision)
    if config is None:
        return None
    # At the commit of that file, which is the name of its folder, in case a branch moves on meanwhile.
    return download_folder(str(name), _FILES, field, config.parent.name)


def in_hub_cache(folder: Path | str) -> bool:
    """Whether a folder is a commit of a repository in the cache of the Hub: `models--OWNER--NAME/snapshots/COMMIT`."""
    snapshots = Path(folder).absolute().parent
    return snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--")


def shown(folder: Path | str) -> str:
    """What messages call an adapter: its folder, or its name on the Hub if the folder is in the cache of the Hub."""
    if not in_hub_cache(folder):
        return str(folder)
    return Path(folder).absolute().parent.parent.name.removeprefix("models--").replace("--", "/", 1)
