"""A published loop as a `RecurrentDepthForCausalLM`."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from memreason_hf.checks import check_path
from memreason_hf.files import read_json
from memreason_hf.models.pretrained import first_line
from memreason_hf.models.published import huginn, ouro
from memreason_hf.models.published.reading import PublishedLoop, read_fields
from memreason_hf.models.published.sources import local_config, local_folder
from memreason_hf.models.published.study import find_checkpoint, read_study
from modeling_recurrent import RecurrentDepthForCausalLM


# The readers of folders, by the `model_type` of their config.
READERS: dict[str, Callable[[Path], PublishedLoop]] = {
    huginn.MODEL_TYPE: huginn.read_huginn,
    ouro.MODEL_TYPE: ouro.read_ouro,
}


def detect(source: str | Path) -> Callable[..., PublishedLoop] | None:
    """
    The reader of a published loop, or `None` if `source` is something else.

    Args:
        source: a folder, a name on the Hub, or the `.pt` file of a checkpoint of the study. From the Hub only
            `config.json` is downloaded.

    Raises:
        OSError: there is no such folder, and the Hub has no such repository or cannot be reached.
        ValueError: the `config.json` cannot be read, or a folder without one holds several checkpoints.
    """
    folder = local_config(source)
    if folder is not None:
        model_type = read_fields(folder).get("model_type")
        return READERS.get(model_type) if isinstance(model_type, str) else None
    return read_study if find_checkpoint(Path(source)) is not None else None


def read_published(source: str | Path, **study_fields) -> PublishedLoop:
    """
    Reads a published loop: its config, its tensors one by one, its tokenizer.

    Args:
        source: a folder, a name on the Hub, or the `.pt` file of a checkpoint of the study.
        study_fields: what checkpoints of the study do not tell; see `read_study`.

    Raises:
        OSError: files are missing, or the Hub cannot be reached.
        ValueError: `source` is not a published loop, its files are damaged, or a field or tensor cannot be expressed;
            the message names it.
        TypeError: `study_fields` were given for another kind of source.
    """
    reader = detect(source)
    if reader is None:
        known = ", ".join(READERS)
        raise ValueError(
            f"{source} is not a published loop: neither a folder whose config.json has a model_type of {known}, nor "
            "a checkpoint of the study (*.pt)."
        )
    given = {name: value for name, value in study_fields.items() if value is not None}
    if given and reader is not read_study:
        name, value = next(iter(given.items()))
        raise TypeError(
            f"{name}={value!r} is for checkpoints of the study, but {source} has a config.json that says it."
        )
    folder = local_folder(source)
    if reader is read_study:
        return reader(folder, **given)
    if read_fields(folder).get("quantization_config") is not None:
        raise ValueError(
            f"{source} is quantised: its config.json has a quantization_config. Convert the model that it was "
            "quantised from, and quantise the result when it is loaded."
        )
    try:
        return reader(folder)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"{source}: a value in config.json cannot be used ({type(error).__name__}: {first_line(error)})."
        ) from error


def convert_published(
    source: str | Path, *, dtype: torch.dtype | None = None, **study_fields
) -> tuple[RecurrentDepthForCausalLM, PreTrainedTokenizerBase | None]:
    """
    A published loop as a model of this package, in evaluation mode, with its tokenizer where it has one.

    Args:
        source: a folder or a name on the Hub of Huginn-0125, a Retrofit model or Ouro, or a checkpoint of the study.
        dtype: of the weights; by default that of the source's embeddings.
        study_fields: what checkpoints of the study do not tell: `num_attention_heads`, `num_recurrences`,
            `input_injection`, `vocabulary`; see `read_study`.

    Raises:
        OSError, ValueError, TypeError: see `read_published`.

    Example:
        >>> model, tokenizer = convert_published("ByteDance/Ouro-1.4B")  # doctest: +SKIP
        >>> ids = tokenizer("The capital of France is", return_tensors="pt")  # doctest: +SKIP
        >>> model.generate(**ids, halting_criterion="exit_gate", exit_gate_threshold=0.8)  # doctest: +SKIP
    """
    check_path("source", source)
    loop = read_published(source, **study_fields)
    tensors = {}
    for name, tensor in loop.tensors:
        dtype = dtype or tensor.dtype
        tensors[name] = tensor.to(dtype)
    model, info = RecurrentDepthForCausalLM.from_pretrained(
        None, config=loop.config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )
    problems = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if problems:
        raise RuntimeError(f"The reader of {loop.family} does not fit the model: {problems}.")
    _take_generation_config(model, local_folder(source))
    return model.eval(), loop.tokenizer


def _take_generation_config(model, source):
    """Takes over what the source says about sampling and special tokens, in the library's own fields."""
    path = source / "generation_config.json"
    if not path.is_file():
        return
    content, known = read_json(path), GenerationConfig().to_dict()
    if isinstance(content, dict):
        fields = {name: value for name, value in content.items() if name in known and value is not None}
        model.generation_config = GenerationConfig(**fields)
