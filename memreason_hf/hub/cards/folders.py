"""What the folder of a model or an adapter says about itself: its files, read and checked once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from memreason_hf.adapters.model import ADAPTER_FILE
from memreason_hf.files import read_json
from memreason_hf.models.conversion.record import CONVERSION_FILE, read_record
from memreason_hf.steps.attention import STEP_ATTENTION_FILE
from memreason_hf.steps.tokenization import SCHEME_KEY
from memreason_hf.training.runs.output_folder import DATA_FILE, RUN_FILE
from modeling_recurrent import RecurrentDepthConfig


ADAPTER_CONFIG = "adapter_config.json"
RECURRENT = RecurrentDepthConfig.model_type


@dataclass(frozen=True)
class ModelFolder:
    """
    The folder of a model, of an adapter, or of a run.

    Raises:
        ValueError: a file is damaged; names it.
    """

    path: Path

    @cached_property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter."""
        return (self.path / ADAPTER_CONFIG).is_file()

    @cached_property
    def config(self) -> dict:
        """The content of `config.json`; empty for an adapter."""
        return self._json("config.json")

    @cached_property
    def adapter(self) -> dict:
        """The content of PEFT's config of the adapter; empty for a model."""
        return self._json(ADAPTER_CONFIG)

    @cached_property
    def note(self) -> dict:
        """What this package records about an adapter: its mode and its base."""
        return self._json(ADAPTER_FILE)

    @cached_property
    def record(self) -> dict | None:
        """The record of a conversion, if the model is one."""
        return read_record(self.path) if (self.path / CONVERSION_FILE).is_file() else None

    @cached_property
    def fingerprint(self) -> dict:
        """What decided the weights of the run; empty if the folder is not that of a run."""
        found = self._run.get("fingerprint")
        return found if isinstance(found, dict) else {}

    @cached_property
    def data(self) -> dict:
        """What the run recorded about its training data."""
        return self._json_near(DATA_FILE)

    @cached_property
    def state(self) -> dict:
        """The state of the trainer; empty if it was not saved."""
        return self._json("trainer_state.json")

    @cached_property
    def step_scheme(self) -> dict:
        """The scheme of the steps that the tokenizer was extended for."""
        found = self._json("tokenizer_config.json").get(SCHEME_KEY) or self.config.get(SCHEME_KEY)
        return found if isinstance(found, dict) else {}

    @cached_property
    def step_attention(self) -> str | None:
        """The attention between steps, if it is sparse."""
        return self._json(STEP_ATTENTION_FILE).get("variant")

    @cached_property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer is saved in the folder."""
        return any((self.path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))

    @property
    def model_type(self) -> str | None:
        """The type of the model, or of the adapter's base."""
        source = self.note.get("base", {}).get("config", {}) if self.is_adapter else self.config
        return source.get("model_type")

    @property
    def is_recurrent(self) -> bool:
        """Whether the model, or the adapter's base, is a recurrent-depth model."""
        return self.model_type == RECURRENT

    @cached_property
    def recurrent_config(self) -> RecurrentDepthConfig | None:
        """The config of a recurrent-depth model that the folder holds."""
        if self.config.get("model_type") != RECURRENT:
            return None
        return RecurrentDepthConfig.from_pretrained(self.path)

    @cached_property
    def generation_config(self) -> GenerationConfig | None:
        """How `generate` is configured."""
        if not (self.path / "generation_config.json").is_file():
            return None
        return GenerationConfig(**self._json("generation_config.json"))

    @cached_property
    def auto_class(self) -> str:
        """The Auto class that loads the model with its head."""
        architecture = next(iter(self.config.get("architectures") or ()), "")
        for head in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
            if architecture.endswith(f"For{head}"):
                return f"AutoModelFor{head}"
        is_causal = architecture.endswith("ForCausalLM") or architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return "AutoModelForCausalLM" if is_causal else "AutoModel"

    @cached_property
    def num_parameters(self) -> int | None:
        """The numbers in the weight files; unknown for quantised weights, which are packed."""
        if self.config.get("quantization_config"):
            return None
        shapes = [shape for path in self._weight_files() for shape in _shapes(path)]
        return sum(shapes) or None

    def _weight_files(self) -> Iterator[Path]:
        stem = "adapter_model" if self.is_adapter else "model"
        return (path for path in sorted(self.path.glob(f"{stem}*.safetensors")) if path.is_file())

    @cached_property
    def _run(self):
        return self._json_near(RUN_FILE)

    def _json_near(self, name):
        """A file of the folder, or for a checkpoint that of its run."""
        if (self.path / name).is_file() or not self.path.name.startswith("checkpoint-"):
            return self._json(name)
        return _read_object(self.path.parent / name)

    def _json(self, name):
        return _read_object(self.path / name)


def _read_object(path):
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object, got {json.dumps(content)[:60]}.")
    return content


def _shapes(path):
    """How many numbers each tensor of a file has."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a file is not a dict)
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                yield size
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read. The file may be truncated ({error}).") from error
