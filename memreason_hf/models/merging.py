"""Merging an adapter into its base: one whole model, which loads without PEFT and without this package's adapters."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

import memreason_hf
from memreason_hf.adapters.folders import adapter_folder
from memreason_hf.adapters.model import AdapterModel
from memreason_hf.adapters.saving import base_of, load_adapter, read_adapter_note
from memreason_hf.checks import check_path
from memreason_hf.files import whole_folder
from memreason_hf.models.conversion.folders import check_places_apart, save_model
from memreason_hf.models.loading import load_model
from memreason_hf.models.pretrained import torch_dtype


_ROWS, _TOKENS = 4, 16
# Share of the largest logit, by dtype: one rounding of the weights.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@dataclass(frozen=True)
class MergedModel:
    """
    What `merge_adapter` wrote.

    Attributes:
        mode: the mode of the adapter.
        base: where its base was read.
        dtype: of the weights, for example `"bfloat16"`.
        num_parameters: of the merged model.
        difference: the largest difference between a logit of the saved model and of the base with its adapter.
        largest_logit: the largest absolute logit, for comparison.
        agreement: the share of places where both models find the same token most probable, 0..1.
        notes: sentences for the user.
    """

    mode: str
    base: str
    dtype: str
    num_parameters: int
    difference: float
    largest_logit: float
    agreement: float
    notes: list[str]


def merge_adapter(
    adapter: str,
    out: str | os.PathLike,
    *,
    revision: str | None = None,
    base: str | None = None,
    base_revision: str | None = None,
    base_check: str = "blocks",
    dtype: str = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> MergedModel:
    """
    Merges an adapter into its base, saves the whole model with its tokenizer, loads it again and compares both.

    Args:
        adapter: folder of an adapter of this package, or its name on the Hub.
        out: the folder to write. It appears whole or not at all.
        revision: a branch, tag or commit of an adapter on the Hub.
        base: where the base is, if not where the adapter says.
        base_revision: its branch, tag or commit on the Hub, if not the commit that the adapter names.
        base_check: how the base is recognised; see `load_adapter`.
        dtype: of the merged weights: `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"` for the dtype that the
            adapter was trained on. The sum of a weight and its update is rounded to it.
        overwrite: replace a folder that is not empty.
        trust_remote_code: run Python code that comes with the tokenizer or the base.
        report: is given each step.

    Raises:
        ValueError: it is a whole model, its mode is `"prompt"`, the merged weights are not finite, or the saved model
            computes something else. Nothing is then written.
        OSError: there is no adapter or no base, or `out` cannot be written.

    Example:
        >>> merged = merge_adapter("runs/lora", "models/merged", dtype="bfloat16")  # doctest: +SKIP
        >>> merged.agreement  # doctest: +SKIP
        1.0
    """
    check_path("adapter", adapter)
    check_places_apart(adapter, out, overwrite=overwrite, field="adapter")
    folder = adapter_folder(adapter, revision)
    if folder is None:
        raise ValueError(f"adapter={adapter!r} holds no adapter. Pass the folder that finetune wrote, or its name.")
    mode = read_adapter_note(folder)["mode"]
    if mode == "prompt":
        raise ValueError(
            f"adapter={adapter!r} has the mode 'prompt': virtual tokens are inputs, which cannot be merged into "
            "weights. Use the adapter as it is (load_adapter)."
        )
    place, _ = base_of(folder, base, base_revision)
    if Path(place).is_dir():
        check_places_apart(place, out, overwrite=overwrite, field="base")
    report(f"Reading {adapter} and its base {place} …")
    model, tokenizer = load_adapter(
        folder,
        base=base,
        base_revision=base_revision,
        base_check=base_check,
        dtype=torch_dtype(dtype),
        trust_remote_code=trust_remote_code,
    )
    ids = _some_ids(model)
    expected = _logits(model, ids)
    report("Merging …")
    merged = _merge(model, adapter)
    del model
    with whole_folder(out, overwrite=overwrite) as staged:
        report(f"Writing {out} …")
        notes = save_model(merged, tokenizer, staged, adapter)
        found_dtype, size = merged.dtype, sum(parameter.numel() for parameter in merged.parameters())
        del merged
        gc.collect()
        report("Loading the result, and comparing its logits with those of the adapter …")
        logits = _logits(load_model(str(staged), trust_remote_code=trust_remote_code), ids)
        difference, largest = float((logits - expected).abs().max()), float(expected.abs().max())
        if not difference <= _TOLERANCES[found_dtype] * largest:
            raise ValueError(
                f"The merged model differs from the base with its adapter by {difference:.3g} (the largest logit is "
                f"{largest:.3g}), which is more than rounding to {_name(found_dtype)}. Nothing was written. Try "
                "dtype=float32."
            )
        memreason_hf.write_card(staged)
    agreement = float((logits.argmax(-1) == expected.argmax(-1)).float().mean())
    return MergedModel(mode, place, _name(found_dtype), size, difference, largest, agreement, notes)


def _merge(model: AdapterModel, adapter: str) -> PreTrainedModel:
    try:
        return model.merge_and_unload(safe_merge=True).eval()
    except ValueError as error:
        if "NaNs detected" not in str(error):
            raise
        raise ValueError(
            f"adapter={adapter!r}: merged weights would not be finite in {_name(model.dtype)}. The adapter is "
            "damaged, or needs a wider dtype (float32)."
        ) from error


def _some_ids(model):
    """Random ids, with the new tokens among them."""
    generator = torch.Generator().manual_seed(0)
    new = torch.tensor(model.adapter_base["new_rows"][:_TOKENS], dtype=torch.long)
    ids = torch.randint(model.adapter_base["rows_before"], (_ROWS, _TOKENS), generator=generator)
    return torch.cat((ids, new.expand(_ROWS, -1), ids[:, :2]), dim=1)


@torch.no_grad()
def _logits(model, ids):
    return model(input_ids=ids.to(model.device)).logits.float()


def _name(dtype):
    return str(dtype).removeprefix("torch.")
