"""The folder of a part of an experiment: it belongs to one set of settings, and keeps what is finished."""

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from memreason_hf.files import (
    LOCK_SUFFIX,
    clear_leftovers,
    is_temporary,
    portable_path,
    read_json,
    remove_folder,
    write_json,
)
from memreason_hf.locks import LOCK_FILE
from memreason_hf.training.runs.output_folder import CARD_FILE
from modeling_recurrent.card_recurrent import is_generated, read_card


SETTINGS_FILE = "settings.json"
# What experiments write into the folder of a part: their own files, and those of trained models.
_WRITTEN = (
    *(SETTINGS_FILE, "task.json", "log.txt", "training.json", "conversion.json", "results.json", "results_*.json"),
    *("solutions.jsonl", "solutions.jsonl.settings.json", "run.json", "trainer_state.json", "training_args.bin"),
    # Of fine-tuning: its checkpoints, and adapters.
    *("training_data.json", "manifest.json", "callbacks.json", "adapter_*", "memreason_adapter.json"),
    *("local_base.json", "step_attention.json", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth"),
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*"),
    "*_recurrent.py",
)


# The ends of the names of fields that hold paths, which must not show where somebody works.
_PATHS = ("path", "file", "dir")


def claim_folder(folder: Path, settings: dict, *, restart: bool) -> None:
    """
    Prepares `folder` for a part of an experiment with these settings.

    Args:
        restart: whether a part of an experiment that the folder holds is removed.

    Raises:
        ValueError: the folder holds results of other settings, and `restart` is false; or it holds a file that no
            experiment wrote, and `restart` is true.
    """
    if restart:
        check_removable([folder])
    if restart and (folder / SETTINGS_FILE).is_file():
        remove_folder(folder)
    clear_leftovers(folder.parent)
    before = read_finished(folder / SETTINGS_FILE)
    if before is not None and before != json.loads(json.dumps(settings)):
        differing = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        shown = ", ".join(f"{name}={before.get(name)!r} there, now {settings.get(name)!r}" for name in differing[:5])
        raise ValueError(f"{folder} holds another run ({shown}). Choose another --output_dir, or pass --restart.")
    write_json(folder / SETTINGS_FILE, settings)


def check_removable(folders: Iterable[Path]) -> None:
    """
    Checks that folders hold only what an experiment writes, so that they may be removed.

    Raises:
        ValueError: a folder holds anything else; the message names it. Symbolic links count as such.
    """
    for folder in folders:
        for path in sorted(folder.rglob("*")) if (folder / SETTINGS_FILE).is_file() else ():
            if path.is_symlink() or not (path.is_dir() or _is_own(path, folder)):
                raise ValueError(
                    f"{path} was not written by an experiment, and --restart would delete it. Move it elsewhere, or "
                    "choose another --output_dir."
                )


def _is_own(path, folder):
    if any(is_temporary(part) for part in path.relative_to(folder).parts):
        return True
    if path.name == CARD_FILE:
        # A card that a person wrote, or has changed, is theirs.
        card = read_card(path.parent)
        return card is not None and is_generated(card)
    # A lock file is named after the file that it is for.
    locks = (LOCK_FILE, *(f".{pattern}{LOCK_SUFFIX}" for pattern in _WRITTEN))
    return any(fnmatch(path.name, pattern) for pattern in (*_WRITTEN, *locks))


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


def portable_sections(sections: dict[str, dict]) -> dict[str, dict]:
    """Sections of a recipe with the last parts of their paths alone, for files that may be published."""
    return {
        section: {
            name: portable_path(value) if name.endswith(_PATHS) and isinstance(value, str) else value
            for name, value in values.items()
        }
        for section, values in sections.items()
    }
