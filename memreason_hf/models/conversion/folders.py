"""
Conversions from folder to folder: the result appears whole or not at all, with its tokenizer, its generation config
and a record of how far its logits are from those of the source.
"""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.adapters.base_files import resolve_commit
from memreason_hf.checks import check_path
from memreason_hf.files import check_folder, portable_path, whole_folder
from memreason_hf.models.conversion.decoder import (
    check_unrollable,
    check_unrollable_config,
    convert_config,
    convert_decoder,
    unroll_decoder,
)
from memreason_hf.models.conversion.exactness import (
    TOLERANCE,
    Prompts,
    compute_logits,
    differences,
    largest_logit,
    make_prompts,
    remove_layers,
)
from memreason_hf.models.conversion.layers import LayerPlan
from memreason_hf.models.conversion.readers import Reader
from memreason_hf.models.conversion.record import write_record
from memreason_hf.models.conversion.source import Source, has_tokenizer, num_parameters, quiet_loading
from memreason_hf.models.loading import load_model, load_model_config, load_tokenizer
from memreason_hf.models.pretrained import check_source, first_line, read_model
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


# Fields of the config that say how the loop runs, for the record.
_RECURRENCE_FIELDS = (
    "num_recurrences",
    "max_recurrences",
    "input_injection",
    "injection_gate_init",
    "state_init",
    "state_norm",
    "recurrence_lora_rank",
    "recurrence_lora_count",
)


@dataclass(frozen=True)
class ConvertedFolder:
    """
    What a conversion has written.

    Attributes:
        record (`dict`): The content of `conversion.json`.
        notes (`list` of `str`): What the user should know.
    """

    record: dict
    notes: list[str]


def _no_report(message: str) -> None:
    pass


def check_places_apart(source: str, out: str | os.PathLike, *, overwrite: bool, field: str = "source") -> None:
    """
    Checks that a result can be written without touching its source.

    Args:
        field: What messages call `source`.

    Raises:
        ValueError: both are the same folder, or the source lies inside the folder to be replaced.
        FileExistsError: `out` is not empty and `overwrite` is false.
        OSError: `out` cannot be written where it is.
    """
    folder, target = Path(source).resolve(), Path(out).resolve()
    if folder.exists() and (folder == target or target in folder.parents):
        what = "are the same folder" if folder == target else "overlap: the first is inside the folder to be written"
        raise ValueError(f"{field}={source!r} and out={str(out)!r} {what}. Choose another folder for the result.")
    parent = next((path for path in target.parents if path.exists()), target)
    if not parent.is_dir():
        raise NotADirectoryError(f"{out} cannot be written: {parent} is a file, not a folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{out} cannot be written: the folder {parent} is read-only.")
    check_folder(out, overwrite=overwrite)


def convert_folder(
    source: Source,
    out: str | os.PathLike,
    plan: LayerPlan,
    *,
    dtype: str = "auto",
    overwrite: bool = False,
    report: Callable[[str], None] = _no_report,
    **fields,
) -> ConvertedFolder:
    """
    Converts a pretrained decoder, saves the result, loads it again and compares it with the source.

    The source is loaded once, and the result shares its tensors until it is saved. Logits are computed in float32
    layer by layer, so that a bfloat16 model needs no float32 copy.

    Args:
        source: See `open_source`.
        out: The folder to write.
        plan: See `plan_layers`.
        dtype: Of the weights of the result; `"auto"` for that of the source.
        overwrite: Whether to replace a folder that is not empty.
        report: Receives a line before each long step.
        fields: See `convert_decoder`.

    Raises:
        FileExistsError, ValueError, OSError: `out` is not empty or is the source; tensors are missing or have the
            wrong shape; or the result is not the source at one recurrence. Nothing is then written.

    Example:
        >>> source = open_source("models/llama")  # doctest: +SKIP
        >>> plan = plan_layers(source.config.num_hidden_layers, 4, 8, 4)  # doctest: +SKIP
        >>> convert_folder(source, "runs/looped", plan).record["exactness"]["is_exact"]  # doctest: +SKIP
        True
    """
    check_places_apart(source.name, out, overwrite=overwrite)
    config = convert_config(source.config, plan, **fields)  # refuses wrong fields before weights are read
    tokenizer = source.load_tokenizer()
    report(f"Reading {source.name} …")
    model = source.load(dtype)
    described = _describe_source(source, model)
    prompts = make_prompts(model.config)
    converted = _convert(model, plan, fields)
    report("Computing the logits of the source …")
    remove_layers(model, plan)
    expected = compute_logits(model, prompts)
    del model
    gc.collect()
    with whole_folder(out, overwrite=overwrite) as staged:
        report(f"Writing {out} …")
        notes = save_model(converted, tokenizer, staged, source.name)
        result = describe_result(converted)
        del converted
        gc.collect()
        report("Loading the result, and comparing its logits with those of the source …")
        exactness = _measure(
            staged,
            expected,
            prompts,
            reference="source" if not plan.dropped else "source without the dropped layers",
            num_recurrences=1,
            is_expected=config.state_init == "embedding",
        )
        record = write_record(
            staged,
            "conversion",
            source=described,
            result=result,
            layers={name: list(getattr(plan, name)) for name in ("prelude", "loop", "coda", "dropped")},
            recurrence={name: getattr(config, name) for name in _RECURRENCE_FIELDS},
            exactness=exactness,
        )
    return ConvertedFolder(record, notes)


