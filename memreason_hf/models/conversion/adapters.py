"""
Published LoRA adapters of a decoder, for a recurrent model that was converted from it.

Where all layers were kept and the family calls its layers `model.layers`, the adapter fits as it is. Otherwise its
tensors and its config name other layers, which `convert_adapter` renames by `conversion.json`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from memreason_hf.files import whole_folder
from memreason_hf.messages import first_few
from memreason_hf.models.conversion.decoder import source_names
from memreason_hf.models.conversion.layers import LayerPlan
from memreason_hf.models.conversion.record import read_record
from memreason_hf.models.loading import load_model_config
from memreason_hf.models.pretrained import first_line
from modeling_recurrent import RecurrentDepthForCausalLM


# What PEFT writes before the name of a module of the model.
_WRAPPER = "base_model.model."
# Settings whose effect depends on the place of a layer, or that change the stack itself.
_REFUSED = ("layer_replication", "megatron_config", "target_parameters", "exclude_modules")


@dataclass(frozen=True)
class AdapterCounts:
    """
    What was converted.

    Attributes:
        kept, left_out (`int`): Modules with an adapter, in the result and in dropped layers.
    """

    kept: int
    left_out: int


class _Names:
    """The names of modules of a source in the model that was converted from it."""

    def __init__(self, model: RecurrentDepthForCausalLM, plan: LayerPlan):
        block = model.config.make_block_config()
        with torch.device("meta"):
            plain = MODEL_FOR_CAUSAL_LM_MAPPING[type(block)](block)
        every_layer = LayerPlan(tuple(range(len(plan.kept))), (), (), len(plan.kept))
        pairs = dict(source_names(plain, every_layer))
        self.places = {index: place for place, index in enumerate(plan.kept)}
        self.layers = next(name for name in pairs if pairs[name].startswith("model.layers.")).rpartition(".")[0]
        self.others = {name: target for name, target in pairs.items() if not target.startswith("model.layers.")}
        self.num_layers = plan.num_source_layers

    def rename(self, name: str) -> str | None:
        """
        The name in the converted model; `None` for what lies in a dropped layer.

        Raises:
            ValueError: the source has no module of that name.
        """
        if name.startswith(f"{self.layers}."):
            index, _, rest = name.removeprefix(f"{self.layers}.").partition(".")
            if index.isdecimal() and int(index) < self.num_layers:
                place = self.places.get(int(index))
                return None if place is None else f"model.layers.{place}.{rest}"
        for source, target in self.others.items():
            if name == source or name.startswith(f"{source}."):
                return target + name.removeprefix(source)
        raise ValueError(f"the adapter names {name!r}, which the source of the conversion does not have.")

    def rename_last(self, name: str) -> str:
        """The last part of a module's name outside the layers, such as `wte` -> `embed_tokens`."""
        last = {source.rpartition(".")[2]: target.rpartition(".")[2] for source, target in self.others.items()}
        return last.get(name, name)


