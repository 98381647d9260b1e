"""Adapters on disk: a folder with the adapter, the new rows, the tokenizer with its scheme, and what the base is."""

import json
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
from memreason_hf.adapters.base import check_base, check_config, check_tokenizer
from memreason_hf.adapters.model import ADAPTER, ADAPTER_FILE, AdapterModel
from memreason_hf.steps.attention import STEP_ATTENTION_FILE, restore_step_attention
from memreason_hf.steps.tokenization import extend_tokenizer, read_scheme


def is_adapter_folder(folder: Path | str) -> bool:
    """Whether a folder holds an adapter, of this package or of PEFT, and no whole model."""
    return (Path(folder) / CONFIG_NAME).is_file()


def save_adapter(
    model: AdapterModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path | str
) -> None:
    """
    Saves an adapter, or the whole model of the mode `full`, with its tokenizer and scheme.

    A folder that is not there yet appears whole or not at all; in one that is, every file is replaced whole, the
    config last.

    Raises:
        ValueError: a tokenizer without the scheme's tokens.
        OSError: `folder` cannot be written, or holds an adapter and this is a whole model, or the other way round.
    """
    read_scheme(tokenizer)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder.")
    # Of two, only the adapter would be found again.
    is_adapter = isinstance(model, AdapterModel)
    if (folder / (MODEL_CONFIG_NAME if is_adapter else CONFIG_NAME)).is_file():
        kinds = ("a whole model", "an adapter") if is_adapter else ("an adapter", "a whole model")
        raise FileExistsError(f"{folder} holds {kinds[0]}, beside which {kinds[1]} cannot be saved: choose another.")
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
            # Of an adapter that was saved there before.
            (folder / STEP_ATTENTION_FILE).unlink(missing_ok=True)
        files.move_files(staged, folder, last=(MODEL_CONFIG_NAME, CONFIG_NAME))
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def read_adapter_note(folder: Path | str) -> dict:
    """
    What an adapter of this package notes: `mode`, and `base`, what its base model must be.

    Raises:
        OSError: no adapter is there.
        ValueError: the note cannot be read, or another program wrote the adapter.
    """
    folder = Path(folder)
    if not is_adapter_folder(folder):
        raise FileNotFoundError(f"{folder} holds no {CONFIG_NAME}: no adapter is there.")
    try:
        note = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
        return {"mode": note["mode"], "base": note["base"]}
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds an adapter without {ADAPTER_FILE}: another program wrote it. Load it with peft's "
            "AutoPeftModelForCausalLM."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / ADAPTER_FILE} cannot be read: the adapter is damaged.") from None


def load_adapter(
    folder: Path | str,
    *,
    base: str | Path | PreTrainedModel | None = None,
    dtype: str | torch.dtype | None = None,
    is_trainable: bool = False,
    **kwargs,
) -> tuple[AdapterModel, PreTrainedTokenizerBase]:
    """
    An adapter on its base, which is extended first, and the tokenizer; with the attention between steps that it was
    trained with.

    Args:
        folder: what `save_adapter` or a Trainer wrote.
        base: the base as a model (extended already or not; wrapped in place), or its folder or name on the Hub.
            Default: the one that the adapter names.
        dtype: of the base, where it is not given as a model; default, or `"auto"`: the one that the adapter was
            trained on, whatever the base was saved in.
        is_trainable: go on training it.
        kwargs: passed to the base's `from_pretrained`, for example `quantization_config` and `device_map`.

    Returns:
        The model, in evaluation mode unless it is trainable, and the tokenizer.

    Raises:
        OSError: no adapter or no base is there.
        ValueError: the tokenizer lacks the scheme's tokens or is another one, the base is another model (width, tying,
            vocabulary, architecture or weights), or the stored weights belong to another adapter.
    """
    folder = Path(folder)
    note = read_adapter_note(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scheme = read_scheme(tokenizer)
    check_tokenizer(tokenizer, note["base"])
    config = PeftConfig.from_pretrained(folder)
    model = base
    if isinstance(base, PreTrainedModel):
        if kwargs or dtype is not None:
            given = ", ".join([*kwargs, *(["dtype"] if dtype is not None else [])])
            raise ValueError(f"{given}: only used where the base is loaded here; it was given as a model.")
        check_config(model.config, note["base"])
    else:
        # Another base is recognised before its weights are read.
        check_config(read_base_config(folder, base), note["base"])
        name = str(base or config.base_model_name_or_path)
        dtype = note["base"].get("dtype", "auto") if dtype in (None, "auto") else dtype
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **kwargs)
    extend_tokenizer(tokenizer, scheme, model)
    check_base(model, note["base"])
    config.inference_mode = not is_trainable
    model = AdapterModel(model, config, mode=note["mode"], base=note["base"])
    model.load_adapter(folder, ADAPTER, is_trainable=is_trainable)
    restore_step_attention(model, folder)
    return model.train(is_trainable), tokenizer


def read_base_config(folder: Path | str, base: str | Path | None = None) -> PreTrainedConfig:
    """
    The config of an adapter's base, as it was before its tokenizer was extended.

    Args:
        base: where the base is, if not where the adapter says.

    Raises:
        OSError: it is not there.
        ValueError: the adapter names none, or another program wrote it.
    """
    read_adapter_note(folder)
    name = str(base or PeftConfig.from_pretrained(folder).base_model_name_or_path or "")
    if not name:
        raise ValueError(
            f"The adapter {folder} names no base model: it was trained on one that was never saved. Save that model "
            "and say where it is (base=)."
        )
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(
            f"The base model {name!r} of the adapter {folder} cannot be read ({str(error).splitlines()[0]}). "
            "Say where it is (base=)."
        ) from error
