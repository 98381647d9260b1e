"""Adapters on disk: a folder with the adapter, the new rows, the tokenizer with its scheme, and a note on the base."""

import json
import os
import shutil
from pathlib import Path

import torch
from peft import PeftConfig
from peft.utils import CONFIG_NAME
from transformers import CONFIG_NAME as MODEL_CONFIG_NAME
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import modeling_recurrent  # noqa: F401  (registers its model: a base can be one)
from memreason_hf import files
from memreason_hf.adapters.base import DESCRIPTION, check_config, check_rows, check_tokenizer, check_weights
from memreason_hf.adapters.base_files import weight_files
from memreason_hf.adapters.model import ADAPTER, ADAPTER_FILE, AdapterModel
from memreason_hf.checks import check_choice
from memreason_hf.steps.attention import STEP_ATTENTION_FILE, restore_step_attention
from memreason_hf.steps.tokenization import extend_tokenizer, read_scheme


BASE_CHECKS = ("blocks", "sha256", "none")


def is_adapter_folder(folder: Path | str) -> bool:
    """Whether a folder holds an adapter, of this package or of PEFT alone."""
    return (Path(folder) / CONFIG_NAME).is_file()


def save_adapter(
    model: AdapterModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path | str
) -> None:
    """
    Saves an adapter, or the whole model of the mode `"full"`, with its tokenizer and scheme.

    A new folder appears whole or not at all. In an existing one every file is replaced whole, the config last. The
    first save of an adapter reads the weight files of its base whole, to record their hashes (1.2 s per GB).

    Args:
        model ([`AdapterModel`] or [`~transformers.PreTrainedModel`]): The result of `add_adapter`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The extended tokenizer.
        folder (`Path` or `str`): Where to save.

    Raises:
        ValueError: a tokenizer without the scheme's tokens.
        OSError: `folder` cannot be written, or holds an adapter and this is a whole model, or the other way round.
    """
    read_scheme(tokenizer)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder.")
    # Of two in one folder, only the adapter would be loaded.
    is_adapter = isinstance(model, AdapterModel)
    if (folder / (MODEL_CONFIG_NAME if is_adapter else CONFIG_NAME)).is_file():
        kinds = ("a whole model", "an adapter") if is_adapter else ("an adapter", "a whole model")
        raise FileExistsError(f"{folder} holds {kinds[0]}, so {kinds[1]} cannot be saved there. Use another folder.")
    if not folder.exists():
        with files.whole_folder(folder) as staged:
            model.save_pretrained(staged)
            tokenizer.save_pretrained(staged)
        return
    staged = files.staging_folder(folder / "adapter")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        if not (staged / STEP_ATTENTION_FILE).exists():
            # It belongs to an adapter that was saved there before.
            (folder / STEP_ATTENTION_FILE).unlink(missing_ok=True)
        files.move_files(staged, folder, last=(MODEL_CONFIG_NAME, CONFIG_NAME))
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def read_adapter_note(folder: Path | str) -> dict:
    """
    What an adapter of this package records: `mode`, and `base`, the result of `describe_base`.

    Raises:
        OSError: the folder holds no adapter.
        ValueError: the file cannot be read, or another program wrote the adapter.
    """
    folder = Path(folder)
    if not is_adapter_folder(folder):
        raise FileNotFoundError(f"{folder} holds no {CONFIG_NAME}, so it is not an adapter.")
    try:
        note = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
        return {"mode": note["mode"], "base": {name: note["base"][name] for name in DESCRIPTION}}
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds an adapter without {ADAPTER_FILE}: another program wrote it. Load it with peft's "
            "AutoPeftModelForCausalLM."
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            f"{folder / ADAPTER_FILE} cannot be read: the adapter is damaged, or an earlier version of this package "
            "wrote it. Train it again."
        ) from None


