"""What an adapter records about its base model, so that another base is refused before it gives wrong answers."""

import hashlib

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.adapters.base_files import block_digests, differing_files, weight_files
from memreason_hf.steps.tokenization import SCHEME_KEY, new_rows


# What `describe_base` returns.
DESCRIPTION = ("config", "dtype", "rows_before", "rows", "new_rows", "tokenizer", "weights")
# Fields of the config that an adapter depends on. A config without such a field counts as None.
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
_DIGEST_SAMPLES = 16
_GOLDEN = 0.6180339887498949


def describe_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, revision: str | None = None) -> dict:
    """
    What an adapter records about its base, JSON-like.

    Args:
        model ([`~transformers.PreTrainedModel`]): The base, extended for `tokenizer` and not yet wrapped by PEFT.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The extended tokenizer.
        revision (`str`, *optional*): The revision of a model that was loaded from the Hub.

    Returns:
        `config` (fields that the adapter depends on), `dtype` (which may be another one when the adapter is used),
        `rows_before` and `rows` of the embedding before and after the extension, `new_rows` (their ids), `tokenizer`
        (a digest of its vocabulary) and `weights` (digests of the files that the model was loaded from, empty for a
        model that was never saved). Changes of the weights in memory are not recorded: save the model first.
    """
    rows_before, ids = new_rows(model)
    return {
        "config": _config_fields(model.config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "rows_before": rows_before,
        "rows": model.get_input_embeddings().weight.shape[0],
        "new_rows": list(ids),
        "tokenizer": tokenizer_digest(tokenizer),
        "weights": block_digests(weight_files(model.name_or_path, revision)),
    }


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the tokens and their ids."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256("\n".join(f"{id_} {token}" for token, id_ in tokens).encode()).hexdigest()[:16]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, description: dict) -> None:
    """
    Checks that a tokenizer is the one that an adapter was trained with.

    Raises:
        ValueError: its tokens or their ids differ.
    """
    if tokenizer_digest(tokenizer) != description["tokenizer"]:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} ({len(tokenizer)} tokens) is not the one that the adapter was "
            "trained with: its tokens or their ids differ. Restore the tokenizer that was saved with the adapter."
        )


def check_config(config: PreTrainedConfig, description: dict) -> None:
    """
    Checks the config of a base, before any weight is read.

    Args:
        config ([`~transformers.PreTrainedConfig`]): The config of the base, extended or not.
        description (`dict`): The result of `describe_base`.

    Raises:
        ValueError: another width, tying, vocabulary or architecture than the adapter's base has.
    """
    expected, actual = description["config"], _config_fields(config)
    differing = [
        f"{_TITLES.get(name, name)} is {actual.get(name)!r}, the adapter's base has {value!r}"
        for name, value in expected.items()
        if actual.get(name) != value
    ]
    extended = getattr(config, SCHEME_KEY, None) or {}
    rows = extended.get("rows_before", config.vocab_size)
    if rows != description["rows_before"]:
        differing.append(
            f"vocabulary: its embedding has {rows} rows, the adapter's base has {description['rows_before']}"
        )
    if differing:
        raise _other_base(config, "; ".join(differing))


def check_rows(model: PreTrainedModel, description: dict) -> None:
    """
    Checks the rows of a base that was extended for the adapter's tokenizer.

    Raises:
        ValueError: the embedding has another number of rows, or other ids are new.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if rows != description["rows"] or list(new_rows(model)[1]) != description["new_rows"]:
        raise _other_base(
            model.config, f"vocabulary: extended, it has {rows} rows, the adapter's base {description['rows']}"
        )


def check_weights(config: PreTrainedConfig, files: dict, description: dict, check: str) -> None:
    """
    Checks the weight files of a base.

    Args:
        config ([`~transformers.PreTrainedConfig`]): The config of the base, for the message.
        files (`dict[str, Path]`): The weight files of the base. Without any, nothing is checked.
        description (`dict`): The result of `describe_base`.
        check (`str`): `"blocks"`, `"sha256"` (reads the files whole) or `"none"`.

    Raises:
        ValueError: the files differ.
    """
    recorded = description["weights"]
    if check == "none" or not recorded or not files:
        return
    if names := differing_files(recorded, files, whole=check == "sha256"):
        raise _other_base(
            config,
            f"its weight files differ: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}",
            "If it is the same model saved in another way, pass base_check='none'.",
        )


def _config_fields(config):
    return {name: getattr(config, name, None) for name in _CONFIG_FIELDS}


def _other_base(config, difference, hint=""):
    name = getattr(config, "_name_or_path", "") or config.model_type
    advice = " ".join(filter(None, ("Use the model that the adapter was trained on (base=).", hint)))
    return ValueError(f"{name!r} is not the base model of this adapter: {difference}. {advice}")
