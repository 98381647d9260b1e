"""Loading a model by its folder, its name on the Hub or its adapter: config, tokenizer, weights, device."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from memreason_hf.adapters.saving import (
    is_adapter_folder,
    load_adapter,
    read_adapter_note,
    read_base_config,
)
from memreason_hf.data import load_multi_hop_tokenizer
from memreason_hf.messages import first_few
from memreason_hf.models.pretrained import check_source, read_model, torch_dtype
from memreason_hf.steps.attention import restore_step_attention
from modeling_recurrent import RecurrentDepthConfig


def load_any_config(model: str | None, base: str | None = None) -> PreTrainedConfig:
    """
    The config of a model of any kind in a folder or on the Hub; for an adapter that of its base, with the adapter's
    rows. Nothing large is read yet.

    Args:
        base: where an adapter's base is, if not where the adapter says.

    Raises:
        ValueError, OSError: no model named, no such folder, an adapter without its base, a base for what is none.
    """
    if model is None:
        raise ValueError("model is not given: add --model or name it in section inputs of the recipe.")
    if is_adapter_folder(model):
        return _read_adapter_config(model, base)
    if base is not None:
        raise ValueError(f"base={base!r}: model={model!r} is no folder with an adapter.")
    _check_model_folder(model)
    try:
        return AutoConfig.from_pretrained(model)
    except OSError as error:
        where = "the config" if Path(model).is_dir() else "no such folder, and on the Hub it"
        raise OSError(f"model={model!r}: {where} cannot be read ({str(error).splitlines()[0]})") from error


def load_model_config(model: str | None, base: str | None = None) -> RecurrentDepthConfig:
    """
    The config of a recurrent-depth model, as `load_any_config` reads it.

    Raises:
        ValueError, OSError: as there; not a model of this package.
    """
    config = load_any_config(model, base)
    if not isinstance(config, RecurrentDepthConfig):
        raise ValueError(
            f"model={model!r} has model_type={config.model_type!r}: depth can only be chosen in a model of "
            f"type {RecurrentDepthConfig.model_type!r}."
        )
    return config


def _read_adapter_config(model, base):
    config = read_base_config(model, base)
    # The base is extended when the adapter is loaded.
    config.vocab_size = read_adapter_note(model)["base"]["rows"]
    return config


def _check_model_folder(model):
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        checkpoints = sorted(folder.glob("checkpoint-*/config.json"), key=lambda path: path.stat().st_mtime)
        hint = f" Did you mean {checkpoints[-1].parent}?" if checkpoints else ""
        raise FileNotFoundError(f"model={model!r}: the folder holds no config.json, so no model is there.{hint}")
    check_source(model, "model")


def load_tokenizer(model: str, tokenizer: str | None, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """
    The tokenizer of the model, or the one named `tokenizer`, which may also be a data set's folder.

    Raises:
        ValueError, OSError: it is not there, cannot be read, or has more tokens than the model.
    """
    name = tokenizer or model
    folder = Path(name)
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        if tokenizer is None:
            raise FileNotFoundError(
                f"model={name!r}: the folder holds no tokenizer.json. Name the folder of the tokenizer that the model "
                "was trained with by --tokenizer; the one of its data set will do."
            )
        loaded = load_multi_hop_tokenizer(folder)
    else:
        try:
            loaded = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # a damaged tokenizer.json is a bare Exception
            raise ValueError(f"The tokenizer of {name!r} cannot be read ({error}).") from error
    if len(loaded) > config.vocab_size:
        raise ValueError(
            f"The vocabulary does not match: the tokenizer has {len(loaded)} tokens, the model's vocab_size is "
            f"{config.vocab_size}. Use the tokenizer that the model was trained with."
        )
    return loaded


def load_model(model: str, dtype: str = "auto", *, base: str | None = None, **kwargs) -> PreTrainedModel:
    """
    The model, in evaluation mode, with the attention between steps that it was saved with; an adapter is merged into
    its base. `kwargs` are for `from_pretrained`.

    Args:
        base: where an adapter's base is, if not where the adapter says.

    Raises:
        ValueError: weights that cannot be read, are missing or do not fit (the library would go on with random ones),
            or an adapter of another base.
    """
    if is_adapter_folder(model):
        return load_adapter(model, base=base, dtype=torch_dtype(dtype), **kwargs)[0].merge_and_unload().eval()
    loaded, problems = read_model(model, "model", dtype=torch_dtype(dtype), **kwargs)
    if problems:
        shown = "; ".join(f"{kind}: {first_few(names, 3)}" for kind, names in problems.items())
        raise ValueError(f"model={model!r}: the weights do not belong to the config ({shown}).")
    restore_step_attention(loaded)
    return loaded.eval()


def choose_device(device: str | None) -> torch.device:
    """
    The device that a flag names; without one CUDA where it is, else the CPU.

    Raises:
        ValueError: no device of torch, or none of this machine.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={device!r} is no device: give cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}: this machine has no CUDA device that torch can use; give cpu.")
    return device
