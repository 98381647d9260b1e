"""Adapters on disk: a folder with the adapter, the new rows, the tokenizer with its scheme, and a note on the base."""

import os
import shutil
import time
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
from memreason_hf.adapters.base_place import LOCAL_BASE_FILE, find_base
from memreason_hf.adapters.folders import adapter_folder, is_adapter_folder, shown
from memreason_hf.adapters.model import ADAPTER, ADAPTER_FILE, AdapterModel
from memreason_hf.adapters.prompts import adapter_class
from memreason_hf.checks import check_choice
from memreason_hf.messages import first_line
from memreason_hf.repositories import check_downloads, hub_errors, remote_code_error
from memreason_hf.steps.attention import STEP_ATTENTION_FILE, restore_step_attention
from memreason_hf.steps.tokenization import extend_tokenizer, read_scheme
from modeling_recurrent.card_recurrent import keep_card
from modeling_recurrent.versions_recurrent import VERSION_KEY, warn_if_newer


BASE_CHECKS = ("blocks", "sha256", "none")


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
            _save(model, tokenizer, staged)
        return
    staged = files.staging_folder(folder / "adapter")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        _save(model, tokenizer, staged)
        keep_card(folder, staged)
        if not (staged / STEP_ATTENTION_FILE).exists():
            # It belongs to an adapter that was saved there before.
            (folder / STEP_ATTENTION_FILE).unlink(missing_ok=True)
        if not (staged / LOCAL_BASE_FILE).exists():
            (folder / LOCAL_BASE_FILE).unlink(missing_ok=True)
        files.move_files(staged, folder, last=(MODEL_CONFIG_NAME, CONFIG_NAME))
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _save(model, tokenizer, staged):
    # The tokenizer first: the card of an adapter describes its steps.
    tokenizer.save_pretrained(staged)
    model.save_pretrained(staged)


