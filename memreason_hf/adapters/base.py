"""What an adapter notes of its base model, so that another one is recognised before it gives wrong answers."""

import hashlib

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.steps.tokenization import SCHEME_KEY, new_rows


# Of the config; where a model has no such field, None.
_CONFIG_FIELDS = (
    "model_type",
    "hidden_size",
    "tie_word_embeddings",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
_TITLES = {"hidden_size": "width (hidden_size)", "tie_word_embeddings": "tying (tie_word_embeddings)"}
# Values sampled from the weights: of 300 tensors of a 7B model six each, which costs nothing.
_NUM_SAMPLES, _MOST_PER_TENSOR = 2048, 16
_GOLDEN = 0.6180339887498949
# Bits of the fraction, by which two dtypes are compared.
_PRECISION = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}


def describe_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    """
    What `check_base` compares, JSON-like: fields of the config, rows before and after the extension, the ids of new
    rows, a digest of the vocabulary, and up to 2,048 values sampled from all floating-point weights but the new rows;
    and the dtype, which may be another when the adapter is used.

    The samples are cheap for a model of any size, and tell a model from one of the same shape that was trained
    further, if the training changed one of the tensors as a whole. Weights in 8 or 4 bits are not sampled.

    Args:
        model: extended for `tokenizer`, and not yet wrapped by an adapter.
    """
    rows_before, ids = new_rows(model)
    tensors = {name: tensor for name, tensor in model.named_parameters() if _can_be_sampled(tensor)}
    per_tensor = min(_MOST_PER_TENSOR, max(1, _NUM_SAMPLES // max(len(tensors), 1)))
    matrices, old_rows = _vocabulary_matrices(model), _old_rows(rows_before, ids)
    samples = {}
    for name, tensor in tensors.items():
        values = _sample(tensor, per_tensor, old_rows if any(tensor is matrix for matrix in matrices) else None)
        samples[name] = f"{str(tensor.dtype).removeprefix('torch.')}:{values.float().numpy().tobytes().hex()}"
    return {
        "config": _config_fields(model.config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "rows_before": rows_before,
        "rows": model.get_input_embeddings().weight.shape[0],
        "new_rows": list(ids),
        "tokenizer": tokenizer_digest(tokenizer),
        "samples": samples,
    }


def weights_digest(model: nn.Module) -> str:
    """
    Of values sampled from all floating-point weights: cheap, and another one after the model was trained further.

    Args:
        model: of any kind, with an adapter or without.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        if _can_be_sampled(tensor):
            digest.update(name.encode())
            digest.update(_sample(tensor, _MOST_PER_TENSOR).float().numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of the tokens and their ids."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256("\n".join(f"{id_} {token}" for token, id_ in tokens).encode()).hexdigest()[:16]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, description: dict) -> None:
    """
    Raises:
        ValueError: it is not the tokenizer that the adapter was trained with.
    """
    if tokenizer_digest(tokenizer) != description["tokenizer"]:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} ({len(tokenizer)} tokens) is not the one that the adapter was "
            "trained with: its tokens or their ids differ. Put the tokenizer back that was saved with the adapter."
        )


def check_config(config: PreTrainedConfig, description: dict) -> None:
    """
    What can be told before any weight is read.

    Raises:
        ValueError: another width, tying, vocabulary or architecture than the adapter's base has.
    """
    expected, found = description["config"], _config_fields(config)
    differing = [
        f"{_TITLES.get(name, name)} is {found.get(name)!r}, the adapter's base has {value!r}"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    noted = getattr(config, SCHEME_KEY, None) or {}
    rows = noted.get("rows_before", config.vocab_size)
    if rows != description["rows_before"]:
        differing.append(
            f"vocabulary: its embedding has {rows} rows, the adapter's base has {description['rows_before']}"
        )
    if differing:
        raise _other_base(config, differing)


def check_base(model: PreTrainedModel, description: dict) -> None:
    """
    Args:
        model: extended for the adapter's tokenizer, not yet wrapped by the adapter; in any dtype.

    Raises:
        ValueError: it is not the base of the adapter; the message says what differs.
    """
    check_config(model.config, description)
    differing = []
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if (head is not None and head.weight is embedding.weight) != description["config"]["tie_word_embeddings"]:
        differing.append("its head is tied to the embedding in only one of config and weights")
    rows = embedding.weight.shape[0]
    if rows != description["rows"] or list(new_rows(model)[1]) != description["new_rows"]:
        differing.append(f"vocabulary: extended, it has {rows} rows, the adapter's base {description['rows']}")
    differing = differing or _differing_weights(model, description)
    if differing:
        raise _other_base(model.config, differing)


def _differing_weights(model, description):
    tensors, matrices = dict(model.named_parameters()), _vocabulary_matrices(model)
    old_rows = _old_rows(description["rows_before"], description["new_rows"])
    missing, other = [], []
    for name, noted in description["samples"].items():
        tensor = tensors.get(name)
        if tensor is None:
            missing.append(name)
        elif _can_be_sampled(tensor):
            dtype, samples = noted.split(":")
            expected = torch.from_numpy(np.frombuffer(bytes.fromhex(samples), dtype=np.float32).copy())
            found = _sample(tensor, len(expected), old_rows if any(tensor is m for m in matrices) else None)
            if not _same_values(found, expected.to(getattr(torch, dtype))):
                other.append(name)
    problems = [f"it has no weights {', '.join(missing[:3])}"] if missing else []
    if other:
        problems.append(
            f"{len(other)} of {len(description['samples'])} weights that were sampled have other values: "
            f"{', '.join(other[:3])}{', ...' if len(other) > 3 else ''}"
        )
    return problems


def _same_values(first, second):
    """Whether two samples can be roundings of the same values."""
    first_bits, second_bits = _PRECISION.get(first.dtype, 0), _PRECISION.get(second.dtype, 0)
    coarse = first.dtype if first_bits <= second_bits else second.dtype
    if max(first_bits, second_bits) >= 23 or first_bits == second_bits:
        return torch.allclose(first.to(coarse).double(), second.to(coarse).double(), rtol=0, atol=0, equal_nan=True)
    # float16 and bfloat16, each of which loses something that the other keeps.
    return torch.allclose(first.float(), second.float(), rtol=2**-7, atol=1e-7, equal_nan=True)


def _can_be_sampled(tensor):
    # 4-bit weights of bitsandbytes can be stored in a floating-point dtype.
    return tensor.is_floating_point() and tensor.device.type != "meta" and not hasattr(tensor, "quant_state")


def _vocabulary_matrices(model):
    """The weights whose rows belong to tokens."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module.weight for module in modules if module is not None]


def _old_rows(rows_before, ids):
    new = set(ids)
    return [row for row in range(rows_before) if row not in new]


def _sample(tensor, count, rows=None):
    """`count` values spread over a tensor, or over some of its rows; on the CPU."""
    width = 1 if rows is None else tensor[0].numel()
    size = tensor.numel() if rows is None else len(rows) * width
    if size == 0:
        return tensor.new_zeros(0).cpu()
    # Even steps would fall into the same column again and again.
    places = [int((index + 0.5) * _GOLDEN % 1 * size) for index in range(count)]
    if rows is not None:
        places = [rows[place // width] * width + place % width for place in places]
    return tensor.detach().reshape(-1)[torch.tensor(places, device=tensor.device)].cpu()


def _config_fields(config):
    return {name: getattr(config, name, None) for name in _CONFIG_FIELDS}


def _other_base(config, differing):
    name = getattr(config, "_name_or_path", "") or config.model_type
    return ValueError(
        f"{name!r} is not the base model of this adapter: {'; '.join(differing)}. "
        "Give the model that the adapter was trained on (base=)."
    )
