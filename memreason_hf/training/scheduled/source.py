"""The source of the term `keep_weight`: a frozen model that says what one recurrence predicted when the run began."""

import copy
import hashlib
import os
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from memreason_hf.data.labels import IGNORED_LABEL
from memreason_hf.models.loading import load_model
from modeling_recurrent import RecurrentDepthConfig


# The arguments of a training step that a source reads, too.
_SHARED_ARGUMENTS = ("input_ids", "attention_mask", "position_ids", "inputs_embeds")


class FrozenSource:
    """
    A model that is not trained and predicts after one recurrence, without dropout.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A recurrent-depth model, or any causal language model, which runs as it is. It is put into eval mode and
            must not be the model in training.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model.eval()
        self.is_recurrent = isinstance(model.config, RecurrentDepthConfig)
        self._fingerprint: str | None = None

    @classmethod
    def copy_of(cls, model: torch.nn.Module) -> "FrozenSource":
        """
        The model as it is now. Its frozen parameters are shared, so that only those in training take memory.
        """
        frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
        duplicate = copy.deepcopy(model, frozen)
        for parameter in duplicate.parameters():
            parameter.requires_grad_(False)
        return cls(duplicate)

    @classmethod
    def load(cls, path: str | os.PathLike, model: PreTrainedModel) -> "FrozenSource":
        """
        Loads a source for a model in training, on its device and in its dtype.

        Raises:
            OSError, ValueError: there is no such model, or it has another vocabulary.
        """
        source = load_model(str(path), str(model.dtype).removeprefix("torch."))
        sizes = [entry.config.get_text_config().vocab_size for entry in (source, model)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"keep_model={str(path)!r} has vocab_size={sizes[0]}, but the model in training has {sizes[1]}: their "
                "predictions cannot be compared. Choose a source with the same vocabulary."
            )
        return cls(source.to(model.device).requires_grad_(False))

    @torch.no_grad()
    def logits(self, arguments: Mapping) -> torch.Tensor:
        """
        The logits after one recurrence where there are labels.

        Args:
            arguments (`Mapping`): The arguments of the model in training, with `shift_labels`.

        Returns:
            `torch.Tensor` of shape `(labels that are not -100, vocabulary)`.
        """
        inputs = {name: arguments[name] for name in _SHARED_ARGUMENTS if name in arguments}
        labelled = arguments["shift_labels"].ne(IGNORED_LABEL)
        if not self.is_recurrent:
            return self.model(**inputs, use_cache=False).logits[labelled]
        depth = {"num_recurrences": 1, "halting_criterion": "none"}
        if "state_seed" in arguments:
            depth["state_seed"] = arguments["state_seed"]
        return self.model(
            **inputs,
            **depth,
            shift_labels=arguments["shift_labels"],
            labelled_logits_only=True,
            use_cache=False,
        ).logits

    def fingerprint(self) -> str:
        """A hash of the weights: a run that is resumed must have the same source."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=16)
            for name, value in sorted(self.model.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint
