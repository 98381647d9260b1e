"""The config of an adapter as it is published: it names its base by a name that everyone can load."""

from pathlib import Path, PurePosixPath, PureWindowsPath

from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft.utils import CONFIG_NAME

from memreason_hf.adapters.base_place import find_base
from memreason_hf.files import read_json, write_json


_BASE, _REVISION = "base_model_name_or_path", "revision"


def stage_adapter_config(folder: str | Path, staged: str | Path, base_model: str | None = None) -> Path:
    """
    Writes `adapter_config.json` for the Hub. Its base is a name on the Hub, not a folder of this machine: nobody else
    would find that, and its path may say who works here.

    Args:
        folder: The adapter.
        staged: An existing folder, for the file.
        base_model: The name of the base on the Hub. Needed if the adapter was trained on a folder.

    Returns:
        The file.

    Raises:
        FileNotFoundError: There is no adapter.
        ValueError: The config is damaged, the base is a folder and `base_model` is not given, or `base_model` is no
            name of a repository.

    Example:

    ```python
    >>> stage_adapter_config("runs/lora", "staged", "meta-llama/Llama-3.2-1B")  # doctest: +SKIP
    ```
    """
    path, target = Path(folder, CONFIG_NAME), Path(staged, CONFIG_NAME)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {CONFIG_NAME}, so it is not an adapter.")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object, got a {type(config).__name__}. The adapter is damaged.")
    name = config.get(_BASE) or ""
    if base_model is not None:
        _check_name(base_model)
        if base_model != name:
            # The commit is one of the other repository.
            config[_BASE], config[_REVISION] = base_model, None
    elif not name:
        raise ValueError(
            f"{path} names no base: the adapter was trained on a model that was never saved. Publish the base, and "
            "pass its name on the Hub (base_model)."
        )
    elif _is_local(folder, name):
        raise ValueError(
            f"{path}: {_BASE}={name!r} is a folder of this machine, where nobody else finds the base. Publish the "
            "base first, and pass its name on the Hub (base_model)."
        )
    write_json(target, config, sort_keys=True)
    return target


def _is_local(folder, name):
    is_absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
    return is_absolute or Path(find_base(folder, name)).is_dir() or name.startswith((".", "~")) or name.count("/") > 1


def _check_name(base_model):
    try:
        validate_repo_id(base_model)
    except HFValidationError as error:
        raise ValueError(f"base_model={base_model!r} is not the name of a repository on the Hub: {error}") from None
    if Path(base_model).is_dir():
        raise ValueError(f"base_model={base_model!r} is a folder here. Pass the name that it has on the Hub.")
