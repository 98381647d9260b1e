"""Vocabulary of a multi-hop world, and the word-level tokenizer over it."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memreason_hf.files import read_json
from memreason_hf.messages import first_few


PAD_TOKEN = "<pad>"
END_OF_ANSWER = "</a>"
EXTRA_TOKENS = ("<mask>", "<sep>", "<a>", END_OF_ANSWER, "<q>", "</q>")
VOCABULARY_FILE = "vocab.json"
TOKENIZER_FILE = "tokenizer.json"

# No blanks, quotes or backslashes: glued tokens split without doubt and need no escapes in JSON.
_TOKEN_PATTERN = re.compile(r'<[^<>"\\\s\x00-\x1f\x7f-\U0010ffff]+>')


def entity_token(index: int) -> str:
    return f"<e_{index}>"


def relation_token(index: int) -> str:
    return f"<r_{index}>"


def build_vocabulary(num_entities: int, num_relations: int) -> list[str]:
    """
    Tokens in the order of their ids: `<pad>` (id 0), entities, relations, then the study's six further tokens.
    """
    entities = [entity_token(i) for i in range(num_entities)]
    relations = [relation_token(i) for i in range(num_relations)]
    return [PAD_TOKEN, *entities, *relations, *EXTRA_TOKENS]


def write_vocabulary(vocabulary: Sequence[str], folder: str | Path):
    """
    Writes `vocab.json` as the study has it: the list of the tokens without a leading `<pad>`, which its loader (and
    `read_vocabulary`) puts first.
    """
    tokens = list(check_vocabulary(vocabulary))
    if tokens[0] == PAD_TOKEN:
        tokens = tokens[1:]
    Path(folder, VOCABULARY_FILE).write_text(json.dumps(tokens), encoding="utf-8")


def read_vocabulary(folder: str | Path) -> list[str]:
    """
    Reads `vocab.json`: a list of tokens, with or without `<pad>`; it is put first (id 0) where it is not in the list.

    Returns the tokens in the order of their ids. Raises FileNotFoundError, or ValueError for anything else than such a
    list.
    """
    path = Path(folder, VOCABULARY_FILE)
    tokens = read_json(path)
    if not isinstance(tokens, list):
        raise ValueError(f"{path} holds a {type(tokens).__name__}; it must hold the list of tokens, in order.")
    if PAD_TOKEN not in tokens:
        tokens = [PAD_TOKEN, *tokens]
    try:
        return list(check_vocabulary(tokens))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_vocabulary(vocabulary: Sequence[str]) -> Sequence[str]:
    """Returns the vocabulary, or raises ValueError if a token is malformed, given twice or missing."""
    malformed = [t for t in vocabulary if not isinstance(t, str) or not _TOKEN_PATTERN.fullmatch(t)]
    if malformed:
        raise ValueError(
            f"{first_few(malformed)} cannot be in the vocabulary: a token is `<...>`, printable ASCII without blanks, "
            "quotes or backslashes."
        )
    if len(set(vocabulary)) < len(vocabulary):
        repeated = [token for token, count in Counter(vocabulary).items() if count > 1]
        raise ValueError(f"The vocabulary holds {first_few(repeated)} more than once.")
    missing = [token for token in (PAD_TOKEN, END_OF_ANSWER) if token not in vocabulary]
    if missing:
        raise ValueError(f"The vocabulary lacks {first_few(missing)}.")
    return vocabulary


def build_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """
    The word-level tokenizer over `vocabulary`, whose order gives the ids.

    Glued tokens (`<e_3><r_1>`) are split into words, blanks between them are skipped, and decoding glues them again.
    There is no unknown token: a word outside the vocabulary raises an error instead of vanishing. Padding goes to the
    left, so that the answer position is the last one in every row.
    """
    ids = {token: index for index, token in enumerate(check_vocabulary(vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(ids))
    # "isolated" keeps what lies between tokens as words of its own, which then raise; "removed" would hide them.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), behavior="removed"),
            pre_tokenizers.Split(Regex("<[^<>]+>"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def load_multi_hop_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """
    The tokenizer saved in a data set's folder, or made from its `vocab.json` where only the JSON files are there.

    Raises FileNotFoundError if the folder has neither, ValueError if the two do not agree.
    """
    folder = Path(path)
    has_tokenizer, has_vocabulary = (Path(folder, name).is_file() for name in (TOKENIZER_FILE, VOCABULARY_FILE))
    if not has_tokenizer and not has_vocabulary:
        raise FileNotFoundError(
            f"{folder} holds neither {TOKENIZER_FILE} nor {VOCABULARY_FILE}: no data set is there."
        )
    if not has_tokenizer:
        return build_tokenizer(read_vocabulary(folder))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if has_vocabulary:
        expected = {token: index for index, token in enumerate(read_vocabulary(folder))}
        found = tokenizer.get_vocab()
        if any(found.get(token) != index for token, index in expected.items()):
            raise ValueError(
                f"{folder}: {TOKENIZER_FILE} ({len(found)} tokens) and {VOCABULARY_FILE} ({len(expected)} tokens) "
                "differ. Build the data set again, or remove the one that is wrong."
            )
    return tokenizer