def load_adapter(
    folder: Path | str,
    *,
    base: str | Path | PreTrainedModel | None = None,
    dtype: str | torch.dtype | None = None,
    is_trainable: bool = False,
    base_check: str = "blocks",
    **kwargs,
) -> tuple[AdapterModel, PreTrainedTokenizerBase]:
    """
    Loads an adapter on its base, which is extended first, and the tokenizer. The attention between steps that the
    adapter was trained with is set, too.

    Args:
        folder (`Path` or `str`): What `save_adapter` or a Trainer wrote.
        base (`str`, `Path` or [`~transformers.PreTrainedModel`], *optional*):
            The folder of the base, its name on the Hub, or the loaded base, extended or not, which is wrapped in
            place. Default: the base that the adapter names, on the Hub at the commit that it was trained on.
        dtype (`str` or `torch.dtype`, *optional*):
            The dtype of a base that is loaded here. Default, and `"auto"`: the dtype that the adapter was trained on,
            whatever the base was saved in.
        is_trainable (`bool`, *optional*, defaults to `False`): Whether to continue its training.
        base_check (`str`, *optional*, defaults to `"blocks"`):
            How the weights of the base are recognised. `"blocks"`: by 1,024 blocks of each of its files, in
            milliseconds. `"sha256"`: by its whole files (1.2 s per GB). `"none"`: not at all, for a base that was
            saved again in another dtype or in other shards. The weights of a model that was never saved cannot be
            recognised, and neither can changes of a loaded base in memory.
        kwargs: Passed to the base's `from_pretrained`, for example `quantization_config` and `device_map`.

    Returns:
        The model, in evaluation mode unless it is trainable, and the tokenizer.

    Raises:
        OSError: there is no adapter or no base.
        ValueError: the tokenizer lacks the scheme's tokens or is another one, the base is another model (width, tying,
            vocabulary, architecture or weights), or the stored weights belong to another adapter.

    Example:

    ```python
    >>> model, tokenizer = load_adapter("runs/lora")
    >>> model, tokenizer = load_adapter("runs/lora", base="models/moved", dtype="bfloat16")
    ```
    """
    if isinstance(dtype, str):
        check_choice("dtype", dtype, ("auto", "float32", "bfloat16", "float16", "float64"))
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder={folder!r} must be the path of an adapter, got {type(folder).__name__}.")
    if base_check not in BASE_CHECKS:
        raise ValueError(f"base_check={base_check!r} must be one of {', '.join(BASE_CHECKS)}.")
    folder = Path(folder)
    note = read_adapter_note(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scheme = read_scheme(tokenizer)
    check_tokenizer(tokenizer, note["base"])
    config = PeftConfig.from_pretrained(folder)
    if isinstance(base, PreTrainedModel):
        if kwargs or dtype is not None:
            given = ", ".join([*kwargs, *(["dtype"] if dtype is not None else [])])
            raise ValueError(f"{given}: only used if the base is loaded here, but base is a loaded model.")
        check_config(base.config, note["base"])
        check_weights(base.config, weight_files(base.name_or_path), note["base"], base_check)
        model = base
    else:
        model = _load_base(folder, base, config, dtype, note["base"], base_check, kwargs)
    extend_tokenizer(tokenizer, scheme, model)
    check_rows(model, note["base"])
    config.inference_mode = not is_trainable
    model = AdapterModel(model, config, mode=note["mode"], base=note["base"])
    model.load_adapter(folder, ADAPTER, is_trainable=is_trainable)
    restore_step_attention(model, folder)
    return model.train(is_trainable), tokenizer


def _load_base(folder, base, config, dtype, description, base_check, kwargs):
    name = str(base or config.base_model_name_or_path)
    if base is None and config.revision is not None:
        kwargs = {"revision": config.revision, **kwargs}
    # Another base is recognised before its weights are read, unless it still has to be downloaded.
    base_config = read_base_config(folder, base)
    check_config(base_config, description)
    files = weight_files(name, kwargs.get("revision"))
    check_weights(base_config, files, description, base_check)
    dtype = description.get("dtype", "auto") if dtype in (None, "auto") else dtype
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **kwargs)
    if not files:
        files = weight_files(name, kwargs.get("revision"))
        check_weights(model.config, files, description, base_check)
    return model


def read_base_config(folder: Path | str, base: str | Path | None = None) -> PreTrainedConfig:
    """
    The config of an adapter's base, as it was before its tokenizer was extended.

    Args:
        folder (`Path` or `str`): The adapter.
        base (`str` or `Path`, *optional*): The base. Default: the one that the adapter names.

    Raises:
        OSError: the base cannot be read.
        ValueError: the adapter names no base.
    """
    adapter = PeftConfig.from_pretrained(folder)
    name = str(base or adapter.base_model_name_or_path or "")
    if not name:
        raise ValueError(
            f"The adapter {folder} names no base model: it was trained on a model that was never saved. Save that "
            "model and pass its folder (base=)."
        )
    revision = {} if base is not None or adapter.revision is None else {"revision": adapter.revision}
    try:
        return AutoConfig.from_pretrained(name, **revision)
    except (OSError, ValueError) as error:
        raise OSError(
            f"The base model {name!r} of the adapter {folder} cannot be read ({str(error).splitlines()[0]}). "
            "Pass its folder (base=)."
        ) from error
