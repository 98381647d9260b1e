"""Reading a saved model by the name that a flag or recipe gives, with errors that name the field."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel


def check_source(name: str, field: str) -> None:
    """
    Refuses what can be neither a folder nor a name on the Hub, before the library looks for it there.

    Raises:
        FileNotFoundError: with `field`, as the user knows it.
    """
    folder = Path(name)
    # What is left, NAME/NAME, is looked for on the Hub.
    on_the_hub = name.count("/") == 1 and not name.startswith((".", "~", "/")) and not folder.parent.exists()
    if not folder.is_dir() and not on_the_hub:
        raise FileNotFoundError(f"{field}={name!r}: no such folder. Give one, or a name on the Hub (owner/name).")


def torch_dtype(name: str) -> torch.dtype | str:
    """The dtype that a flag names; `"auto"` stays."""
    return name if name == "auto" else getattr(torch, name)


def read_model(name: str, field: str, **kwargs) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """
    A causal language model, and what `from_pretrained` reports of its weights: names by kind of trouble, sorted. The
    library goes on with random weights where some are missing: look at it.

    Raises:
        ValueError: weights that cannot be read; with `field`.
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise ValueError(
            f"{field}={name!r}: the weights cannot be read, the file may be cut off ({error})."
        ) from error
    return model, {kind: sorted(map(str, names)) for kind, names in info.items() if names}
