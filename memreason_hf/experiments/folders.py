"""The folder of a part of an experiment: it belongs to one set of settings, and keeps what is finished."""

import json
import shutil
from pathlib import Path

from memreason_hf.files import read_json, write_json


SETTINGS_FILE = "settings.json"


def claim_folder(folder: Path, settings: dict, *, restart: bool) -> None:
    """
    Prepares `folder` for a part of an experiment with these settings.

    Args:
        restart: whether a part of an experiment that the folder holds is removed.

    Raises:
        ValueError: the folder holds results of other settings, and `restart` is false.
    """
    if restart and (folder / SETTINGS_FILE).is_file():
        shutil.rmtree(folder)
    before = read_finished(folder / SETTINGS_FILE)
    if before is not None and before != json.loads(json.dumps(settings)):
        differing = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        shown = ", ".join(f"{name}={before.get(name)!r} there, now {settings.get(name)!r}" for name in differing[:5])
        raise ValueError(f"{folder} holds another run ({shown}). Choose another --output_dir, or pass --restart.")
    write_json(folder / SETTINGS_FILE, settings)


def read_finished(path: Path) -> dict | None:
    """
    What an earlier run wrote to a JSON file when it had finished a part; None if it had not.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Pass --restart.") from None
