"""A base model with an adapter, which saves itself small and complete wherever it is saved."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from peft import PeftConfig, PeftModelForCausalLM, get_peft_model_state_dict
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from memreason_hf.adapters.rows import TrainedRowsLayer
from memreason_hf.files import write_json
from memreason_hf.steps.attention import save_step_attention


# Beside PEFT's adapter_config.json: the mode, and what the base must be.
ADAPTER_FILE = "memreason_adapter.json"
ADAPTER = "default"
_SETTINGS = ("r", "lora_alpha", "lora_dropout", "target_modules", "trainable_token_indices", "token_indices")


class AdapterModel(PeftModelForCausalLM):
    """
    PEFT's model, with three differences, so that any Trainer writes and resumes the right checkpoints.

    - `save_pretrained` never stores the embedding matrices, only the new rows, and adds what the base must be.
    - In the mode `lora` the new rows are stored, but stay frozen, after loading and resuming, too.
    - Weights of another adapter are refused by name; PEFT alone raises a KeyError or leaves some out.

    Args:
        model: the base, extended for the tokenizer.
        config: of PEFT.
        mode: of `ADAPTER_MODES`, but not `full`.
        base: what `describe_base` said of the model.
    """

    def __init__(self, model: PreTrainedModel, config: PeftConfig, *, mode: str, base: dict):
        with warnings.catch_warnings():
            # Said of tied models in the mode `tokens`, whose rows it does tie.
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer is part")
            super().__init__(model, config, ADAPTER)
        self.adapter_mode = mode
        self.adapter_base = base
        _keep_unpacked(model)
        for layer in self.token_layers():
            TrainedRowsLayer.take_over(layer)
        self._freeze_rows()

    def save_pretrained(self, save_directory, safe_serialization=True, **kwargs):
        """As PEFT's; without the tokenizer (see `save_adapter`), which a Trainer saves beside it."""
        kwargs["save_embedding_layers"] = False
        kwargs["state_dict"] = self._without_copies(kwargs.get("state_dict"))
        super().save_pretrained(save_directory, safe_serialization=safe_serialization, **kwargs)
        if kwargs.get("is_main_process", True):
            note = {"mode": self.adapter_mode, "base": self.adapter_base}
            write_json(Path(save_directory) / ADAPTER_FILE, note)
            save_step_attention(self, save_directory)

    def load_adapter(self, model_id, adapter_name=ADAPTER, **kwargs):
        """
        As PEFT's, for the weights of this adapter.

        Raises:
            ValueError: the folder holds the weights of another adapter.
        """
        if adapter_name == ADAPTER and Path(model_id).is_dir():
            check_stored_weights(self, model_id)
            kwargs.setdefault("torch_device", str(self.device))
        result = super().load_adapter(model_id, adapter_name, **kwargs)
        self._freeze_rows()
        return result

    def set_adapter(self, *args, **kwargs):
        super().set_adapter(*args, **kwargs)
        self._freeze_rows()

    def token_layers(self) -> list[TrainableTokensLayer]:
        """The layers that hold new rows: of the embedding, and of the head."""
        return [module for module in self.modules() if isinstance(module, TrainableTokensLayer)]

    @contextmanager
    def rows_in_place(self) -> Iterator[None]:
        """
        Meanwhile the new rows stand in the matrices themselves. The logits are the same; but otherwise every call
        copies both matrices to put the rows in, which for a large vocabulary costs more than a token's layers.
        """
        layers = [layer for layer in self.token_layers() if not layer.merged and not layer.tied_adapter]
        tied = [layer for layer in self.token_layers() if not layer.merged and layer.tied_adapter]
        before = []
        with torch.no_grad():
            for layer in layers:
                weight, rows = layer.get_base_layer().weight, layer.token_indices[ADAPTER]
                before.append(weight[rows])
                weight[rows] = layer.trainable_tokens_delta[ADAPTER].to(weight)
        for layer in (*layers, *tied):
            layer.merged_adapters.append(ADAPTER)
        try:
            yield
        finally:
            for layer in (*layers, *tied):
                layer.merged_adapters.remove(ADAPTER)
            with torch.no_grad():
                for layer, values in zip(layers, before):
                    layer.get_base_layer().weight[layer.token_indices[ADAPTER]] = values

    def settings(self) -> dict:
        """What decides the weights of a run beside the base, flat and JSON-like, for a run's fingerprint."""
        config = self.peft_config[ADAPTER].to_dict()
        named = {name: config.get(name) for name in _SETTINGS}
        named["target_modules"] = sorted(named["target_modules"])
        return {"adapter.mode": self.adapter_mode} | {f"adapter.{name}": value for name, value in named.items()}

    def stored_weights(self) -> dict[str, torch.Tensor]:
        """What is saved, by name."""
        return get_peft_model_state_dict(self, state_dict=self._without_copies(), save_embedding_layers=False)

    def _without_copies(self, state_dict=None):
        """A state without the rows of a tied head, which are those of the embedding under another name."""
        copies = [
            name
            for name, module in self.named_modules()
            if isinstance(module, TrainableTokensLayer) and module.tied_adapter
        ]
        state_dict = self.state_dict() if state_dict is None else state_dict
        return {
            name: value for name, value in state_dict.items() if not name.startswith(tuple(f"{c}." for c in copies))
        }

    def _freeze_rows(self):
        if self.adapter_mode == "lora":
            for layer in self.token_layers():
                layer.trainable_tokens_delta.requires_grad_(False)


def rows_in_place(model: PreTrainedModel | AdapterModel) -> AbstractContextManager:
    """`AdapterModel.rows_in_place`, for a model that may have no adapter."""
    return model.rows_in_place() if isinstance(model, AdapterModel) else nullcontext()


def _keep_unpacked(model):
    """
    Keeps 4-bit weights of bitsandbytes in the form that has gradients.

    On some CPUs it packs them when they are first evaluated: their scales are rounded to bfloat16, and training that
    goes on after an evaluation gets no gradients through them, silently.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                # Asking for the state unpacks it.
                module.state_dict()


def check_stored_weights(model: AdapterModel, folder: Path | str) -> None:
    """
    Raises:
        OSError: there are no weights.
        ValueError: they are cut off, or belong to another adapter.
    """
    path = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}: no adapter is there.")
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read, the file may be cut off ({error}).") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.stored_weights().items()}
    problems = [f"{name} is missing" for name in expected if name not in stored]
    problems += [f"{name} belongs nowhere" for name in stored if name not in expected]
    problems += [
        f"{name} has the shape {stored[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in stored and stored[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{path} holds another adapter than this one ({'; '.join(problems[:3])}{more}). Give the model and the "
            "arguments that it was trained with."
        )
