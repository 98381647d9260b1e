"""Checks of the JSON files of a model's or tokenizer's folder, which the library would fail at or pass over."""

import math
from pathlib import Path

from memreason_hf.files import read_json


# The library reads these as mappings, and takes defaults where some of them cannot be read.
_MAPPINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
    "tokenizer.json",
)
# Files of many megabytes are left to the library.
_MOST_BYTES = 4 << 20


def check_json_files(folder: Path) -> None:
    """
    Checks the JSON files of a model, tokenizer or adapter that exist in a folder. A name on the Hub passes.

    The library goes on with defaults where `generation_config.json` or `tokenizer_config.json` is damaged.

    Raises:
        OSError: a file is a folder or a link that leads nowhere.
        ValueError: a file is not JSON, is not a mapping, or holds a number that is not finite.
    """
    if not folder.is_dir():
        return
    for name in _MAPPINGS:
        path = folder / name
        if not path.is_file():
            if path.is_dir() or path.is_symlink():
                what = "a folder" if path.is_dir() else "a link that leads nowhere"
                raise OSError(f"{path} is {what}, but must be a file. Restore it, or save the model again.")
            continue
        if path.stat().st_size > _MOST_BYTES:
            continue
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(
                f"{path} must hold a mapping, but holds {type(content).__name__}. Restore it, or save the model again."
            )
        kind = content.get("model_type")
        if name == "config.json" and not isinstance(kind, str | None):
            raise ValueError(f"{path}: model_type={kind!r} must be a text. Restore the file, or save the model again.")
        place = _not_finite(content)
        if place is not None:
            raise ValueError(f"{path}: {place} must be a finite number. Restore the file, or save the model again.")


def _not_finite(content, place=""):
    """The place and value of a number that is not finite, or so large that no field can have it."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        found = (_not_finite(value, f"{place}.{key}" if place else str(key)) for key, value in items)
        return next((entry for entry in found if entry is not None), None)
    if isinstance(content, float) and not math.isfinite(content):
        return f"{place}={content}"
    if isinstance(content, int) and abs(content) > 10**40:
        return f"{place}=(a very large number)"
    return None