def convert_other(
    reader: Reader,
    family: str,
    source: str,
    out: str | os.PathLike,
    *,
    dtype: str = "auto",
    overwrite: bool = False,
    report: Callable[[str], None] = _no_report,
    **fields,
) -> ConvertedFolder:
    """
    Saves what the reader of another kind of source makes of it.

    Args:
        reader, family: See `find_reader`.
        source: A folder or file.
        out, dtype, overwrite, report: As for `convert_folder`.
        fields: Those of the reader.

    Raises:
        FileExistsError, ValueError, OSError: `out` is not empty or is the source, the reader does not take a field,
            or the source cannot be read. Nothing is then written.
    """
    check_places_apart(source, out, overwrite=overwrite)
    for name, value in fields.items():
        if name not in reader.fields:
            raise ValueError(f"{name}={value!r} is for decoders, but {source} is {family}. Leave --{name} out.")
    report(f"Reading {source} ({family}) …")
    model, tokenizer = reader.convert(source, dtype=dtype, **fields)
    with whole_folder(out, overwrite=overwrite) as staged:
        report(f"Writing {out} …")
        notes = save_model(model, tokenizer, staged, source)
        result = describe_result(model)
        described = {
            "name_or_path": portable_path(source),
            "revision": None,
            "commit": None if Path(source).exists() else resolve_commit(source),
            "model_type": family,
            "num_layers": result["num_layers"],
            "num_parameters": result["num_parameters"],
        }
        record = write_record(staged, "published_loop", family=family, source=described, result=result)
    return ConvertedFolder(record, notes)


def _convert(model, plan, fields) -> RecurrentDepthForCausalLM:
    parts = {"prelude": plan.prelude, "loop": plan.loop, "coda": plan.coda}
    return convert_decoder(model, **parts, share_weights=True, **fields)


def _describe_source(source, model):
    return {
        "name_or_path": portable_path(source.name),
        "revision": source.revision,
        "commit": source.commit,
        "model_type": source.config.model_type,
        "num_layers": source.config.num_hidden_layers,
        "num_parameters": num_parameters(model),
    }


