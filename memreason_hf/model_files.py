"""Reading the JSON files of a model's or tokenizer's folder, which the library would fail at or pass over."""

import math
import os
from collections.abc import Iterable
from pathlib import Path

from memreason_hf.files import read_json


# The library reads these as mappings, and takes defaults where it cannot read some of them.
MODEL_JSON = ("config.json", "generation_config.json", "adapter_config.json")
TOKENIZER_JSON = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
# Of larger files only the beginning is looked at: the library reads them anyway.
_MOST_BYTES = 4 << 20
# No field has room for more.
_MOST = 10**40


def read_json_files(
    folder: str | Path, field: str, names: Iterable[str] = (*MODEL_JSON, *TOKENIZER_JSON)
) -> dict[str, dict]:
    """
    Reads the JSON files of a model, tokenizer or adapter that exist in a folder. A name on the Hub has none.

    Args:
        folder: of the model, tokenizer or adapter.
        field: what messages call `folder`, for example `"model"`.
        names: of the files.

    Returns:
        The content of each file by its name; those of more than 4 MiB are left out.

    Raises:
        OSError: a folder, a pipe, or a link that leads nowhere, is in the place of a file.
        ValueError: a file is not JSON, is not a mapping, or holds a number that is not finite.
    """
    contents = {}
    for name in names:
        path = Path(folder, name)
        if not path.is_file():
            if os.path.lexists(path):
                what = "a folder" if path.is_dir() else "a pipe or a device" if path.exists() else "a link to nowhere"
                raise OSError(f"{_at(folder, field, name)} is {what}, but must be a file. Save it again.")
            continue
        if path.stat().st_size > _MOST_BYTES:
            with open(path, "rb") as file:
                if not file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                    raise ValueError(f"{_at(folder, field, name)} must hold a JSON object.")
            continue
        content = read_json(path)
        if not isinstance(content, dict):
            kind = "null" if content is None else f"a {type(content).__name__}"
            raise ValueError(f"{_at(folder, field, name)} must hold a JSON object, but holds {kind}.")
        if (wrong := _not_finite(content)) is not None:
            raise ValueError(f"{_at(folder, field, name)}: {wrong}.")
        contents[name] = content
    return contents


def _at(folder, field, name):
    return f"{field}={str(folder)!r}: {name}"


def _not_finite(content, place=""):
    """What is wrong with a number that is not finite, or too large for any field."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        found = (_not_finite(value, f"{place}.{key}" if place else str(key)) for key, value in items)
        return next((entry for entry in found if entry is not None), None)
    if isinstance(content, float) and not math.isfinite(content):
        return f"{place}={content} must be a finite number"
    if isinstance(content, int) and abs(content) > _MOST:
        return f"{place} must be a number of an ordinary size"
    return None
