"""
Loading a model by its folder, its name on the Hub or its adapter: config, tokenizer, weights, device.

Python code that comes with a model or tokenizer runs only with `trust_remote_code=True`. Otherwise the library would
ask on standard input, from which commands read prompts.
"""

from pathlib import Path

import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from memreason_hf.adapters.folders import adapter_folder
from memreason_hf.adapters.model import AdapterModel
from memreason_hf.adapters.saving import load_adapter, read_adapter_note, read_base_config
from memreason_hf.checks import check_path, check_type
from memreason_hf.data import load_multi_hop_tokenizer
from memreason_hf.messages import first_few, first_line
from memreason_hf.models.configs_and_tokenizers import read_config, read_tokenizer
from memreason_hf.models.json_files import check_json_files
from memreason_hf.models.pretrained import read_model, torch_dtype
from memreason_hf.repositories import check_source
from memreason_hf.steps.attention import restore_step_attention
from modeling_recurrent import RecurrentDepthConfig


def load_any_config(
    model: str, base: str | None = None, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """
    The config of a model of any kind. No weights of a model are read; an adapter on the Hub is downloaded.

    Args:
        model: a folder or a name on the Hub. For an adapter, the result is the config of its base with the rows that
            the adapter adds to the vocabulary.
        base: where an adapter's base is, if not where the adapter says.
        revision: a branch, tag or commit of `model` on the Hub.

    Raises:
        ValueError, OSError: the folder or the config does not exist or cannot be read, an adapter's base is not
            found, `base` is given for a model that is not an adapter, or the model needs remote code.

    Example:
        >>> load_any_config("runs/quickstart").model_type  # doctest: +SKIP
        'recurrent_depth'
    """
    check_path("model", model)
    adapter = adapter_folder(model, revision, "model")
    if adapter is not None:
        check_json_files(adapter, "model")
        return _read_adapter_config(str(adapter), base, trust_remote_code)
    _refuse_base(model, base)
    _check_model_folder(model)
    try:
        return read_config(model, "model", revision=revision, trust_remote_code=trust_remote_code)
    except OSError as error:
        # The Hub's errors name the field.
        if str(error).startswith("model="):
            raise
        where = "the config" if Path(model).is_dir() else "no such folder, and on the Hub it"
        raise OSError(f"model={model!r}: {where} cannot be read ({first_line(error)}).") from error


def load_model_config(
    model: str, base: str | None = None, *, revision: str | None = None, trust_remote_code: bool = False
) -> RecurrentDepthConfig:
    """
    The config of a recurrent-depth model, as `load_any_config` reads it.

    Raises:
        ValueError, OSError: as for `load_any_config`, and for a model of another type.
    """
    config = load_any_config(model, base, revision=revision, trust_remote_code=trust_remote_code)
    if not isinstance(config, RecurrentDepthConfig):
        raise ValueError(
            f"model={model!r} has model_type={config.model_type!r}: depth can only be chosen in a model of "
            f"type {RecurrentDepthConfig.model_type!r}."
        )
    return config


def _read_adapter_config(folder, base, trust_remote_code):
    note = read_adapter_note(folder)
    config = read_base_config(folder, base, trust_remote_code=trust_remote_code)
    # The base is extended when the adapter is loaded.
    config.vocab_size = note["base"]["rows"]
    return config


def _refuse_base(model, base):
    if base is not None:
        raise ValueError(f"base={base!r} is for adapters, but model={model!r} is not an adapter. Leave base out.")


def _check_model_folder(model):
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        checkpoints = sorted(folder.glob("checkpoint-*/config.json"), key=lambda path: path.stat().st_mtime)
        hint = f" Did you mean {checkpoints[-1].parent}?" if checkpoints else ""
        raise FileNotFoundError(f"model={model!r}: the folder holds no model, config.json is missing.{hint}")
    check_source(model, "model")


def load_tokenizer(
    model: str,
    tokenizer: str | None,
    config: PreTrainedConfig,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a model.

    Args:
        model: folder or name on the Hub of the model.
        tokenizer: where the tokenizer is, if not with the model. The folder of a multi-hop data set will do.
        config: of the model.
        revision: a branch, tag or commit of `model` on the Hub. A tokenizer of its own is read from its main branch.

    Raises:
        ValueError, OSError: the tokenizer is missing, cannot be read, needs remote code, or has more tokens than the
            model has embeddings.
    """
    given = tokenizer is not None
    name, field = (tokenizer, "tokenizer") if given else (model, "model")
    check_path(field, name)
    revision = None if given else revision
    folder = Path(name) if given else adapter_folder(model, revision, "model") or Path(model)
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        if not given:
            raise FileNotFoundError(
                f"model={name!r}: the folder holds no tokenizer.json. Pass --tokenizer with the folder of the "
                "tokenizer that the model was trained with, for example that of its data set."
            )
        loaded = load_multi_hop_tokenizer(folder)
    else:
        loaded = read_tokenizer(name, field, folder=folder, revision=revision, trust_remote_code=trust_remote_code)
    if len(loaded) > config.vocab_size:
        raise ValueError(
            f"The vocabulary does not match: the tokenizer has {len(loaded)} tokens, the model's vocab_size is "
            f"{config.vocab_size}. Use the tokenizer that the model was trained with."
        )
    return loaded


def load_model(
    model: str,
    dtype: str = "auto",
    *,
    base: str | None = None,
    revision: str | None = None,
    merge: bool = True,
    trust_remote_code: bool = False,
    **kwargs,
) -> PreTrainedModel | AdapterModel:
    """
    A model in evaluation mode, with the attention between steps that it was saved with.

    Args:
        model: a folder or a name on the Hub, of a model or an adapter.
        dtype: of the weights: `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"` for the dtype that they were saved
            in, or that the adapter was trained in.
        base: where an adapter's base is, if not where the adapter says.
        revision: a branch, tag or commit of `model` on the Hub. The base of an adapter has its own.
        merge: merge an adapter into its base, which rounds it to the base's dtype.
        kwargs: for `from_pretrained`.

    Raises:
        ValueError: weights cannot be read, are missing or do not fit the config (the library would go on with random
            weights), the adapter belongs to another base, or the model needs remote code.
        OSError: the model, the adapter or its base does not exist or cannot be downloaded.

    Example:
        >>> model = load_model("runs/quickstart", "bfloat16")  # doctest: +SKIP
        >>> model = load_model("owner/model", revision="v1.0")  # doctest: +SKIP
    """
    check_path("model", model)
    kwargs["trust_remote_code"] = trust_remote_code
    adapter = adapter_folder(model, revision, "model")
    if adapter is not None:
        adapted, _ = load_adapter(adapter, base=base, dtype=torch_dtype(dtype), **kwargs)
        return (adapted.merge_and_unload() if merge else adapted).eval()
    _refuse_base(model, base)
    loaded, problems = read_model(model, "model", dtype=torch_dtype(dtype), revision=revision, **kwargs)
    if problems:
        shown = "; ".join(f"{kind}: {first_few(names, 3)}" for kind, names in problems.items())
        raise ValueError(f"model={model!r}: the weights do not belong to the config ({shown}). Save both again.")
    restore_step_attention(loaded)
    return loaded.eval()


def choose_device(device: str | None) -> torch.device:
    """
    The device that a flag names. Without a name: CUDA where available, otherwise the CPU.

    Raises:
        ValueError: torch does not know the device, or this machine does not have it.
    """
    if device is not None:
        check_type("device", device, str | torch.device, "the name of a device")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={device!r} is not a device. Pass cpu, cuda or cuda:1.") from None
    if chosen.type == "cpu":
        return chosen
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or accelerator.type != chosen.type:
        raise ValueError(f"device={device!r}: torch finds no {chosen.type} device on this machine. Pass cpu.")
    if (chosen.index or 0) >= torch.accelerator.device_count():
        raise ValueError(
            f"device={device!r}: this machine has {torch.accelerator.device_count()} {chosen.type} devices."
        )
    return chosen
