"""Texts to evaluate on, as documents of token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenDocuments:
    """
    Documents of token ids.

    Attributes:
        ids (`list[list[int]]`): One list for each document.
        num_bytes (`int`): The UTF-8 bytes of the text that is predicted, over all documents. The first token of a
            document is not predicted; its text counts unless it is a special token that the tokenizer put there.
    """

    ids: list[list[int]]
    num_bytes: int


def tokenize_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> TokenDocuments:
    """
    Tokenizes texts as the tokenizer does by default, with the special tokens that it adds, and counts their bytes.

    Raises:
        ValueError: there is no text that has a token to predict.
    """
    encoded = tokenizer(list(texts), add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    documents, num_bytes = [], 0
    for text, ids in zip(texts, encoded, strict=True):
        if len(ids) < 2:
            continue
        documents.append(ids)
        num_bytes += len(text.encode())
        if ids[0] not in special:
            num_bytes -= len(tokenizer.decode(ids[:1]).encode())
    if not documents:
        raise ValueError(f"None of the {len(texts)} documents has a token to predict: each needs at least two tokens.")
    return TokenDocuments(documents, num_bytes)
