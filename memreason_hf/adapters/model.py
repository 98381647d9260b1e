"""A base model with an adapter, whose saved folder is small and complete."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from peft import PeftConfig, PeftModelForCausalLM, get_peft_model_state_dict
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import TrainableTokensWrapper
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

import memreason_hf
from memreason_hf.adapters.base_files import add_sha256, weight_files
from memreason_hf.adapters.base_place import LOCAL_BASE_FILE, write_base_place
from memreason_hf.adapters.folders import adapter_folder
from memreason_hf.adapters.rows import TrainedRowsLayer, TrainedRowsWrapper
from memreason_hf.files import write_json
from memreason_hf.patches import keep_unpacked, swap_class
from memreason_hf.steps.attention import save_step_attention
from modeling_recurrent.card_recurrent import CardMixin
from modeling_recurrent.versions_recurrent import VERSION, VERSION_KEY


logger = logging.getLogger(__name__)

# In addition to PEFT's adapter_config.json: the mode, and the description of the base.
ADAPTER_FILE = "memreason_adapter.json"
ADAPTER = "default"
# Entries of PEFT's config that change no weights: PEFT writes them when it saves or loads. The files of the base count
# instead of its name and revision.
_UNCOUNTED_SETTINGS = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")


class AdapterModel(CardMixin, PeftModelForCausalLM):
    """
    PEFT's model for causal language models, with five differences, so that any Trainer saves and resumes it.

    - `save_pretrained` never stores the embedding matrices but only the new rows, and records the base.
    - In the mode `lora` the new rows are stored but stay frozen, also after loading and resuming.
    - Weights of another adapter are refused with their names. PEFT alone raises a KeyError or loads some of them.
    - A head with trained rows has a `bias`, which TRL's trainers read together with its `weight`.
    - Its card says what is known. That of PEFT has blanks, and names the folder of the base on this machine.

    Args:
        model ([`~transformers.PreTrainedModel`]): The base, extended for the tokenizer.
        config ([`~peft.PeftConfig`]): The config of the adapter.
        mode (`str`): One of `ADAPTER_MODES`, except `"full"`.
        base (`dict`): The result of `describe_base`.
    """

    _base_on_hub: str | None = None

    def __init__(self, model: PreTrainedModel, config: PeftConfig, *, mode: str, base: dict):
        with warnings.catch_warnings():
            # PEFT warns about tied embeddings here although it ties them correctly in `tokens` mode.
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer is part")
            super().__init__(model, config, ADAPTER)
        self.adapter_mode = mode
        self.adapter_base = base
        keep_unpacked(model)
        for layer in self.token_layers():
            swap_class(layer, TrainedRowsLayer)
        for module in list(self.modules()):
            if isinstance(module, TrainableTokensWrapper):
                swap_class(module, TrainedRowsWrapper)
        self._freeze_rows()

    def save_pretrained(self, save_directory, safe_serialization=True, **kwargs):
        """
        Saves the adapter as PEFT does, with `memreason_adapter.json`, the attention between steps, and the place of
        the base (`local_base.json`).

        The tokenizer is not saved: see `save_adapter`. A Trainer saves it, too.
        """
        kwargs["save_embedding_layers"] = False
        kwargs["state_dict"] = self._without_copies(kwargs.get("state_dict"))
        super().save_pretrained(save_directory, safe_serialization=safe_serialization, **kwargs)
        if kwargs.get("is_main_process", True):
            self._hash_base()
            note = {VERSION_KEY: VERSION, "mode": self.adapter_mode, "base": self.adapter_base}
            write_json(Path(save_directory) / ADAPTER_FILE, note)
            save_step_attention(self, save_directory)
            write_base_place(save_directory, self.get_base_model().name_or_path)
            memreason_hf.write_card(save_directory)

    def push_to_hub(self, repo_id, *, base_model: str | None = None, **kwargs):
        """
        Pushes the adapter as the parent does. What is pushed names the base by its name on the Hub, and no folder.

        Args:
            repo_id (`str`): The repository.
            base_model (`str`, *optional*): Name of the base on the Hub. Needed if the base was loaded from a folder.
            kwargs: As for the parent.

        Raises:
            ValueError: the base is a folder of this machine and `base_model` is not given, or `base_model` is no name
                of a repository.
        """
        self._base_on_hub = base_model
        try:
            return super().push_to_hub(repo_id, **kwargs)
        finally:
            self._base_on_hub = None

    def make_card(self, folder, repo_id):
        return memreason_hf.make_card(folder, repo_id, base_model=self._base_on_hub)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        memreason_hf.stage_adapter_config(working_dir, working_dir, self._base_on_hub)
        Path(working_dir, LOCAL_BASE_FILE).unlink(missing_ok=True)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def create_or_update_model_card(self, output_dir: str):
        """Writes the card of the adapter that is saved in a folder, unless it has one that a person wrote."""
        # PEFT calls this in the middle of saving, when there is not yet anything to describe.
        if (Path(output_dir) / ADAPTER_FILE).is_file():
            memreason_hf.write_card(output_dir)

    def _hash_base(self):
        """Adds whole hashes of the base's files to its description, at the first save."""
        weights = self.adapter_base["weights"]
        if all("sha256" in digests for digests in weights.values()):
            return
        name = self.get_base_model().name_or_path
        if not add_sha256(weights, weight_files(name, self.peft_config[ADAPTER].revision)):
            logger.warning(
                "The weight files of the base %r changed or disappeared after it was loaded. The adapter records only "
                "digests of blocks of the files that it was trained on.",
                name,
            )

    def load_adapter(self, model_id, adapter_name=ADAPTER, **kwargs):
        """
        Loads the weights of this adapter as PEFT does.

        Raises:
            ValueError: the folder holds the weights of another adapter.
        """
        if adapter_name == ADAPTER:
            model_id = adapter_folder(model_id, kwargs.pop("revision", None)) or model_id
            check_stored_weights(self, model_id)
            kwargs.setdefault("torch_device", str(self.device))
        result = super().load_adapter(model_id, adapter_name, **kwargs)
        self._freeze_rows()
        return result

    def set_adapter(self, *args, **kwargs):
        """Activates an adapter as PEFT does. Rows that the mode freezes stay frozen."""
        super().set_adapter(*args, **kwargs)
        self._freeze_rows()

    def token_layers(self) -> list[TrainableTokensLayer]:
        """The layers with new rows: that of the embedding, and that of the head."""
        return [module for module in self.modules() if isinstance(module, TrainableTokensLayer)]

    @contextmanager
    def rows_in_place(self) -> Iterator[None]:
        """
        A context in which the new rows stand in the matrices themselves. The logits are the same.

        Outside of it every forward copies both matrices to insert the rows, which for a large vocabulary takes longer
        than the layers of a token.
        """
        layers = [layer for layer in self.token_layers() if not layer.merged]
        with torch.no_grad():
            for layer in layers:
                layer.merge(adapter_names=[ADAPTER])
        try:
            yield
        finally:
            with torch.no_grad():
                for layer in layers:
                    layer.unmerge()

    def settings(self) -> dict:
        """What decides the weights of a run in addition to the base's config, for the fingerprint of the run."""
        config = self.peft_config[ADAPTER].to_dict()
        counted = {name: value for name, value in config.items() if name not in _UNCOUNTED_SETTINGS}
        base = {name: digests["blocks"] for name, digests in self.adapter_base["weights"].items()}
        return {"mode": self.adapter_mode, "base": base, **counted}

    def stored_weights(self) -> dict[str, torch.Tensor]:
        """The weights that are saved, by name."""
        return get_peft_model_state_dict(self, state_dict=self._without_copies(), save_embedding_layers=False)

    def _without_copies(self, state_dict=None):
        """A state dict without the rows of a tied head, which are those of the embedding under another name."""
        copies = tuple(
            f"{name}."
            for name, module in self.named_modules()
            if isinstance(module, TrainableTokensLayer) and module.tied_adapter
        )
        state_dict = self.state_dict() if state_dict is None else state_dict
        return {name: value for name, value in state_dict.items() if not name.startswith(copies)}

    def _freeze_rows(self):
        if self.adapter_mode == "lora":
            for layer in self.token_layers():
                layer.trainable_tokens_delta.requires_grad_(False)


def rows_in_place(model: PreTrainedModel | AdapterModel) -> AbstractContextManager:
    """`AdapterModel.rows_in_place`, or a context without effect for a model without an adapter."""
    return model.rows_in_place() if isinstance(model, AdapterModel) else nullcontext()


def check_stored_weights(model: AdapterModel, folder: Path | str) -> None:
    """
    Checks that a folder holds the weights of this adapter.

    Raises:
        OSError: the folder holds no weights.
        ValueError: the weights are truncated or belong to another adapter.
    """
    path = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}, so it is not an adapter.")
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read. The file may be truncated ({error}).") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.stored_weights().items()}
    problems = [f"{name} is missing" for name in expected if name not in stored]
    problems += [f"{name} is unknown" for name in stored if name not in expected]
    problems += [
        f"{name} has the shape {stored[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in stored and stored[name] != shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{path} holds another adapter than this one ({'; '.join(problems[:3])}{more}). Use the model and the "
            "arguments that it was trained with."
        )