def describe_result(model: PreTrainedModel) -> dict:
    """The entry `result` of a record."""
    config = model.config
    is_recurrent = isinstance(config, RecurrentDepthConfig)
    return {
        "model_type": config.model_type,
        "num_layers": config.num_physical_layers if is_recurrent else config.num_hidden_layers,
        "num_parameters": num_parameters(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, source: str
) -> list[str]:
    """
    Saves a model with its tokenizer and generation config; returns notes for the user.

    The library refuses to save some generation configs, such as one with a temperature but without sampling, although
    published models have them. Such a config is written as it is.
    """
    notes = []
    settings = model.generation_config
    try:
        settings.validate(strict=True)
    except ValueError as error:
        model.generation_config = GenerationConfig()
        _save_weights(model, folder)
        model.generation_config = settings
        settings.to_json_file(folder / "generation_config.json")
        notes.append(f"The generation config was kept as it is, although the library warns: {first_line(error)}.")
    else:
        _save_weights(model, folder)
    if tokenizer is None:
        notes.append(f"{source} has no tokenizer, so the result has none.")
    else:
        tokenizer.save_pretrained(folder)
        if len(tokenizer) > model.config.vocab_size:
            notes.append(
                f"The tokenizer has {len(tokenizer)} tokens, but the model has {model.config.vocab_size} embeddings, "
                "so commands of this package refuse the two together. Pass the tokenizer that the model was trained "
                "with to them (--tokenizer)."
            )
    return notes


def _save_weights(model, folder):
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # of a full disk, among others
        raise OSError(
            f"The weights cannot be written to {folder.parent} ({first_line(error)}). Nothing was written; the result "
            "needs room for all of its weights."
        ) from error


def _measure(folder, expected, prompts: Prompts, *, reference, num_recurrences, is_expected, attention=None):
    """Loads a folder and compares its logits; the entry `exactness` of a record."""
    with quiet_loading():
        model, problems = read_model(str(folder), "result", dtype="auto", attn_implementation=attention)
    if problems:
        raise RuntimeError(f"The folder that was just written cannot be read back: {problems}.")
    computed = compute_logits(model.eval(), prompts, num_recurrences=num_recurrences)
    found = differences(expected, computed)
    largest = largest_logit(expected)
    if is_expected and not max(found.values()) <= TOLERANCE * largest:
        worst = max(found, key=found.get)
        raise ValueError(
            f"The result differs from the {reference} by {found[worst]:.3g} ({worst}; the largest logit is "
            f"{largest:.3g}), which is more than rounding. Nothing was written. Please report this with the name of "
            "the source."
        )
    return {
        "reference": reference,
        "num_recurrences": num_recurrences,
        "differences": {name: value if value < float("inf") else None for name, value in found.items()},
        "largest_logit": largest,
        "is_exact": not any(found.values()),
        "is_expected": is_expected,
        "num_rows": prompts.ids.shape[0],
        "num_tokens": prompts.ids.shape[1],
    }


def unroll_folder(
    source: str,
    out: str | os.PathLike,
    num_recurrences: int,
    *,
    dtype: str = "auto",
    overwrite: bool = False,
    report: Callable[[str], None] = _no_report,
) -> ConvertedFolder:
    """
    Writes the loop of a saved model out as a plain decoder of its family, loads that again and compares both.

    Args:
        source: The folder of a recurrent model with the layers of a family.
        out: The folder to write.
        num_recurrences: How often the looped layers run.
        dtype, overwrite, report: As for `convert_folder`.

    Raises:
        FileExistsError, ValueError, OSError: `out` is not empty or is the source, or the loop cannot be written out.
            Nothing is then written.

    Example:
        >>> unroll_folder("runs/looped", "plain", 4).record["exactness"]["is_exact"]  # doctest: +SKIP
        True
    """
    check_places_apart(source, out, overwrite=overwrite)
    check_path("source", source)
    check_source(source, "source")
    try:
        config = load_model_config(source)
    except OSError as error:
        raise OSError(f"source={source!r}: {error}") from error
    check_unrollable_config(config, num_recurrences)
    tokenizer = load_tokenizer(source, None, config) if has_tokenizer(source) else None
    report(f"Reading {source} …")
    model = load_model(source, dtype)
    check_unrollable(model, num_recurrences)
    described = {
        "name_or_path": portable_path(source),
        "revision": None,
        "commit": None,
        "model_type": config.model_type,
        "num_layers": config.num_physical_layers,
        "num_parameters": num_parameters(model),
    }
    prompts = make_prompts(model.config)
    report(f"Computing the logits of {num_recurrences} recurrences …")
    expected = compute_logits(model, prompts, num_recurrences=num_recurrences)
    unrolled = unroll_decoder(model, num_recurrences)
    del model
    gc.collect()
    with whole_folder(out, overwrite=overwrite) as staged:
        report(f"Writing {out} …")
        notes = save_model(unrolled, tokenizer, staged, source)
        result = describe_result(unrolled)
        attention = unrolled.config._attn_implementation
        del unrolled
        gc.collect()
        report("Loading the result, and comparing its logits with those of the loop …")
        exactness = _measure(
            staged,
            expected,
            prompts,
            reference="loop",
            num_recurrences=num_recurrences,
            is_expected=True,
            attention=attention,
        )
        record = write_record(
            staged,
            "unrolling",
            source=described,
            result=result,
            num_recurrences=num_recurrences,
            exactness=exactness,
        )
    return ConvertedFolder(record, notes)
