"""Which tokenizers bound the characters of a text by the number of its tokens."""

import json

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase


_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Parts of a pre-tokenizer that keep every character.
_KEEPS = {"ByteLevel", "Metaspace", "Digits"}


def characters_of_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """
    The most characters that a token stands for, or `None` if there is no such number.

    If the vocabulary has all bytes and nothing shortens the text, a token stands for no more characters than its name
    has. Otherwise whole texts can be lost or become one unknown token: some tokenizers drop spaces, for example.

    Example:

        >>> characters_of_token(tokenizer) == max(map(len, tokenizer.get_vocab()))
        True
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    state = json.loads(backend.to_str())
    # A token that strips takes in any number of spaces beside it.
    strips = any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"])
    if strips or not _keeps_length(state["normalizer"]) or not _keeps_all(state["pre_tokenizer"]):
        return None
    vocabulary = backend.get_vocab()
    return max(map(len, vocabulary)) if _has_all_bytes(state, vocabulary) else None


def _parts(part, name):
    """The parts of a sequence, or the one part that there is."""
    if part is None:
        return []
    return [inner for one in part[name] for inner in _parts(one, name)] if part["type"] == "Sequence" else [part]


def _keeps_length(normalizer):
    return all(_lengthens(part) for part in _parts(normalizer, "normalizers"))


def _lengthens(part):
    if part["type"] == "Replace":
        # Spaces become the sign that stands for them in the vocabulary.
        old = part["pattern"].get("String")
        return old is not None and len(part["content"]) >= len(old)
    return part["type"] == "Prepend"


def _keeps_all(pre_tokenizer):
    parts = _parts(pre_tokenizer, "pretokenizers")
    return all(part["type"] in _KEEPS or _only_splits(part) for part in parts)


def _only_splits(part):
    return part["type"] in ("Split", "Punctuation") and part["behavior"] != "Removed"


def _has_all_bytes(state, vocabulary):
    if state["model"].get("byte_fallback"):
        return all(name in vocabulary for name in _BYTES)
    names = {part["type"] for part in _parts(state["pre_tokenizer"], "pretokenizers")}
    is_byte_level = state["model"]["type"] == "BPE" and "ByteLevel" in names
    return is_byte_level and all(name in vocabulary for name in pre_tokenizers.ByteLevel.alphabet())
