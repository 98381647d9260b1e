"""The release that wrote a checkpoint, and what this release does with checkpoints of other releases."""

import re

from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

# The release of this code. It travels with checkpoints, so it is not read from the installed package.
VERSION = "0.1.0"
# The key of config.json that holds it.
VERSION_KEY = "recurrent_depth_version"
# The attribute of a config that another release wrote; absent otherwise, so that a config equals its saved copy.
_WRITTEN_BY = "_written_by"
# What configs without a version are said to be written by.
_UNKNOWN = "a release before 0.1.0"
# Arguments of `from_pretrained` that say where the files are.
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# How many layers of a kind a config without that entry has.
_LAYERS = {"prelude": 0, "recurrent": 4, "coda": 0}
# Values of fields that this release does not have any more, and what to do instead.
_REMOVED_VALUES = {
    ("state_init", "previous_token"): "Load the model with the code that was saved with it, or train it again with "
    "another state_init.",
}
_SEPARATE_PROJECTION = re.compile(r"\.(q_proj|k_proj|v_proj|mlp\.gate_proj)\.")
_FUSED_PROJECTION = re.compile(r"\.(qkv_proj|gate_up_proj)\.")


def take_version(config_dict: dict) -> tuple[dict, str | None]:
    """
    Splits the content of a config.json into its fields and the release that wrote it.

    A release newer than this one causes a warning, once in a process, that names both.

    Raises:
        ValueError: a field has a value that older releases had and this one does not have.
    """
    fields = dict(config_dict)
    version = fields.pop(VERSION_KEY, None)
    for (name, value), advice in _REMOVED_VALUES.items():
        if fields.get(name) == value:
            raise ValueError(f"{name}={value!r} in config.json was removed in release 0.1.0. {advice}")
    warn_if_newer(version, "config.json")
    return fields, version


def drop_layer_types(config_dict: dict) -> dict:
    """The config without `layer_types`, which the config computes and other tools may have written."""
    if "layer_types" not in config_dict:
        return config_dict
    logger.warning(
        "config.json holds layer_types, which is not read: the types of layers follow from sliding_window, or from "
        "block_config."
    )
    return {key: value for key, value in config_dict.items() if key != "layer_types"}


def warn_if_newer(version: str | None, file: str) -> None:
    """Warns once in a process that a newer release than this one wrote a file. `None` is an older one."""
    if version is not None and is_newer(version):
        logger.warning_once(
            f"{file} was written by release {version} of memreason-hf, which is newer than the release {VERSION} that "
            f"reads it. {VERSION} may not know all of it, so results can differ. Update memreason-hf."
        )


def is_newer(version: str) -> bool:
    """Whether a release is newer than this one. What does not look like a release counts as newer."""
    numbers = [_numbers(version), _numbers(VERSION)]
    return numbers[0] is None or numbers[0] > numbers[1]


def _numbers(version):
    found = re.match(r"(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", version) if isinstance(version, str) else None
    return None if found is None else tuple(int(number or 0) for number in found.groups())


def remember_version(config: PreTrainedConfig, version: str | None) -> None:
    """Keeps with a config the release that wrote it, if it is another one than this."""
    if version != VERSION:
        setattr(config, _WRITTEN_BY, version or _UNKNOWN)


def add_version(values: dict) -> dict:
    """The content of config.json with this release as the one that wrote it."""
    return {**{name: value for name, value in values.items() if name != _WRITTEN_BY}, VERSION_KEY: VERSION}


def old_weight_names(config_dict: dict) -> dict[str, str]:
    """
    The current names of layers by those of before release 0.1.0, when prelude, recurrent layers and coda were numbered
    apart.

    Returns:
        `{regular expression: name}`, as `from_pretrained` takes it as `key_mapping`. Current names match none of them.
    """
    sizes = {kind: config_dict.get(f"num_{kind}_layers", default) for kind, default in _LAYERS.items()}
    if not all(isinstance(size, int) and size < 10_000 for size in sizes.values()):
        return {}  # the config is about to be refused
    kinds = [(kind, index) for kind, size in sizes.items() for index in range(size)]
    return {rf"\b{kind}_layers\.{index}\.": f"layers.{place}." for place, (kind, index) in enumerate(kinds)}


class ReadsOldCheckpoints:
    """Loads weights that have the names of before release 0.1.0, and saves them under the current ones."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, config=None, output_loading_info=False, key_mapping=None, **kwargs
    ):
        """As in transformers. Names of weights from before release 0.1.0 are translated."""
        name = pretrained_model_name_or_path
        old = {}
        if isinstance(config, PreTrainedConfig):
            old = config.to_dict() if hasattr(config, _WRITTEN_BY) else {}
        elif kwargs.get("gguf_file") is None:
            where = {key: kwargs[key] for key in _WHERE if key in kwargs}
            written, _ = PreTrainedConfig.get_config_dict(name if config is None else config, **where)
            old = {} if VERSION_KEY in written else written
        if old and key_mapping is None:
            key_mapping = old_weight_names(old)
        model, info = super().from_pretrained(
            name, *args, config=config, output_loading_info=True, key_mapping=key_mapping, **kwargs
        )
        if old:
            _refuse_separate_projections(name, info)
            model.has_old_names = True
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args, **kwargs):
        """As in transformers."""
        # Otherwise the library writes the names that it has read.
        if getattr(self, "has_old_names", False):
            kwargs.setdefault("save_original_format", False)
        return super().save_pretrained(*args, **kwargs)


def _refuse_separate_projections(name, info):
    """Refuses weights whose projections were not joined yet: the library would go on with random ones."""
    if any(map(_SEPARATE_PROJECTION.search, info["unexpected_keys"])) and any(
        map(_FUSED_PROJECTION.search, info["missing_keys"])
    ):
        raise ValueError(
            f"{str(name)!r} was saved before release 0.1.0, when q_proj, k_proj, v_proj and gate_proj, up_proj were "
            "layers of their own. Join their weights along the first dimension, as qkv_proj and gate_up_proj in that "
            "order, and save them again, or train the model again."
        )


__all__ = ["VERSION", "VERSION_KEY"]
