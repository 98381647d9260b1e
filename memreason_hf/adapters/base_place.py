"""
Where the base of an adapter is on this machine.

`adapter_config.json` names the base as it was given, because peft alone loads the adapter by that name. A relative
path is found only from the folder in which it was given. `local_base.json` therefore holds the place, by which the
base is found from any folder, and also after it was moved together with the adapter. It stays on the machine; what is
published names the base by its name on the Hub. If somebody has published such a file all the same, it is not read:
it names a place on another machine, where this one may have something else.
"""

import os
from pathlib import Path

from memreason_hf.adapters.folders import in_hub_cache
from memreason_hf.files import final_folder, read_json, write_json


LOCAL_BASE_FILE = "local_base.json"


def write_base_place(folder: Path | str, base: str) -> None:
    """
    Writes `local_base.json`, if the base is a folder.

    Args:
        folder: where the adapter is saved; it may be a staging folder.
        base: the folder of the base, or its name on the Hub.
    """
    path = Path(folder) / LOCAL_BASE_FILE
    if not base or not Path(base).is_dir():
        path.unlink(missing_ok=True)
        return
    place = Path(base).absolute()
    write_json(path, {"path": str(place), "relative_path": os.path.relpath(place, final_folder(Path(folder)))})


def find_base(folder: Path | str, name: str | None) -> str:
    """
    Where the base of an adapter is.

    Args:
        folder: the adapter.
        name: what `adapter_config.json` calls the base.

    Returns:
        The first folder that exists of the one that moved along with the adapter and the one that it was trained on;
        otherwise `name`, a relative path or a name on the Hub. Of an adapter that was downloaded, always `name`.

    Raises:
        ValueError: `local_base.json` is damaged.
    """
    path = Path(folder) / LOCAL_BASE_FILE
    if os.path.lexists(path) and not _is_downloaded(path):
        places = read_json(path)
        if not isinstance(places, dict):
            raise ValueError(f"{path} must hold an object with the path of the base. Remove it, and pass base=.")
        for place in (places.get("relative_path"), places.get("path")):
            # An absolute path wins over the folder before it.
            if isinstance(place, str) and place and (Path(folder) / place).is_dir():
                return os.path.normpath(Path(folder) / place)
    return name or ""


def _is_downloaded(path):
    """Whether a file came from the Hub: into its cache, or into a folder by `hf download --local-dir`."""
    record = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    return in_hub_cache(path.parent) or record.is_file()
