"""Fields of a config that hold a number of a certain range, and the upper bounds of these ranges."""

import difflib
import math

import torch
from huggingface_hub.dataclasses import as_validated_field
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


# Recurrences and layers run one after the other. A forward pass of more would not end in useful time, and its cache
# would fit into no memory.
MOST_RECURRENCES = 10_000
MOST_LAYERS = 10_000
# The largest side of a matrix: even its vectors of this length are larger than those of any published model.
MOST_UNITS = 2**24
# Kernels count positions in 32 bits.
MOST_POSITIONS = 2**31 - 1
# torch seeds its generators with 64 bits.
_SEEDS = (-(2**63), 2**63 - 1)
_MOST_LABELS = 2**20
# The largest number of float32, the widest type that weights and scores are computed in.
_LARGEST = (2 - 2**-23) * 2.0**127


def check_count(value, least: int, most: int, reason: str) -> None:
    """
    Checks a whole number.

    Raises:
        `ValueError`: It is below `least`, or above `most` for the given reason; or it is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"Value must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"Value must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"Value must be at most {most:,}, got {shortened(value)}: {reason}")


def check_number(value) -> None:
    """Raises a `ValueError` for a value that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"Value must be a number, got {value!r}")
    # Not `math.isfinite`, which fails for whole numbers of hundreds of digits.
    if not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"Value must be a finite number of float32, got {shortened(value)}")


def check_library_fields(given: dict) -> None:
    """
    Checks fields that the library's config class converts without a check, or fills with as many names as they say.

    Raises:
        `ValueError`: `dtype` is no dtype of torch, `num_labels` is out of range, or `id2label` or
            `quantization_config` no dictionary.
    """
    for name in ("dtype", "torch_dtype"):
        value = given.get(name)
        known = isinstance(getattr(torch, value, None), torch.dtype) if isinstance(value, str) else True
        if not known or not isinstance(value, str | torch.dtype | None):
            raise ValueError(f"{name}={value!r} must be the name of a torch dtype, such as 'float32' or 'bfloat16'.")
    if given.get("num_labels") is not None:
        try:
            check_count(given["num_labels"], 0, _MOST_LABELS, "the config holds a name for each label")
        except ValueError as error:
            raise ValueError(f"num_labels: {error}.") from None
    quantization = given.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict) and not hasattr(quantization, "to_dict"):
        raise ValueError(f"quantization_config={quantization!r} must be a dictionary.")
    if not isinstance(given.get("id2label"), dict | None):
        raise ValueError(f"id2label={given['id2label']!r} must be a dictionary of ids and their names.")


def shortened(value) -> str:
    """A number in a message. Python does not print whole numbers of thousands of digits."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"{'-' if value < 0 else ''}2**{abs(value).bit_length() - 1} or more"
    return str(value)


RECURRENCES_REASON = "recurrences run one after the other, and each has its own keys and values"
_LAYERS_REASON = "layers run one after the other"
_UNITS_REASON = "no machine holds matrices of this size"


@as_validated_field
def activation_field(value):
    """The name of an activation function of the library."""
    if isinstance(value, str) and value not in ACT2FN:
        close = difflib.get_close_matches(value, ACT2FN, n=1)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Value must be one of {', '.join(ACT2FN)}, got {value!r}{hint}")


def _count_field(least, most, reason):
    def validate(value):
        if value is not None:
            check_count(value, least, most, reason)

    return as_validated_field(validate)


def _number_field(least=None, most=None, *, includes=True, below=None):
    def validate(value):
        if value is None:
            return
        check_number(value)
        if least is not None and (value < least or (value == least and not includes)):
            raise ValueError(f"Value must be {'at least' if includes else 'above'} {least}, got {value}")
        if most is not None and value > most:
            raise ValueError(f"Value must be at most {most}, got {value}")
        if below is not None and value >= below:
            raise ValueError(f"Value must be below {below}, got {value}")

    return as_validated_field(validate)


# Not the library's validators, which accept True and NaN. In transformers 5.17, `interval` ignores a bound of 0.
recurrences_field = _count_field(1, MOST_RECURRENCES, RECURRENCES_REASON)
layers_field = _count_field(0, MOST_LAYERS, _LAYERS_REASON)
looped_layers_field = _count_field(1, MOST_LAYERS, _LAYERS_REASON)
units_field = _count_field(1, MOST_UNITS, _UNITS_REASON)
positions_field = _count_field(1, MOST_POSITIONS, "positions are counted in 32 bits")
seed_field = _count_field(*_SEEDS, "torch's generators take seeds of 64 bits")
number_field = _number_field()
not_negative_field = _number_field(0)
positive_field = _number_field(0, includes=False)
share_field = _number_field(0, below=1)
probability_field = _number_field(0, 1, includes=False)


def check_token_ids(config) -> None:
    """
    Checks that the ids of special tokens are in the vocabulary.

    Args:
        config (`RecurrentDepthConfig`): `pad_token_id`, `bos_token_id`, `eos_token_id` and `vocab_size` are read.

    Raises:
        `ValueError`: An id is negative, or not below `vocab_size`. Some configs on the Hub say `pad_token_id=-1` for
        none.
    """
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value, least = getattr(config, name), -1 if name == "pad_token_id" else 0
        for token_id in value if isinstance(value, list) else [value]:
            if token_id is not None and not least <= token_id < config.vocab_size:
                raise ValueError(
                    f"{name}={value} must be None or at least 0 and below vocab_size={config.vocab_size}."
                )


def check_rope(parameters: dict, head_dim: int) -> None:
    """
    Checks the type and the base of rotary positions, and how much of a head they rotate.

    Args:
        parameters (`dict`): As `RecurrentDepthConfig.rope_parameters`.
        head_dim (`int`): The channels of a head.

    Raises:
        `ValueError`: `rope_type` is not known to the library, a number is out of range, or types of layers have
            parameters of their own.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim={head_dim} must be even: RoPE rotates pairs.")
    nested = [name for name, value in parameters.items() if isinstance(value, dict)]
    if nested:
        raise ValueError(
            f"rope_parameters holds parameters for the layer types {', '.join(nested)}, but all layers of a "
            "recurrent-depth model share one set. Pass one dictionary that is not nested."
        )
    kind = parameters.get("rope_type", "default")
    known = ("default", *(name for name in ROPE_INIT_FUNCTIONS if name != "default"))
    if kind not in known:
        raise ValueError(f"rope_parameters['rope_type']={kind!r} must be one of {', '.join(known)}.")
    theta = parameters.get("rope_theta")
    if theta is not None and (not isinstance(theta, int | float) or not 0 < theta < math.inf):
        raise ValueError(f"rope_parameters['rope_theta']={theta!r} must be a number above 0.")
    factor = parameters.get("partial_rotary_factor")
    if factor is not None and (not 0 < factor <= 1 or int(head_dim * factor) % 2):
        raise ValueError(
            f"rope_parameters['partial_rotary_factor']={factor} must be above 0, at most 1, and rotate an even "
            f"number of the head_dim={head_dim} channels, got {int(head_dim * factor)}."
        )


__all__ = [
    "MOST_RECURRENCES",
    "RECURRENCES_REASON",
    "activation_field",
    "check_count",
    "check_library_fields",
    "check_number",
    "check_rope",
    "check_token_ids",
    "layers_field",
    "looped_layers_field",
    "not_negative_field",
    "number_field",
    "positions_field",
    "positive_field",
    "probability_field",
    "recurrences_field",
    "seed_field",
    "share_field",
    "shortened",
    "units_field",
]