def read_adapter_note(folder: Path | str) -> dict:
    """
    What an adapter of this package records: `mode`, and `base`, the result of `describe_base`.

    Raises:
        OSError: the folder holds no adapter.
        ValueError: the file cannot be read, or another program wrote the adapter.
    """
    folder = Path(folder)
    if not is_adapter_folder(folder):
        raise FileNotFoundError(f"{shown(folder)} holds no {CONFIG_NAME}, so it is not an adapter.")
    try:
        note = files.read_json(folder / ADAPTER_FILE)
        warn_if_newer(note.get(VERSION_KEY), ADAPTER_FILE)
        return {"mode": note["mode"], "base": {name: note["base"][name] for name in DESCRIPTION}}
    except FileNotFoundError:
        raise ValueError(
            f"{shown(folder)} holds an adapter without {ADAPTER_FILE}: another program wrote it. Load it with peft's "
            "AutoPeftModelForCausalLM."
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(
            f"{folder / ADAPTER_FILE} cannot be read: the adapter is damaged, or an earlier version of this package "
            "wrote it. Train it again."
        ) from None


def load_adapter(
    folder: Path | str,
    *,
    revision: str | None = None,
    base: str | Path | PreTrainedModel | None = None,
    base_revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    is_trainable: bool = False,
    base_check: str = "blocks",
    trust_remote_code: bool = False,
    **kwargs,
) -> tuple[AdapterModel, PreTrainedTokenizerBase]:
    """
    Loads an adapter on its base, which is extended first, and the tokenizer. The attention between steps that the
    adapter was trained with is set, too.

    Args:
        folder (`Path` or `str`): What `save_adapter` or a Trainer wrote, or the name of an adapter on the Hub.
        revision (`str`, *optional*): The branch, tag or commit of an adapter on the Hub.
        base (`str`, `Path` or [`~transformers.PreTrainedModel`], *optional*):
            The folder of the base, its name on the Hub, or the loaded base, extended or not, which is wrapped in
            place. Default: the base that the adapter names, on the Hub at the commit that it was trained on.
        base_revision (`str`, *optional*): The branch, tag or commit of a base on the Hub, if it is not that commit.
        dtype (`str` or `torch.dtype`, *optional*):
            The dtype of a base that is loaded here. Default, and `"auto"`: the dtype that the adapter was trained on,
            whatever the base was saved in.
        is_trainable (`bool`, *optional*, defaults to `False`): Whether to continue its training.
        base_check (`str`, *optional*, defaults to `"blocks"`):
            How the weights of the base are recognised. `"blocks"`: by 1,024 blocks of each of its files, in
            milliseconds. `"sha256"`: by its whole files (1.2 s per GB). `"none"`: not at all, for a base that was
            saved again in another dtype or in other shards. The weights of a model that was never saved cannot be
            recognised, and neither can changes of a loaded base in memory.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run Python code that comes with the tokenizer or the base.
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
    >>> model, tokenizer = load_adapter("owner/adapter", revision="v1.0")
    ```
    """
    if isinstance(dtype, str):
        check_choice("dtype", dtype, ("auto", "float32", "bfloat16", "float16", "float64"))
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder={folder!r} must be the path of an adapter, got {type(folder).__name__}.")
    if base_check not in BASE_CHECKS:
        raise ValueError(f"base_check={base_check!r} must be one of {', '.join(BASE_CHECKS)}.")
    folder = adapter_folder(folder, revision) or Path(folder)
    note = read_adapter_note(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    scheme = read_scheme(tokenizer)
    check_tokenizer(tokenizer, note["base"])
    config = PeftConfig.from_pretrained(folder)
    if isinstance(base, PreTrainedModel):
        loading = {**kwargs, **{"dtype": dtype, "base_revision": base_revision}}
        if given := [name for name, value in loading.items() if value is not None]:
            raise ValueError(f"{', '.join(given)}: only used if the base is loaded here, but base is a loaded model.")
        check_config(base.config, note["base"])
        check_weights(base.config, weight_files(base.name_or_path), note["base"], base_check)
        model = base
    else:
        kwargs |= {"dtype": dtype, "trust_remote_code": trust_remote_code}
        model = _load_base(folder, base, base_revision, note["base"], base_check, kwargs)
    extend_tokenizer(tokenizer, scheme, model)
    check_rows(model, note["base"])
    config.inference_mode = not is_trainable
    model = adapter_class(config)(model, config, mode=note["mode"], base=note["base"])
    model.load_adapter(folder, ADAPTER, is_trainable=is_trainable)
    restore_step_attention(model, folder)
    return model.train(is_trainable), tokenizer


def base_of(folder: Path | str, base: str | Path | None = None, revision: str | None = None) -> tuple[str, str | None]:
    """
    Where the base of an adapter is.

    Args:
        folder (`Path` or `str`): The adapter.
        base (`str` or `Path`, *optional*): The base. Default: the one that the adapter names.
        revision (`str`, *optional*): Its revision on the Hub. Default: the commit that the adapter names.

    Returns:
        A folder or a name on the Hub, and the revision there.

    Raises:
        ValueError: the adapter names no base.
    """
    adapter = PeftConfig.from_pretrained(folder)
    name = str(base or find_base(folder, adapter.base_model_name_or_path))
    if not name:
        raise ValueError(
            f"The adapter {shown(folder)} names no base model: it was trained on a model that was never saved. Save "
            "that model and pass its folder (base=)."
        )
    return name, revision or (adapter.revision if base is None else None)


def _load_base(folder, base, revision, description, base_check, kwargs):
    name, revision = base_of(folder, base, revision)
    # Another base is recognised before its weights are read, unless it still has to be downloaded.
    base_config = read_base_config(folder, base, revision, trust_remote_code=kwargs["trust_remote_code"])
    check_config(base_config, description)
    files = weight_files(name, revision)
    check_weights(base_config, files, description, base_check)
    if kwargs["dtype"] in (None, "auto"):
        kwargs["dtype"] = description.get("dtype", "auto")
    begun = time.time()
    try:
        with hub_errors(name, "base", revision):
            model = AutoModelForCausalLM.from_pretrained(name, revision=revision, **kwargs)
    finally:
        downloaded = weight_files(name, revision)
        check_downloads(downloaded.values(), begun, f"base={name!r}")
    if downloaded != files:
        # They were not in the cache, or a branch has moved on since they were.
        check_weights(model.config, downloaded, description, base_check)
    return model


def read_base_config(
    folder: Path | str,
    base: str | Path | None = None,
    base_revision: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> PreTrainedConfig:
    """
    The config of an adapter's base, as it was before its tokenizer was extended.

    Args:
        folder (`Path` or `str`): The adapter.
        base (`str` or `Path`, *optional*): The base. Default: the one that the adapter names.
        base_revision (`str`, *optional*): Its revision on the Hub. Default: the commit that the adapter names.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run Python code that comes with it.

    Raises:
        OSError: the base cannot be read.
        ValueError: the adapter names no base, or the base needs remote code.
    """
    name, revision = base_of(folder, base, base_revision)
    try:
        with hub_errors(name, "base", revision):
            return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise remote_code_error(name, "base") from error
        raise OSError(
            f"The base model {name!r} of the adapter {shown(folder)} cannot be read ({first_line(error)}). "
            "Pass its folder (base=)."
        ) from error
