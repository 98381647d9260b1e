"""The weights in a folder: which files hold them, and whether they are whole."""

from pathlib import Path

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from memreason_hf.files import read_json
from memreason_hf.messages import first_few


MODEL_CONFIG, ADAPTER_CONFIG = "config.json", CONFIG_NAME
_SHARDS = "model-*-of-*.safetensors"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")


def weight_names(folder: Path) -> set[str]:
    """Names of the files in a folder that hold weights of a model or an adapter, with the index of shards."""
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME)
    return {name for name in names if (folder / name).is_file()} | {path.name for path in folder.glob(_SHARDS)}


def check_weights(folder: Path) -> None:
    """
    Checks that a folder holds the weights of one model or adapter, whole.

    Of every file the header is read, not the tensors.

    Raises:
        ValueError: there are no weights, those of two models, a shard is missing, or a file is damaged.
    """
    names = weight_names(folder)
    model_names = names - {SAFETENSORS_WEIGHTS_NAME}
    has_model, has_adapter = (folder / MODEL_CONFIG).is_file(), (folder / ADAPTER_CONFIG).is_file()
    if has_model and has_adapter:
        _refuse_two(folder, MODEL_CONFIG, ADAPTER_CONFIG)
    if has_adapter and model_names:
        _refuse_two(folder, ADAPTER_CONFIG, min(model_names))
    if has_model and SAFETENSORS_WEIGHTS_NAME in names:
        _refuse_two(folder, MODEL_CONFIG, SAFETENSORS_WEIGHTS_NAME)
    if not names:
        wanted = SAFETENSORS_WEIGHTS_NAME if has_adapter else SAFE_WEIGHTS_NAME
        pickled = [name for name in _PICKLED if (folder / name).exists()]
        hint = (
            f" {pickled[0]} is a pickle, which is not published: load the model and save it again."
            if pickled
            else " Save the model there with save_pretrained."
        )
        raise ValueError(f"{folder} holds no weights: {wanted} is missing.{hint}")
    if not has_model and not has_adapter:
        wanted = ADAPTER_CONFIG if SAFETENSORS_WEIGHTS_NAME in names else MODEL_CONFIG
        raise ValueError(f"{folder} holds weights without a config: {wanted} is missing.")
    shards = model_names - {SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME}
    if SAFE_WEIGHTS_NAME in names and len(model_names) > 1:
        _refuse_two(folder, SAFE_WEIGHTS_NAME, min(shards) if shards else SAFE_WEIGHTS_INDEX_NAME)
    tensors = {name: _read_header(folder / name) for name in sorted(names - {SAFE_WEIGHTS_INDEX_NAME})}
    if shards or SAFE_WEIGHTS_INDEX_NAME in names:
        _check_shards(folder, tensors)


def _refuse_two(folder, first, second):
    raise ValueError(f"{folder} holds two models: {first} and {second}. Move one of them to another folder.")


def _read_header(path):
    """Names of the tensors. The library compares the offsets in the header with the size of the file."""
    if not path.stat().st_size:
        raise ValueError(f"{path} is damaged: the file is empty.")
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}. Save the model again.") from None


def _check_shards(folder, tensors):
    path = folder / SAFE_WEIGHTS_INDEX_NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds shards of weights, but {path.name} is missing.")
    try:
        weight_map = read_json(path)["weight_map"]
        listed = {
            shard: {name for name, where in weight_map.items() if where == shard} for shard in weight_map.values()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path} is damaged. Save the model again.") from None
    missing = sorted(listed.keys() - tensors.keys())
    if missing:
        raise ValueError(f"{folder} lacks {first_few(missing)}, which {path.name} lists.")
    foreign = sorted(tensors.keys() - listed.keys())
    if foreign:
        raise ValueError(
            f"{folder} holds two models: {path.name} does not list {first_few(foreign)}. Remove what an earlier save "
            "has left there."
        )
    for shard, names in sorted(listed.items()):
        lost = sorted(names - tensors[shard])
        if lost:
            raise ValueError(f"{folder / shard} lacks the tensors {first_few(lost)}, which {path.name} expects there.")
