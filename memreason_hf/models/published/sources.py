"""Where the files of a published loop are: in a folder, or on the Hub."""

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from memreason_hf.models.pretrained import check_source, first_line


_DATA = ("*.json", "*.jinja", "*.txt", "*.model")


def local_config(source: str | Path) -> Path | None:
    """
    The folder that holds `config.json`; without one, `None`. Of a repository of the Hub only this file is downloaded.

    Raises:
        OSError: there is neither such a folder nor such a repository, or the Hub cannot be reached.
    """
    path = Path(source)
    if path.exists():
        return path if (path / "config.json").is_file() else None
    check_source(str(source), "source")
    try:
        return Path(_reach(hf_hub_download, source, "config.json")).parent
    except EntryNotFoundError:
        return None


def local_folder(source: str | Path) -> Path:
    """
    The folder with all files of a model but its Python code, downloaded if `source` is a repository of the Hub.

    A repository that has safetensors is read from them alone.

    Raises:
        OSError: there is neither such a folder nor such a repository, or the Hub cannot be reached.
    """
    path = Path(source)
    if path.exists():
        return path
    check_source(str(source), "source")
    folder = Path(_reach(snapshot_download, source, allow_patterns=[*_DATA, "*.safetensors"]))
    if not any(folder.glob("*.safetensors")):
        folder = Path(_reach(snapshot_download, source, allow_patterns=[*_DATA, "*.bin"]))
    return folder


def _reach(download, source, *args, **kwargs):
    try:
        return download(str(source), *args, **kwargs)
    except Exception as error:  # of the Hub, of the network, of the disk
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise
        raise OSError(
            f"source={str(source)!r}: no such folder, and it cannot be downloaded from the Hub ({first_line(error)})."
        ) from error


__all__ = ["local_config", "local_folder"]
