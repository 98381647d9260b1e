"""Reading the source of a conversion: a pretrained decoder and the files that belong to it, without remote code."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME

from memreason_hf.adapters.base_files import resolve_commit
from memreason_hf.checks import check_path
from memreason_hf.files import read_json
from memreason_hf.messages import first_few
from memreason_hf.models.configs_and_tokenizers import read_tokenizer
from memreason_hf.models.conversion.decoder import check_family
from memreason_hf.models.json_files import check_json_files
from memreason_hf.models.pretrained import check_source, first_line, read_model, torch_dtype
from modeling_recurrent.families_recurrent import FAMILIES


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
# What `read_model` reports, in words, and a tensor of another shape as it names it.
_PROBLEMS = {"mismatched_keys": "have another shape than the config asks for", "missing_keys": "are missing"}
# Tensors that old releases of the library stored in each layer, although they follow from the config.
_CONSTANTS = ("rotary_emb.inv_freq", ".masked_bias")
_MISMATCH = re.compile(r"\('(.+)', torch\.Size\(\[(.*)\]\), torch\.Size\(\[(.*)\]\)\)")


@dataclass(frozen=True)
class Source:
    """
    A pretrained decoder that has been checked, but not loaded.

    Attributes:
        name (`str`): A folder, or a name on the Hub.
        config (`PreTrainedConfig`): The config of its family.
        revision (`str`, *optional*): The revision on the Hub.
    """

    name: str
    config: PreTrainedConfig
    revision: str | None = None

    @property
    def commit(self) -> str | None:
        """The commit of a model on the Hub, once it has been downloaded; `None` for a folder."""
        return resolve_commit(self.name, self.revision)

    def load(self, dtype: str = "auto") -> PreTrainedModel:
        """
        The model, in evaluation mode.

        Args:
            dtype: `"auto"` for the dtype that it was saved in, or the name of one.

        Raises:
            ValueError: tensors are missing, have another shape or have no place; they are named. The library would
                start them at random, or leave them out.
        """
        # A failed load prints a table, of which the error below is the short form.
        with quiet_loading():
            model, problems = read_model(
                self.name,
                "source",
                dtype=torch_dtype(dtype),
                revision=self.revision,
                ignore_mismatched_sizes=True,
            )
        for kind, words in _PROBLEMS.items():
            if kind in problems:
                names = [_MISMATCH.sub(r"\1 (shape (\2), not (\3))", name) for name in problems[kind]]
                raise ValueError(
                    f"source={self.name!r}: {len(names)} of its tensors {words}: {first_few(names, 3)}. The "
                    "checkpoint does not belong to its config.json, or is damaged."
                )
        self._check_unused(model, problems.get("unexpected_keys", []))
        return model.eval()

    def _check_unused(self, model, names):
        """Refuses tensors of the decoder's layers that the model does not use, because it is then another model."""
        layers = FAMILIES[self.config.model_type].layers
        places = (f"{layers}.", f"{model.base_model_prefix}.{layers}.")
        unused = [name for name in names if name.startswith(places) and not name.endswith(_CONSTANTS)]
        if unused:
            raise ValueError(
                f"source={self.name!r}: {len(unused)} of its tensors have no place in the model of its config.json: "
                f"{first_few(unused, 3)}. The checkpoint does not belong to its config.json."
            )

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """
        The tokenizer, with its chat template; `None` if the source has none.

        Raises:
            ValueError: it cannot be read, or needs remote code.
        """
        folder = Path(self.name)
        if folder.is_dir() and not has_tokenizer(folder):
            return None
        try:
            return read_tokenizer(self.name, "source", revision=self.revision)
        except ValueError as error:
            if not folder.is_dir() and isinstance(error.__cause__, OSError):
                return None  # a repository of the Hub without a tokenizer
            reason = first_line(error.__cause__ or error)
            raise ValueError(f"source={self.name!r}: its tokenizer cannot be read ({reason}).") from error


def open_source(name: str, revision: str | None = None) -> Source:
    """
    Checks that a pretrained decoder can be converted. No weights are read.

    Args:
        name: A folder, or a name on the Hub (owner/name).
        revision: A branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: there is no such folder, no config, or shards are missing.
        ValueError: it needs remote code, is quantised, or is of a family that cannot be looped.
    """
    check_path("source", name)
    if is_adapter(name):
        raise ValueError(
            f"source={name!r} is an adapter. Pass --base with the folder of the converted model that it is for, or "
            "merge the adapter into its base and convert that."
        )
    check_source(name, "source")
    folder = Path(name)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for a model on the Hub, but source={name!r} is a folder.")
        if not (folder / CONFIG_NAME).is_file():
            raise FileNotFoundError(f"source={name!r}: the folder holds no model, {CONFIG_NAME} is missing.")
        check_json_files(folder, "source")
    config = _family_config(name, revision)
    check_family(config)
    if folder.is_dir():
        _check_shards(folder)
    return Source(name, config, revision)


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((Path(folder) / name).is_file() for name in _TOKENIZER_FILES)


def is_adapter(name: str) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (Path(name) / ADAPTER_CONFIG_NAME).is_file()


def _family_config(name, revision):
    """The config by the library's own classes; no other code runs, and nothing is asked on standard input."""
    try:
        fields, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    except RecursionError:
        raise ValueError(f"source={name!r}: {CONFIG_NAME} is nested too deeply to be read.") from None
    except OSError as error:
        raise OSError(f"source={name!r}: its config cannot be read ({first_line(error)}).") from error
    model_type = fields.get("model_type")
    if model_type is None:
        raise ValueError(f"source={name!r}: {CONFIG_NAME} names no model_type, so its family is not known.")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        code = "needs Python code that comes with it" if "auto_map" in fields else "is not a model of transformers"
        raise ValueError(
            f"source={name!r} of type {model_type!r} {code}. A conversion runs the code of transformers only: the "
            "family's own layers have to be there."
        )
    quantisation = fields.get("quantization_config")
    if quantisation is not None:
        method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else quantisation
        raise ValueError(
            f"source={name!r} is quantised (quant_method={method!r}). Convert the model that it was quantised from, "
            "and quantise the result when it is loaded (quantization_config=...)."
        )
    # Code beside the weights is not used, so the result should not name it.
    fields.pop("auto_map", None)
    try:
        return CONFIG_MAPPING[model_type].from_dict(fields)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"source={name!r}: {CONFIG_NAME} cannot be read ({first_line(error)}).") from error


def _check_shards(folder):
    """Refuses a folder without some of the shards that its index lists; the library would name one file only."""
    for index in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if (folder / index).is_file():
            content = read_json(folder / index)
            weight_map = content.get("weight_map") if isinstance(content, dict) else None
            known = isinstance(weight_map, dict) and all(isinstance(name, str) for name in weight_map.values())
            if not known or not weight_map:
                raise ValueError(f"source={str(folder)!r}: {index} has no weight_map, so its shards are not known.")
            shards = sorted(set(weight_map.values()))
            missing = [name for name in shards if not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"source={str(folder)!r}: {len(missing)} of {len(shards)} shards of {index} are missing: "
                    f"{first_few(missing, 3)}. Download them again."
                )
            return


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without the library's table of missing and unexpected tensors, and its remarks on tensor parallelism."""
    names = ("modeling_utils", "utils.loading_report", "distributed.tensor_parallel")
    loggers = [logging.getLogger(f"transformers.{name}") for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def num_parameters(model: torch.nn.Module) -> int:
    """The number of weights; tied weights count once."""
    return sum(parameter.numel() for parameter in model.parameters())