def convert_adapter(
    adapter: str | os.PathLike, converted: str | os.PathLike, out: str | os.PathLike, *, overwrite: bool = False
) -> AdapterCounts:
    """
    Renames a LoRA adapter of a decoder for the recurrent model that was converted from it.

    Args:
        adapter: The folder of the adapter, with `adapter_model.safetensors`.
        converted: The folder of the converted model, with `conversion.json`.
        out: The folder to write.
        overwrite: Whether to replace a folder that is not empty.

    Returns:
        [`AdapterCounts`]: What lies in layers that the conversion dropped is left out.

    Raises:
        FileNotFoundError, FileExistsError: a file is missing, or `out` is not empty.
        ValueError: the adapter is not a LoRA adapter, belongs to another model, or has settings that cannot follow.

    Example:
        >>> convert_adapter("adapters/chat", "runs/looped", "runs/chat")  # doctest: +SKIP
        AdapterCounts(kept=32, left_out=12)
    """
    names, shapes = _read_converted(converted)
    config = _read_config(adapter)
    tensors = _read_tensors(adapter)
    try:
        renamed, modules, left_out = _rename_tensors(tensors, names)
        _check_modules(modules, shapes, renamed)
        _rename_config(config, modules, names)
    except ValueError as error:
        raise ValueError(f"adapter={str(adapter)!r} does not fit {converted}: {error}") from None
    # As it was given: peft, which loads this adapter, has only this path. Publishing refuses an absolute one.
    config.base_model_name_or_path = str(converted)
    config.revision = None
    with whole_folder(out, overwrite=overwrite) as staged:
        config.save_pretrained(staged)
        save_file(renamed, staged / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    return AdapterCounts(kept=len(modules), left_out=len(left_out))


def _read_converted(folder):
    """The names of a conversion, and the shapes of the parameters of the converted model."""
    try:
        record = read_record(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"base={str(folder)!r} has no conversion.json. Pass the folder that memreason convert has written."
        ) from None
    if record["kind"] != "conversion":
        raise ValueError(f"base={str(folder)!r} is not a converted decoder: its record has kind={record['kind']!r}.")
    layers = record["layers"]
    plan = LayerPlan(*(tuple(layers[name]) for name in ("prelude", "loop", "coda")), record["source"]["num_layers"])
    with torch.device("meta"):
        model = RecurrentDepthForCausalLM(load_model_config(str(folder)))
    return _Names(model, plan), {name: tensor.shape for name, tensor in model.state_dict().items()}


def _read_config(adapter):
    folder = Path(adapter)
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"adapter={str(adapter)!r}: the folder has no {CONFIG_NAME}.")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"adapter={str(adapter)!r}: {CONFIG_NAME} cannot be read ({first_line(error)}).") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"adapter={str(adapter)!r} has peft_type={config.peft_type}. Only LoRA can be renamed.")
    for name in _REFUSED:
        if getattr(config, name, None):
            raise ValueError(
                f"adapter={str(adapter)!r} has {name}={getattr(config, name)!r}, which cannot follow the layers of a "
                "conversion."
            )
    return config


def _read_tensors(adapter):
    path = Path(adapter) / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        pickled = (path.parent / WEIGHTS_NAME).is_file()
        hint = f" Only {WEIGHTS_NAME} is there, which is not read: load and save it with PEFT." if pickled else ""
        raise FileNotFoundError(f"adapter={str(adapter)!r}: {SAFETENSORS_WEIGHTS_NAME} is missing.{hint}")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read, it may be cut off ({error}).") from error


def _rename_tensors(tensors, names):
    """
    Returns:
        The tensors of the result; `{module of the source: module of the result}`; the modules in dropped layers.
    """
    renamed, modules, left_out = {}, {}, set()
    for key, tensor in tensors.items():
        if not key.startswith(_WRAPPER):
            raise ValueError(f"its tensor {key!r} does not belong to a causal language model.")
        name = key.removeprefix(_WRAPPER)
        module = name.partition(".lora_")[0] if ".lora_" in name else None
        target = names.rename(name)
        if target is None:
            left_out.add(module or name)
            continue
        renamed[_WRAPPER + target] = tensor
        if module is not None:
            modules[module] = names.rename(module)
    if not modules:
        raise ValueError("all of its LoRA layers lie in layers that the conversion dropped.")
    return renamed, modules, left_out


def _check_modules(modules, shapes, renamed):
    """Refuses an adapter for modules that the model lacks, or of another width."""
    missing = [source for source, target in modules.items() if f"{target}.weight" not in shapes]
    if missing:
        raise ValueError(f"the model has no layers {first_few(missing, 3)}.")
    for source, target in modules.items():
        down = renamed.get(f"{_WRAPPER}{target}.lora_A.weight")
        width = None if down is None else down.shape[-1]
        if width is not None and width not in shapes[f"{target}.weight"]:
            raise ValueError(
                f"its tensor for {source!r} reads {width} channels, but the layer has the shape "
                f"{tuple(shapes[f'{target}.weight'])}."
            )


def _rename_config(config: LoraConfig, modules: Mapping[str, str], names: _Names) -> None:
    """Lets the config name the modules of the result, one by one where a pattern would say something else."""
    for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        given = getattr(config, pattern) or {}
        values = {target: given.get(get_pattern_key(given.keys(), source)) for source, target in modules.items()}
        usual = (None, getattr(config, default))
        setattr(config, pattern, {target: value for target, value in values.items() if value not in usual})
    # With names of their own the modules need no pattern that counts layers.
    config.target_modules = set(modules.values())
    config.layers_to_transform = config.layers_pattern = None
    if config.modules_to_save:
        config.modules_to_save = [names.rename_last(name) for name in config.modules_to_save]
    if isinstance(config.trainable_token_indices, dict):
        config.trainable_token_indices = {
            names.rename_last(name): indices for name, indices in config.trainable_token_indices.items()
        }
