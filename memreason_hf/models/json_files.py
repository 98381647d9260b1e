"""Checks of the JSON files of a saved model, before the library reads them without any."""

from collections.abc import Iterable
from pathlib import Path

from transformers import GenerationConfig

from memreason_hf.model_files import MODEL_JSON, read_json_files
from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.arguments_recurrent import refuse_misspelt


_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_json_files(folder: str | Path, field: str, names: Iterable[str] = MODEL_JSON) -> None:
    """
    Checks that the JSON files of a local folder hold objects, and the entries that the library does not check.

    Args:
        folder: of a model or adapter. A name on the Hub is not checked.
        field: what messages call `folder`, for example `"model"`.
        names: of the files; those of a tokenizer are read with it.

    Raises:
        OSError: a folder, or a link that leads nowhere, is in the place of a file.
        ValueError: a file is damaged; the message is one line and names the file and, where there is one, the key.
    """
    is_recurrent = False
    for name, content in read_json_files(folder, field, names).items():
        wrong = _wrong_entry(name, content)
        if name == "config.json":
            is_recurrent = content.get("model_type") == RecurrentDepthConfig.model_type
        if wrong is None and is_recurrent and name == "generation_config.json":
            wrong = _misspelt_depth(content)
        if wrong is not None:
            raise ValueError(f"{field}={str(folder)!r}: {name}: {wrong}{'' if wrong.endswith('?') else '.'}")


def _misspelt_depth(content):
    known = GenerationConfig().to_dict()
    try:
        refuse_misspelt({key: value for key, value in content.items() if key not in known}, "generate", warns=False)
    except TypeError as error:
        return str(error).removesuffix(".")
    return None


def _wrong_entry(name, content):
    if name == "config.json" and not isinstance(content.get("model_type", ""), str):
        return f"model_type={content['model_type']!r} must be text"
    code = content.get("auto_map")
    # A tokenizer has one class, or a slow and a fast one.
    if code is not None and not (isinstance(code, dict) or (name.startswith("tokenizer") and _are_names(code))):
        return f"auto_map={code!r} must be an object with the names of classes"
    if isinstance(code, dict) and not all(isinstance(one, str | None) or _are_names(one) for one in code.values()):
        return f"auto_map={dict(code)!r} must hold the names of classes"
    if name not in ("config.json", "generation_config.json"):
        return None
    for key in _TOKENS:
        value = content.get(key)
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        if any(isinstance(item, bool) or not isinstance(item, int | None) for item in ids):
            return f"{key}={value!r} must be the id of a token, a whole number"
    return None


def _are_names(value):
    return isinstance(value, list) and all(isinstance(one, str | None) for one in value)
